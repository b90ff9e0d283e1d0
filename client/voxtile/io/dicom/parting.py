"""Parts frames of one series and plane that are no one scan: echoes, phases, b-values, kernels, acquisitions.

Knows nothing of files or pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from voxtile.io.dicom.grid import UNEVEN, at_one_place, has_gaps, in_order, is_even
from voxtile.io.dicom.objects.frames import DISTINCTIONS, Frame

CONTRASTS = frozenset(
    {
        "EchoNumbers",
        "EchoTime",
        "EffectiveEchoTime",
        "ContrastBolusAgentPhase",
        "DiffusionBValue",
        "ConvolutionKernel",
    }
)
"""Tags that change what a tissue's value is: slices that differ in one are of two scans, wherever they lie."""

MOST_TAGS = 3
"""Tags that together tell the parts of a series apart, such as echo, time and phase."""

Part = tuple[int, ...]


@dataclass(frozen=True)
class _Tag:
    """What one tag says of each frame, as a number; equal for frames of which it says the same."""

    values: tuple[int, ...]
    contrast: bool


def parts_of(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Returns frames in the fewest parts into which their tags part them, each at even distances and of one contrast.

    Frames stay together where no tags part them so, and where several do in unlike ways: their grid then says what is
    wrong with them. So they do where the parts would lie behind each other on one line with a gap between: slices are
    missing.
    """
    parts = _Parting(frames, _tags_of(frames)).best(tuple(range(len(frames))), MOST_TAGS)
    return [[frames[number] for number in part] for part in sorted(parts)] if parts else [list(frames)]


def _tags_of(frames: Sequence[Frame]) -> list[_Tag]:
    """The tags that part frames at all, each way of parting once."""
    contrasts: dict[tuple[int, ...], bool] = {}
    for which, (keyword, *_) in enumerate(DISTINCTIONS):
        known: dict[Hashable, int] = {}
        values = tuple(known.setdefault(frame.distinction(which), len(known)) for frame in frames)
        if len(known) > 1:
            contrasts[values] = contrasts.get(values, False) or keyword in CONTRASTS
    return [_Tag(values, contrast) for values, contrast in contrasts.items()]


@dataclass(frozen=True, eq=False)
class _Parting:
    frames: Sequence[Frame]
    tags: Sequence[_Tag]

    def best(self, members: Part, most: int, first: int = 0) -> frozenset[Part] | None:
        """The one way to part `members` into the fewest parts by up to `most` of the tags from `first` on.

        None where there is none, or more than one.
        """
        frames = self._of(members)
        even = is_even(frames)
        found: set[frozenset[Part]] = set()
        for which in range(first, len(self.tags) if most else first):
            tag = self.tags[which]
            parts = self._parted(members, tag)
            if len(parts) == 1 or min(map(len, parts)) == 1:
                continue  # one slice is no scan
            if not tag.contrast and (even or self._is_one_line(members, parts)):
                continue
            each = [self.best(part, most - 1, which + 1) for part in parts]
            if all(each):
                found.add(frozenset().union(*(one for one in each if one)))
        fewest = min((len(one) for one in found), default=0)
        ways = [one for one in found if len(one) == fewest]
        if not ways and even:
            return frozenset({members})
        return ways[0] if len(ways) == 1 else None

    def _of(self, members: Part) -> list[Frame]:
        return [self.frames[number] for number in members]

    @staticmethod
    def _parted(members: Part, tag: _Tag) -> list[Part]:
        parts: dict[int, list[int]] = {}
        for number in members:
            parts.setdefault(tag.values[number], []).append(number)
        return [tuple(part) for part in parts.values()]

    def _is_one_line(self, members: Part, parts: Sequence[Part]) -> bool:
        """Whether parts lie behind each other on one line of slices, with one distance, some of which are missing."""
        frames = self._of(members)
        if at_one_place(frames) or not has_gaps(frames):
            return False
        places = sorted((in_order(self._of(part))[1] for part in parts), key=lambda each: float(each[0]))
        apart = all(one[-1] < other[0] for one, other in itertools.pairwise(places))
        steps = np.array([np.diff(each).mean() for each in places])
        return apart and bool(np.abs(steps / steps.min() - 1).max() <= UNEVEN)
