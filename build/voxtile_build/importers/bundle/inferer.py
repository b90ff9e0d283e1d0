"""Translates a bundle's inferer into the table [inferer] of a spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from voxtile.transforms.base import Transform, per_axis
from voxtile.transforms.preprocessing import (
    CenterSpatialCrop,
    CropForeground,
    DivisiblePad,
    Orientation,
    ResizeWithPadOrCrop,
    Spacing,
    SpatialPad,
)
from voxtile_build.errors import SourceError
from voxtile_build.importers.bundle.config import Config
from voxtile_build.importers.bundle.steps import REQUIRED, SPECIAL, Step
from voxtile_build.importers.bundle.targets import INFERERS, monai_name

SLIDING = ("SlidingWindowInferer", "SlidingWindowInfererAdapt", "SliceInferer")
"""Inferers of one result; the second differs from the first in the memory that it takes."""
NO_MATTER = (
    *("sw_batch_size", "sw_device", "device", "progress", "cache_roi_weight_map", "cpu_thresh"),
    *("buffer_steps", "buffer_dim"),
)
"""Arguments of the inferer that change speed or memory, but no result."""
WHOLE = {"overlap": 0.0, "mode": "constant"}
ADVICE = (
    "give a sliding window by --set "
    'inferer=\'{"_target_": "SlidingWindowInferer", "roi_size": [96, 96, 96], "overlap": 0.25}\''
)


def inferer_of(
    config: Config, chain: Sequence[Transform], stated: Sequence[int] | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """[inferer] of a spec, and notes for the user.

    Args:
        config: the configuration.
        chain: the steps of pre-processing, which may fix the size of the image.
        stated: the size of the network's input by the metadata, where that is a whole image; None without one.

    Raises:
        SourceError: it is another inferer, or an argument has no counterpart.
    """
    part = config.raw("inferer")
    if not isinstance(part, Mapping):
        raise SourceError(f"{config.where}: inferer: expected SlidingWindowInferer, found {part!r}")
    name = monai_name(part, INFERERS, f"{config.where}: inferer")
    given = {key: value for key, value in part.items() if not SPECIAL.fullmatch(key)}
    step = Step(name, name, "inferer", given, config)
    if name == "SimpleInferer":
        return _whole(step, chain, stated)
    if name not in SLIDING:
        raise SourceError(
            f"{config.where}: inferer: cannot be translated: expected SlidingWindowInferer, found {name}; {ADVICE}"
        )
    return _sliding(step, chain), ()


def _sliding(step: Step, chain: Sequence[Transform]) -> dict[str, Any]:
    flat = step.name == "SliceInferer"
    given = step.arguments(
        {
            "roi_size": REQUIRED,
            "overlap": 0.25,
            "mode": "constant",
            "sigma_scale": 0.125,
            "padding_mode": "constant",
            "cval": 0.0,
            "with_coord": False,
            **({"spatial_dim": 0} if flat else {}),
        },
        ignored=NO_MATTER,
    )
    step.require(given, {"with_coord": (False,)})
    roi = _roi(step, given["roi_size"], 2 if flat else 3, fixed_size(chain))
    return {
        "semantics": "monai",
        "roi_size": roi,
        "overlap": _per_axis(step, "overlap", given["overlap"], len(roi)),
        "mode": given["mode"],
        "sigma_scale": _per_axis(step, "sigma_scale", given["sigma_scale"], len(roi)),
        "padding_mode": given["padding_mode"],
        "cval": step.number("cval", given["cval"]),
        **({"slice_axis": given["spatial_dim"]} if flat else {}),
    }


def _whole(
    step: Step, chain: Sequence[Transform], stated: Sequence[int] | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The whole image as one tile, where its size is known."""
    step.arguments({})
    fixed = fixed_size(chain)
    if fixed is not None:
        return {"semantics": "monai", "roi_size": list(fixed), **WHOLE}, ()
    if stated is None:
        raise step.refusal(
            "it sends the whole image, of whatever size, and a served network takes one size: let ResizeWithPadOrCropd "
            f"make it, or {ADVICE}"
        )
    shown = " x ".join(map(str, stated))
    note = (
        f"the bundle sends whole images, of {shown} voxels by its metadata; images of that size are segmented as the "
        "bundle does, others are cut into tiles of it or padded to it"
    )
    return {"semantics": "monai", "roi_size": list(stated), **WHOLE}, (note,)


def fixed_size(chain: Sequence[Transform]) -> tuple[int, int, int] | None:
    """The size that the last step of `chain` that changes sizes gives every image; None where there is none."""
    size: tuple[int, int, int] | None = None
    for step in chain:
        if isinstance(step, ResizeWithPadOrCrop):
            given = per_axis(step.spatial_size)
            size = given if min(given) > 0 else None
        elif isinstance(step, Spacing | Orientation | CropForeground | DivisiblePad | SpatialPad | CenterSpatialCrop):
            size = None
    return size


def _roi(step: Step, size: Any, axes: int, fixed: Sequence[int] | None) -> list[int]:
    """The size of a tile; -1 or None for an axis stands for the whole image, whose size must be known."""
    sizes = size if isinstance(size, list) else [size] * axes
    if len(sizes) == axes == 3 and fixed is not None:
        sizes = [whole if number in (None, 0, -1) else number for number, whole in zip(sizes, fixed, strict=True)]
    if len(sizes) != axes or not all(type(number) is int and number > 0 for number in sizes):
        raise step.refusal(f"expected roi_size with {axes} whole numbers above 0, found {size!r}")
    return list(sizes)


def _per_axis(step: Step, key: str, value: Any, axes: int) -> float | list[float]:
    """One number for all axes, or one for each."""
    if isinstance(value, int | float):
        return step.number(key, value)
    if isinstance(value, list) and len(value) == axes:
        return [step.number(key, number) for number in value]
    raise step.refusal(f"expected one number for {key}, or {axes}, found {value!r}")
