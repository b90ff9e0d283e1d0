"""What is no scan is called what it is, in one line that says what to do; whatever its name ends in."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.support.stored_formats import WRITERS
from tests.support.stored_scans import AFFINE, SHAPE, refused, values
from voxtile.io.formats.all import FORMATS
from voxtile.io.formats.not_scans import what_it_is

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a", "b")
    return stream.getvalue()


def tarred() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return stream.getvalue()


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, values())
    return stream.getvalue()


def gifti() -> bytes:
    array: Any = nib.gifti.GiftiDataArray(np.zeros((3, 3), np.float32))
    return bytes(nib.gifti.GiftiImage(darrays=[array]).to_bytes())


def cifti() -> bytes:
    image = nib.Nifti2Image(np.zeros((1, 1, 1, 1, 3, 9), np.float32), None)
    image.header.set_intent(3002, name="ConnDenseSeries")
    return bytes(image.to_bytes())


KINDS: dict[str, tuple[bytes, str]] = {
    "git-lfs": (POINTER, "git-lfs pointer.*git lfs pull"),
    "git-annex": (b"/annex/objects/MD5E-s1--abc.nii.gz\n", "git-annex pointer.*git annex get"),
    "HTML": (b"\n <!DOCTYPE html>\n<html><body>Log in</body></html>", "HTML page.*download"),
    "HTML without a type": (b"<html lang='en'><head></head></html>", "HTML page"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML error message"),
    "XML of another kind": (b'\xef\xbb\xbf<?xml version="1.0"?><a/>', "an XML document"),
    "JSON": (b'{"RepetitionTime": 2.0}', "JSON"),
    "JSON list": (b'[{"message": "Not found"}]', "JSON"),
    "zip": (zipped(), "zip archive.*unpack"),
    "tar": (tarred(), "tar archive.*unpack"),
    "DICOM": (bytes(128) + b"DICM" + bytes(500), "is DICOM"),
    "DICOM without a preamble": (b"\x08\0\x05\0CS\x0a\0ISO_IR 100" + bytes(200), "DICOM"),
    "empty": (b"", "an empty file"),
    "zeros": (bytes(5000), "nothing but zeros"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(99), "a PNG picture"),
    "JPEG": (b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(99), "a JPEG picture"),
    "NumPy": (npy(), "NumPy array.*affine"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
    "MINC 1": (b"CDF\x01" + bytes(99), "MINC 1"),
    "GIFTI": (gifti(), "GIFTI"),
    "CIFTI": (cifti(), "CIFTI"),
    "FreeSurfer's surface": (b"\xff\xff\xfecreated by me\n", "a surface of FreeSurfer"),
    "AFNI": (b"\ntype = string-attribute\nname = HISTORY\n", "AFNI"),
    "PAR/REC": (b"# === DATA DESCRIPTION FILE ====\n#\n", "PAR/REC.*dcm2niix"),
    "PDF": (b"%PDF-1.7", "a PDF document"),
    "text": (b"hello\n", "text"),
    "noise": (bytes(range(160, 250)), "something else"),
}


@pytest.mark.parametrize("name", ["a.nii.gz", "a.MHD", "a.hdr", "a"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_called_what_it_is(tmp_path: Path, kind: str, name: str) -> None:
    content, match = KINDS[kind]
    for packed in (content, gzip.compress(content, mtime=0)):
        (tmp_path / name).write_bytes(packed)
        refused(match, tmp_path / name)


@pytest.mark.parametrize("one", FORMATS, ids=lambda one: one.name)
def test_no_format_claims_what_is_no_scan(tmp_path: Path, one: Any) -> None:
    from voxtile.io.formats.base import Content

    for kind, (content, _) in KINDS.items():
        for suffix in one.suffixes:
            (tmp_path / f"a{suffix}").write_bytes(content)
            assert kind == "CIFTI" or not one.is_it(Content.of_file(tmp_path / f"a{suffix}")), kind


def test_folders_are_called_what_they_hold(tmp_path: Path) -> None:
    refused("an empty folder", tmp_path)
    (tmp_path / "readme").write_text("x")
    refused("found a folder$", tmp_path)
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM")
    refused("IM0001: is DICOM that says neither of what class", tmp_path)
    (tmp_path / "IM0001").unlink()
    nib.save(nib.Nifti1Image(values(), AFFINE), tmp_path / "a.nii.gz")
    refused("a folder with scans; .* voxtile batch", tmp_path)


@pytest.mark.parametrize(
    "name", [name for name in WRITERS if not name.endswith((".hdr", ".img", ".img.gz", ".mhd", ".nhdr"))]
)
@pytest.mark.parametrize("share", [0.5, 0.98])
def test_a_file_that_is_cut_off_says_so_and_what_to_do(tmp_path: Path, name: str, share: float) -> None:
    WRITERS[name](tmp_path / name, values().astype(np.float32), AFFINE)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    refused("(truncated|damaged|empty file).*; fetch or write (the file|it) again$", tmp_path / name)


def test_a_name_that_is_mistyped_is_told_with_the_nearest_one(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(values(), AFFINE), tmp_path / "case_001_0000.nii.gz")
    refused(r"of that name \(did you mean case_001_0000.nii.gz\?\); check the path$", tmp_path / "case_01_0000.nii.gz")
    refused("found nothing of that name; check the path$", tmp_path / "other")
    refused(f"and no folder {tmp_path / 'none'}; check the path$", tmp_path / "none" / "case_001_0000.nii.gz")


def test_links_that_lead_nowhere_and_pipes(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").symlink_to(tmp_path / ".git" / "annex" / "objects" / "x")
    refused("a link that leads nowhere.*git annex get", tmp_path / "a.nii.gz")
    os.mkfifo(tmp_path / "b.nii")
    refused("no plain file", tmp_path / "b.nii")


def test_a_scan_is_none_of_them() -> None:
    assert what_it_is(nib.Nifti1Image(values(), AFFINE).to_bytes()[:4096]) == "something else"
    assert len(SHAPE) == 3


def test_a_scan_that_is_packed_twice(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(gzip.compress(nib.Nifti1Image(values(), AFFINE).to_bytes())))
    refused("another gzip file in the packed one; unpack it once", tmp_path / "a.nii.gz")


@pytest.mark.parametrize("name", ["a.raw", "a.ZRAW", "a.raw.gz", "a.img"])
def test_voxels_without_their_header(tmp_path: Path, name: str) -> None:
    content = values("i2").tobytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    refused("voxels without their header; give the header beside it", tmp_path / name)
