"""`voxtile why`: what made a mask, and whether that still stands."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from voxtile.card import Card
from voxtile.cli import options
from voxtile.cli.console import errors_for_the_user, write_out
from voxtile.cli.printable import printable
from voxtile.errors import InputError
from voxtile.io.plain_file import check_plain_file
from voxtile.outputs.passport import Passport, Teacher, UsedModel
from voxtile.outputs.signed_files import LARGEST_TEXT, Signed, read_signed
from voxtile.outputs.standing import not_compared, reservations, standing
from voxtile.triton.catalogue import list_models
from voxtile.triton.endpoint import Endpoint
from voxtile.triton.versions import MARK

DIFFERS = 1
"""The exit code where something is no longer as the passport says."""


def why(
    mask: Annotated[Path, typer.Argument(metavar="MASK", help="A mask of NIfTI, an object of DICOM, or a report.")],
    server: options.ServerOptions,
    check: Annotated[
        bool, typer.Option("--check", help="Compare it with the model that the servers of --url offer today.")
    ] = False,
    card: Annotated[
        Path | None,
        typer.Option("--card", metavar="FILE", help="Compare it with a card, or with cards, that were kept."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object, for programs.")] = False,
) -> None:
    """Say what made a mask: model, weights, certificate, engine, tiling, and what was changed.

    Exit code 0: all that was compared is the same; 1: something differs; 2: nothing can be said.
    """
    with errors_for_the_user():
        signed = read_signed(mask)
        told = _Told(signed)
        if card is not None:
            told.compare(_kept_cards(card, signed.passport))
        if check:
            told.compare(_served_cards(signed.passport, server))
        write_out(told.as_json() if as_json else told.in_words())
    raise typer.Exit(0 if all(told.compared.values()) else DIFFERS)


class _Told:
    """What is said of a mask."""

    def __init__(self, signed: Signed) -> None:
        self.passport = signed.passport
        self.compared: dict[str, bool] = {}
        self.not_compared: list[str] = []
        self.reservations: list[str] = []
        if signed.unchanged is None:
            self.not_compared.append(f"the mask ({signed.unknown})")
        else:
            self.compared["the mask is as it was written"] = signed.unchanged

    def compare(self, cards: Mapping[str, Sequence[Card]]) -> None:
        """Adds what is to be said of these cards, by the models' names; what holds once must hold each time."""
        for what, holds in standing(self.passport, cards).items():
            self.compared[what] = self.compared.get(what, True) and holds
        self.not_compared += [one for one in not_compared(self.passport, cards) if one not in self.not_compared]
        self.reservations += [one for one in reservations(self.passport, cards) if one not in self.reservations]

    def as_json(self) -> str:
        fields = {
            "passport": self.passport.model_dump(),
            "compared": self.compared,
            "not_compared": self.not_compared,
            "reservations": self.reservations,
        }
        return json.dumps(fields, indent=2) + "\n"

    def in_words(self) -> str:
        rows = [
            *_rows(self.passport),
            *(("yes" if same else "NO", what) for what, same in self.compared.items()),
            *(("but", what) for what in self.reservations),
            *(("not compared", what) for what in self.not_compared),
        ]
        return "".join(f"{name:12} {printable(value)}\n" for name, value in rows)


def _served_cards(passport: Passport, server: options.ServerOptions) -> dict[str, list[Card]]:
    """The cards of a passport's models on all servers.

    Raises:
        VoxtileError: a server does not answer, or none of them offers one of the models.
    """
    names = [passport.model, *(one.model for one in passport.others)]
    found: dict[str, list[Card]] = {name: [] for name in names}
    for url in server.url:
        with contextlib.closing(Endpoint(url, server.connection(shared_memory=False))) as endpoint:
            offered = list_models(endpoint, versions=True)
            for used in (passport, *passport.others):
                known = {one.name: one.card for one in offered if one.card is not None}
                card = known.get(f"{used.model}{MARK}{used.version}", known.get(used.model))
                if card is not None and card not in found[used.model]:
                    found[used.model].append(card)
    for name, cards in found.items():
        if not cards:
            raise InputError(f"expected the model {name!r} on {', '.join(server.url)}, found no such model there")
    return found


def _kept_cards(path: Path, passport: Passport) -> dict[str, list[Card]]:
    """The cards in a file, by the models' names: a card, or what `voxtile models --json` prints.

    Of a model with several versions, those are taken that made the mask, where there are any.

    Raises:
        InputError: it holds none, or several and none of `model`.
    """
    check_plain_file(path, "a card")
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(LARGEST_TEXT))
        several = found if isinstance(found, list) else [found]
        cards = [Card.model_validate(one.get("card", one)) for one in several if one.get("card", one) is not None]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, AttributeError, RecursionError):
        raise InputError(f"{path}: expected a card (JSON, as voxtile models --json prints it), found none") from None
    if len(cards) == 1:
        return {passport.model: cards}  # what it is called is compared like all else
    by_name: dict[str, list[Card]] = {}
    for card in cards:
        by_name.setdefault(card.name, []).append(card)
    if passport.model not in by_name:
        known = ", ".join(map(repr, by_name)) or "none"
        raise InputError(f"{path}: expected a card of {passport.model!r}, found {known}")
    for used in (passport, *passport.others):
        same = [one for one in by_name.get(used.model, ()) if str(one.version) == used.version]
        if same:
            by_name[used.model] = same
    return by_name


def _rows(passport: Passport) -> list[tuple[str, str]]:
    tiling = ", ".join(f"{key} {value}" for key, value in passport.tiling.items())
    client = f"voxtile {passport.voxtile}" + (f", Triton {passport.triton}" if passport.triton else "")
    return [
        *_model_rows("model", passport),
        *(row for one in passport.others for row in _model_rows(one.role, one)),
        ("tiling", tiling or "not said here"),
        ("changes", "; ".join(passport.changes) or "none: the model's own semantics"),
        ("scan", passport.scan_sha256),
        ("client", client),
    ]


def _model_rows(role: str, used: UsedModel) -> list[tuple[str, str]]:
    return [
        (printable(role), f"{used.model}, version {used.version}"),
        ("weights", used.weights_sha256),
        *_student_rows(used.student_of),
        ("graph", used.onnx_sha256),
        ("engine", " ".join(filter(None, (used.engine, used.precision)))),
        ("certificate", _verdict(used)),
    ]


def _student_rows(teacher: Teacher | None) -> list[tuple[str, str]]:
    if teacher is None:
        return []
    return [
        ("student of", f"{teacher.teacher}, weights {teacher.weights_sha256}"),
        ("agreement", teacher.agreement),
    ]


def _verdict(used: UsedModel) -> str:
    if not used.certificate_sha256:
        return "none"
    return f"{used.certificate_sha256}{'' if used.certified else ', which did not meet its limits'}"
