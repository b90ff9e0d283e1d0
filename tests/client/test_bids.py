"""BIDS names: channels by suffix, whatever else lies in a folder; other contrasts are not segmented by chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.commands import refused, run
from tests.support.in_memory_commands import save_scan, transport
from voxtile.batch.cases import CaseFiles, check_channel_numbers, find_cases
from voxtile.batch.run import segment_folder
from voxtile.errors import InputError
from voxtile.io.bids import contrast_of
from voxtile.segmenter import Segmenter

TWO = ["T1", "FLAIR"]


def found(tmp_path: Path, channels: list[str], *names: str) -> tuple[dict[str, CaseFiles], list[str]]:
    for name in names:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    cases = find_cases(tmp_path / "in", tmp_path / "out", channels)
    return {case.name: case for case in cases.cases}, [one.path for one in cases.left_out]


def files(case: CaseFiles) -> list[str]:
    return [file.name for file in case.files]


@pytest.mark.parametrize("channels", [["T1", "FLAIR"], ["T1w", "T2-FLAIR"], ["t1", "flair"], ["T1-weighted", "t2f"]])
def test_channels_are_told_by_suffix(tmp_path: Path, channels: list[str]) -> None:
    names = [f"sub-01/ses-{n}/anat/sub-01_ses-{n}_{suffix}" for n in (1, 2) for suffix in ("FLAIR.nrrd", "T1w.nii.gz")]
    cases, left_out = found(tmp_path, channels, *names, "sub-01/ses-1/anat/sub-01_ses-1_T2w.nii")
    assert {name: files(case) for name, case in cases.items()} == {
        f"sub-01/ses-{n}/anat/sub-01_ses-{n}": [f"sub-01_ses-{n}_T1w.nii.gz", f"sub-01_ses-{n}_FLAIR.nrrd"]
        for n in (1, 2)
    }
    assert left_out == ["sub-01/ses-1/anat/sub-01_ses-1_T2w.nii"]
    assert cases["sub-01/ses-1/anat/sub-01_ses-1"].mask == tmp_path / "out/sub-01/ses-1/anat/sub-01_ses-1.nii.gz"


def test_a_contrast_agent_is_a_channel_of_its_own(tmp_path: Path) -> None:
    names = ["sub-1_T1w.nii", "sub-1_ce-gadolinium_T1w.nii", "sub-1_acq-space_FLAIR.nii"]
    cases, _ = found(tmp_path, ["T1", "T1Gd", "FLAIR"], *names)
    assert {name: files(case) for name, case in cases.items()} == {"sub-1": names}


def test_channels_may_lie_in_several_folders_of_a_session(tmp_path: Path) -> None:
    cases, _ = found(tmp_path, ["CT", "PET"], "sub-1/pet/sub-1_trc-FDG_pet.nii", "sub-1/ct/sub-1_ct.nii")
    assert {name: files(case) for name, case in cases.items()} == {
        "sub-1/sub-1": ["sub-1_ct.nii", "sub-1_trc-FDG_pet.nii"]
    }


def test_runs_stay_apart(tmp_path: Path) -> None:
    names = [f"sub-1_run-{n}_{suffix}.nii" for n in (1, 2) for suffix in ("T1w", "FLAIR")]
    cases, _ = found(tmp_path, TWO, *names)
    assert {name: files(case) for name, case in cases.items()} == {"sub-1_run-1": names[:2], "sub-1_run-2": names[2:]}


@pytest.mark.parametrize(
    "names",
    [("sub-1_T1w.nii", "sub-2_FLAIR.nii"), ("sub-1_T1w.nii", "sub-1_T1w.mha", "sub-1_FLAIR.nii"),
     ("sub-1_run-1_T1w.nii", "sub-1_run-2_T1w.nii", "sub-1_FLAIR.nii")],
)  # fmt: skip
def test_a_case_with_another_number_of_files_is_refused_by_name(tmp_path: Path, names: tuple[str, ...]) -> None:
    cases, _ = found(tmp_path, TWO, *names)
    told = ""
    for case in cases.values():
        with pytest.raises(InputError, match=r"one file for each channel by its BIDS suffix \(T1, FLAIR\)") as caught:
            check_channel_numbers(case, TWO)
        told += str(caught.value)
    assert all(name in told for name in names)


def test_a_model_of_one_contrast_takes_no_other(tmp_path: Path) -> None:
    names = ["sub-1_T1w.nii", "sub-1_desc-brain_mask.nii", "sub-1_FLAIR.nii", "notes.nii"]
    cases, left_out = found(tmp_path, ["T1w"], *names)
    assert sorted(cases) == ["notes", "sub-1_T1w"]
    assert sorted(left_out) == ["sub-1_FLAIR.nii", "sub-1_desc-brain_mask.nii"]


@pytest.mark.parametrize("channels", [["any"], ["image"], ["MR"]])
def test_names_say_nothing_to_a_model_whose_channel_is_none_of_them(tmp_path: Path, channels: list[str]) -> None:
    cases, left_out = found(tmp_path, channels, "sub-1_T1w.nii", "sub-1_FLAIR.nii", "sub-1_T2w_0000.nii")
    assert (sorted(cases), left_out) == (["sub-1_FLAIR", "sub-1_T1w", "sub-1_T2w"], [])


def test_nnunets_numbers_are_no_suffixes(tmp_path: Path) -> None:
    names = ["sub-1_0000.nii", "sub-1_0001.nii"]
    cases, _ = found(tmp_path, TWO, *names)
    assert {name: files(case) for name, case in cases.items()} == {"sub-1": names}


def test_contrasts() -> None:
    assert {contrast_of(name) for name in ("T1", "T1w", "t1-weighted", "T1n")} == {"t1"}
    assert {contrast_of(name) for name in ("T1ce", "T1Gd", "T1c", "t1_post")} == {"t1c"}
    assert contrast_of("PDw") != contrast_of("T2w")


def test_each_channel_is_read_from_its_file(tmp_path: Path) -> None:
    """The network gives the second label where the first channel is not 0."""
    save_scan(tmp_path / "in" / "sub-1_T1w.nii", 1)
    flair = save_scan(tmp_path / "in" / "sub-1_FLAIR.nii", 2)
    seen = []

    def network(tiles: np.ndarray) -> np.ndarray:
        seen.append(float(tiles[:, 0].sum() - tiles[:, 1].sum()))
        return np.concatenate([np.zeros_like(tiles[:, :1]), tiles[:, :1]], axis=1)

    for channels in (("T1", "FLAIR"), ("FLAIR", "T1")):
        with Segmenter(transport=transport(channels, network)) as segmenter:
            result = segment_folder(segmenter, tmp_path / "in", tmp_path / "_".join(channels))
        assert [(outcome.case, outcome.status) for outcome in result.outcomes] == [("sub-1", "done")]
    half = len(seen) // 2
    assert seen[:half] == [-value for value in seen[half:]]
    assert any(seen)
    assert flair.exists()


def test_a_wrong_order_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxtile.segmenter.connect_transport", lambda *_: transport(("T1", "FLAIR")))
    scans = [save_scan(tmp_path / f"sub-1_{suffix}.nii", 1) for suffix in ("FLAIR", "T1w")]
    words = ("-o", tmp_path / "m.nii", "--model", "phantom", "--url", "memory:1", "-q")
    line = refused(run("segment", *scans, *words), tmp_path, *(scan.name for scan in scans))
    assert "the model's order (T1, FLAIR), found sub-1_FLAIR.nii, sub-1_T1w.nii" in line
    assert run("segment", *scans[::-1], *words).exit_code == 0
