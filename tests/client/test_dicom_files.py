"""No slice is lost in silence: a file that may be one is read or refused by its name, within bounded memory."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from tests.support.dicom_series import saved, slices
from tests.support.phantoms import affine_of
from voxtile.errors import InputError
from voxtile.io.dicom.choice import SeriesChoice
from voxtile.io.given import Given
from voxtile.io.scan import open_scan
from voxtile.io.volume import Volume

SHAPE = (7, 6, 8)
AFFINE = affine_of(SHAPE, (1.0, 1.5, 2.0), "LPS", (8.0, 0.0, -5.0))
VOXELS = np.arange(1, np.prod(SHAPE) + 1, dtype=np.int16).reshape(SHAPE)
LAST = "0007.dcm"


def opened(place: Path | bytes, **choice: str) -> Volume:
    return open_scan(place, ["scan"], given=Given(dicom=SeriesChoice(**choice)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A series of eight files, whose last slice shows in no geometry when it is gone."""
    return saved(slices(VOXELS, AFFINE), tmp_path / "series")


def zipped(folder: Path) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return packed.getvalue()


def archived(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def tarred(content: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        member = tarfile.TarInfo("7")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


# Files that may be slices ----------------------------------------------------------------------------------------


def _replaced(content: Callable[[bytes], bytes], name: str = LAST) -> Callable[[Path], None]:
    def change(last: Path) -> None:
        found = last.read_bytes()
        last.unlink()
        (last.parent / name).write_bytes(content(found))

    return change


def _dangling(last: Path) -> None:
    last.unlink()
    last.symlink_to("gone")


def _link_to_itself(last: Path) -> None:
    last.unlink()
    last.symlink_to(last.name)


def _pipe(last: Path) -> None:
    last.unlink()
    os.mkfifo(last)


LOST: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (_replaced(lambda _: b""), "is empty"),
    "empty, of no ending": (_replaced(lambda _: b"", "IM0007"), "is empty"),
    "zeros": (_replaced(lambda found: bytes(len(found))), "nothing but zeros"),
    "cut in its preamble": (_replaced(lambda found: found[:100]), "nothing but zeros"),
    "cut in its meta": (_replaced(lambda found: found[:200]), "0007"),
    "cut in its header": (_replaced(lambda found: found[:600]), "0007"),
    "shifted in its meta": (_replaced(lambda found: found[:157] + found[159:]), "says neither"),
    "cut before its rows": (_replaced(lambda found: found[: found.index(b"\x28\0\x10\0")]), "Rows"),
    "cut in its series' UID": (_replaced(lambda found: found[: found.index(b"\x20\0\x0e\0") + 20]), "cut off"),
    "a page in its place": (_replaced(lambda _: b"<html>sign in</html>" * 30), "is no DICOM object"),
    "a page under a slice's name": (_replaced(lambda _: b"<html>" * 99, "0007.DCM"), "is no DICOM object"),
    "still being fetched": (_replaced(lambda found: found[140:], "0007.dcm.part"), "is no DICOM object"),
    "packed": (_replaced(gzip.compress, "0007.dcm.gz"), "packed by gzip; unpack it"),
    "packed, of no ending": (_replaced(gzip.compress, "IM7"), "packed by gzip; unpack it"),
    "empty, a copy": (_replaced(lambda _: b"", "0007.dcm.bak"), "is empty"),
    "empty, of any ending": (_replaced(lambda _: b"", "0007.xyz"), "is empty"),
    "erased": (_replaced(lambda found: b"\xff" * len(found), "XYZ.tmp"), "is no DICOM object"),
    "anything": (_replaced(lambda found: bytes(x ^ 0xA5 for x in found), "IM7.bak"), "is no DICOM object"),
    "anything, as another": (_replaced(lambda found: bytes(x ^ 0xA5 for x in found), "IM7.txt"), "is no DICOM object"),
    "a damaged mark": (_replaced(lambda found: found.replace(b"DICM", b"DIC\r", 1), "0007.tmp"), "is no DICOM object"),
    "of a text's line ends": (_replaced(lambda found: b"\r\n" + found, "1.2.840.5.7"), "is no DICOM object"),
    "of a text's line ends, again": (_replaced(lambda found: b"\r\n" + found, "MR.1.2.7abc"), "is no DICOM object"),
    "behind its transfer's head": (_replaced(lambda found: b"HTTP/1.1 200 OK\r\n\r\n" + found, "7"), "is no DICOM"),
    "a page, under a copy's name": (_replaced(lambda _: b"<html>" * 99, "0007.tmp"), "is no DICOM object"),
    "packed by what nobody knows": (
        _replaced(lambda found: b"\x1f\x8b" + found, "IM7.gz"),
        "what is unknown; unpack it",
    ),
    "zipped": (_replaced(lambda found: archived({"a/7": found}), "rest.zip"), "that holds DICOM; unpack it"),
    "zipped twice": (_replaced(lambda found: archived({"7": archived({"7": found})}), "rest"), "unpack it, or remove"),
    "zipped, packed": (_replaced(lambda found: archived({"7": gzip.compress(found)}), "x.zip"), "unpack it, or remove"),
    "in a library": (_replaced(lambda found: archived({"7": found}), "viewer.jar"), "that holds DICOM; unpack it"),
    "of a damaged zip": (_replaced(lambda found: archived({"7": found})[:-9], "rest.zip"), "is damaged; unpack it"),
    "in a tar": (_replaced(lambda found: tarred(found), "rest"), "a tar archive, .* unpack it"),
    "in a packed tar": (
        _replaced(lambda found: gzip.compress(tarred(found)), "rest.tgz"),
        "a tar archive, packed by gzip",
    ),
    "in a 7z": (_replaced(lambda _: b"7z\xbc\xaf\x27\x1c" + bytes(99), "rest.7z"), "a 7z archive, .* unpack it"),
    "in a rar": (_replaced(lambda _: b"Rar!\x1a\x07\0" + bytes(99), "rest.jpg"), "a rar archive, .* unpack it"),
    "a link that leads nowhere": (_dangling, "No such file"),
    "a link to itself": (_link_to_itself, "cannot be read"),
    "a pipe": (_pipe, "no plain file"),
}


@pytest.mark.parametrize("how", LOST)
def test_a_file_that_may_be_a_slice_is_refused_by_its_name(how: str, folder: Path) -> None:
    change, found = LOST[how]
    change(folder / LAST)
    with pytest.raises(InputError, match=found) as refused:
        opened(folder)
    assert sorted(folder.iterdir())[-1].name in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_named_as_the_slices_are_is_one(tmp_path: Path) -> None:
    folder = saved(slices(VOXELS, AFFINE), tmp_path, "slice{}".format)
    (folder / "slice7").write_bytes(b"an error of a storage server" * 10)
    with pytest.raises(InputError, match="slice7: is no DICOM object"):
        opened(folder)


def test_files_of_another_kind_are_left_alone(folder: Path) -> None:
    others = {
        "README": b"", "README.txt": b"", "Thumbs.db": bytes(600), ".DS_Store": b"\0\0\0\1Bud1", "DICOMDIR": b"",
        "0001.dcm.jpg": b"\xff\xd8\xff", "0001.json": b"{}", "._0003.dcm": b"\0\x05\x16\x07" + bytes(300),
        "scan.nii.gz": gzip.compress(bytes(400)), "md5": b"0 0007.dcm", "notes.log.gz": b"\x1f\x8bdamaged",
        "VERSION": b"3", "LOCKFILE": b"", "lock": b"1", "autorun.inf": "[autorun]".encode("utf-16-le"), "a.log": b"",
        "viewer.exe": b"MZ\x90\0" + bytes(99), "viewer": b"\x7fELF\2\1\1\0" + bytes(99), "codec.dll": b"MZ" + bytes(9),
        "viewer.jar": archived({"a/B.class": b"\xca\xfe\xba\xbe\0", "b": archived({"c.png": b"\x89PNG"})[:0]}),
        "all.zip": archived({"report.pdf": b"%PDF-1.7\n\xe2\xe3", "a": b"a", "more.docx": archived({"x": b"<x/>"})}),
        "notes": "Größe über 3 mm\n".encode("latin-1") * 20, "desktop.ini": b"\xff\xfe[\0.\0", "a.xml": b"<?xml?>",
        "old.doc": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "view.png": b"\x89PNG\r\n\x1a\n\0\0",
        "report.html": b"<!DOCTYPE html>", "table.csv.gz": gzip.compress(b"a,b\n"), "table.csv": "\ufeffa".encode(),
    }  # fmt: skip
    (folder / "data").mkdir()
    (folder / "data" / "model.bin").write_bytes(b"\x08\0\1\0\4\0\0\0" + bytes(range(256)))
    for name, content in others.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "socket")
    volume = opened(folder)
    np.testing.assert_array_equal(volume.data[0], VOXELS)
    assert volume.warnings == (f"beside the scan: {len(others) + 2} files with no DICOM",)


def test_a_series_that_is_named_as_pictures_are_lends_their_ending_no_trust(tmp_path: Path) -> None:
    folder = saved(slices(VOXELS, AFFINE), tmp_path, "{}.jpg".format)
    (folder / "7.jpg").rename(folder / "last.jpg")
    (folder / "preview.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(99))
    np.testing.assert_array_equal(opened(folder).data[0], VOXELS)
    whole = (folder / "last.jpg").read_bytes()
    for left in (b"", whole[:100], whole[:200], whole[3:]):
        (folder / "last.jpg").write_bytes(left)
        with pytest.raises(InputError, match=r"last\.jpg: "):
            opened(folder)


def test_an_archive_is_looked_into_no_further_than_it_takes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "rest.zip").write_bytes(archived({f"{k}": bytes(8 << 20) for k in range(2)}))
    tracemalloc.start()
    np.testing.assert_array_equal(opened(folder).data[0], VOXELS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    monkeypatch.setattr("voxtile.io.dicom.objects.packed.MOST_MEMBERS", 1)
    with pytest.raises(InputError, match=r"rest\.zip: is a zip archive with more than 1 files"):
        opened(folder)


def test_an_archive_that_nobody_looks_into_is_refused_wherever_it_lies(folder: Path) -> None:
    (folder / "more").mkdir()
    (folder / "more" / "pictures.jpg").write_bytes(b"Rar!\x1a\x07\0" + bytes(99))
    with pytest.raises(InputError, match=r"pictures\.jpg: is a rar archive, .* unpack it"):
        opened(folder)


def test_data_under_the_name_of_a_folder_is_refused(folder: Path) -> None:
    members = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match="/last/: expected a file, found data under the name of a folder"):
        opened(archived({**members, "last/": members.pop(LAST)}))
    (folder / LAST).unlink()
    (folder / "rest.zip").write_bytes(archived({"last/": b"data"}))
    with pytest.raises(InputError, match=r"rest\.zip: is a zip archive with data under the name of a folder"):
        opened(folder)


def test_folders_in_an_archive_are_none_of_its_files(folder: Path) -> None:
    archive = archived({"a/": b"", **{f"a/{path.name}": path.read_bytes() for path in folder.iterdir()}})
    np.testing.assert_array_equal(opened(archive).data[0], VOXELS)


def test_an_encrypted_archive_is_refused(folder: Path) -> None:
    rest = _last_member(archived({"7": b"1234"}), {b"PK\3\4": (6, 1), b"PK\1\2": (8, 1)})
    (folder / "rest.zip").write_bytes(rest)
    with pytest.raises(InputError, match=r"rest\.zip: is a zip archive with files that are encrypted"):
        opened(folder)


def test_an_archive_in_an_archive_is_refused(folder: Path) -> None:
    rest = archived({"7.dcm": (folder / LAST).read_bytes()})
    (folder / LAST).unlink()
    (folder / "rest").write_bytes(rest)
    with pytest.raises(InputError, match=r"/rest: is an archive in an archive, .* unpack it"):
        opened(zipped(folder))


def test_a_folder_of_what_was_dicom_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.dcm: is empty"):
        opened(tmp_path)
    packed = tmp_path / "b.dcm.gz"
    packed.write_bytes(gzip.compress(saved(slices(VOXELS, AFFINE), tmp_path / "s").joinpath(LAST).read_bytes()))
    with pytest.raises(InputError, match=r"b\.dcm\.gz: is DICOM, packed by gzip; unpack it"):
        opened(packed)


# Where files lie -------------------------------------------------------------------------------------------------


def test_links_are_followed_and_hidden_files_read(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    for name in ("0006.dcm", LAST):
        (folder / name).rename(elsewhere / name)
    (folder / "more").symlink_to(elsewhere)
    (folder / "0000.dcm").rename(folder / ".0000.dcm")
    for loop, target in (("loop", folder), ("again", elsewhere)):
        (elsewhere / loop).symlink_to(target)
    volume = opened(folder)
    np.testing.assert_array_equal(volume.data[0], VOXELS)
    assert volume.warnings == ()


@pytest.mark.parametrize("machinery", [".git", ".snapshot", ".Trash-1000"])
def test_older_states_are_no_part_of_a_study(machinery: str, folder: Path) -> None:
    saved(slices(VOXELS + 1, AFFINE), folder / machinery / "objects")
    np.testing.assert_array_equal(opened(folder).data[0], VOXELS)


def test_a_study_has_so_many_files_at_most(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped(folder)
    monkeypatch.setattr("voxtile.io.dicom.objects.files.MOST_FILES", 8)
    for place in (folder, archive):
        np.testing.assert_array_equal(opened(place).data[0], VOXELS)
    monkeypatch.setattr("voxtile.io.dicom.objects.files.MOST_FILES", 7)
    (folder.parent / "series.zip").write_bytes(archive)
    for place in (folder, folder.parent / "series.zip"):
        with pytest.raises(InputError, match="more than 7"):
            opened(place)


def test_a_name_breaks_no_line(folder: Path) -> None:
    (folder / LAST).rename(folder / "a\n\x1b[31m\udcff.dcm")
    np.testing.assert_array_equal(opened(folder).data[0], VOXELS)
    (folder / "a\n\x1b[31m\udcff.dcm").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\?\?\[31m\?\.dcm: is empty"):
        opened(folder)


# Archives --------------------------------------------------------------------------------------------------------


def _last_member(archive: bytes, at: dict[bytes, tuple[int, int]]) -> bytes:
    """The archive with a byte changed in the last header of each kind."""
    changed = bytearray(archive)
    for mark, (offset, value) in at.items():
        changed[changed.rindex(mark) + offset] = value
    return bytes(changed)


MEMBERS = {
    "encrypted": (_last_member, {b"PK\3\4": (6, 1), b"PK\1\2": (8, 1)}, "is encrypted; unpack the archive"),
    "of an unknown packing": (_last_member, {b"PK\3\4": (8, 9), b"PK\1\2": (10, 9)}, "Python cannot unpack"),
    "without its header": (_last_member, {b"PK\3\4": (2, 0)}, "cannot be read"),
    "damaged": (_last_member, {b"PK\1\2": (16, 0)}, "cannot be read"),
}


@pytest.mark.parametrize("how", MEMBERS)
def test_a_member_that_cannot_be_read_is_named(how: str, folder: Path) -> None:
    change, at, found = MEMBERS[how]
    archive = folder.parent / "series.zip"
    archive.write_bytes(change(zipped(folder), at))
    with pytest.raises(InputError, match=rf"series\.zip/{LAST}: .*{found}"):
        opened(archive)


@pytest.mark.parametrize(("before", "after"), [(8 << 20, 0), (0, 8 << 20)], ids=["before", "after"])
def test_a_member_is_unpacked_no_further_than_its_header_admits(
    before: int, after: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = folder.parent / "series.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for path in sorted(folder.iterdir())[:2]:
            found = path.read_bytes()
            place = found.index(b"\x28\0\x02\0")  # what a maker adds lies among the other values
            added = b"\x21\0\x10\x10OB\0\0" + before.to_bytes(4, "little") + bytes(before) if before else b""
            packed.writestr(path.name, found[:place] + added + found[place:] + bytes(after))
    monkeypatch.setattr("voxtile.io.dicom.objects.headers.LARGEST_HEADER", 1 << 20)
    assert_refused_within(archive, 3 << 20)


def assert_refused_within(place: Path, most: int) -> None:
    tracemalloc.start()
    with pytest.raises(InputError, match=r"0000\.dcm: expected"):
        opened(place)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < most


def test_a_deflated_object_is_inflated_no_further_than_its_header_admits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = slices(VOXELS[:, :, :2], AFFINE)
    for one in objects:
        one.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        one.add_new(0x7FE11010, "OB", bytes(6 << 20))
    monkeypatch.setattr("voxtile.io.dicom.objects.headers.LARGEST_HEADER", 1 << 20)
    assert_refused_within(saved(objects, tmp_path), 4 << 20)


def test_large_values_of_makers_are_not_kept(tmp_path: Path) -> None:
    objects = slices(VOXELS[:, :, :3], AFFINE)
    for one in objects:
        one.add_new(0x00211010, "OB", bytes(2 << 20))
    folder = saved(objects, tmp_path)
    tracemalloc.start()
    volume = opened(folder)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    np.testing.assert_array_equal(volume.data[0], VOXELS[:, :, :3])
    assert kept < 2 << 20
