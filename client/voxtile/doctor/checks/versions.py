"""Faults between a public name and the versions of its model. Opens no file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from voxtile.doctor.entry import Entry
from voxtile.doctor.finding import Finding
from voxtile.triton.versions import version_entry

HISTORY = "history"
"""The parameter of a public entry with the versions that its name stood for before."""


def check_versions(entry: Entry, entries: Mapping[str, Entry]) -> Iterator[Finding]:
    """Faults of a public entry that is one of several versions, or stands for one of them.

    Args:
        entry: the entry; one without a card has none.
        entries: of all repositories, by name.
    """
    card = entry.card
    if card is None or entry.config is None or not entry.served:
        return
    where, own = str(entry.config_file), version_entry(card.name, str(entry.served[-1]))
    if entry.name == own:
        if card.name not in entries:
            yield Finding(
                "warning",
                "version-alone",
                where,
                f"a version of {card.name!r}, which is no model of this repository",
                f"who asks for {card.name!r} gets nothing",
                f"voxtile-build promote needs {card.name!r}: bring it back, or build the model again",
            )
        return
    others = [name for name in entries if re.fullmatch(rf"{re.escape(entry.name)}\.v[1-9][0-9]*", name)]
    if not others or card.name != entry.name:
        return
    kept = entries.get(own)
    if kept is None:
        yield Finding(
            "error",
            "public-version-missing",
            where,
            f"it stands for version {entry.served[-1]}, and {own!r} is not there",
            "a scan that is on its way while the name moves would end with an error",
            f"bring {own!r} back, or build this version again",
        )
    elif kept.config is not None and kept.card != card:
        yield Finding(
            "error",
            "public-version-differs",
            where,
            f"its card is not that of {own!r}",
            "a mask's passport and a scan that is on its way while the name moves would speak of another build",
            f"voxtile-build promote {card.name} with another version and back, or build this version again",
        )
    gone = [number for number in _history(entry) if version_entry(entry.name, number) not in entries]
    if gone:
        yield Finding(
            "warning",
            "version-gone",
            where,
            f"the name stood for version {', '.join(dict.fromkeys(gone))} before, which is not there",
            f"voxtile-build rollback {entry.name} would fail",
            f"choose a version with voxtile-build promote {entry.name} VERSION",
        )


def is_version(entry: Entry) -> bool:
    """Whether an entry keeps one version of the model that its card names."""
    card, served = entry.card, entry.served
    return card is not None and bool(served) and entry.name == version_entry(card.name, str(served[-1]))


def is_copy(entry: Entry, entries: Mapping[str, Entry]) -> bool:
    """Whether a public entry is the copy of one version's own, so that what stands behind both is examined there."""
    card, served = entry.card, entry.served
    if card is None or not served or is_version(entry):
        return False
    kept = entries.get(version_entry(entry.name, str(served[-1])))
    return kept is not None and kept.card == card


def _history(entry: Entry) -> list[str]:
    if entry.config is None or HISTORY not in entry.config.parameters:
        return []
    return str(entry.config.parameters[HISTORY].string_value).split()
