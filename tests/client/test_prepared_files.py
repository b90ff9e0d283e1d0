"""Files of prepared scans: all channels or none, axes as in a scan, and models that take none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.support.phantoms import card_of
from voxtile.errors import InputError, ModelError, OutputError
from voxtile.io.scan import open_scan
from voxtile.io.writing import write_images
from voxtile.outputs.prepared_files import files_of, preparation_of, write_prepared

TWO = ("one.nii.gz", "two.nii")


@pytest.mark.parametrize("channel", range(3))
def test_several_channels_are_written_all_or_not_at_all(tmp_path: Path, channel: int) -> None:
    (tmp_path / f"case_000{channel}.nii.gz").mkdir()
    older = tmp_path / f"case_000{(channel + 1) % 3}.nii.gz"
    older.write_bytes(b"what was there before")
    with pytest.raises(OutputError, match=f"case_000{channel}"):
        write_prepared(np.zeros((3, 4, 5, 6), np.float32), (1, 2, 3), "0" * 64, tmp_path / "case.nii.gz")
    assert len(list(tmp_path.iterdir())) == 2
    assert older.read_bytes() == b"what was there before"


def test_no_channel_takes_its_name_before_all_are_written(tmp_path: Path) -> None:
    def images() -> Iterator[tuple[Any, Path]]:
        for channel in range(2):
            yield nib.Nifti1Image(np.zeros((2, 3, 4), np.float32), np.eye(4)), tmp_path / f"{channel}.nii"
            assert not any(path.suffix == ".nii" for path in tmp_path.iterdir())
        raise KeyError("the third cannot be had")

    with pytest.raises(KeyError):
        write_images(images())
    assert list(tmp_path.iterdir()) == []
    write_images((nib.Nifti1Image(np.zeros((2, 3, 4), np.float32), np.eye(4)), tmp_path / name) for name in TWO)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(TWO)


def test_axes_and_spacing_lie_as_in_a_scan(tmp_path: Path) -> None:
    data = np.arange(4 * 5 * 6, dtype=np.float32).reshape(1, 4, 5, 6)
    (file,) = write_prepared(data, (3.0, 2.0, 1.0), "ab" * 32, tmp_path / "case.nii")
    image: Any = nib.load(file)
    assert image.shape == (6, 5, 4)
    assert image.header.get_zooms() == (1.0, 2.0, 3.0)
    assert image.header["descrip"].item() == b"voxtile prepared " + b"ab" * 16
    np.testing.assert_array_equal(image.get_fdata().transpose(2, 1, 0), data[0])
    assert [path.name for path in files_of("x/case.nii.gz", 2)] == ["case_0000.nii.gz", "case_0001.nii.gz"]


def test_a_prepared_scan_is_not_taken_for_a_scan(tmp_path: Path) -> None:
    (file,) = write_prepared(np.ones((1, 4, 5, 6), np.float32), (1, 2, 3), "0" * 64, tmp_path / "case.nii.gz")
    for given in (file, file.read_bytes(), nib.load(file)):
        with pytest.raises(InputError, match="expected a scan, found a file of `voxtile prepare`"):
            open_scan(given, ["T1"])


def test_other_models_need_none() -> None:
    card = card_of()
    with pytest.raises(ModelError, match=r"expected an nnU-Net model; .*prepares scans for any other by itself"):
        preparation_of(card)
    with pytest.raises(ModelError, match="build it anew"):
        preparation_of(card.model_copy(update={"nnunet": {}}))
    second = {"preparation": "0" * 64, "previous_stage": "first"}
    with pytest.raises(ModelError, match="a cascade's second stage"):
        preparation_of(card.model_copy(update={"nnunet": second}))
