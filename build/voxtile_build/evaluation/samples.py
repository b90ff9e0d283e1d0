"""The samples that engines are measured on: whole scans, in the data type in which they are sent to the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from voxtile.chains.monai.encoding import SCALED_TO
from voxtile.tensor_types import NUMPY_TYPES
from voxtile.transforms.base import per_axis
from voxtile.transforms.preprocessing import Spacing
from voxtile_build.arrays import Array
from voxtile_build.errors import ScanError
from voxtile_build.evaluation.phantom import SEED, phantom
from voxtile_build.evaluation.scan_files import read_scan, spacing_of
from voxtile_build.hashing import bytes_sha256
from voxtile_build.spec.input import PADDING, IntensityPercentile, IntensityZscore
from voxtile_build.spec.spec import Spec


@dataclass(frozen=True)
class Scan:
    """A prepared scan.

    Attributes:
        name: its first file's name.
        volume: [channel, *spatial] in the input's data type.
        statistics: [channel, 2] float32, what to subtract and to divide by.
        spacing: of the volume's voxels in mm, in the order of its axes.
    """

    name: str
    volume: Array
    statistics: Array
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)

    @property
    def sha256(self) -> str:
        """Of the prepared volume's bytes in C order."""
        return bytes_sha256(np.ascontiguousarray(self.volume).tobytes())


def gather_scans(spec: Spec) -> tuple[Scan, ...]:
    """The acceptance scans of a spec, prepared as a client prepares them; the phantom where the spec names none.

    Raises:
        ScanError: a file is no scan, several files do not match, or values do not fit the data type.
    """
    if not spec.acceptance.scans:
        return (phantom_scan(spec),)
    return scans_of(spec.acceptance.scans, spec, "acceptance.scans")


def phantom_scan(spec: Spec) -> Scan:
    """The generated scan."""
    scan = _scan(f"phantom, seed {SEED}", phantom(spec), spec)
    steps = (per_axis(step.pixdim) for step in spec.preparation.client if isinstance(step, Spacing))
    return replace(scan, spacing=tuple(spec.preparation.spacing or next(steps, scan.spacing)))


def scans_of(files: Sequence[tuple[Path, ...]], spec: Spec, key: str) -> tuple[Scan, ...]:
    """Scans from files, prepared as a client prepares them.

    Args:
        files: for each scan its files, one a channel.
        spec: the model.
        key: the key of the spec that names the files, for errors.

    Raises:
        ScanError: as `gather_scans`.
    """
    return tuple(
        replace(_scan(scan[0].name, read_scan(scan, spec, key), spec), spacing=spacing_of(scan, spec, key))
        for scan in files
    )


def _scan(name: str, values: Array, spec: Spec) -> Scan:
    if spec.input.dtype == "int16" and spec.whole_scan_intensity and (values != np.rint(values)).any():
        # Normalisation by the scan's own statistics cancels any scale, so fractions can use the whole range.
        values = values * (SCALED_TO["int16"] / np.abs(values).max())
    volume = as_input(values, spec, name)
    return Scan(name, volume, intensity_statistics(volume.astype(np.float64), spec))


def as_input(values: Array, spec: Spec, where: str) -> Array:
    """`values` in the input's data type, rounded for int16.

    Args:
        values: of any shape.
        spec: the model.
        where: names the scan in errors.

    Raises:
        ScanError: the type cannot hold the values. Its lowest value marks padding, so no voxel may have it.
    """
    highest = float(np.iinfo(np.int16).max) if spec.input.dtype == "int16" else -PADDING[spec.input.dtype]
    rounded = np.rint(values) if spec.input.dtype == "int16" else values
    if rounded.min() <= PADDING[spec.input.dtype] or rounded.max() > highest:
        raise ScanError(
            f"{where}: expected values that {spec.input.dtype} holds, found {values.min():g}..{values.max():g}; "
            "choose another input.dtype"
        )
    return rounded.astype(NUMPY_TYPES[spec.input.dtype])


def intensity_statistics(values: Array, spec: Spec) -> Array:
    """What the intensity rule subtracts and divides by.

    Args:
        values: [channel, *spatial] float64.
        spec: the model.

    Returns:
        [channel, 2] float32; 0 and 1 where the rule takes no statistics.
    """
    return np.array([_statistics(channel, spec) for channel in values], dtype=np.float32)


def _statistics(channel: Array, spec: Spec) -> tuple[float, float]:
    rule = spec.preparation.intensity
    if not isinstance(rule, IntensityZscore | IntensityPercentile):
        return 0.0, 1.0
    chosen = channel if rule.mask == "all" else channel[channel != 0]
    if chosen.size == 0:
        return 0.0, 1.0
    if isinstance(rule, IntensityZscore):
        return float(chosen.mean()), float(chosen.std()) or 1.0  # as MONAI and the client where nothing differs
    low, high = np.percentile(chosen, (rule.lower, rule.upper))
    return float(low), float(high - low) or 1.0
