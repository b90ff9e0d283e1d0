"""What an engine is measured on: whole scans, and tiles cut from them, in the type in which they travel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from voxtile_build.errors import ScanError
from voxtile_build.evaluation.phantom import SEED, phantom
from voxtile_build.hashing import bytes_sha256
from voxtile_build.spec.input import PADDING, IntensityPercentile, IntensityZscore
from voxtile_build.spec.spec import Spec

Array = NDArray[Any]

FULL_SCALE = 32_000.0
PREPARED, PREPARED_DIGITS = "voxtile prepared ", 32
"""How `voxtile prepare` marks its files: this, and so much of the plan's checksum, as the header's description."""
NUMPY_DTYPES = {"fp32": np.float32, "fp16": np.float16, "int16": np.int16}


@dataclass(frozen=True)
class Scan:
    """volume: [channel, *spatial] in the type that travels; figures: [channel, 2] float32, subtract and divide.

    spacing: of the volume's voxels in mm, in the order of its axes.
    """

    name: str
    volume: Array
    figures: Array
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)

    @property
    def sha256(self) -> str:
        """Of the prepared volume's bytes in C order."""
        return bytes_sha256(np.ascontiguousarray(self.volume).tobytes())


@dataclass(frozen=True)
class Tile:
    """roi: [channel, *roi] in the type that travels; figures as in `Scan`."""

    name: str
    roi: Array
    figures: Array


def gather_scans(spec: Spec) -> tuple[Scan, ...]:
    """The spec's acceptance scans, prepared as a client does; the phantom where it names none.

    Raises ScanError for a file that is no scan, several that do not match, and values that do not fit the type.
    """
    if not spec.acceptance.scans:
        return (phantom_scan(spec),)
    return scans_of(spec.acceptance.scans, spec, "acceptance.scans")


def phantom_scan(spec: Spec) -> Scan:
    """The generated scan, in the type that travels."""
    scan = _scan(f"phantom, seed {SEED}", phantom(spec), spec)
    return replace(scan, spacing=tuple(spec.input.spacing or scan.spacing))


def scans_of(files: Sequence[tuple[Path, ...]], spec: Spec, key: str) -> tuple[Scan, ...]:
    """Scans from files, prepared as a client does; `key` is the spec's key that names them, for errors."""
    return tuple(
        replace(_scan(scan[0].name, read_scan(scan, spec, key), spec), spacing=spacing_of(scan[0], spec))
        for scan in files
    )


def spacing_of(file: Path, spec: Spec) -> tuple[float, ...]:
    """Size of a voxel in mm once the scan in `file` is prepared, in the order of the prepared axes."""
    if spec.input.spacing is not None:
        spacing = tuple(float(size) for size in spec.input.spacing)
    else:
        spacing = _stored_spacing(file, spec.input.orientation)
    return spacing[::-1] if spec.tiling.semantics == "nnunet" else spacing


def _stored_spacing(file: Path, orientation: str | None) -> tuple[float, ...]:
    image: Any = nib.load(file)
    sizes = [float(size) for size in image.header.get_zooms()[:3]]
    if orientation is None:
        return tuple(sizes)
    stored = nib.orientations.io_orientation(image.affine)
    wanted = nib.orientations.axcodes2ornt(orientation)
    order = nib.orientations.ornt_transform(stored, wanted)[:, 0].astype(int)
    return tuple(sizes[int(np.flatnonzero(order == axis)[0])] for axis in range(len(sizes)))


def read_scan(files: tuple[Path, ...], spec: Spec, key: str = "acceptance.scans") -> Array:
    """A volume [channel, *spatial] in the spec's orientation and spacing, from one file a channel."""
    volumes = [_read(file, spec, key) for file in files]
    if len({volume.shape for volume in volumes}) > 1:
        shapes = ", ".join(f"{file.name} {list(v.shape[1:])}" for file, v in zip(files, volumes, strict=True))
        raise ScanError(f"{key}: expected channels of one shape, found {shapes}")
    joined: Array = np.concatenate(volumes)
    # nnU-Net's axes are those of SimpleITK: (z, y, x).
    return joined.transpose(0, 3, 2, 1) if spec.tiling.semantics == "nnunet" else joined


def _read(file: Path, spec: Spec, key: str) -> Array:
    # Here, because who only verifies an entry has no use for torch.
    from monai.transforms import Compose, LoadImage, Orientation, Spacing

    steps: list[Any] = [LoadImage(image_only=True, ensure_channel_first=True, dtype=np.float64)]
    if spec.input.orientation is not None:
        steps.append(Orientation(axcodes=spec.input.orientation, labels=(("L", "R"), ("P", "A"), ("I", "S"))))
    if spec.input.spacing is not None:
        steps.append(Spacing(pixdim=spec.input.spacing, mode="bilinear", padding_mode="border"))
    if not file.is_file():
        raise ScanError(f"{file}: no such file; {key} must name NIfTI files, relative to the spec")
    try:
        _check_prepared(file, spec, key)
        volume = np.asarray(Compose(steps)(str(file)), dtype=np.float64)
    except ScanError:
        raise
    except Exception as error:  # MONAI's readers raise each their own kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ScanError(f"{file}: expected a NIfTI scan, found what cannot be read: {reason}") from error
    if volume.ndim != 4 or volume.shape[0] != 1:
        raise ScanError(f"{file}: expected a 3D scan of one channel, found [channel, *spatial] {list(volume.shape)}")
    if not np.isfinite(volume).all():
        raise ScanError(f"{file}: expected finite values, found NaN or infinity; repair the scan")
    return volume


def _check_prepared(file: Path, spec: Spec, key: str) -> None:
    """Refuse a scan that the client has not prepared by the very plan: an engine would be fitted to other values."""
    if spec.nnunet is None:
        return
    image: Any = nib.load(file)
    found = bytes(image.header["descrip"].item()).rstrip(b"\0").decode("ascii", "replace")
    wanted = f"{PREPARED}{spec.nnunet['preparation'][:PREPARED_DIGITS]}"
    if found != wanted:
        told = "another plan's" if found.startswith(PREPARED) else "one as it was taken"
        raise ScanError(
            f"{file}: {key}: expected a scan prepared by this nnU-Net plan, found {told}; build and serve the model "
            "without, write the file with `voxtile prepare SCAN --model NAME --output FILE`, and build again"
        )


def _scan(name: str, values: Array, spec: Spec) -> Scan:
    if spec.input.dtype == "int16" and spec.whole_scan_intensity and (values != np.rint(values)).any():
        # Normalisation by figures of the scan cancels any scale, so fractions can be given the whole range.
        values = values * (FULL_SCALE / np.abs(values).max())
    volume = as_travels(values, spec, name)
    return Scan(name, volume, intensity_statistics(volume.astype(np.float64), spec))


def as_travels(values: Array, spec: Spec, where: str) -> Array:
    """`values` in the type in which ROIs travel, rounded for int16.

    Raises ScanError where the type cannot hold them; its lowest value marks padding and cannot be one of them.
    """
    highest = float(np.iinfo(np.int16).max) if spec.input.dtype == "int16" else -PADDING[spec.input.dtype]
    rounded = np.rint(values) if spec.input.dtype == "int16" else values
    if rounded.min() <= PADDING[spec.input.dtype] or rounded.max() > highest:
        raise ScanError(
            f"{where}: expected values that {spec.input.dtype} holds, found {values.min():g}..{values.max():g}; "
            "choose another input.dtype"
        )
    return rounded.astype(NUMPY_DTYPES[spec.input.dtype])


def intensity_statistics(values: Array, spec: Spec) -> Array:
    """[channel, 2] float32: what the intensity rule subtracts and divides by; 0 and 1 where it takes none."""
    return np.array([_figures(channel, spec) for channel in values], dtype=np.float32)


def _figures(channel: Array, spec: Spec) -> tuple[float, float]:
    rule = spec.input.intensity
    if not isinstance(rule, IntensityZscore | IntensityPercentile):
        return 0.0, 1.0
    chosen = channel if rule.mask == "all" else channel[channel != 0]
    if chosen.size == 0:
        return 0.0, 1.0
    if isinstance(rule, IntensityZscore):
        return float(chosen.mean()), float(chosen.std())
    low, high = np.percentile(chosen, (rule.lower, rule.upper))
    return float(low), float(high - low)


def tile_inputs(spec: Spec, rois: Array, figures: Array) -> dict[str, Array]:
    """The graph's inputs for `rois` [batch, channel, *spatial] and `figures` [batch, channel, 2]."""
    inputs: dict[str, Array] = {"roi": rois}
    if spec.whole_scan_intensity:
        inputs["intensity"] = np.ascontiguousarray(figures, dtype=np.float32)
    return inputs


def cut_tiles(scan: Scan, spec: Spec) -> tuple[Tile, ...]:
    """Tiles of `scan` (for a 2D network of its middle slice): two corners, the middle, one half outside, zeros.

    Where sizes are free, also a whole slice, the smallest one that there can be, and one a step larger than the ROI.
    """
    volume = scan.volume
    if spec.tiling.slice_axis is not None:
        axis = spec.tiling.slice_axis + 1
        volume = volume.take(volume.shape[axis] // 2, axis=axis)
    sizes = list(zip(volume.shape[1:], spec.tiling.roi_size, strict=True))
    starts = {
        "first corner": [0 for _ in sizes],
        "middle": [(size - roi) // 2 for size, roi in sizes],
        "last corner": [size - roi for size, roi in sizes],
        "half outside": [-(roi // 2) for _, roi in sizes],
    }
    rois = {name: _cut(volume, start, spec.tiling.roi_size, spec) for name, start in starts.items()}
    rois["zeros"] = np.zeros_like(rois["middle"])
    return tuple(Tile(name, roi, scan.figures) for name, roi in {**rois, **_other_sizes(volume, spec)}.items())


def _other_sizes(volume: Array, spec: Spec) -> dict[str, Array]:
    """From the middle of `volume` [channel, height, width], where slices of any size are served."""
    step = spec.tiling.multiple
    if step is None:
        return {}
    wanted = {
        "whole slice": spec.tiling.over(volume.shape[1:]).roi_size,
        "smallest": (step, step),
        "a step larger": tuple(roi + step for roi in spec.tiling.roi_size),
    }
    tiles = {}
    for name, roi in wanted.items():
        # The odd voxel of padding lies behind, as everywhere.
        start = [-((side - size) // 2) for size, side in zip(volume.shape[1:], roi, strict=True)]
        tiles[f"{name}, {' × '.join(map(str, roi))}"] = _cut(volume, start, roi, spec)
    return tiles


def _cut(volume: Array, start: list[int], tile_size: Sequence[int], spec: Spec) -> Array:
    """The tile of `volume` [channel, *spatial] at `start`; what lies outside the volume is padding."""
    tile = np.full((len(volume), *tile_size), PADDING[spec.input.dtype], dtype=volume.dtype)
    source, target = [slice(None)], [slice(None)]
    for first, roi, size in zip(start, tile_size, volume.shape[1:], strict=True):
        low, high = max(first, 0), min(first + roi, size)
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    tile[tuple(target)] = volume[tuple(source)]
    return tile
