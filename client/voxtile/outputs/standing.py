"""Says whether a passport still stands: whether the models that it names are, by their cards, still the same.

Each claim is about two things that are there: what neither side states is never called the same. Knows nothing of
files or servers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from voxtile.card import Card
from voxtile.outputs.passport import OtherModel, Passport, UsedModel, method_sha256, teacher_of


def standing(passport: Passport, cards: Mapping[str, Sequence[Card]]) -> dict[str, bool]:
    """What of the models' cards is as a passport says.

    Args:
        passport: what made a mask.
        cards: the cards of models by their public names; of a model with several cards, all must be as it says.
            Models that it lacks are not compared.

    Returns:
        Whether each claim, in words, is true.
    """
    claims: dict[str, bool] = {}
    for one in (passport, *passport.others):
        who = f"the {one.role} {one.model}: " if isinstance(one, OtherModel) else ""
        for card in cards.get(one.model, ()):
            for what, holds in _claims(one, card, passport).items():
                claims[who + what] = claims.get(who + what, True) and holds
    return claims


def not_compared(passport: Passport, cards: Mapping[str, Sequence[Card]]) -> list[str]:
    """The models of a passport of which there is no card, in words."""
    used = [("model", passport), *((one.role, one) for one in passport.others)]
    return [f"{role} {one.model}" for role, one in used if not cards.get(one.model)]


def reservations(passport: Passport, cards: Mapping[str, Sequence[Card]]) -> list[str]:
    """What the certificates of today's cards, and a student's agreement, do not prove, in words."""
    found: list[str] = []
    for name in dict.fromkeys(one.model for one in (passport, *passport.others)):
        for card in cards.get(name, ()):
            proofs = (card.certificates.get(card.engine), card.provenance.student_of)
            found += [f"{name}: {one}" for proof in proofs if proof for one in proof.reservations]
    return list(dict.fromkeys(found))


def _claims(used: UsedModel, card: Card, passport: Passport) -> dict[str, bool]:
    certificate, provenance = card.certificates.get(card.engine), card.provenance
    same = certificate is not None and _same(certificate.sha256, used.certificate_sha256)
    claims = {
        "the model has the same name": card.name == used.model,
        "the model has the same weights": _same(provenance.weights_sha256, used.weights_sha256),
        "its engines were built from the same graph": _same(provenance.onnx_sha256, used.onnx_sha256),
        "it does the same with a scan": _same(method_sha256(card), used.method_sha256),
        "the same engine answers": _same(card.engine, used.engine),
        "its certificate is the same": same,
        "its certificate is valid": same and certificate is not None and certificate.accepted and used.certified,
    }
    if "version" in card.model_fields_set:  # a card that was kept as it is built may not say it
        claims["the model has the same version"] = str(card.version) == used.version
    if used.student_of is not None:
        claims["it is a student of the same teacher, and agrees with it as much"] = used.student_of == teacher_of(card)
    if card.parts is not None:  # a set has no engine of its own; its models have, and are compared by themselves
        del claims["the same engine answers"]
    if card.models_behind:
        named = {one.model for one in passport.others}
        claims["the passport names the models behind it"] = named.issuperset(card.models_behind)
    return claims


def _same(one: str, other: str) -> bool:
    return bool(one) and one == other
