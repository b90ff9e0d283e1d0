"""nnU-Net's channel numbers in names, against the model's channels and the order in which files are given."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.in_memory_commands import save_scan, transport
from voxtile import InputError, Segmenter
from voxtile.io.channel_numbers import check_numbers_as_given, split_number

TWO = ("T1", "T2")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a_0001.nii.gz", ("a", 1)),
        ("a_b_2023.NII", ("a_b", 2023)),
        ("a_00001.nii", ("a_00001", None)),
        ("a0001.nii", ("a0001", None)),
        ("_0001.nii", ("_0001", None)),
        ("a\n_0000.nii", ("a\n", 0)),
        ("a_0000\n.nii", ("a_0000\n", None)),
        ("a_٠٠٠١.nii", ("a_٠٠٠١", None)),
    ],
)
def test_four_digits_after_a_name_are_a_number(name: str, expected: tuple[str, int | None]) -> None:
    assert split_number(Path("folder") / name) == expected


@pytest.mark.parametrize(
    "names",
    [
        ["a_0000.nii", "a_0001.nii"],
        ["one/a_0000.nii", "other/a_0001.nii"],
        ["a_t1.nii", "a_t2.nii"],
        ["t1_0001.nii", "t2_0001.nii"],
        ["patient_0007.nii", "reference_0003.nii"],
        ["a_0000.nii", "a.nii"],
        ["a_0000.nii"],
        ["patient_2023.nii"],
        ["a.nii", "a.nii"],
    ],
)
def test_names_that_contradict_nothing_are_taken(names: list[str]) -> None:
    check_numbers_as_given([Path(name) for name in names], TWO)


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (["a_0001.nii", "a_0000.nii"], "give them in this order"),
        (["one/a_0001.nii", "other/a_0000.nii"], "give them in this order"),
        (["a_0001.nii", "b_0000.nii"], "give them in this order"),
        (["a_0000.nii", "a_0002.nii"], "add what is missing"),
        (["a_0001.nii", "a_0002.nii"], "add what is missing"),
        (["a_0000.nii", "a_0000.nii.gz"], "add what is missing"),
        (["a_0000.nii", "a_0001.nii", "a_0002.nii"], "add what is missing"),
        (["a_0001.nii"], "add what is missing"),
    ],
)
def test_another_order_or_other_channels_are_refused_with_the_right_ones(names: list[str], advice: str) -> None:
    files = [Path(name) for name in names]
    with pytest.raises(InputError) as caught:
        check_numbers_as_given(files, TWO)
    assert "(_0000 T1, _0001 T2), found " + ", ".join(file.name for file in files) in str(caught.value)
    assert advice in str(caught.value)


def test_one_channel_of_several_is_not_taken_for_a_model_of_one(tmp_path: Path) -> None:
    second = save_scan(tmp_path / "a_0001.nii.gz")
    check_numbers_as_given([second], ["T1"])  # a patient's number
    save_scan(tmp_path / "a_0000.nii")
    with pytest.raises(InputError, match=r"\(_0000 T1\), found a_0001\.nii\.gz"):
        check_numbers_as_given([second], ["T1"])


def test_a_segmenter_refuses_swapped_files(tmp_path: Path) -> None:
    files = [save_scan(tmp_path / f"a_{number:04d}.nii.gz", number) for number in range(2)]
    with Segmenter(transport=transport(TWO)) as segmenter:
        segmenter(files)
        segmenter([str(file) for file in files])
        for swapped in (files[::-1], [str(file) for file in files[::-1]]):
            with pytest.raises(InputError, match="give them in this order"):
                segmenter(swapped)
