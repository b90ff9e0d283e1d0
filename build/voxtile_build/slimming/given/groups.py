"""Which scans must stay together: those of one person, and those that share voxels. Knows nothing of files' content."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence

SUBJECT = re.compile(r"(?:^|/)(sub-[A-Za-z0-9+]+)(?=[_/.]|$)", re.ASCII)
"""The entity of BIDS that names a person, in a folder's or a file's name."""


def subject_of(name: str) -> str:
    """The BIDS subject that a path names, such as sub-01; empty where it names none.

    Two data sets below one folder may use one name for two persons: their scans then stay together needlessly, which
    costs less than the opposite, a person on both sides.
    """
    found = SUBJECT.search(name)
    return found[1] if found else ""


def grouped(keys: Sequence[Sequence[Hashable]]) -> tuple[tuple[int, ...], ...]:
    """The items that share a key, directly or through others: groups of their indices, in order.

    Args:
        keys: of each item.
    """
    leader = list(range(len(keys)))

    def first_of(item: int) -> int:
        while leader[item] != item:
            leader[item] = leader[leader[item]]
            item = leader[item]
        return item

    seen: dict[Hashable, int] = {}
    for item, own in enumerate(keys):
        for key in own:
            one, other = sorted((first_of(item), first_of(seen.setdefault(key, item))))
            leader[other] = one
    groups: dict[int, list[int]] = {}
    for item in range(len(keys)):
        groups.setdefault(first_of(item), []).append(item)
    return tuple(map(tuple, _ordered(groups)))


def _ordered(groups: Mapping[int, list[int]]) -> list[list[int]]:
    return [groups[first] for first in sorted(groups)]
