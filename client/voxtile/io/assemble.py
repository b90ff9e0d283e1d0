"""Puts the sources of a scan, one for each channel or one for all, on one grid as a Volume, and checks that they fit.

Knows nothing of files or of models beyond the names of their channels and of their reader.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.errors import InputError, MemoryLimitError
from voxtile.io.geometry import (
    MONAI,
    NIBABEL,
    REORIENTING,
    SAME_VOXEL_SIZE,
    Geometry,
    given_geometry,
    header_geometry,
    spacing_of,
)
from voxtile.io.given import NOTHING_GIVEN, Given, completed
from voxtile.io.not_finite import made_finite
from voxtile.io.scaling import apply_scaling
from voxtile.io.stored import Admit, Stored, refuse_prepared
from voxtile.io.volume import Volume
from voxtile.machine.memory import MIB, machine_bytes

LOGGER = logging.getLogger(__name__)

SAME_GRID = 0.01
"""How far, in shares of the smallest spacing, corners of two channels may lie apart: header rounding, no motion."""

Source = Callable[[Admit], Stored]
"""Reads one source; asks the function that it is given before it reads or allocates a voxel."""


def assemble(
    sources: Sequence[tuple[str, Source]],
    channels: Sequence[str],
    reader: str = MONAI,
    max_bytes: int | None = None,
    given: Given = NOTHING_GIVEN,
) -> Volume:
    """Returns the scan whose channels are given by `sources`.

    Args:
        sources: name and reader of each source; every one is read, checked and scaled before the next is touched.
        channels: the model's channels, by name.
        reader: the model's own reader of files, whose rule says which header fields count; see `voxtile.io.geometry`.
        max_bytes: limit for what reading takes; None for the machine's own memory.
        given: what is said of the scan beside what its sources say.

    Raises:
        InputError: the sources are not one scan of so many channels on one grid.
        MemoryLimitError: reading them would take more than `max_bytes`, or more than the machine has.
    """
    parts: list[NDArray[Any]] = []
    names: list[str] = []
    warnings: list[str] = []
    changes: list[str] = []
    native: Any = None
    space: tuple[str, str] | None = None
    first: _Grid | None = None
    for name, read in sources:
        gate = _Gate(name, channels, len(sources), first, sum(part.nbytes for part in parts), max_bytes, given)
        stored = completed(read(gate.admit), given, name)
        gate.check_axes(stored.raw.shape)  # not every source asks
        refuse_prepared(stored.header, name)
        geometry = _geometry(stored, reader, name)
        grid = _Grid(name, _spatial(stored.raw.shape), geometry)
        native = stored.native if first is None else native
        space = space or (name, stored.frame_of_reference)
        first = first or grid
        _check_same_grid(first, grid)
        _check_same_space(space, name, stored.frame_of_reference)
        split = stored.raw.reshape(*grid.shape, -1, order="F")
        slope, inter, odd = _scaling(stored, reader)
        values, replaced = made_finite(apply_scaling(split, slope, inter), given, name)
        whose = ", ".join(channels[sum(map(len, parts)) :][: values.shape[3]])
        parts.append(np.moveaxis(values, 3, 0))
        replaced = [*stored.changes, *replaced]
        changes += [f"{what} ({whose})" for what in replaced]
        for what in replaced:
            LOGGER.warning("%s: %s", name, what)
        names.append(name)
        for warning in (*stored.warnings, *_flat(stored.raw.shape), *odd, *geometry.warnings):
            LOGGER.warning("%s: %s", name, warning)
            warnings.append(warning)
        del stored, split, values  # the next source is read into their memory
    if first is None:
        raise InputError(f"expected {wanted(channels)}, found none")
    found = sum(part.shape[0] for part in parts)
    if found != len(channels):
        raise InputError(f"{names[0]}: expected {wanted(channels)}, found {found}")
    one = first.geometry
    return Volume(
        _joined(parts),
        one.affine,
        one.header,
        tuple(names),
        one.spacing,
        one.unit,
        tuple(dict.fromkeys(warnings)),
        native,
        tuple(changes),
    )


def wanted(channels: Sequence[str]) -> str:
    """Returns, in words for a message, what a model with these channels takes."""
    count = "one channel" if len(channels) == 1 else f"{len(channels)} channels, one file each"
    return f"{count} ({', '.join(channels)})"


@dataclass(frozen=True, eq=False)
class _Grid:
    """The grid of one source.

    Attributes:
        name: what messages call the source.
        shape: voxels along i, j, k.
        geometry: where they lie.
    """

    name: str
    shape: tuple[int, int, int]
    geometry: Geometry


@dataclass(frozen=True, eq=False)
class _Gate:
    """Judges a source by what its header claims, before its voxels are read.

    Attributes:
        name: what messages call it.
        channels: the model's channels, by name.
        sources: the number of sources of the scan.
        first: the grid of the scan's first source; None for the first one.
        kept: bytes of the sources read before.
        max_bytes: limit for reading; None for the machine's memory.
        given: whether values are replaced decides whether they are copied.
    """

    name: str
    channels: Sequence[str]
    sources: int
    first: _Grid | None
    kept: int
    max_bytes: int | None
    given: Given

    def admit(self, shape: tuple[int, ...], dtype: np.dtype[Any], scaled: bool) -> None:
        """Implements `voxtile.io.stored.Admit`."""
        self.check_axes(shape)
        self._check_memory(shape, dtype, scaled)

    def check_axes(self, shape: tuple[int, ...]) -> None:
        """Checks that axes beyond the third have a meaning, and that the grid is that of the first source.

        Raises:
            InputError: they have none, or it is not.
        """
        if len(shape) < 2:
            raise InputError(f"{self.name}: expected a 3D scan, found {len(shape)} axes {shape}")
        frames = [size for size in shape[3:] if size > 1]
        if frames and (len(frames) > 1 or len(self.channels) == 1 or self.sources > 1):
            raise InputError(
                f"{self.name}: expected a 3D scan, found 4D without a channel meaning {shape}; extract "
                "the volume wanted"
            )
        if self.first is not None and self.first.shape != _spatial(shape):
            raise InputError(
                f"{self.name}: expected the grid of {self.first.name}, {self.first.shape} voxels, found "
                f"{_spatial(shape)}; resample one onto the other"
            )

    def _check_memory(self, shape: tuple[int, ...], dtype: np.dtype[Any], scaled: bool) -> None:
        kept = dtype == np.float32 and not self.given.replaces
        as_stored = not scaled and (kept or (dtype.kind in "iu" and dtype.itemsize <= 2))
        raw = math.prod(shape) * dtype.itemsize
        converted = 0 if as_stored else 4 * math.prod(shape)
        together = 2 * self.sources * (converted or raw) if self.sources > 1 else 0
        needed = max(self.kept + raw + converted, together)
        limit = machine_bytes() if self.max_bytes is None else self.max_bytes
        if needed > limit:
            why = "this machine has" if self.max_bytes is None else "--max-ram leaves"
            raise MemoryLimitError(
                f"{self.name}: {' × '.join(map(str, shape))} voxels need {math.ceil(needed / MIB)} MiB to be read, "
                f"and {why} {max(limit, 0) // MIB:.0f} MiB; allow more, or segment a part of the scan"
            )


def _geometry(stored: Stored, reader: str, name: str) -> Geometry:
    if stored.affine is None:
        return header_geometry(stored.header, reader, name)
    geometry = given_geometry(stored.affine, stored.header, name)
    lengths = spacing_of(stored.affine)
    if stored.spacing is None or not np.allclose(stored.spacing, lengths, rtol=SAME_VOXEL_SIZE, atol=0):
        return geometry
    return replace(geometry, spacing=stored.spacing)


def _scaling(stored: Stored, reader: str) -> tuple[float | None, float | None, tuple[str, ...]]:
    """Returns slope and intercept as `reader` takes them, and what is odd about them.

    Where a header's slope is 0 or not finite, nibabel leaves its intercept out and ITK adds it.
    """
    if stored.affine is not None or stored.slope is not None:
        return stored.slope, stored.inter, ()
    inter = float(stored.header["scl_inter"])
    if inter == 0 or not math.isfinite(inter) or not stored.header.has_data_intercept:
        return None, None, ()
    left_out = reader in (MONAI, NIBABEL, REORIENTING)
    what = f"scl_slope is {float(stored.header['scl_slope']):g} with an scl_inter of {inter:g}, which {reader}"
    return (None, None, (f"{what} leaves out",)) if left_out else (None, inter, (f"{what} adds",))


def _spatial(shape: Sequence[int]) -> tuple[int, int, int]:
    """The voxels along i, j, k; a file of two axes is one slice."""
    i, j, k = (*shape, 1)[:3]
    return i, j, k


def _flat(shape: Sequence[int]) -> tuple[str, ...]:
    return ("the file has two axes; it is taken as one slice",) if len(shape) == 2 else ()


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


def _check_same_space(space: tuple[str, str], name: str, frame_of_reference: str) -> None:
    """Checks that two sources lie in one space, where both say in which. Raises InputError."""
    first, reference = space
    if reference and frame_of_reference and reference != frame_of_reference:
        raise InputError(
            f"{name}: expected the space of {first} (FrameOfReferenceUID), found another: the patient moved, or was "
            "another; register one to the other first"
        )


def _check_same_grid(first: _Grid, other: _Grid) -> None:
    """Checks that both sources of one shape lie at the same place, with the same spacing.

    Raises:
        InputError: they do not.
    """
    i, j, k = first.shape
    corners = np.array([[x, y, z, 1] for x in (0, i) for y in (0, j) for z in (0, k)], np.float64)
    apart = np.linalg.norm((corners @ (first.geometry.affine - other.geometry.affine).T)[:, :3], axis=1).max()
    if apart > SAME_GRID * spacing_of(first.geometry.affine).min():
        raise InputError(
            f"{other.name}: expected the grid of {first.name}, found one that lies up to {apart:.3g} mm off; "
            "resample one onto the other"
        )
    if not np.allclose(first.geometry.spacing, other.geometry.spacing, rtol=SAME_VOXEL_SIZE, atol=0):
        raise InputError(
            f"{other.name}: expected the spacing of {first.name}, {first.geometry.spacing}, found "
            f"{other.geometry.spacing}; repair the header's pixdim"
        )
