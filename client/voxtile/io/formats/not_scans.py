"""Names what a file is that is no scan, by its first bytes, and says what to do. Knows no format that is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from voxtile.io.formats.packing import packing_of

VOXELS = (".raw", ".zraw", ".raw.gz", ".img", ".img.gz", ".rec", ".brik")
"""Endings of files that hold the voxels of a scan whose header is another file."""

DICOM_MARK = slice(128, 132)
"""Where a DICOM file says DICM."""

SERIES = "give the folder of its series, or one zip archive of it"

UNKNOWN = "something else"

FILES_LOOKED_AT = 200
"""Files of a folder that are looked at to say what it holds."""

MAGICS: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs.github.com",
        "a git-lfs pointer in place of the file itself; run git lfs pull",
    ),
    (b"/annex/objects/", "a git-annex pointer in place of the file itself; run git annex get"),
    (b"PK\x03\x04", "a zip archive (or a checkpoint of PyTorch); unpack it"),
    (b"PK\x05\x06", "an empty zip archive; fetch it again"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (b"Rar!\x1a\x07", "a rar archive; unpack it"),
    (b"\x93NUMPY", "a NumPy array, which has no place in space; give it in Python with its affine, (array, affine)"),
    (b"\x80\x02", "a pickle; only scans are read"),
    (b"\x80\x04", "a pickle; only scans are read"),
    (b"\x80\x05", "a pickle; only scans are read"),
    (b"\x89HDF", "HDF5 (MINC 2, or an array); convert it to NIfTI, MINC with mnc2nii"),
    (b"CDF\x01", "netCDF (MINC 1); convert it to NIfTI with mnc2nii"),
    (b"CDF\x02", "netCDF (MINC 1); convert it to NIfTI with mnc2nii"),
    (b"\x89PNG", "a PNG picture; give the scan that it was drawn from"),
    (b"\xff\xd8\xff", "a JPEG picture; give the scan that it was drawn from"),
    (b"GIF8", "a GIF picture; give the scan that it was drawn from"),
    (b"BM", "a BMP picture; give the scan that it was drawn from"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture; give the scan that it was drawn from"),
    (b"%PDF", "a PDF document; give the scan itself"),
    (b"\x7fELF", "a program; give the scan itself"),
    (b"\xff\xff\xfe", "a surface of FreeSurfer; give the volume that it was made from"),
    (b"# vtk DataFile", "a VTK file; convert it to NIfTI"),
    (b"solid ", "an STL surface; give the volume that it was made from"),
)

TEXTS: tuple[tuple[bytes, str], ...] = (
    (b"<gifti", "GIFTI, a surface; give the volume that it was made from"),
    (b"<!doctype html", "an HTML page, such as one that asks for a login; download the file anew"),
    (b"<html", "an HTML page, such as one that asks for a login; download the file anew"),
    (b"<accessdenied", "an XML error message; download the file anew"),
    (b"<error", "an XML error message, as storage servers send it; download the file anew"),
    (b"<?xml", "an XML document; give the scan itself"),
    (b"# === data description file", "the header of a Philips PAR/REC scan; convert it with dcm2niix"),
    (b"type = string-attribute", "the header of an AFNI scan; convert it with 3dAFNItoNIFTI"),
    (b"type  = string-attribute", "the header of an AFNI scan; convert it with 3dAFNItoNIFTI"),
)


def what_it_is(first: bytes, name: str = "") -> str:
    """Returns, in words, what a file with these first bytes and name is; UNKNOWN where they say nothing."""
    found = _by_content(first)
    if found == UNKNOWN and name.lower().endswith(VOXELS):
        return "voxels without their header; give the header beside it (.hdr, .mhd, .nhdr)"
    return found


def _by_content(first: bytes) -> str:
    if not first:
        return "an empty file; fetch or write it again"
    if not first.strip(b"\0"):
        return "nothing but zeros, as an interrupted copy leaves it; fetch it again"
    if first[DICOM_MARK] == b"DICM" or _is_bare_dicom(first):
        return f"DICOM; {SERIES}"
    if first[257:262] == b"ustar":
        return "a tar archive; unpack it"
    if (packing := packing_of(first)) is not None:
        return f"another {packing.name} file in the packed one; unpack it once"
    for magic, what in MAGICS:
        if first.startswith(magic):
            return what
    return _what_text_it_is(first)


def _is_bare_dicom(first: bytes) -> bool:
    """Whether bytes begin with DICOM's first group, as files without its preamble do."""
    return first[:2] in (b"\x02\0", b"\x08\0") and first[3:4] == b"\0" and first[4:6].isalpha() and first[4:6].isupper()


def _what_text_it_is(first: bytes) -> str:
    text = first.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for mark, what in TEXTS:
        if mark in text[:1000] if mark.startswith(b"<") else text.startswith(mark):
            return what
    if text[:1] in (b"{", b"["):
        return "JSON, such as a sidecar or an error message; give the scan itself"
    printable = sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in first)
    return "text; give the scan itself" if printable == len(first) else UNKNOWN


def what_folder_it_is(folder: Path, endings: tuple[str, ...]) -> str:
    """Returns, in words, what a folder holds; `endings` are those of scans' files."""
    try:
        names = list(islice(_files(folder), FILES_LOOKED_AT))
    except OSError:
        return "a folder"
    if any(name.lower().endswith(endings) for name in names):
        return "a folder with scans; give one of its files, or segment them all with voxtile batch"
    if any(_is_dicom(folder / name) for name in names):
        return f"a folder of DICOM files; {SERIES}"
    return "a folder" if names else "an empty folder"


def _files(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        yield from (entry.name for entry in entries if entry.is_file())


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return what_it_is(file.read(512)).startswith("DICOM")
    except OSError:
        return False
