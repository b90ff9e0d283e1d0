"""Two paths that are one file, in every spelling, are refused as an input and an output or as two outputs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from voxtile.errors import OutputError
from voxtile.io import same_file
from voxtile.io.atomic import check_writable
from voxtile.io.same_file import KnownFiles, check_outputs_apart


def linked(path: Path) -> Path:
    link = path.parent.parent / "link.nii"
    link.symlink_to(path)
    return link


def in_linked_folder(path: Path) -> Path:
    (path.parent.parent / "elsewhere").symlink_to(path.parent)
    return path.parent.parent / "elsewhere" / path.name


def hard_linked(path: Path) -> Path:
    os.link(path, path.with_name("hard.nii"))
    return path.with_name("hard.nii")


def through_a_missing_folder_and_back(path: Path) -> Path:
    (path.parent / "sub").mkdir()
    return path.parent / "sub" / ".." / path.name


SPELLINGS: list[Callable[[Path], Path]] = [
    lambda path: path,
    lambda path: Path(f"{path.parent}/./{path.name}"),
    lambda path: Path(f"//{path}"),
    lambda path: Path(os.path.relpath(path)),
    linked,
    in_linked_folder,
    hard_linked,
    through_a_missing_folder_and_back,
]


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "scan.nii"
    path.write_bytes(b"a scan")
    return path


@pytest.mark.parametrize("spelled", SPELLINGS)
def test_an_output_that_is_an_input_is_refused(scan: Path, spelled: Callable[[Path], Path]) -> None:
    with pytest.raises(OutputError, match=r"the mask would replace the scan .*scan\.nii, which is the same file"):
        check_outputs_apart([scan.with_name("other.nii"), scan], [("the mask", spelled(scan))])


@pytest.mark.parametrize("spelled", [one for one in SPELLINGS if one is not hard_linked])
def test_two_outputs_that_do_not_exist_yet_are_told_to_be_one(scan: Path, spelled: Callable[[Path], Path]) -> None:
    scan.unlink()
    with pytest.raises(OutputError, match="the report would replace the mask"):
        check_outputs_apart([], [("the mask", scan), ("the report", spelled(scan))])


def test_other_files_are_other_files(scan: Path) -> None:
    (scan.parent / "sub").mkdir()
    others = [scan.with_name("SCAN.nii"), scan.with_name("scan.nii.gz"), scan.parent / "sub" / scan.name]
    check_outputs_apart([scan], [(f"output {number}", other) for number, other in enumerate(others)])
    assert sorted(path.name for path in scan.parent.iterdir()) == ["scan.nii", "sub"]


def test_names_that_differ_by_capitals_are_one_where_the_file_system_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system that keeps them apart, which this one is asked to deny."""
    known = KnownFiles()
    known.add(tmp_path / "Straße.nii", "one")
    assert known.find(tmp_path / "STRASSE.nii") is None
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(same_file, "_one_name", lambda *_: True)
    assert known.find(tmp_path / "STRASSE.nii") == "one"
    assert known.find(tmp_path / "STRASSEN.nii") is None


def test_the_file_system_is_asked_about_capitals_with_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that finds a file by its name in other capitals, as those of Windows and macOS do."""

    def exists_in_other_capitals(path: Path) -> bool:
        return path.name.casefold() in {other.casefold() for other in os.listdir(path.parent)}

    monkeypatch.setattr(same_file.Path, "exists", exists_in_other_capitals)
    for name in ("A.nii", "À.nii", "Mask.json"):
        with pytest.raises(OutputError, match="the report would replace the mask"):
            check_outputs_apart([], [("the mask", tmp_path / name), ("the report", tmp_path / name.lower())])
    check_outputs_apart([], [("the mask", tmp_path / "a.nii"), ("the report", tmp_path / "b.nii")])
    assert list(tmp_path.iterdir()) == []


def test_a_loop_of_links_is_a_name_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    check_outputs_apart([tmp_path / "loop"], [("the mask", tmp_path / "mask.nii")])
    with pytest.raises(OutputError, match="cannot be written"):
        check_writable(tmp_path / "loop")


def test_what_is_protected_or_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    protected, pipe, good = tmp_path / "kept.nii", tmp_path / "pipe.json", tmp_path / ("n" * 251 + ".nii")
    protected.write_bytes(b"kept")
    protected.chmod(0o444)
    os.mkfifo(pipe)
    for path, match in ((protected, "protected"), (pipe, "pipe"), (Path("/dev/null"), "device")):
        with pytest.raises(OutputError, match=match):
            check_writable(path)
    with pytest.raises(OutputError, match="name too long"):
        check_writable(good.with_name("n" + good.name))
    check_writable(good)


def test_a_folder_is_looked_up_once_for_all_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, real = [], os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path: asked.append(path) or real(path))
    known = KnownFiles()
    for number in range(50):
        known.add(tmp_path / f"{number}.nii.gz", f"row {number}")
    assert known.find(tmp_path / "7.nii.gz") == "row 7"
    assert len(asked) == 1
