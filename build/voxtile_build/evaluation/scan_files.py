"""Reads scans from files and prepares them with MONAI's own transforms: orientation and spacing.

A chain of other steps is carried out by the client's own code, which tests compare with MONAI's. nnU-Net models have a
preparation of their own, which `voxtile prepare` writes to files; those are taken as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from voxtile.chains.monai.journey import Carried, carry_out
from voxtile.errors import VoxtileError
from voxtile.io.geometry import MONAI, header_geometry
from voxtile.io.geometry import spacing_of as affine_spacing
from voxtile.io.orientation import Orientation
from voxtile.io.scan import open_scan
from voxtile.io.stored import PREPARED_MARK
from voxtile.outputs.prepared_files import DIGITS
from voxtile_build.arrays import Array
from voxtile_build.errors import ScanError
from voxtile_build.spec.spec import Spec

AXES = (("L", "R"), ("P", "A"), ("I", "S"))


def read_scan(files: tuple[Path, ...], spec: Spec, key: str = "acceptance.scans") -> Array:
    """A scan in the spec's orientation and spacing.

    Args:
        files: one a channel.
        spec: the model.
        key: the key of the spec that names the files, for errors.

    Returns:
        [channel, *spatial] float64.

    Raises:
        ScanError: a file is no 3D scan of one channel, or the channels have different shapes.
    """
    if spec.preparation.client:
        return np.asarray(_carried_out(files, spec, key).data, np.float64)
    volumes = [_read(file, spec, key) for file in files]
    if len({volume.shape for volume in volumes}) > 1:
        shapes = ", ".join(f"{file.name} {list(v.shape[1:])}" for file, v in zip(files, volumes, strict=True))
        raise ScanError(f"{key}: expected channels of one shape, found {shapes}")
    joined: Array = np.concatenate(volumes)
    return joined.transpose(0, 3, 2, 1) if _turned(spec) else joined


def spacing_of(files: tuple[Path, ...], spec: Spec, key: str = "acceptance.scans") -> tuple[float, ...]:
    """Size of a voxel in mm once the scan in `files` is prepared, in the order of the prepared axes."""
    file = files[0]
    if spec.preparation.client:
        return tuple(float(size) for size in affine_spacing(_carried_out(files, spec, key).affine))
    if spec.preparation.spacing is not None:
        spacing = tuple(float(size) for size in spec.preparation.spacing)
    else:
        spacing = _stored_spacing(file, spec.preparation.orientation)
    return spacing[::-1] if _turned(spec) else spacing


def _carried_out(files: tuple[Path, ...], spec: Spec, key: str) -> Carried:
    """The scan after the steps of the client.

    Raises:
        ScanError: a file is no scan, or the steps leave nothing of it.
    """
    for file in files:
        if not file.is_file():
            raise ScanError(f"{file}: no such file; {key} must name scans, relative to the spec")
    try:
        volume = open_scan([str(file) for file in files], spec.input.channels, MONAI, None)
        return carry_out(spec.preparation.client, volume, None, None)
    except VoxtileError as error:
        raise ScanError(f"{key}: {error}") from None


def _turned(spec: Spec) -> bool:
    """Whether the client gives the model its axes in nnU-Net's order, (z, y, x): where it has a plan of nnU-Net's."""
    return spec.nnunet is not None


def _stored_spacing(file: Path, orientation: str | None) -> tuple[float, ...]:
    image: Any = nib.load(file)
    found = header_geometry(image.header, MONAI, str(file))
    if orientation is None:
        return found.spacing
    return Orientation.towards(orientation, found.affine).reorder(found.spacing)


def _read(file: Path, spec: Spec, key: str) -> Array:
    # Imported here, because verifying an entry needs no torch.
    from monai.transforms import Compose, LoadImage, Orientation, Spacing

    # By name: MONAI makes all its readers otherwise, and that of DICOM warns where no GPU decodes.
    steps: list[Any] = [LoadImage("NibabelReader", image_only=True, ensure_channel_first=True, dtype=np.float64)]
    if spec.preparation.orientation is not None:
        steps.append(Orientation(axcodes=spec.preparation.orientation, labels=AXES))
    if spec.preparation.spacing is not None:
        steps.append(Spacing(pixdim=spec.preparation.spacing, mode="bilinear", padding_mode="border"))
    if not file.is_file():
        raise ScanError(f"{file}: no such file; {key} must name NIfTI files, relative to the spec")
    try:
        _check_prepared(file, spec, key)
        volume = np.asarray(Compose(steps)(str(file)), dtype=np.float64)
    except ScanError:
        raise
    except Exception as error:  # each of MONAI's readers raises its own kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ScanError(f"{file}: expected a NIfTI scan, found what cannot be read: {reason}") from error
    if volume.ndim != 4 or volume.shape[0] != 1:
        raise ScanError(f"{file}: expected a 3D scan of one channel, found [channel, *spatial] {list(volume.shape)}")
    if not np.isfinite(volume).all():
        raise ScanError(f"{file}: expected finite values, found NaN or infinity; repair the scan")
    return volume


def _check_prepared(file: Path, spec: Spec, key: str) -> None:
    """Refuse a scan that was not prepared by this very plan: an engine would be fitted to other values."""
    if spec.nnunet is None:
        return
    image: Any = nib.load(file)
    found = bytes(image.header["descrip"].item()).rstrip(b"\0").decode("ascii", "replace")
    wanted = f"{PREPARED_MARK}{spec.nnunet['preparation'][:DIGITS]}"
    if found != wanted:
        described = "one prepared by another plan" if found.startswith(PREPARED_MARK) else "one that is not prepared"
        raise ScanError(
            f"{file}: {key}: expected a scan prepared by this nnU-Net plan, found {described}; build and serve the "
            "model without, write the file with `voxtile prepare SCAN --model NAME --output FILE`, and build again"
        )
