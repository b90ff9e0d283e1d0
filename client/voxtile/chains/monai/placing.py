"""Where the voxels of one grid lie on another, in the float64 arithmetic of MONAI 1.6 and the PyTorch beneath it.

A voxel that lies on another but for 1e-14 of a step gets 1e-14 of its neighbour: a value of 0 is then no longer 0, and
a later step that asks for zeros goes another way. So the last bits count, and this module rounds as often and in the
same order: `SpatialResample`, `AffineTransform(align_corners=False)`, `affine_grid`, and
`grid_sample(padding_mode="border")`. The sums of oblique grids depend on the processor: where it rounds a
product and a sum once, a last bit may differ.

Knows nothing of scans.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Triple = tuple[int, int, int]

AT_ONCE = 1 << 14
"""Voxels that are looked up at once: few enough for a core's cache, with all that is known of each."""

TILTED = 1e-3
"""Voxels of tilt up to which values are blended axis by axis. Float32 headers turn an axis by less."""

HALF = 1e-9
"""Voxels by which a coordinate may miss a half through float64 arithmetic alone."""


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the voxels of a target grid lie on a source grid.

    Attributes:
        source: voxels of the source along each axis.
        target: voxels of the target.
        onto: [3, 4] from target to source; both grids run from -1 to 1 over the outer faces of their voxels.
    """

    source: Triple
    target: Triple
    onto: Matrix

    @classmethod
    def of(cls, onto: Matrix, source: Triple, target: Triple) -> Placement:
        """Returns the placement of which `onto` [4, 4] maps voxels of the target to voxels of the source."""
        return cls(source, target, normalised(onto, source, target))

    @property
    def tilt(self) -> NDArray[np.float64]:
        """[3] how many voxels of a source axis the other two axes of the target shift a coordinate by, at most."""
        others = np.abs(self.onto[:, :3]) * (1 - np.eye(3))
        shift: NDArray[np.float64] = others.sum(axis=1) * np.array(self.source) / 2
        return shift

    def coordinate(self, axis: int, voxels: Sequence[NDArray[np.intp]]) -> Matrix:
        """Returns coordinates along a source axis, clamped to the outermost voxels.

        Args:
            axis: of the source.
            voxels: the indices of target voxels along each axis; they are broadcast against one another.
        """
        row = self.onto[axis]
        used = [other for other in (2, 1, 0) if row[other] or other == axis]  # the last one first, as in PyTorch
        terms = [voxel_places(self.target[other])[voxels[other]] * row[other] for other in used]
        return _clamped(sum(terms[1:], terms[0]) + row[3], self.source[axis])

    @property
    def tilted(self) -> bool:
        """Whether the grids are turned against one another, so that an axis of one is none of the other."""
        return bool(self.tilt.max() > TILTED)

    def values(self, source: NDArray[Any], voxels: Sequence[NDArray[np.intp]]) -> NDArray[np.float32]:
        """Returns the values [channel, ...] of target voxels: linear between eight voxels of `source`.

        Args:
            source: [channel, x, y, z] of any real type, which is read as float32, and of any strides.
            voxels: the indices of the target voxels along each axis; they are broadcast against one another.
        """
        steps = [step // source.itemsize for step in source.strides[1:]]
        ends = [self._ends(axis, voxels, step) for axis, step in enumerate(steps)]
        corners = [  # z fastest, as in PyTorch
            ((z * y) * x, (at_x + at_y) + at_z) for (x, at_x), (y, at_y), (z, at_z) in itertools.product(*ends)
        ]
        return np.stack([_summed(_in_line(channel), corners) for channel in source])

    def _ends(self, axis: int, voxels: Sequence[NDArray[np.intp]], step: int) -> list[tuple[Matrix, NDArray[np.intp]]]:
        """The shares of the two source voxels along an axis, and where they lie in memory."""
        place = self.coordinate(axis, voxels)
        low = np.floor(place).astype(np.intp)
        last = self.source[axis] - 1
        start = -last * step if step < 0 else 0
        return [((low + 1) - place, low * step + start), (place - low, np.minimum(low + 1, last) * step + start)]

    def nearest_along(self, axis: int) -> NDArray[np.intp] | None:
        """Returns [target] the source voxel nearest to each voxel of an axis; halves go to the even one.

        None where it depends on the voxel's place along the other axes too.
        """
        row, size = self.onto[axis], self.source[axis]
        places = _clamped(voxel_places(self.target[axis]) * row[axis] + row[3], size)
        tilt = self.tilt[axis]
        if tilt and np.abs(places - np.floor(places) - 0.5).min() <= tilt + HALF:
            return None
        nearest: NDArray[np.intp] = np.rint(places).astype(np.intp)
        return nearest


def along(scale: float, offset: float, source: int, target: int) -> NDArray[np.float64]:
    """Returns [target] the coordinates of an axis that lies along the source's, clamped to the outermost voxels.

    Args:
        scale: source voxels between two target voxels.
        offset: the source coordinate of target voxel 0.
        source: voxels of the source.
        target: voxels of the target.
    """
    (row,) = normalised(np.array([[scale, offset], [0.0, 1.0]]), (source,), (target,))
    return _clamped(voxel_places(target) * row[0] + row[1], source)


def _in_line(source: NDArray[Any]) -> NDArray[Any]:
    """`source` [x, y, z] as one line from its lowest address on."""
    first = source[tuple(slice(-1, None) if step < 0 else slice(1) for step in source.strides)]
    last = sum(abs(step) * (size - 1) for step, size in zip(source.strides, source.shape, strict=True))
    length = last // source.itemsize + 1
    return np.lib.stride_tricks.as_strided(first, (length,), (source.itemsize,), writeable=False)


def _summed(line: NDArray[Any], corners: Sequence[tuple[Matrix, NDArray[np.intp]]]) -> NDArray[np.float32]:
    """The sum of each share times the value at its place in `line`."""
    result: Any = 0.0
    for share, place in corners:
        result = result + line.take(place, mode="clip").astype(np.float32, copy=False) * share
    values: NDArray[np.float32] = result.astype(np.float32)
    return values


def product(left: Matrix, right: Matrix) -> Matrix:
    """Returns left @ right, each product and each sum rounded as PyTorch does; NumPy rounds fewer times."""
    result = np.zeros((len(left), right.shape[1]))
    for column, row in zip(left.T, right, strict=True):
        result = result + column[:, None] * row
    return result


def translation(shift: Matrix) -> Matrix:
    """Returns [4, 4] the affine that shifts by `shift` [3]."""
    matrix = np.eye(4)
    matrix[:3, 3] = shift
    return matrix


def normalised(onto: Matrix, source: Sequence[int], target: Sequence[int]) -> Matrix:
    """Returns [n, n + 1]: `onto` [n + 1, n + 1] between voxels, made one between -1 and 1 (`to_norm_affine`)."""
    to_voxels = np.asarray(np.linalg.inv(_to_faces(target)), np.float64)
    return product(product(_to_faces(source), onto), to_voxels)[:-1]


def _to_faces(shape: Sequence[int]) -> Matrix:
    """From voxels to -1..1 between the outer faces (`normalize_transform`)."""
    size = np.array(shape, np.float64)
    matrix = np.diag(np.append(2.0 / size, 1.0))
    matrix[:-1, -1] = 1.0 / size - 1.0
    return matrix


def _clamped(place: Matrix, size: int) -> Matrix:
    """From -1..1 to voxels (`grid_sample`)."""
    coordinate: Matrix = np.clip(((place + 1) * size - 1) / 2, 0, size - 1)
    return coordinate


@lru_cache(maxsize=64)
def voxel_places(size: int) -> NDArray[np.float64]:
    """Returns [size] where the middles of voxels lie between -1 and 1 (`affine_grid`).

    PyTorch's `linspace` takes each step and its sum with one rounding, from both ends to the middle.
    """
    if size == 1:
        return np.zeros(1)
    step = Fraction(2.0 / (size - 1))
    low = np.array([float(step * index - 1) for index in range(size // 2)])
    middle = [float(1 - step * (size // 2))] if size % 2 else []
    places: NDArray[np.float64] = np.concatenate((low, middle, -low[::-1])) * (size - 1) / size
    places.flags.writeable = False
    return places
