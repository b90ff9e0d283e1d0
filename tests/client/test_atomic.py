"""A file appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.phantoms import phantom_volume
from tests.support.stored_scans import SHAPE, values
from voxtile.errors import OutputError
from voxtile.io.atomic import atomic_file, check_writable
from voxtile.io.writing import check_mask_name, mask_image, write_image


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "mask.nii"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_outputs_that_cannot_be_written_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(OutputError, match="ends in"):
        check_mask_name(tmp_path / "mask.png")
    for name, match in (("none/mask.nii", "folder"), ("folder.nii", "found a folder")):
        with pytest.raises(OutputError, match=match):
            check_writable(tmp_path / name)
    with pytest.raises(OutputError, match="ends in"):
        write_image(mask_image(values() > 0, phantom_volume(SHAPE)), tmp_path / "mask.png")
    with pytest.raises(OutputError, match="cannot be written"):
        check_writable("/proc/mask.nii")
    check_writable(tmp_path / "mask.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.nii"]
