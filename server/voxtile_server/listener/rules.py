"""Says which rule a series falls under. Knows nothing of files or of the network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from voxtile_server.listener.settings import Rule


@dataclass(frozen=True)
class Facts:
    """What rules ask of a series.

    Attributes:
        modality: as an object of it says.
        description: likewise; never shown, for it may name a patient.
        senders: the AE titles that have sent objects of it.
    """

    modality: str
    description: str = field(repr=False)
    senders: frozenset[str]


def fits(rule: Rule, facts: Facts) -> bool:
    """Whether a series may fall under `rule`, however many slices it will have."""
    if rule.modality is not None and rule.modality.upper() != facts.modality.upper():
        return False
    if rule.description is not None and not fnmatchcase(facts.description.upper(), rule.description.upper()):
        return False
    return not rule.calling or not facts.senders.isdisjoint(rule.calling)


def rule_for(rules: Iterable[Rule], facts: Facts, slices: int) -> Rule | None:
    """The first rule that fits; None where none does."""
    for rule in rules:
        enough = rule.min_slices <= slices and (rule.max_slices is None or slices <= rule.max_slices)
        if enough and fits(rule, facts):
            return rule
    return None
