"""Records in a model's card on which devices its engines were verified. Measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from voxtile.card import Card, Certificate
from voxtile_build.certificate.verdict import Verdict
from voxtile_build.errors import RepositoryError
from voxtile_build.repository.card import get_card, set_card
from voxtile_build.repository.config import read_config, write_config
from voxtile_build.repository.entries import entry_name, fold_names
from voxtile_build.repository.publishing import staging
from voxtile_build.repository.versions import same_build


def record_devices(name: str, repository: Path, verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    """Add to the card of `name` the device that a server ran each engine on, if all of its entries hold there.

    Nothing is written for the device that the certificate names itself, nor for one of another kind than the engine is
    meant for. The certificates and their digests stay as they are.

    Args:
        name: the public name.
        repository: the model repository.
        verdicts: of the entries behind the name, as a running server gave them.

    Returns:
        A line for each device that was added.

    Raises:
        RepositoryError: the repository cannot be read or written, or the name stands for another model since a moment.
    """
    folder = repository / name
    config = read_config(folder)
    card = get_card(config, folder)
    if card.parts:
        return tuple(line for part in card.parts.models for line in record_devices(part.model, repository, verdicts))
    first = record_devices(card.previous_stage, repository, verdicts) if card.previous_stage else ()
    found = {engine: _new_device(card, engine, fold_names(config), verdicts) for engine in card.certificates}
    added = {engine: device for engine, device in found.items() if device}
    if added:
        certificates = {engine: _with(known, found[engine]) for engine, known in card.certificates.items()}
        with staging(repository):
            if read_config(folder) != config:
                raise RepositoryError(
                    f"{folder}: expected the model that was verified, found that it was built again, or moved to "
                    "another version, meanwhile; verify it again"
                )
            for entry in same_build(name, repository):
                own = read_config(repository / entry)
                set_card(own, card.model_copy(update={"certificates": certificates}))
                write_config(own, repository / entry)
    return first + tuple(
        f"{name}: its card says now that {engine} was verified on {device}; load the model again to see it"
        for engine, device in added.items()
    )


def _new_device(card: Card, engine: str, folds: Sequence[str], verdicts: Sequence[Verdict]) -> str:
    """The device to add for an engine; empty if there is none."""
    known, by_entry = card.certificates[engine], {verdict.entry: verdict for verdict in verdicts}
    behind = [by_entry[entry] for fold in folds if (entry := entry_name(fold, engine)) in by_entry]
    if len(behind) != len(folds) or not all(one.holds and one.device_kind == known.serves_on for one in behind):
        return ""
    names = {one.device for one in behind}
    return "" if len(names) != 1 or names & {known.device_name, *known.verified_on} else names.pop()


def _with(known: Certificate, device: str) -> Certificate:
    return known.model_copy(update={"verified_on": (*known.verified_on, device)}) if device else known
