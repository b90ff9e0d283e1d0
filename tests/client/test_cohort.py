"""A manifest in shards: each mask once, one line a case, and what is done again: what changed, and nothing else."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.in_memory_commands import doubled, save_scan, transport
from voxtile import NoResponseError, OutputError, Segmenter, segment_folder
from voxtile.batch.cohort import journal
from voxtile.batch.cohort.collect import Collected, collect, write_collected
from voxtile.batch.cohort.run import Redo, segment_manifest
from voxtile.batch.cohort.shard import Shard
from voxtile.batch.sums import sha256_of
from voxtile.outputs.base import Output

NAMES = ("a", "b/ü 1", "c", "d", "e")
FAILED = Redo(failed=True)


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """The manifest of five scans, all different."""
    for number, name in enumerate(NAMES):
        save_scan(tmp_path / "scans" / f"{name}.nii.gz", number, (20 + number, 18, 17))
    return write(tmp_path / "cases.csv", {name: f"scans/{name}.nii.gz" for name in NAMES})


def write(manifest: Path, files: dict[str, str]) -> Path:
    manifest.write_text("case,any\n" + "".join(f"{name},{file}\n" for name, file in files.items()))
    return manifest


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "masks"


def run(
    cases: Path,
    place: Path,
    shard: Shard | None = None,
    redo: Redo | None = None,
    network: Any = doubled,
    beside: Sequence[Output] = (),
    **options: Any,
) -> tuple[dict[str, str], int]:
    """The status of each case of a run, of one that failed its error; and the exit code."""
    with Segmenter(transport=transport(network=network), **options) as segmenter:
        result = segment_manifest(segmenter, cases, place, shard=shard, redo=redo, beside=beside)
    return {one.case: one.error or one.status for one in result.outcomes}, result.exit_code


def lines(place: Path) -> list[dict[str, Any]]:
    """All lines of all shards."""
    files = sorted((place / ".voxtile-batch" / "shards").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def table(place: Path) -> dict[str, dict[str, str]]:
    """What collect writes, by both of its files, which agree."""
    write_collected(collect(place), place)
    with (place / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    same = [json.loads(line) for line in (place / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [list(row) for row in same] == [list(row) for row in rows]
    for row, other in zip(rows, same, strict=True):
        assert {name: value for name, value in row.items() if value} == {
            name: str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in other.items()
            if value not in (None, "")
        }
    assert len({row["case"] for row in rows}) == len(rows)
    return {row["case"]: row for row in rows}


def masks(place: Path) -> dict[str, tuple[int, bytes]]:
    """When each mask was written, and its content."""
    return {
        str(path.relative_to(place)).removesuffix(".nii.gz"): (path.stat().st_mtime_ns, path.read_bytes())
        for path in place.rglob("*.nii.gz")
    }


def failing(*calls: int) -> Any:
    """A network that fails at these of its calls, counted from 1; each case needs two."""
    count = 0

    def network(tiles: NDArray[Any]) -> NDArray[Any]:
        nonlocal count
        count += 1
        if count in calls:
            raise ValueError("no scores")
        return doubled(tiles)

    return network


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_all_shards_together_are_the_folder(cases: Path, place: Path, count: int) -> None:
    seen: list[str] = []
    for index in reversed(range(count)):
        statuses, code = run(cases, place, Shard(index, count))
        assert code == 0
        assert set(statuses.values()) <= {"done"}
        seen += statuses
    assert sorted(seen) == sorted(NAMES)
    with Segmenter(transport=transport()) as segmenter:
        segment_folder(segmenter, cases.parent / "scans", place.with_name("folder"))
    assert {name: mask for name, (_, mask) in masks(place).items()} == {
        name: mask for name, (_, mask) in masks(place.with_name("folder")).items()
    }
    assert list(table(place)) == list(NAMES), "the order of the manifest"
    assert collect(place).exit_code == 0


def test_a_line_says_what_made_which_mask_of_which_scan(cases: Path, place: Path) -> None:
    run(cases, place, Shard(1, 2))
    row = table(place)["b/ü 1"]
    assert (row["status"], row["attempt"], row["shard"]) == ("done", "1", "1/2")
    assert row["output_sha256"] == sha256_of(place / row["output"])
    assert row["scan_sha256"] == sha256_of(cases.parent / "scans" / "b/ü 1.nii.gz")
    assert (row["model"], row["version"], row["engine"], row["certified"]) == ("phantom", "1", "none", "false")
    steps = [float(row[f"{step}_seconds"]) for step in ("read", "prepare", "infer", "stitch", "restore", "write")]
    assert 0 < sum(steps) <= float(row["total_seconds"]) + 1e-4
    mask = nib.load(place / "b/ü 1.nii.gz")
    voxel_ml = abs(np.linalg.det(mask.affine[:3, :3])) / 1000
    assert float(row["head ml"]) == pytest.approx(np.count_nonzero(mask.dataobj) * voxel_ml, abs=1e-3)
    assert "scans" not in json.dumps(lines(place)), "where the scans lie may name patients"


def test_finished_cases_are_left_alone_whatever_the_shards(cases: Path, place: Path) -> None:
    run(cases, place, Shard(0, 2))
    before = masks(place)
    statuses, _ = run(cases, place)
    assert {name for name, status in statuses.items() if status == "found"} == {"a", "c", "e"} == set(before)
    after = masks(place)
    assert {name: after[name] for name in before} == before
    assert sorted(line["case"] for line in lines(place)) == sorted(NAMES), "one line for each"
    run(cases, place, Shard(2, 3))
    assert masks(place) == after
    assert len(lines(place)) == len(NAMES)


def test_a_case_that_failed_is_tried_again_only_if_asked(cases: Path, place: Path) -> None:
    statuses, code = run(cases, place, network=failing(3))
    assert code == 1
    assert [name for name, status in statuses.items() if "no scores" in status] == ["b/ü 1"]
    assert collect(place).exit_code == 1
    again, code = run(cases, place)
    assert (code, again) == (1, {name: "found" if status == "done" else status for name, status in statuses.items()})
    assert len(lines(place)) == len(NAMES)
    row = table(place)["b/ü 1"]
    assert (row["status"], row["error_kind"], row["output"], row["head ml"]) == ("failed", "ValueError", "", "")
    again, code = run(cases, place, redo=FAILED)
    assert (code, again["b/ü 1"], sorted(set(again.values()))) == (0, "done", ["done", "found"])
    row = table(place)["b/ü 1"]
    assert (row["status"], row["attempt"], row["error"]) == ("done", "2", "")
    assert collect(place).exit_code == 0


def test_a_clock_that_goes_back_changes_no_result(cases: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(cases, place, network=failing(3))
    monkeypatch.setattr(journal, "_now", lambda: "1970-01-01T00:00:00.000000+00:00")
    run(cases, place, Shard(1, 2), redo=FAILED)
    assert table(place)["b/ü 1"]["status"] == "done"


def test_a_broken_scan_that_was_replaced_is_tried_again(
    cases: Path, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scan = cases.parent / "scans" / "d.nii.gz"
    whole = scan.read_bytes()
    scan.write_bytes(whole[:100])
    assert run(cases, place)[1] == 1
    assert table(place)["d"]["error_kind"] == "InputError"
    scan.write_bytes(whole)
    statuses, code = run(cases, place)
    assert (statuses["d"], code) == ("done", 0)
    assert "d: its scan, the model or an option has changed" in caplog.text


@pytest.mark.parametrize("how", ["content", "another file"])
def test_a_changed_scan_is_done_again_and_told(
    cases: Path, place: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    run(cases, place)
    before = masks(place)
    if how == "content":
        save_scan(cases.parent / "scans" / "c.nii.gz", 77, (22, 18, 17))
    else:
        save_scan(cases.parent / "scans" / "other.nii.gz", 78, (22, 18, 17))
        cases.write_text(cases.read_text().replace("scans/c.nii", "scans/other.nii"))
    statuses, _ = run(cases, place)
    assert statuses == {name: "done" if name == "c" else "found" for name in NAMES}
    assert "c: its scan has changed" in caplog.text
    after = masks(place)
    assert {name for name in NAMES if after[name] != before[name]} == {"c"}
    assert table(place)["c"]["output_sha256"] == sha256_of(place / "c.nii.gz")


def test_another_model_or_option_makes_every_mask_again_and_is_told(
    cases: Path, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(cases, place)
    before = masks(place)
    statuses, _ = run(cases, place, Shard(0, 2), overlap=0.125)
    assert set(statuses.values()) == {"done"}
    assert "e: its mask was made by version 1 of phantom, in another build or with other options" in caplog.text
    statuses, _ = run(cases, place, overlap=0.125)
    assert statuses == {**dict.fromkeys(("a", "c", "e"), "found"), **dict.fromkeys(("b/ü 1", "d"), "done")}
    assert all(masks(place)[name][0] > before[name][0] for name in NAMES)
    assert len({row["method_sha256"] for row in table(place).values()}) == 1


def test_a_folder_of_mixed_masks_is_told_apart_by_each_record(cases: Path, place: Path) -> None:
    """A folder that a run without a manifest began, which another model or option goes on with and does not finish."""
    scans = cases.parent / "scans"
    with Segmenter(transport=transport()) as segmenter:
        segment_folder(segmenter, scans, place)
    run(cases, place, Shard(0, 2), overlap=0.125)
    statuses, _ = run(cases, place, Shard(1, 2), overlap=0.125)
    assert set(statuses.values()) == {"done"}, "masks of the first run are no results of this one"
    with Segmenter(transport=transport(), overlap=0.125) as segmenter:
        assert {one.status for one in segment_folder(segmenter, scans, place).outcomes} == {"found"}
    with Segmenter(transport=transport()) as segmenter, pytest.raises(OutputError, match="with other options"):
        segment_folder(segmenter, scans, place)


def test_a_run_of_the_folder_is_gone_on_with(cases: Path, place: Path) -> None:
    with Segmenter(transport=transport()) as segmenter:
        segment_folder(segmenter, cases.parent / "scans", place)
    assert set(run(cases, place)[0].values()) == {"found"}
    assert {row["status"] for row in table(place).values()} == {"done"}


def test_options_of_one_case_are_its_own(cases: Path, place: Path) -> None:
    scan = cases.parent / "scans" / "c.nii.gz"
    image = nib.load(scan)
    values = np.asarray(image.dataobj, np.float32)
    values[3:7] = np.nan
    nib.save(nib.Nifti1Image(values, image.affine), scan)
    cases.write_text(
        cases.read_text()
        .replace("any\n", "any,options\n")
        .replace("c.nii.gz", "c.nii.gz,--nan 0")
        .replace("gz\n", "gz,\n")
    )
    assert run(cases, place) == (dict.fromkeys(NAMES, "done"), 0)
    assert not np.asarray(nib.load(place / "c.nii.gz").dataobj)[3:7].any()
    cases.write_text(cases.read_text().replace("--nan 0", "--nan 9"))
    assert run(cases, place)[0] == {name: "done" if name == "c" else "found" for name in NAMES}
    assert np.asarray(nib.load(place / "c.nii.gz").dataobj)[3:7].all()


def test_a_mask_that_somebody_changed_is_kept_unless_overwritten(cases: Path, place: Path) -> None:
    run(cases, place)
    (place / "a.nii.gz").write_bytes(b"mine")
    for redo in (None, FAILED):
        statuses, code = run(cases, place, redo=redo)
        assert "expected no file, or what an earlier run has written" in statuses["a"]
        assert (code, (place / "a.nii.gz").read_bytes()) == (1, b"mine")
    assert len([line for line in lines(place) if line["case"] == "a"]) == 2, "the same failure is one line"
    assert run(cases, place, redo=Redo(everything=True)) == (dict.fromkeys(NAMES, "done"), 0)
    assert nib.load(place / "a.nii.gz").shape == (20, 18, 17)
    assert set(run(cases, place)[0].values()) == {"found"}


@pytest.mark.parametrize("everything", [False, True])
def test_a_mask_that_somebody_puts_there_during_the_run_is_kept_unless_overwritten(
    cases: Path, place: Path, everything: bool
) -> None:
    def network(tiles: NDArray[Any]) -> NDArray[Any]:
        (place / "d.nii.gz").write_bytes(b"somebody's")
        return doubled(tiles)

    statuses, code = run(cases, place, Shard(3, 5), Redo(everything=everything), network)
    kept = (place / "d.nii.gz").read_bytes() == b"somebody's"
    assert (code, kept) == ((0, False) if everything else (1, True))
    assert everything or statuses["d"].startswith(f"{place / 'd.nii.gz'}: expected no file")


def test_servers_that_go_away_fail_no_case(cases: Path, place: Path) -> None:
    def network(_: NDArray[Any]) -> NDArray[Any]:
        raise NoResponseError("no server answers")

    assert run(cases, place, network=network)[1] == 3
    assert lines(place) == []
    assert {row["status"] for row in table(place).values()} == {"not tried"}
    assert collect(place).exit_code == 75
    assert run(cases, place) == (dict.fromkeys(NAMES, "done"), 0)


def test_an_output_that_fails_leaves_its_case_failed_with_its_mask(cases: Path, place: Path) -> None:
    def draw(*_: object) -> None:
        raise ValueError("no picture")

    run(cases, place, beside=[Output("picture", ".txt", "A picture.", draw)])
    row = table(place)["a"]
    assert (row["status"], row["error_kind"]) == ("failed", "OutputError")
    assert row["output_sha256"] == sha256_of(place / "a.nii.gz")


def test_a_lost_mask_is_no_result(cases: Path, place: Path) -> None:
    run(cases, place)
    (place / "d.nii.gz").unlink()
    assert table(place)["d"]["status"] == "not tried"
    assert collect(place).exit_code == 75
    assert run(cases, place)[0]["d"] == "done"
    assert collect(place).exit_code == 0


def test_shards_that_nobody_has_begun_are_counted(cases: Path, place: Path) -> None:
    run(cases, place, Shard(0, 3))
    joined = collect(place)
    assert (len(joined.rows), joined.unknown, joined.exit_code) == (2, 3, 75)
    run(cases, place, Shard(1, 2))
    assert collect(place).unknown == 2
    run(cases, place, Shard(2, 3))
    assert collect(place).unknown == 1
    run(cases, place, Shard(1, 3))
    assert collect(place).exit_code == 0


def test_a_table_that_two_nodes_see_under_two_paths_is_one(cases: Path, place: Path) -> None:
    run(cases, place, Shard(0, 2))
    (cases.parent / "elsewhere").mkdir()
    (cases.parent / "elsewhere" / "scans").symlink_to(cases.parent / "scans")
    run(cases.rename(cases.parent / "elsewhere" / cases.name), place, Shard(1, 2))
    joined = collect(place)
    assert (joined.unknown, joined.exit_code) == (0, 0)
    assert [row["case"] for row in joined.rows] == list(NAMES)


def test_cases_that_a_corrected_manifest_no_longer_has_are_not_missing(cases: Path, place: Path) -> None:
    run(cases, place, Shard(0, 2))
    write(cases, {name: f"scans/{name}.nii.gz" for name in NAMES[:3]})
    run(cases, place)
    assert set(table(place)) == {*NAMES[:3], "e"}, "what was done stays, and d was never done"
    assert collect(place).exit_code == 0


@pytest.mark.parametrize("cut", [1, 40])
def test_a_line_that_was_cut_off_is_written_again_and_spoils_no_other(cases: Path, place: Path, cut: int) -> None:
    run(cases, place)
    (file,) = (place / ".voxtile-batch" / "shards").glob("*.jsonl")
    file.write_bytes(file.read_bytes()[:-cut])
    statuses = collect(place)
    assert statuses.cut_off == (0 if cut == 1 else 1)
    assert set(run(cases, place)[0].values()) == {"found"}
    assert {row["status"] for row in table(place).values()} == {"done"}


def test_two_processes_never_have_one_shard(cases: Path, place: Path) -> None:
    """A network that starts the same shard again, while its own is at work."""
    said = ""

    def network(tiles: NDArray[Any]) -> NDArray[Any]:
        nonlocal said
        if not said:
            said = "begun"
            with pytest.raises(OutputError) as refused:
                run(cases, place, Shard(0, 2))
            said = str(refused.value)
            assert run(cases, place, Shard(1, 2))[1] == 0
        return doubled(tiles)

    assert run(cases, place, Shard(0, 2), network=network)[1] == 0
    assert "expected no other process on shard 0/2" in said
    assert len(lines(place)) == len(NAMES)


def test_a_file_system_without_locks_gives_each_process_its_own_file(
    cases: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr(journal.fcntl, "flock", refuse)
    run(cases, place, network=failing(1))
    run(cases, place, redo=FAILED)
    files = [file for file in (place / ".voxtile-batch" / "shards").glob("*.jsonl") if file.stat().st_size]
    assert len(files) == 2
    assert {row["status"] for row in table(place).values()} == {"done"}


@pytest.mark.parametrize("name", ["results.csv", "results.jsonl"])
def test_a_table_of_something_else_is_kept(cases: Path, place: Path, name: str) -> None:
    run(cases, place)
    (place / name).write_text('{"Dice": 0.9}\n')
    joined: Collected = collect(place)
    with pytest.raises(OutputError, match=rf"{name}: expected no file, or an earlier table"):
        write_collected(joined, place)
    assert {path.name for path in place.glob("results.*")} == {name}
    assert (place / name).read_text() == '{"Dice": 0.9}\n'
