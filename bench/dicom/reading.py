"""Ways to read a series: each is made ready from a job, and then called once a run.

A run begins with the folder `series` and ends with the voxels in memory, or with a NIfTI file for a program that
writes one. `voxels` of a run is their digest, [x, y, z] to the left, the back and the head, outside the seconds.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines import Job, Way

Array = NDArray[Any]


def voxtile(job: Job) -> Way:
    """Our reader."""
    from voxtile.io.scan import open_scan

    return _measured(job, lambda folder: open_scan(folder, ("CT",)), lambda volume: (volume.data[0], volume.affine))


def simpleitk(job: Job) -> Way:
    """SimpleITK's reader of series; an object of many frames it reads as a file."""
    import SimpleITK as sitk

    def read(folder: Path) -> Any:
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))  # type: ignore[no-untyped-call]
        return sitk.ReadImage(names[0] if len(names) == 1 else names)

    def turned(image: Any) -> tuple[Array, Array]:
        lps = np.eye(4)
        lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        return sitk.GetArrayFromImage(image).transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ lps

    return _measured(job, read, turned)


def highdicom(job: Job) -> Way:
    """highdicom's volumes, in the type in which they need least."""
    import highdicom as hd
    from pydicom import dcmread

    def read(folder: Path) -> Any:
        files = sorted(folder.iterdir())
        if len(files) == 1:
            return hd.imread(files[0]).get_volume(dtype=np.int16)
        return hd.get_volume_from_series([dcmread(file) for file in files], dtype=np.int16)

    def turned(volume: Any) -> tuple[Array, Array]:
        return np.asarray(volume.array), np.diag([-1, -1, 1, 1]) @ volume.affine

    return _measured(job, read, turned)


def dcm2niix(job: Job) -> Way:
    """dcm2niix, into an uncompressed NIfTI file: compressing it would take longer than all else."""

    def read(folder: Path) -> Path:
        target = Path(job["work"]) / f"dcm2niix-{os.getpid()}"
        target.mkdir(exist_ok=True)
        for old in target.iterdir():
            old.unlink()
        command = ["dcm2niix", "-b", "n", "-z", "n", "-f", "ct", "-o", str(target), str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        (file,) = target.glob("*.nii")
        return file

    return _measured(job, read, _of_nifti)


def totalsegmentator(job: Job) -> Way:
    """TotalSegmentator's own reader, into a compressed NIfTI file, as it reads every DICOM scan."""
    sys.path.append(job["rivals"])
    from totalsegmentator.dicom_io import dcm_to_nifti

    target = Path(job["work"]) / f"totalsegmentator-{os.getpid()}.nii.gz"

    def read(folder: Path) -> Path:
        dcm_to_nifti(folder, target)
        return target

    return _measured(job, read, _of_nifti)


def bytes_alone(job: Job) -> Way:
    """Every byte of the files, and nothing done with them: what no reader can be faster than."""
    return _measured(job, lambda folder: [file.read_bytes() for file in sorted(folder.iterdir())], None)


WAYS: dict[str, Callable[[Job], Way]] = {
    "Voxtile": voxtile,
    "SimpleITK": simpleitk,
    "highdicom": highdicom,
    "dcm2niix, to NIfTI": dcm2niix,
    "TotalSegmentator, to NIfTI": totalsegmentator,
    "the files' bytes alone": bytes_alone,
}


def digest(voxels: Array, affine: Array) -> str:
    """Returns the digest of voxels as int16, [x, y, z] to the left, the back and the head."""
    import nibabel as nib

    wanted = nib.orientations.axcodes2ornt("LPS")
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), wanted)
    turned = nib.orientations.apply_orientation(voxels, turn)
    return hashlib.sha256(np.asfortranarray(turned, dtype=np.int16).tobytes(order="F")).hexdigest()


def _measured(job: Job, read: Callable[[Path], Any], turned: Callable[[Any], tuple[Array, Array]] | None) -> Way:
    from ..memory import peak_rss_bytes

    folder = Path(job["series"])

    def run() -> dict[str, Any]:
        started = time.perf_counter()
        found = read(folder)
        seconds = time.perf_counter() - started
        told: dict[str, Any] = {"seconds": seconds, "peak_rss_bytes": peak_rss_bytes()}  # before the digest
        return told if turned is None else {**told, "voxels": digest(*turned(found))}

    return run


def _of_nifti(file: Path) -> tuple[Array, Array]:
    import nibabel as nib

    image = nib.load(file)
    return np.asarray(image.dataobj), image.affine
