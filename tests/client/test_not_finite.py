"""Voxels that are no numbers are refused, or replaced as asked, counted and named in the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.phantoms import saved
from tests.support.stored_scans import AFFINE, values
from voxtile.errors import InputError, MemoryLimitError
from voxtile.io.given import Given
from voxtile.io.scan import open_scan
from voxtile.options import Options


def odd(dtype: str = "f4") -> np.ndarray[Any, Any]:
    """Two NaN, three infinities and one minus infinity."""
    data = values(dtype)
    data[0, 1, 2] = data[6, 4, 5] = np.nan
    data[1, :3, 0] = np.inf
    data[3, 3, 3] = -np.inf
    return data


def replaced(data: Any, nan: float, posinf: float, neginf: float) -> Any:
    return np.nan_to_num(data, nan=nan, posinf=posinf, neginf=neginf)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_they_are_replaced_as_numpy_does_and_counted(dtype: str, order: Any) -> None:
    data = np.array(odd(dtype), order=order)
    before = data.copy()
    volume = open_scan((data, AFFINE), ["T1"], given=Given(nan=-5, posinf=7, neginf=0))
    np.testing.assert_array_equal(volume.data[0], replaced(data, -5, 7, 0).astype("f4"))
    assert volume.changes == (
        "NaN -> -5 in 2 voxels (T1)", "infinity -> 7 in 3 voxels (T1)", "minus infinity -> 0 in 1 voxels (T1)",
    )  # fmt: skip
    np.testing.assert_array_equal(data, before)


@pytest.mark.parametrize(
    ("given", "count", "advice"),
    [(Given(), 6, "--nan VALUE --posinf VALUE --neginf VALUE"), (Given(nan=0), 4, "--posinf VALUE --neginf VALUE"),
     (Given(posinf=0, neginf=0), 2, "--nan VALUE"), (Given(nan=0, posinf=0), 1, "--neginf VALUE")],
)  # fmt: skip
def test_what_is_not_asked_for_stays_refused(given: Given, count: int, advice: str) -> None:
    with pytest.raises(InputError, match=rf"found {count} that are NaN.*: {advice}$"):
        open_scan((odd(), AFFINE), ["T1"], given=given)


def test_numbers_beyond_float32_are_infinite(tmp_path: Path) -> None:
    data = values("f8")
    data[0, 0, 0], data[1, 1, 1] = 1e300, -1e300
    volume = open_scan([saved(tmp_path / "a.nii", data, AFFINE)], ["T1"], given=Given(posinf=3, neginf=-3))
    assert (volume.data[0, 0, 0, 0], volume.data[0, 1, 1, 1]) == (3, -3)


def test_each_channel_is_named(tmp_path: Path) -> None:
    files = [saved(tmp_path / "a.nii", values("f4"), AFFINE), saved(tmp_path / "b.nii", odd(), AFFINE)]
    volume = open_scan(files, ["T1", "T2"], given=Given(nan=0, posinf=0, neginf=0))
    assert len(volume.changes) == 3
    assert all(change.endswith("(T2)") for change in volume.changes)
    assert not any("b.nii" in change for change in volume.changes)


def test_a_sound_scan_is_not_changed() -> None:
    data = values("f4")
    volume = open_scan((data, AFFINE), ["T1"], given=Given(nan=0, posinf=0, neginf=0))
    assert volume.changes == ()
    np.testing.assert_array_equal(volume.data[0], data)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e39])
@pytest.mark.parametrize("name", ["nan", "posinf", "neginf"])
def test_what_replaces_them_is_a_number(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"finite number for --{name}"):
        Options(**{name: value})  # type: ignore[arg-type]


def test_the_copy_counts_in_the_memory(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii", odd(), AFFINE)
    most = 2 * odd().nbytes - 1
    with pytest.raises(MemoryLimitError):
        open_scan([path], ["T1"], max_bytes=most, given=Given(nan=0, posinf=0, neginf=0))
    with pytest.raises(InputError, match="NaN"):  # without a copy it fits
        open_scan([path], ["T1"], max_bytes=most)
