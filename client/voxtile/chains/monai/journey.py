"""Carries out a chain of pre-processing step by step, and remembers the way back.

However the steps are ordered, the way back has one form: axes exchanged and flipped, a window cut, resampled, and a
window cut again. A step that turns the axes turns what was remembered before it. Knows nothing of tiles or scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from voxtile.chains.grid_limit import GridLimit, check_unit
from voxtile.chains.monai.asking import asked_numbers
from voxtile.chains.monai.grid import Grid, Respacing, respaced, unchanged_axes
from voxtile.chains.monai.intensity_steps import change_values
from voxtile.chains.monai.placing import Matrix, Placement, translation
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
STRAIGHT = Orientation()


@dataclass(frozen=True)
class Way:
    """How a model's grid came from a scan's: first turned, then cut, then resampled, then cut again.

    Attributes:
        scan: voxels of the scan along i, j, k.
        orientation: from the scan's axes to the model's.
        before: the cuts before resampling, along the model's axes.
        maps: from the resampled voxels to those before.
        after: the cuts after resampling.
        back: where the voxels before resampling lie on the resampled ones; None without resampling.
        turn: from the axes of `back` to the model's.
    """

    scan: tuple[int, int, int]
    orientation: Orientation
    before: Windows
    maps: Maps
    after: Windows
    back: Placement | None = None
    turn: Orientation = STRAIGHT

    @classmethod
    def start(cls, shape: tuple[int, int, int]) -> Way:
        """Returns the way on which nothing has happened yet."""
        x, y, z = (Window.whole(size) for size in shape)
        return cls(shape, STRAIGHT, (x, y, z), unchanged_axes(shape), (x, y, z))

    @property
    def resampled(self) -> bool:
        """Whether any voxel was moved by resampling."""
        return self.back is not None

    def turned(self, turn: Orientation) -> Way:
        """Returns this way with its axes exchanged and flipped afterwards."""
        return Way(
            self.scan,
            _joined(self.orientation, turn),
            _turned(turn, self.before),
            _turned(turn, self.maps),
            _turned(turn, self.after),
            self.back,
            _joined(self.turn, turn),
        )

    def cut(self, cuts: Sequence[Cut]) -> Way:
        """Returns this way with a cut of each axis afterwards."""
        if not self.resampled:  # one window is then enough
            x, y, z = (window.then(one) for window, one in zip(self.before, cuts, strict=True))
            maps = unchanged_axes((x.target, y.target, z.target))
            u, v, w = (Window.whole(window.target) for window in (x, y, z))
            return replace(self, before=(x, y, z), maps=maps, after=(u, v, w))
        x, y, z = (window.then(one) for window, one in zip(self.after, cuts, strict=True))
        return replace(self, after=(x, y, z))

    def spaced(self, respacing: Respacing) -> Way:
        """Returns this way with a resampling afterwards.

        Raises:
            ModelError: there was one before, so that the way back would not be exact.
        """
        if self.resampled:
            raise ModelError("this client resamples once in a chain; build the model with one step Spacing")
        x, y, z = (Window.whole(size) for size in respacing.target)
        return replace(self, after=(x, y, z), turn=STRAIGHT).returning(respacing, respacing.spaced)

    def returning(self, respacing: Respacing, affine: Matrix) -> Way:
        """Returns this way, on which `affine` [4, 4] is the resampled grid's once all steps after it are undone."""
        back = Placement.of(respacing.back(affine), respacing.target, respacing.source)
        return replace(self, maps=_turned(self.turn, respacing.maps(affine)), back=back)

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
        respacing: what a step Spacing did, if there was one.
        undo: [4, 4] each, what undoes the steps after it, the first step first.
    """

    data: NDArray[Any]
    affine: NDArray[np.float64]
    way: Way
    respacing: Respacing | None = None
    undo: tuple[Matrix, ...] = ()

    @property
    def way_back(self) -> Way:
        """The way, with its way back to the last bit: MONAI takes steps back one by one, and the affine with them."""
        if self.respacing is None:
            return self.way
        return self.way.returning(self.respacing, reduce(np.matmul, reversed(self.undo), self.affine))


def carry_out(
    chain: Sequence[Transform],
    volume: Volume,
    max_bytes: int | None = None,
    threads: int | None = None,
    ends_with_zeros: bool = False,
) -> Carried:
    """Returns `volume` after the steps of `chain`.

    Where a later step asks which values are 0, or above a number, the same ones are as in MONAI.

    Args:
        chain: the steps, in order.
        volume: the scan.
        max_bytes: limit for what a step takes; None for the machine's own memory.
        threads: threads that resample; by default the usable cores.
        ends_with_zeros: whether what comes after the chain asks which values are 0.

    Raises:
        InputError: there is no foreground to crop to, or no grid to segment.
        MemoryLimitError: a step needs more than `max_bytes`, or more than the machine has.
    """
    limit = GridLimit(volume.names[0], max_bytes)
    here = Carried(volume.data, volume.affine, Way.start(volume.shape))
    for number, step in enumerate(chain):
        if isinstance(step, steps.Orientation):
            here = _oriented(here, step)
        elif isinstance(step, steps.Spacing):
            asked = asked_numbers(chain[number + 1 :], ends_with_zeros)
            here = _resampled(here, step, volume, limit, threads, asked)
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
    matrix = turn.matrix(here.data.shape[1:])
    moved = replace(here, data=turn.apply(here.data), way=here.way.turned(turn))
    return _placed(moved, [matrix], [np.rint(np.linalg.inv(matrix))])


def _resampled(
    here: Carried,
    step: steps.Spacing,
    volume: Volume,
    limit: GridLimit,
    threads: int | None,
    asked: tuple[float, ...] | None,
) -> Carried:
    wanted = per_axis(step.pixdim)
    x, y, z = spacing_of(here.affine).tolist()
    check_unit(volume, (x, y, z), wanted)
    i, j, k = here.data.shape[1:]
    respacing = respaced(here.affine, (i, j, k), wanted)
    if respacing is None:
        return here
    maps = respacing.maps(respacing.spaced)
    _check(limit, here, respacing.target, resample_bytes(maps, len(here.data)))
    there = respacing.there
    data = resample(here.data, maps, threads, there, None if there.tilted else asked)
    return Carried(data, respacing.spaced, here.way.spaced(respacing), respacing)


def _cut(here: Carried, cuts: Sequence[Cut], step: Transform, volume: Volume, limit: GridLimit) -> Carried:
    size = [one.target for one in cuts]
    _check(limit, here, size, 4 * len(here.data) * math.prod(size))
    data = cut(here.data, cuts, getattr(step, "mode", "constant"), getattr(step, "value", 0.0))
    if np.may_share_memory(data, here.data) and not np.may_share_memory(data, volume.data):
        data = data.copy(order="K")  # a view would keep all that was cut away
    offsets = np.array([one.offset for one in cuts], np.float64)
    parts = np.maximum(offsets, 0), np.minimum(offsets, 0)  # MONAI crops first, then pads
    moved = replace(here, data=data, way=here.way.cut(cuts))
    return _placed(moved, [translation(one) for one in parts], [translation(-one) for one in parts])


def _placed(here: Carried, done: Sequence[Matrix], undo: Sequence[Matrix]) -> Carried:
    """`here` with its affine after `done` [4, 4] in turn, each of which one of `undo` undoes."""
    return replace(here, affine=reduce(np.matmul, done, here.affine), undo=(*here.undo, *undo))


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


def _joined(first: Orientation, then: Orientation) -> Orientation:
    """The orientation of two in turn."""
    x, y, z = (one != other for one, other in zip(then.flipped, then.reorder(first.flipped), strict=True))
    return Orientation(then.reorder(first.axes), (x, y, z))
