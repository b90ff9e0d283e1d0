"""Carries out a chain of pre-processing step by step, and remembers the way back.

However the steps are ordered, the way back has one form: axes exchanged and flipped, a window cut, resampled, and a
window cut again. A step that turns the axes turns what was remembered before it. Knows nothing of tiles or scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from voxtile.chains.grid_limit import GridLimit, check_unit
from voxtile.chains.monai.grid import Grid, spaced_anew
from voxtile.chains.monai.intensity_steps import change_values
from voxtile.chains.monai.resample import AxisMap, resample, resample_bytes
from voxtile.chains.monai.window import Cut, Window, cut, cuts_of
from voxtile.errors import ModelError
from voxtile.io.geometry import spacing_of
from voxtile.io.orientation import Orientation
from voxtile.io.volume import Volume
from voxtile.transforms import preprocessing as steps
from voxtile.transforms.base import Transform, per_axis

Windows = tuple[Window, Window, Window]
Maps = tuple[AxisMap, AxisMap, AxisMap]
T = TypeVar("T", Window, AxisMap)


@dataclass(frozen=True)
class Way:
    """How a model's grid came from a scan's: first turned, then cut, then resampled, then cut again.

    Attributes:
        scan: voxels of the scan along i, j, k.
        orientation: from the scan's axes to the model's.
        before: the cuts before resampling, along the model's axes.
        maps: from the resampled voxels to those before.
        after: the cuts after resampling.
    """

    scan: tuple[int, int, int]
    orientation: Orientation
    before: Windows
    maps: Maps
    after: Windows

    @classmethod
    def start(cls, shape: tuple[int, int, int]) -> Way:
        """Returns the way on which nothing has happened yet."""
        x, y, z = (Window.whole(size) for size in shape)
        a, b, c = (AxisMap(size, size, 1.0, 0.0) for size in shape)
        return cls(shape, Orientation(), (x, y, z), (a, b, c), (x, y, z))

    @property
    def resampled(self) -> bool:
        """Whether any voxel was moved by resampling."""
        return not all(axis.identity for axis in self.maps)

    def turned(self, turn: Orientation) -> Way:
        """Returns this way with its axes exchanged and flipped afterwards."""
        total = Orientation(
            turn.reorder(self.orientation.axes),
            _flipped(turn, turn.reorder(self.orientation.flipped)),
        )
        return Way(self.scan, total, _turned(turn, self.before), _turned(turn, self.maps), _turned(turn, self.after))

    def cut(self, cuts: Sequence[Cut]) -> Way:
        """Returns this way with a cut of each axis afterwards."""
        if not self.resampled:  # one window is then enough
            x, y, z = (window.then(one) for window, one in zip(self.before, cuts, strict=True))
            a, b, c = (AxisMap(window.target, window.target, 1.0, 0.0) for window in (x, y, z))
            u, v, w = (Window.whole(window.target) for window in (x, y, z))
            return replace(self, before=(x, y, z), maps=(a, b, c), after=(u, v, w))
        x, y, z = (window.then(one) for window, one in zip(self.after, cuts, strict=True))
        return replace(self, after=(x, y, z))

    def spaced(self, maps: Maps) -> Way:
        """Returns this way with a resampling afterwards.

        Raises:
            ModelError: there was one before, so that the way back would not be exact.
        """
        if self.resampled or not all(window.identity for window in self.after):
            raise ModelError("this client resamples once in a chain; build the model with one step Spacing")
        x, y, z = (Window.whole(axis.target) for axis in maps)
        return replace(self, maps=maps, after=(x, y, z))

    def grid(self, affine: NDArray[np.float64]) -> Grid:
        """Returns the grid that only resampling relates to the voxels before it; `affine` is the model's grid's."""
        i, j, k = (axis.source for axis in self.maps)
        return Grid((i, j, k), Orientation(), self.maps, affine)


@dataclass(frozen=True, eq=False)
class Carried:
    """A scan after a chain of steps.

    Attributes:
        data: [channel, x, y, z] float32, or the stored integers (a view of the scan) where no value was changed.
        affine: [4, 4] voxel of `data` to RAS millimetres.
        way: how its grid came from the scan's.
    """

    data: NDArray[Any]
    affine: NDArray[np.float64]
    way: Way


def carry_out(chain: Sequence[Transform], volume: Volume, max_bytes: int | None, threads: int | None) -> Carried:
    """Returns `volume` after the steps of `chain`.

    Args:
        chain: the steps, in order.
        volume: the scan.
        max_bytes: limit for what a step takes; None for the machine's own memory.
        threads: threads that resample; by default the usable cores.

    Raises:
        InputError: there is no foreground to crop to, or no grid to segment.
        MemoryLimitError: a step needs more than `max_bytes`, or more than the machine has.
    """
    limit = GridLimit(volume.names[0], max_bytes)
    here = Carried(volume.data, volume.affine, Way.start(volume.shape))
    for step in chain:
        if isinstance(step, steps.Orientation):
            here = _oriented(here, step)
        elif isinstance(step, steps.Spacing):
            here = _resampled(here, step, volume, limit, threads)
        elif isinstance(step, steps.MOVING):
            for cuts in cuts_of(step, here.data, volume.names[0]):
                here = _cut(here, cuts, step, volume, limit)
        else:
            here = replace(here, data=_own(here, volume, limit))
            change_values(step, here.data)
    _check(limit, here, here.data.shape[1:], 0)
    return here


def _oriented(here: Carried, step: steps.Orientation) -> Carried:
    turn = Orientation.towards(step.axcodes, here.affine)
    affine = turn.apply_to_affine(here.affine, here.data.shape[1:])
    return Carried(turn.apply(here.data), affine, here.way.turned(turn))


def _resampled(here: Carried, step: steps.Spacing, volume: Volume, limit: GridLimit, threads: int | None) -> Carried:
    wanted = per_axis(step.pixdim)
    x, y, z = spacing_of(here.affine).tolist()
    check_unit(volume, (x, y, z), wanted)
    i, j, k = here.data.shape[1:]
    maps, affine = spaced_anew(here.affine, (i, j, k), wanted)
    if all(axis.identity for axis in maps):
        return here
    _check(limit, here, [axis.target for axis in maps], resample_bytes(maps, len(here.data)))
    return Carried(resample(here.data, maps, threads), affine, here.way.spaced(maps))


def _cut(here: Carried, cuts: Sequence[Cut], step: Transform, volume: Volume, limit: GridLimit) -> Carried:
    size = [one.target for one in cuts]
    _check(limit, here, size, 4 * len(here.data) * math.prod(size))
    data = cut(here.data, cuts, getattr(step, "mode", "constant"), getattr(step, "value", 0.0))
    if np.may_share_memory(data, here.data) and not np.may_share_memory(data, volume.data):
        data = data.copy(order="K")  # a view would keep all that was cut away
    affine = here.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [one.offset for one in cuts]
    return Carried(data, affine, here.way.cut(cuts))


def _check(limit: GridLimit, here: Carried, grid: Sequence[int], needed: int) -> None:
    limit.check(here.data.shape[1:], spacing_of(here.affine).tolist(), grid, needed)


def _own(here: Carried, volume: Volume, limit: GridLimit) -> NDArray[np.float32]:
    """The data as float32 that may be changed: a copy unless they are such an array already."""
    if here.data.dtype == np.float32 and not np.may_share_memory(here.data, volume.data):
        return here.data
    _check(limit, here, here.data.shape[1:], 4 * here.data.size)
    return np.array(here.data, np.float32, order="K")


def _turned(turn: Orientation, items: tuple[T, T, T]) -> tuple[T, T, T]:
    """What belongs to each axis, in the order of the turned axes, and mirrored where they run backwards."""
    mirror: Callable[[T], T] = lambda item: item.mirrored  # noqa: E731
    x, y, z = (mirror(item) if flip else item for item, flip in zip(turn.reorder(items), turn.flipped, strict=True))
    return x, y, z


def _flipped(turn: Orientation, flipped: Sequence[bool]) -> tuple[bool, bool, bool]:
    x, y, z = (one != other for one, other in zip(turn.flipped, flipped, strict=True))
    return x, y, z
