"""Refuses, before it is made, a model's grid that no scan can have: one without voxels, or beyond the memory.

Sizes follow from a scan's header, which may be wrong. Knows nothing of how a grid is computed or filled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from voxtile.errors import InputError, MemoryLimitError
from voxtile.io.geometry import UNITS
from voxtile.io.volume import Volume
from voxtile.machine.memory import machine_bytes

GIB = 1 << 30

MANY_VOXELS = 64
"""Voxels of a scan, four along each axis, that are never all one voxel to a model, unless the spacing is wrong."""


@dataclass(frozen=True)
class GridLimit:
    """What a scan may become on a model's grid.

    Attributes:
        name: what messages call the scan.
        max_bytes: the most bytes for making the grid; None for the machine's own memory.
    """

    name: str
    max_bytes: int | None = None

    def check(self, shape: Sequence[int], spacing: Sequence[float], grid: Sequence[int], needed: int) -> None:
        """Checks a grid.

        Args:
            shape: voxels of the scan along each axis.
            spacing: millimetres between them.
            grid: voxels of the model's grid along the same axes.
            needed: the bytes that making it takes.

        Raises:
            InputError: the grid has no voxel along some axis, or a single one for a whole scan.
            MemoryLimitError: it needs more than is allowed, or more than the machine has.
        """
        makes = (
            f"{self.name}: a spacing of {' × '.join(f'{step:.3g}' for step in spacing)} mm makes "
            f"{' × '.join(map(str, grid))} voxels for this model"
        )
        if min(grid) < 1 or (math.prod(grid) == 1 and math.prod(shape) >= MANY_VOXELS):
            raise InputError(
                f"{makes} of {' × '.join(map(str, shape))}: too few to segment; is the spacing in the header right?"
            )
        limit = machine_bytes() if self.max_bytes is None else self.max_bytes
        if needed > limit:
            size = f"{limit / GIB:.2f} GiB"
            why = f"this machine has {size}" if self.max_bytes is None else f"{size} are left of what is allowed"
            raise MemoryLimitError(
                f"{makes}, which need {needed / GIB:.2f} GiB, and {why}; is the spacing in the header right?"
            )


def check_unit(volume: Volume, spacing: Sequence[float], wanted: Sequence[float]) -> None:
    """Checks that a unit that the model's reader ignores is not what makes the scan's spacing unlike the model's.

    A model can have been trained on files in micrometres that its reader took for millimetres; such a scan fits as it
    is. If it fits better once its unit is believed, the header means what it says, and the reader would misread it.

    Args:
        volume: the scan.
        spacing: millimetres between its voxels, as the reader gives them.
        wanted: the model's spacing.

    Raises:
        InputError: the scan fits the model only in the unit that its reader ignores.
    """
    if volume.unit == 1:
        return
    finer = sum(math.log(one / other) for one, other in zip(spacing, wanted, strict=True)) / len(wanted)
    if abs(finer + math.log(volume.unit)) < abs(finer):
        unit = next(name for name, factor in UNITS.values() if factor == volume.unit)
        raise InputError(
            f"{volume.names[0]}: expected a header in millimetres, found {unit} (xyzt_units), which this model's "
            f"reader takes for millimetres: voxels of {' × '.join(f'{step:.3g}' for step in spacing)} mm, where the "
            f"model's have {' × '.join(f'{step:.3g}' for step in wanted)}; write the header in millimetres"
        )
