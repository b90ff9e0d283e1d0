"""How large a patch is on the disk, and how many of them a pool has. Knows neither scans nor teachers."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voxtile_build.errors import SlimmingError
from voxtile_build.spec.spec import Spec

REPLAYS = 6
"""How often a patch is shown, mirrored where it may be. A fresh patch teaches more, and takes the teacher's time."""

LABELLING = 0.3
"""Share of a budget in seconds in which patches are labelled, at most."""

FEWEST = 16
"""Patches. From fewer a student learns them by heart."""

GIB = 1 << 30
UNITS = ((GIB, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))

SPARE = 256 << 20
"""Bytes that stay free on the disk: checkpoints and what comes out of the run need them."""


@dataclass(frozen=True)
class Layout:
    """Shapes and types of a patch in the pool.

    Attributes:
        image: [channel, *roi].
        target: [class, *roi], always fp16.
        image_dtype: fp16 for normalised values; fp32 for values as they are, which may be of any size.
    """

    image: tuple[int, ...]
    target: tuple[int, ...]
    image_dtype: str

    @classmethod
    def of(cls, spec: Spec) -> Layout:
        """The layout for a model."""
        dtype = "float32" if spec.preparation.intensity.rule == "none" else "float16"
        return cls(spec.roi_shape, (len(spec.output.labels), *spec.tiling.roi_size), dtype)

    @property
    def image_bytes(self) -> int:
        """Of a patch's image."""
        return math.prod(self.image) * np.dtype(self.image_dtype).itemsize

    @property
    def target_bytes(self) -> int:
        """Of a patch's target."""
        return math.prod(self.target) * np.dtype(np.float16).itemsize

    @property
    def patch_bytes(self) -> int:
        """Of a patch."""
        return self.image_bytes + self.target_bytes


def patches_within(spec: Spec, limit_bytes: int) -> int:
    """How many patches a pool of `limit_bytes` holds.

    Raises:
        SlimmingError: too few to learn from.
    """
    each = Layout.of(spec).patch_bytes
    if limit_bytes < FEWEST * each:
        raise SlimmingError(
            f"--pool: expected room for at least {FEWEST} patches of {_size(each)} ({len(spec.output.labels)} labels), "
            f"found {_size(limit_bytes)}; give --pool {_rounded_up(FEWEST * each / GIB):g} or more"
        )
    return limit_bytes // each


def check_room(folder: Path, layout: Layout, patches: int, *, may_be_fewer: bool = True) -> None:
    """Refuse a disk that does not hold so many more patches.

    Args:
        folder: an existing folder on the disk.
        layout: of a patch.
        patches: how many are to be written.
        may_be_fewer: whether a smaller pool may still be asked for; not once a part of it is labelled.

    Raises:
        SlimmingError: says what is needed and what is free.
    """
    own, free = patches * layout.patch_bytes, shutil.disk_usage(folder).free
    if not patches or free >= own + SPARE:
        return
    found = (
        f"{folder}: expected {_size(own + SPARE)} of free disk ({_size(own)} for {patches} patches, {_size(SPARE)} for "
        f"checkpoints and what comes out), found {_size(free)}"
    )
    if not may_be_fewer:
        raise SlimmingError(f"{found}; what is labelled stays: free some, and go on with --resume")
    least = _rounded_up(FEWEST * layout.patch_bytes / GIB)
    if patches * layout.patch_bytes > least * GIB and free >= least * GIB + SPARE:
        raise SlimmingError(f"{found}; free some, choose another --output, or a smaller --pool, from {least:g} (GiB)")
    raise SlimmingError(f"{found}; free some, or choose another --output")


def _size(count: int) -> str:
    """A number of bytes in the unit in which people can read it."""
    unit, name = next((one for one in UNITS if count >= one[0]), UNITS[-1])
    return f"{count / unit:.1f} {name}"


def _rounded_up(value: float) -> float:
    """A number above 0 with two digits, not below `value`."""
    factor = 10.0 ** (1 - math.floor(math.log10(value)))
    return math.ceil(value * factor) / factor


def wanted_patches(
    steps: int | None,
    seconds: float | None,
    batch: int,
    seconds_a_patch: float | None = None,
    seconds_a_replay: float | None = None,
) -> int:
    """How many patches suit a budget.

    Args:
        steps: of the training; None where seconds count.
        seconds: for labelling and training together.
        batch: patches a step.
        seconds_a_patch: how long the teacher takes for one.
        seconds_a_replay: how long the student takes to learn from one, once; None: not known.

    Returns:
        As many as the training shows REPLAYS times, and no more than are labelled in LABELLING of the budget; at least
        FEWEST.
    """
    if steps is not None:
        return max(math.ceil(steps * batch / REPLAYS), FEWEST)
    if seconds is None or not seconds_a_patch:
        raise ValueError("expected steps, or seconds and seconds_a_patch")
    shown = seconds / (seconds_a_patch + REPLAYS * (seconds_a_replay or 0.0))
    return max(int(min(shown, LABELLING * seconds / seconds_a_patch)), FEWEST)
