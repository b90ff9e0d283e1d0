"""Puts the sources of a scan, one for each channel or one for all, on one grid as a Volume, and checks that they fit.

Knows nothing of files or of models beyond the names of their channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.errors import InputError
from voxtile.io.scaling import apply_scaling
from voxtile.io.stored import Stored
from voxtile.io.volume import Volume, spacing_of

SPACING_LIMITS = (1e-3, 1e3)
"""Millimetres between voxels that are believed, from a micrometre (microscopy) to a metre; others have a wrong unit."""

ORIGIN_LIMIT = 1e6
"""Millimetres from the origin that are believed: a kilometre. Beyond it, positions lose all precision."""

SKEW_LIMIT = 1e-3
"""Volume spanned by the axes' unit vectors (1: at right angles) below which they practically lie in one plane."""

SAME_GRID = 0.01
"""How far, in shares of the smallest spacing, corners of two channels may lie apart: header rounding, no motion."""


def assemble(sources: Iterable[tuple[str, Stored]], channels: Sequence[str]) -> Volume:
    """Returns the scan whose channels are given by `sources`.

    Args:
        sources: name and content of each source; every one is checked and scaled before the next is asked for.
        channels: the model's channels, by name.

    Raises:
        InputError: the sources are not one scan of so many channels on one grid.
    """
    parts: list[NDArray[Any]] = []
    names: list[str] = []
    first: Volume | None = None
    for name, stored in sources:
        check_affine(stored.affine, name)
        if first is None:
            first = Volume(np.empty((0, *stored.raw.shape[:3])), stored.affine, stored.header, (name,))
        split = _split_channels(stored.raw, name, channels, alone=not names)
        _check_same_grid(first, stored, name)
        parts.append(np.moveaxis(apply_scaling(split, stored.slope, stored.inter, name), 3, 0))
        names.append(name)
    if first is None:
        raise InputError(f"expected {wanted(channels)}, found none")
    found = sum(part.shape[0] for part in parts)
    if found != len(channels):
        raise InputError(f"{names[0]}: expected {wanted(channels)}, found {found}")
    return Volume(_joined(parts), first.affine, first.header, tuple(names))


def wanted(channels: Sequence[str]) -> str:
    """Returns, in words for a message, what a model with these channels takes."""
    count = "one channel" if len(channels) == 1 else f"{len(channels)} channels, one file each"
    return f"{count} ({', '.join(channels)})"


def check_affine(affine: NDArray[np.float64], name: str) -> None:
    """Checks that `affine` [4, 4] places a grid of voxels in space.

    Raises:
        InputError: it does not, or its spacing or origin is not believed.
    """
    if not np.isfinite(affine).all():
        raise InputError(
            f"{name}: expected a finite affine, found NaN or infinite entries; repair the header's sform or qform"
        )
    if not np.array_equal(affine[3], (0, 0, 0, 1)):
        raise InputError(f"{name}: expected an affine whose last row is 0 0 0 1, found {affine[3].tolist()}")
    low, high = SPACING_LIMITS
    with np.errstate(over="ignore"):  # becomes infinite, and is refused below
        spacing = spacing_of(affine)
    shown = " × ".join(f"{step:.4g}" for step in spacing)
    if spacing.min() == 0:
        raise InputError(f"{name}: expected voxels of some size, found a spacing of {shown} mm: the affine is singular")
    if spacing.min() < low or spacing.max() > high:
        raise InputError(
            f"{name}: expected a spacing between {low:g} and {high:g} mm, found {shown} mm; is its unit millimetres?"
        )
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < SKEW_LIMIT:
        raise InputError(f"{name}: expected three independent axes, found a singular affine; repair the sform or qform")
    if np.abs(affine[:3, 3]).max() > ORIGIN_LIMIT:
        raise InputError(f"{name}: expected an origin within {ORIGIN_LIMIT:g} mm, found {affine[:3, 3].tolist()}")


def _split_channels(raw: NDArray[Any], name: str, channels: Sequence[str], alone: bool) -> NDArray[Any]:
    """Returns `raw` as [i, j, k, channel], where axes beyond the third have a meaning."""
    if raw.ndim < 3:
        raise InputError(f"{name}: expected a 3D scan, found {raw.ndim} axes {raw.shape}")
    frames = [size for size in raw.shape[3:] if size > 1]
    if not frames:
        return raw.reshape(*raw.shape[:3], 1, order="F")
    if len(frames) > 1 or len(channels) == 1 or not alone:
        raise InputError(
            f"{name}: expected a 3D scan, found 4D without a channel meaning {raw.shape}; extract the volume wanted"
        )
    return raw.reshape(*raw.shape[:3], frames[0], order="F")


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Returns [channel, i, j, k]; several sources are copied into one array, each channel with i fastest in memory."""
    if len(parts) == 1:
        return parts[0]
    kinds = [part.dtype for part in parts]
    dtype = np.dtype(np.float32) if any(kind.kind == "f" for kind in kinds) else np.result_type(*kinds)
    count, (i, j, k) = sum(part.shape[0] for part in parts), parts[0].shape[1:]
    result = np.empty((count, k, j, i), dtype).transpose(0, 3, 2, 1)
    position = 0
    for part in parts:
        result[position : position + part.shape[0]] = part
        position += part.shape[0]
    return result


def _check_same_grid(first: Volume, stored: Stored, name: str) -> None:
    one, other = first.shape, stored.raw.shape[:3]
    if one != other:
        raise InputError(
            f"{name}: expected the grid of {first.names[0]}, {one} voxels, found {other}; resample one onto the other"
        )
    corners = np.array([[i, j, k, 1] for i in (0, one[0]) for j in (0, one[1]) for k in (0, one[2])], np.float64)
    apart = np.linalg.norm((corners @ (first.affine - stored.affine).T)[:, :3], axis=1).max()
    if apart > SAME_GRID * spacing_of(first.affine).min():
        raise InputError(
            f"{name}: expected the grid of {first.names[0]}, found one that lies up to {apart:.3g} mm off; "
            "resample one onto the other"
        )
