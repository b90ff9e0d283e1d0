"""What counts as finished: a mask whose checksum is recorded for this scan. Nothing else is overwritten or trusted."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.support.in_memory_commands import save_scan, transport
from voxtile import OutputError, Segmenter, segment_folder
from voxtile.batch import place
from voxtile.batch.record import Records
from voxtile.outputs.base import Output
from voxtile.outputs.report import write_text

COUNT = Output("count", ".txt", "How many.", lambda result, path: write_text(str(int(result.labels.sum())), path))


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    for number, name in enumerate("abc"):
        save_scan(tmp_path / "scans" / f"{name}.nii.gz", number, (20 + number, 18, 17))
    return tmp_path / "scans"


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    return tmp_path / "masks"


def run(inputs: Path, masks: Path, beside: Sequence[Output] = (), **options: object) -> dict[str, str]:
    """The status of each case after a run; of one that failed, its error."""
    with Segmenter(transport=transport(), **options) as segmenter:
        result = segment_folder(segmenter, inputs, masks, beside=beside)
    return {outcome.case: outcome.error or outcome.status for outcome in result.outcomes}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and "summary" not in path.name}


def half_written(mask: Path) -> None:
    mask.write_bytes(mask.read_bytes()[:100])


def edited_by_hand(mask: Path) -> None:
    labels = nib.load(mask)
    nib.save(nib.Nifti1Image(1 - np.asarray(labels.dataobj), labels.affine), mask)


def emptied(mask: Path) -> None:
    mask.write_bytes(b"")


def a_folder(mask: Path) -> None:
    mask.unlink()
    mask.mkdir()


def a_dead_link(mask: Path) -> None:
    mask.unlink()
    mask.symlink_to("nowhere")


@pytest.mark.parametrize("change", [half_written, edited_by_hand, emptied, a_folder, a_dead_link])
def test_a_mask_that_is_not_as_it_was_written_is_neither_trusted_nor_replaced(
    inputs: Path, masks: Path, change: object
) -> None:
    run(inputs, masks)
    assert callable(change)
    change(masks / "b.nii.gz")
    before = contents(masks)
    said = run(inputs, masks)
    assert (said["a"], said["c"]) == ("found", "found")
    assert f"{masks / 'b.nii.gz'}: " in said["b"]
    assert contents(masks) == before
    (shutil.rmtree if change is a_folder else os.unlink)(masks / "b.nii.gz")
    assert run(inputs, masks) == {"a": "found", "b": "done", "c": "found"}


def test_a_mask_or_another_file_of_somebody_else_is_kept(inputs: Path, masks: Path) -> None:
    masks.mkdir()
    (masks / "a.nii.gz").write_bytes(b"somebody else's")
    (masks / "b.txt").write_bytes(b"somebody else's")
    said = run(inputs, masks, [COUNT])
    assert [said[case].partition(": ")[0] for case in "ab"] == [str(masks / "a.nii.gz"), str(masks / "b.txt")]
    assert said["c"] == "done"
    assert contents(masks)["a.nii.gz"] == contents(masks)["b.txt"] == b"somebody else's"
    assert not (masks / "b.nii.gz").exists()


def test_a_protected_mask_is_found_and_one_that_would_be_replaced_is_kept(inputs: Path, masks: Path) -> None:
    run(inputs, masks)
    for case in "ab":
        (masks / f"{case}.nii.gz").chmod(0o444)
    save_scan(inputs / "b.nii.gz", 7)
    before = contents(masks)
    said = run(inputs, masks)
    assert (said["a"], said["c"]) == ("found", "found")
    assert "protected" in said["b"]
    assert contents(masks) == before


def test_a_scan_that_was_replaced_is_segmented_again(
    inputs: Path, masks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where neither its size nor the time of its content says so, as after a copy that keeps times."""
    replaced = save_scan(inputs / "d.nii", 3)
    run(inputs, masks)
    before, times = contents(masks), replaced.stat()
    replaced.write_bytes(save_scan(inputs.with_name("other.nii"), 4, (20, 17, 18)).read_bytes())
    os.utime(replaced, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (replaced.stat().st_size, replaced.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert run(inputs, masks) == {**dict.fromkeys("abc", "found"), "d": "done"}
    assert "d: its scan has changed" in caplog.text
    assert contents(masks)["d.nii.gz"] != before["d.nii.gz"]
    assert run(inputs, masks) == dict.fromkeys("abcd", "found")


def test_scans_that_were_moved_or_touched_are_the_same_scans(inputs: Path, masks: Path) -> None:
    run(inputs, masks)
    shutil.copytree(inputs, inputs.with_name("copied"))
    os.utime(inputs / "a.nii.gz")
    assert run(inputs, masks) == dict.fromkeys("abc", "found")
    assert run(inputs.with_name("copied"), masks) == dict.fromkeys("abc", "found")


def test_another_folders_scan_of_the_same_name_does_not_take_the_mask(inputs: Path, masks: Path) -> None:
    run(inputs, masks)
    save_scan(inputs.with_name("others") / "a.nii.gz", 5, (19, 18, 17))
    save_scan(inputs.with_name("others") / "d.nii.gz", 6)
    before = contents(masks)
    said = run(inputs.with_name("others"), masks)
    assert "is the mask of another scan" in said["a"]
    assert said["d"] == "done"
    assert contents(masks)["a.nii.gz"] == before["a.nii.gz"]


def test_volumes_of_earlier_runs_stay_in_the_summary(inputs: Path, masks: Path) -> None:
    run(inputs, masks)
    (inputs / "a.nii.gz").unlink()
    save_scan(inputs / "d.nii.gz", 4, (17, 18, 19))
    run(inputs, masks)
    with (masks / "summary.csv").open(newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert {case: row["status"] for case, row in rows.items()} == {**dict.fromkeys("abc", "found"), "d": "done"}
    for case, row in rows.items():
        mask = nib.load(masks / f"{case}.nii.gz")
        labels = np.asarray(mask.dataobj)
        voxel_ml = abs(np.linalg.det(mask.affine[:3, :3])) / 1000
        assert float(row["head ml"]) == pytest.approx(np.count_nonzero(labels == 1) * voxel_ml, abs=1e-4)


@pytest.mark.parametrize("place", ["before the record", "between record and name", "after the name"])
def test_a_run_may_end_at_any_moment_of_writing(
    inputs: Path, masks: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """As a kill would leave it: the writing thread never comes back."""
    run(inputs, masks)
    save_scan(inputs / "b.nii.gz", 9, (21, 19, 17))
    write, replace = Records.write, Path.replace

    def stop_at_record(self: Records, case: str, record: object) -> None:
        if place == "between record and name":
            write(self, case, record)  # type: ignore[arg-type]
        raise RuntimeError("gone")

    def stop_after_name(self: Path, target: Path) -> None:
        replace(self, target)
        if target.name == "b.nii.gz":
            raise RuntimeError("gone")

    with monkeypatch.context() as patch:
        if place == "after the name":
            patch.setattr(Path, "replace", stop_after_name)
        else:
            patch.setattr(Records, "write", stop_at_record)
        assert "gone" in run(inputs, masks)["b"]
    expected = "found" if place == "after the name" else "done"
    assert run(inputs, masks) == {"a": "found", "b": expected, "c": "found"}
    assert np.asarray(nib.load(masks / "b.nii.gz").dataobj).shape == (21, 19, 17)
    assert not list(masks.rglob("*.part"))


def test_an_output_asked_for_later_is_added_and_earlier_ones_stay_finished(inputs: Path, masks: Path) -> None:
    other = Output("other", ".log", "Another.", lambda _, path: path.write_text("made without ceremony") and None)
    run(inputs, masks, [COUNT])
    assert run(inputs, masks, [COUNT]) == dict.fromkeys("abc", "found")
    assert run(inputs, masks, [other]) == dict.fromkeys("abc", "done")
    assert run(inputs, masks, [COUNT, other]) == dict.fromkeys("abc", "found")
    (masks / "a.log").unlink()
    assert run(inputs, masks, [COUNT, other]) == {"a": "done", "b": "found", "c": "found"}


def test_a_record_that_cannot_be_read_finishes_nothing(inputs: Path, masks: Path) -> None:
    run(inputs, masks)
    (masks / ".voxtile-batch" / "a.json").write_text("[")
    (masks / ".voxtile-batch" / "b.json").write_text('{"scans": []}')
    said = run(inputs, masks)
    assert said["c"] == "found"
    assert all("another file" in said[case] for case in "ab")


@pytest.mark.parametrize("claim", ["[]", "[" * 100_000, "no JSON", '{"model": "other"}'])
def test_a_folder_with_masks_under_another_claim_is_refused(inputs: Path, masks: Path, claim: str) -> None:
    run(inputs, masks)
    (masks / "voxtile-batch.json").write_text(claim)
    with pytest.raises(OutputError, match=r"masks: "):
        run(inputs, masks)


def test_a_claim_without_masks_binds_nobody(inputs: Path, masks: Path) -> None:
    masks.mkdir()
    (masks / "voxtile-batch.json").write_text('{"model": "other"}')
    assert run(inputs, masks) == dict.fromkeys("abc", "done")
    with pytest.raises(OutputError, match="with other options"):
        run(inputs, masks, overlap=0.1)


@pytest.mark.parametrize("name", ["summary.json", "summary.csv"])
def test_a_summary_of_something_else_is_not_overwritten(inputs: Path, masks: Path, name: str) -> None:
    """nnU-Net's evaluation writes a summary.json beside the masks."""
    masks.mkdir()
    (masks / name).write_text(json.dumps({"foreground_mean": {"Dice": 0.9}}))
    with pytest.raises(OutputError, match=rf"{name}: expected no file, or an earlier summary"):
        run(inputs, masks)
    assert contents(masks) == {}
    assert "Dice" in (masks / name).read_text()


def test_a_scan_that_changes_while_it_is_read_fails(inputs: Path, masks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Segmenter.load

    def load_while_it_is_copied(self: Segmenter, image: list[Path]) -> object:
        loaded = load(self, image)  # type: ignore[arg-type]
        if image[0].name.startswith("b"):
            with image[0].open("ab") as file:
                file.write(b"more")
        return loaded

    monkeypatch.setattr(Segmenter, "load", load_while_it_is_copied)
    said = run(inputs, masks)
    assert (said["a"], said["c"]) == ("done", "done")
    assert "changed while it was read" in said["b"]
    assert not (masks / "b.nii.gz").exists()


def test_names_too_long_for_a_mask_are_found_before_any_work(inputs: Path, masks: Path) -> None:
    save_scan(inputs / ("n" * 250 + ".nii"))
    save_scan(inputs / ("m" * 248 + ".nii"))
    said = run(inputs, masks)
    assert "name too long" in said["n" * 250]
    assert said["m" * 248] == said["a"] == "done"


def test_judging_never_ends_a_batch(inputs: Path, masks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(inputs, masks)

    def fail(path: Path) -> str:
        raise MemoryError if path.name.startswith("b") else FileNotFoundError

    monkeypatch.setattr(place, "sha256_of", fail)
    said = run(inputs, masks)
    assert "MemoryError" in said["b"]
    assert all("cannot be read" in said[case] for case in "ac")
