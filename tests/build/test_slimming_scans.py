"""Scans are found as `voxtile batch` finds them, parted by person and content, and prepared as a client does it."""

from __future__ import annotations

import gzip
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.support.build_specs import spec
from tests.support.nnunet_folders import Training, configuration, write_folder, write_scan
from tests.support.specs import PROVENANCE
from voxtile.chains.nnunet.prepared_scan import NnunetPreparedScan
from voxtile.chains.prepare import prepare_scan
from voxtile.io.scan import open_scan
from voxtile.outputs.prepared_files import write_prepared_scan
from voxtile_build.errors import ScanError, SlimmingError
from voxtile_build.evaluation.samples import Scan, scans_of
from voxtile_build.importers.nnunet.models import models_of
from voxtile_build.repository.card import card_of
from voxtile_build.slimming import scans
from voxtile_build.slimming.given.looked_at import LookedAt
from voxtile_build.slimming.given.padded import Padded, is_padded
from voxtile_build.slimming.scans import (
    MARGIN,
    TrainingScan,
    block,
    find_scans,
    held_out_region,
    persons_in_words,
    read,
    split,
    train_region,
)
from voxtile_build.spec.spec import Spec

SHAPE = (14, 11, 17)
AFFINE = np.array([[0, -1.2, 0, 9], [-1, 0, 0, 4], [0, 0, 1.5, -7], [0, 0, 0, 1.0]])


def values(seed: int, dtype: str = "i2") -> Any:
    found = np.random.default_rng(seed).integers(1, 900, SHAPE)
    found[:3] = 0
    return found.astype(dtype)


def save(path: Path, seed: int, dtype: str = "i2", affine: Any = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values(seed, dtype), affine), path)
    return path


def named(scans: Sequence[TrainingScan]) -> list[str]:
    return [scan.name for scan in scans]


def two_channels() -> Spec:
    return spec(input={"channels": ["T1", "FLAIR"]}, network={"args": {"in_channels": 2}})


# Finding --------------------------------------------------------------------------------------------------------


def test_cases_are_those_of_batch(tmp_path: Path) -> None:
    for name in ("a/one.nii.gz", "a/two.nii", "three_0000.nii.gz"):
        save(tmp_path / name, hash(name) % 1000)
    assert named(find_scans(tmp_path, spec())) == ["a/one", "a/two", "three"]
    for folder, names in (
        ("numbers", ("c_0000.nii.gz", "c_0001.nii.gz")),
        ("bids", ("sub-1/anat/sub-1_FLAIR.nii.gz", "sub-1/anat/sub-1_T1w.nii.gz")),
    ):
        for number, name in enumerate(names):
            save(tmp_path / folder / name, number)
    found = find_scans(tmp_path / "bids", two_channels())
    assert [file.name for file in found[0].files] == ["sub-1_T1w.nii.gz", "sub-1_FLAIR.nii.gz"]
    assert found[0].subject == "sub-1"
    assert named(find_scans(tmp_path / "numbers", two_channels())) == ["c"]


def test_what_cannot_be_used_is_left_out_by_name_and_never_in_silence(tmp_path: Path) -> None:
    save(tmp_path / "good.nii.gz", 1)
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "good.nii.gz").read_bytes()[:700])
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.complex64), AFFINE), tmp_path / "waves.nii.gz")
    (tmp_path / "slice.dcm").write_bytes(bytes(200))
    (tmp_path / "empty.nii").write_bytes(b"")
    save(tmp_path / "other_0000.nii.gz", 2)
    save(tmp_path / "other_0001.nii.gz", 3)
    lines: list[str] = []
    assert named(find_scans(tmp_path, spec(), lines.append)) == ["good"]
    told = "\n".join(lines)
    for name in ("cut", "waves", "slice.dcm", "empty", "other"):
        assert name in told
    assert all("\n" not in line for line in lines)
    (tmp_path / "good.nii.gz").unlink()
    with pytest.raises(SlimmingError, match="expected scans that can be read, found none; left out cut") as caught:
        find_scans(tmp_path, spec())
    assert "\n" not in str(caught.value)
    for place in (tmp_path / "gone", tmp_path / "empty.nii"):
        with pytest.raises(SlimmingError, match="expected a folder of scans"):
            find_scans(place, spec())


def test_scans_with_the_same_voxels_are_one_scan_whatever_holds_them(tmp_path: Path) -> None:
    first = save(tmp_path / "a.nii.gz", 1)
    shutil.copy(first, tmp_path / "b_copy.nii.gz")
    (tmp_path / "c_plain.nii").write_bytes(gzip.decompress(first.read_bytes()))
    save(tmp_path / "d_floats.nii.gz", 1, "f4")
    nib.save(nib.load(first).as_reoriented(np.array([[0, 1], [2, -1], [1, -1]])), tmp_path / "e_turned.nii.gz")
    save(tmp_path / "z_other.nii.gz", 2)
    lines: list[str] = []
    assert named(find_scans(tmp_path, spec(), lines.append)) == ["a", "z_other"]
    assert lines == [
        f"left out {name}: it has the voxels of a" for name in ("b_copy", "c_plain", "d_floats", "e_turned")
    ]


def test_no_option_is_advised_that_a_distillation_lacks(tmp_path: Path) -> None:
    save(tmp_path / "good.nii.gz", 1)
    for name, value in {"nan": np.nan, "inf": np.inf, "down": -np.inf}.items():
        spoilt = values(2, "f4")
        spoilt[4, 5, 6] = value
        nib.save(nib.Nifti1Image(spoilt, AFFINE), tmp_path / f"{name}.nii.gz")
    lines: list[str] = []
    assert named(find_scans(tmp_path, spec(), lines.append)) == ["good"]
    assert len(lines) == 3
    for line in lines:
        assert "--" not in line
        assert "(4, 5, 6)" in line
        assert line.endswith("; write a repaired copy of the scan, and give that")


def test_a_slice_is_no_scan_for_a_network_that_sees_three_axes(tmp_path: Path) -> None:
    save(tmp_path / "good.nii.gz", 1)
    for name, index in {"flat": np.s_[:, :, :1], "thin": np.s_[:1], "plain": np.s_[:, :, 4]}.items():
        nib.save(nib.Nifti1Image(values(2)[index], AFFINE), tmp_path / f"{name}.nii.gz")
    lines: list[str] = []
    assert named(find_scans(tmp_path, spec(), lines.append)) == ["good"]
    assert all("expected a scan that extends along 3 axes" in line for line in lines)
    assert [line.split(":")[0] for line in lines] == ["left out flat", "left out plain", "left out thin"]
    flat = spec(tiling={"roi_size": [8, 8], "slice_axis": 2}, network={"args": {"spatial_dims": 2}})
    assert "flat" in named(find_scans(tmp_path, flat))


def test_a_scan_that_is_smaller_than_a_tile_is_known_to_be_padded() -> None:
    def scan(*shape: int) -> Scan:
        return Scan("one", np.zeros((1, *shape), np.int16), np.zeros((1, 2), np.float32))

    whole = spec(tiling={"roi_size": [8, 16, 12]})
    slices = spec(tiling={"roi_size": [16, 12], "slice_axis": 0}, network={"args": {"spatial_dims": 2}})
    assert [is_padded(scan(*shape), whole) for shape in ((8, 16, 12), (7, 40, 40), (40, 40, 11))] == [False, True, True]
    assert [is_padded(scan(*shape), slices) for shape in ((1, 16, 12), (9, 15, 12), (9, 16, 11))] == [False, True, True]


def test_a_run_that_goes_on_reads_no_scan_again_unless_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate("abc"):
        save(tmp_path / "scans" / f"patient_{name}.nii.gz", number)
    shutil.copy(tmp_path / "scans" / "patient_a.nii.gz", tmp_path / "scans" / "patient_d.nii.gz")
    read_files: list[str] = []
    monkeypatch.setattr(
        scans, "open_scan", lambda files, *more: read_files.append(files[0].name) or open_scan(files, *more)
    )
    noted = LookedAt(tmp_path / "not there")
    first = find_scans(tmp_path / "scans", spec(), looked_at=noted)
    assert len(read_files) == 4
    noted.save(tmp_path)
    assert "patient" not in (tmp_path / "scans.json").read_text()
    read_files.clear()
    again = find_scans(tmp_path / "scans", spec(), looked_at=LookedAt(tmp_path))
    assert (again, read_files) == (first, [])
    for one, other in zip(first, again, strict=True):
        assert one.voxels == other.voxels
        np.testing.assert_array_equal(one.values[0].quantiles, other.values[0].quantiles)
    save(tmp_path / "scans" / "patient_b.nii.gz", 9)
    changed = find_scans(tmp_path / "scans", spec(), looked_at=LookedAt(tmp_path))
    assert read_files == ["patient_b.nii.gz"]
    assert changed[1].sha256 != first[1].sha256
    for content in ("no json", "[]", '{"a": 1}'):
        (tmp_path / "scans.json").write_text(content)
        read_files.clear()
        find_scans(tmp_path / "scans", spec(), looked_at=LookedAt(tmp_path))
        assert len(read_files) == 4


# Parting --------------------------------------------------------------------------------------------------------


def some(tmp_path: Path, names: Sequence[str]) -> tuple[TrainingScan, ...]:
    for number, name in enumerate(names):
        save(tmp_path / f"{name}.nii.gz", number)
    return find_scans(tmp_path, spec())


def test_scans_that_are_renamed_are_parted_and_ordered_as_before(tmp_path: Path) -> None:
    for number, name in enumerate("abcde"):
        save(tmp_path / f"{name}.nii.gz", number)
    before = [[scan.sha256 for scan in side] for side in split(find_scans(tmp_path, spec()), 0.4, 0)]
    for old, new in {"a": "zz", "c": "0", "e": "b2"}.items():
        (tmp_path / f"{old}.nii.gz").rename(tmp_path / f"{new}.nii.gz")
    after = [[scan.sha256 for scan in side] for side in split(find_scans(tmp_path, spec()), 0.4, 0)]
    assert after == before


def test_scans_that_are_padded_are_told_in_one_line_however_often_they_are_read() -> None:
    padded, lines = Padded(spec(tiling={"roi_size": [8, 16, 12]})), list[str]()
    padded.tell(lines.append)
    for name, size in (("large", 16), ("small", 11), ("smaller", 9)):
        scan = Scan(name, np.zeros((1, 16, 16, size), np.int16), np.zeros((1, 2), np.float32))
        read = padded.noting(lambda scan=scan: scan)
        assert read() is read() is scan
    padded.tell(lines.append)
    assert lines == ["small and 1 more: smaller than a tile of 8 × 16 × 12 voxels; padded, as the client pads"]


def test_it_is_told_how_many_persons_are_counted_and_by_what(tmp_path: Path) -> None:
    visits = some(tmp_path / "visits", ("PAT7_visit1", "PAT7_visit2", "PAT8_visit1"))
    told = persons_in_words(visits)
    assert told.startswith("3 scans of 3 persons: each taken for another person's")
    assert "name them sub-X_" in told
    both = some(tmp_path / "both", ("sub-7_ses-1", "sub-7_ses-2", "sub-8"))
    assert persons_in_words(both) == "3 scans of 2 persons, by sub-… in their names"
    mixed = some(tmp_path / "mixed", ("sub-7_ses-1", "sub-7_ses-2", "other"))
    assert persons_in_words(mixed).startswith("3 scans of 2 persons: by sub-… in their names, the others each")
    assert persons_in_words(visits[:1]).startswith("1 scan of 1 person: ")


def test_parting_depends_on_seed_and_content_alone(tmp_path: Path) -> None:
    scans = some(tmp_path / "one", "abcdefghij")
    renamed = some(tmp_path / "two", "qponmlkjih")  # the same voxels in the same order under other names
    parted = {seed: split(scans, 0.3, seed) for seed in range(12)}
    for seed, (train, held) in parted.items():
        assert len(held) == 3
        assert sorted(named(train + held)) == list("abcdefghij")
        assert split(scans[::-1], 0.3, seed) == (train, held)
        other = split(renamed, 0.3, seed)[1]
        assert sorted(scan.sha256 for scan in other) == sorted(scan.sha256 for scan in held)
    assert len({held for _, held in parted.values()}) > 6


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.5, 2), (0.99, 3)])
def test_each_side_has_a_scan(tmp_path: Path, share: float, count: int) -> None:
    train, held = split(some(tmp_path, "abcd"), share, 0)
    assert (len(train), len(held)) == (4 - count, count)


def test_all_sessions_of_a_subject_are_on_one_side(tmp_path: Path) -> None:
    names = [f"sub-{n:02d}/ses-{m}/anat/sub-{n:02d}_ses-{m}_T1w" for n in range(5) for m in range(2)]
    names += ["sub-03_run-9_T1w", "derivatives/x/sub-04/anat/y", "plain"]
    scans = some(tmp_path, names)
    for seed in range(8):
        train, held = split(scans, 0.3, seed)
        assert held
        assert train
        assert not {scan.subject for scan in train if scan.subject} & {scan.subject for scan in held}
        assert sorted(named(train + held)) == sorted(names)


def test_scans_that_share_a_channel_are_on_one_side_and_an_empty_one_binds_nobody(tmp_path: Path) -> None:
    for case, seeds in {"a": (1, 2), "b": (3, 2), "c": (4, 5), "d": (6, 7), "e": (8, 9)}.items():
        for channel, seed in enumerate(seeds):
            save(tmp_path / f"{case}_{channel:04d}.nii.gz", seed)
    for case in "cde":
        nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.int16), AFFINE), tmp_path / f"{case}_0001.nii.gz")
    scans = find_scans(tmp_path, two_channels())
    sides = {frozenset(named(split(scans, 0.2, seed)[1])) for seed in range(12)}
    assert sides == {frozenset("c"), frozenset("d"), frozenset("e")}


def test_scans_that_all_belong_together_are_refused_without_the_flag(tmp_path: Path) -> None:
    (one,) = some(tmp_path / "one", "a")
    with pytest.raises(SlimmingError, match=r"found a alone; add scans, or give --one-scan"):
        split([one], 0.2, 0)
    assert split([one], 0.2, 0, alone=True) == ((one,), (one,))
    sessions = some(tmp_path / "two", ("sub-1_ses-1_T1w", "sub-1_ses-2_T1w"))
    with pytest.raises(SlimmingError, match="found 2 scans of sub-1"):
        split(sessions, 0.5, 0)
    assert split(sessions, 0.5, 0, alone=True) == (sessions, sessions)
    several = some(tmp_path / "three", "ab")
    assert split(several, 0.5, 0, alone=True) == split(several, 0.5, 0)


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan"), 20])
def test_a_share_that_is_none_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(SlimmingError, match="--held-out: expected a share above 0 and below 1"):
        split(some(tmp_path, "ab"), share, 0)


@pytest.mark.parametrize("shape", [(60, 30, 20), (20, 61, 33), (10, 12, 24)])
def test_the_held_out_block_is_far_from_what_is_trained_on(shape: tuple[int, ...]) -> None:
    scan = Scan("one", np.zeros((1, *shape), np.int16), np.zeros((1, 2), np.float32))
    seen = np.zeros(shape, int)
    seen[train_region(scan)] += 1
    seen[held_out_region(scan)] += 2
    axis = int(np.argmax(shape))
    line = np.moveaxis(seen, axis, 0)[:, 0, 0].tolist()
    assert re.fullmatch(f"1+0{{{MARGIN}}}2+", "".join(map(str, line)))
    assert (np.moveaxis(seen, axis, 0) == np.array(line)[:, None, None]).all()
    assert line.count(2) == shape[axis] // 3
    assert block(scan, held_out_region(scan)).volume.size == (seen == 2).sum()


def test_a_scan_that_is_too_small_to_be_parted_is_refused() -> None:
    scan = Scan("small", np.zeros((1, 9, 9, 20), np.int16), np.zeros((1, 2), np.float32))
    with pytest.raises(SlimmingError, match=r"small: expected at least 24 voxels .* \[9, 9, 20\]"):
        train_region(scan)


# Reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({"input": {"dtype": "int16", "intensity": {"rule": "zscore", "mask": "nonzero"}, "orientation": "RAS"}}, "i2"),
        ({"input": {"spacing": [2.0, 1.0, 1.3], "orientation": "LPS"}}, "f4"),
        ({"input": {"intensity": {"rule": "percentile", "lower": 1, "upper": 99}}}, "u1"),
    ],
)
def test_a_scan_is_prepared_as_monai_prepares_it(tmp_path: Path, changes: dict[str, Any], dtype: str) -> None:
    model = spec(**changes)
    file = save(tmp_path / "a.nii.gz", 4, dtype)
    (found,) = (read(scan, model) for scan in find_scans(tmp_path, model))
    (expected,) = scans_of([(file,)], model, "acceptance.scans")
    assert found.volume.dtype == expected.volume.dtype
    np.testing.assert_allclose(found.volume, expected.volume, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(found.statistics, expected.statistics, rtol=1e-6)
    np.testing.assert_allclose(found.spacing, expected.spacing, rtol=1e-6)


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
def test_a_scan_of_nnunet_is_what_voxtile_prepare_writes(tmp_path: Path, transpose: tuple[int, int, int]) -> None:
    plan = configuration((8, 8, 8), (1.5, 1.1, 0.9), normalization_schemes=["ZScoreNormalization"])
    trained = Training("3d_fullres", {"3d_fullres": plan}, transpose_forward=transpose)
    model = models_of(write_folder(tmp_path / "model", trained), "teacher")[0].spec
    write_scan(tmp_path / "scans", "case", (16, 13, 11), (1.2, 1.0, 1.6), codes="RSA")
    (scan,) = find_scans(tmp_path / "scans", model)
    found = read(scan, model)
    card = card_of(model, "openvino", {}, PROVENANCE)
    prepared = prepare_scan(open_scan(list(scan.files), card.input_channels, "SimpleITKIO"), card)
    assert isinstance(prepared, NnunetPreparedScan)
    files = write_prepared_scan(prepared, card, tmp_path / "prepared.nii.gz")
    (expected,) = scans_of([tuple(files)], model, "acceptance.scans")
    np.testing.assert_array_equal(found.volume, expected.volume)
    np.testing.assert_array_equal(found.statistics, expected.statistics)
    np.testing.assert_allclose(found.spacing, expected.spacing, rtol=1e-6)


def test_a_scan_that_was_changed_or_is_gone_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "a.nii.gz", 1)
    (scan,) = find_scans(tmp_path, spec())
    save(file, 2)
    with pytest.raises(ScanError, match="a: its files are not what they were"):
        read(scan, spec())
    file.unlink()
    with pytest.raises(ScanError, match=r"a: .*No such file"):
        read(scan, spec())
