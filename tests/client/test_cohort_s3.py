"""A cohort from S3 to S3: the masks of a folder here, each once, whatever ends a run; and nothing is left behind."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.in_memory_commands import doubled, save_scan, transport
from tests.support.s3_server import Bucket, S3Server, s3_server
from voxtile import Segmenter
from voxtile.batch.cohort.joining import join_shards
from voxtile.batch.cohort.run import Redo, segment_manifest
from voxtile.batch.cohort.shard import Shard
from voxtile.outputs.base import Output
from voxtile.places.store import Store

NAMES = ("a", "b/ü 1", "c")


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture(autouse=True)
def spools(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where spools are made; whatever happens, nothing is left there."""
    place = tmp_path_factory.mktemp("spools")
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    assert not list(place.iterdir())


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket with a manifest of three scans, all different."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    made = s3.bucket(f"test-{abs(hash(request.node.nodeid)):x}")
    for number, name in enumerate(NAMES):
        made.put(f"in/{name}.nii.gz", save_scan(tmp_path / "in" / f"{name}.nii.gz", number, (20 + number, 18, 17)))
    made.put("cases.csv", table(NAMES).encode())
    return made


def table(names: Sequence[str], folder: str = "in") -> str:
    return "case,any\n" + "".join(f"{name},{folder}/{name}.nii.gz\n" for name in names)


def run(
    manifest: object,
    place: object,
    shard: Shard | None = None,
    redo: Redo | None = None,
    network: Any = doubled,
    beside: Sequence[Output] = (),
    **options: Any,
) -> tuple[dict[str, str], int]:
    """The status of each case of a run, of one that failed its error; and the exit code."""
    with Segmenter(transport=transport(network=network), **options) as segmenter:
        result = segment_manifest(segmenter, str(manifest), str(place), shard=shard, redo=redo, beside=beside)
    return {one.case: one.error or one.status for one in result.outcomes}, result.exit_code


def masks(bucket: Bucket, place: str = "masks/") -> dict[str, tuple[str, Any]]:
    return {name: found for name, found in bucket.content(place).items() if name.endswith(".nii.gz")}


def lines(bucket: Bucket) -> list[dict[str, Any]]:
    """All lines of all shards."""
    keys = [key for key in bucket.content() if key.endswith(".jsonl") and "/shards/" in key]
    return [json.loads(line) for key in sorted(keys) for line in bucket.get(key).decode().splitlines()]


def expected(tmp_path: Path) -> dict[str, bytes]:
    """The masks that a run on this machine makes."""
    (tmp_path / "cases.csv").write_text(table(NAMES))
    run(tmp_path / "cases.csv", tmp_path / "masks")
    return {f"{name}.nii.gz": (tmp_path / "masks" / f"{name}.nii.gz").read_bytes() for name in NAMES}


def test_from_s3_to_s3_are_the_masks_of_a_folder_each_once(bucket: Bucket, tmp_path: Path) -> None:
    for index in range(2):
        statuses, code = run(f"{bucket}/cases.csv", f"{bucket}/masks", Shard(index, 2))
        assert (set(statuses.values()), code) == ({"done"}, 0)
    before = masks(bucket)
    assert {name: bucket.get(f"masks/{name}") for name in before} == expected(tmp_path)
    statuses, code = run(f"{bucket}/cases.csv", f"{bucket}/masks/")
    assert (set(statuses.values()), code) == ({"found"}, 0)
    assert masks(bucket) == before
    assert sorted(line["case"] for line in lines(bucket)) == sorted(NAMES), "one line for each"
    assert join_shards(f"{bucket}/masks").exit_code == 0
    rows = list(csv.DictReader(io.StringIO(bucket.get("masks/results.csv").decode())))
    assert [row["case"] for row in rows] == list(NAMES), "the order of the manifest"
    assert join_shards(f"{bucket}/masks").exit_code == 0, "an earlier table is replaced"


def test_scans_there_and_masks_here_and_the_other_way_round(bucket: Bucket, tmp_path: Path) -> None:
    wanted = expected(tmp_path)
    statuses, _ = run(f"{bucket}/cases.csv", tmp_path / "here")
    assert set(statuses.values()) == {"done"}
    assert {name: (tmp_path / "here" / name).read_bytes() for name in wanted} == wanted
    run(tmp_path / "cases.csv", f"{bucket}/there")
    assert {name: bucket.get(f"there/{name}") for name in masks(bucket, "there/")} == wanted
    (tmp_path / "mixed.csv").write_text(table(["a"]) + f"c,{bucket}/in/c.nii.gz\n")
    assert run(tmp_path / "mixed.csv", tmp_path / "mixed") == ({"a": "done", "c": "done"}, 0)
    assert run(tmp_path / "mixed.csv", tmp_path / "mixed") == ({"a": "found", "c": "found"}, 0)


def test_what_has_changed_is_made_again_and_nothing_else(bucket: Bucket, tmp_path: Path) -> None:
    run(f"{bucket}/cases.csv", f"{bucket}/masks")
    before = masks(bucket)
    bucket.put("in/a.nii.gz", tmp_path / "in" / "a.nii.gz")  # the same content, at another time
    bucket.put("in/c.nii.gz", save_scan(tmp_path / "other.nii.gz", 9))
    bucket.delete("masks/b/ü 1.nii.gz")
    assert join_shards(f"{bucket}/masks").counts == {"done": 2, "not tried": 1}
    statuses, code = run(f"{bucket}/cases.csv", f"{bucket}/masks")
    assert (statuses, code) == ({"a": "found", "b/ü 1": "done", "c": "done"}, 0)
    assert masks(bucket)["a.nii.gz"] == before["a.nii.gz"]
    assert masks(bucket)["c.nii.gz"][0] != before["c.nii.gz"][0]
    assert set(run(f"{bucket}/cases.csv", f"{bucket}/masks")[0].values()) == {"found"}


def test_what_others_have_put_there_is_kept(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("masks/a.nii.gz", b"somebody's")
    statuses, code = run(f"{bucket}/cases.csv", f"{bucket}/masks")
    assert code == 1
    assert statuses["a"].startswith(f"{bucket}/masks/a.nii.gz: expected no file")
    assert (statuses["b/ü 1"], statuses["c"]) == ("done", "done")
    assert bucket.get("masks/a.nii.gz") == b"somebody's"
    bucket.put("masks/c.nii.gz", bucket.get("masks/c.nii.gz") + b"edited")
    assert "expected no file" in run(f"{bucket}/cases.csv", f"{bucket}/masks")[0]["c"]
    statuses, code = run(f"{bucket}/cases.csv", f"{bucket}/masks", redo=Redo(everything=True))
    assert (set(statuses.values()), code) == ({"done"}, 0)
    assert {name: bucket.get(f"masks/{name}") for name in masks(bucket)} == expected(tmp_path)


def test_a_case_that_failed_is_left_until_it_is_asked_for_or_has_changed(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("in/a.nii.gz", b"no scan")
    statuses, code = run(f"{bucket}/cases.csv", f"{bucket}/masks")
    assert code == 1
    assert statuses["a"].startswith(f"{bucket}/in/a.nii.gz: expected a NIfTI file")
    count = len(lines(bucket))
    assert run(f"{bucket}/cases.csv", f"{bucket}/masks")[0]["a"] == statuses["a"]
    assert len(lines(bucket)) == count, "nothing new is known of it"
    run(f"{bucket}/cases.csv", f"{bucket}/masks", redo=Redo(failed=True))
    assert len(lines(bucket)) == count + 1
    assert join_shards(f"{bucket}/masks").exit_code == 1
    bucket.put("in/a.nii.gz", tmp_path / "in" / "a.nii.gz")
    assert run(f"{bucket}/cases.csv", f"{bucket}/masks") == ({"a": "done", "b/ü 1": "found", "c": "found"}, 0)


def test_what_is_beside_a_mask_comes_with_it(bucket: Bucket) -> None:
    words = Output("words", ".txt", "Words.", lambda _, path: path.write_text("hello"))
    run(f"{bucket}/cases.csv", f"{bucket}/masks", beside=[words])
    assert bucket.get("masks/a.txt") == b"hello"
    assert set(run(f"{bucket}/cases.csv", f"{bucket}/masks", beside=[words])[0].values()) == {"found"}
    bucket.delete("masks/a.txt")
    assert run(f"{bucket}/cases.csv", f"{bucket}/masks", beside=[words])[0]["a"] == "done"


class Ended(BaseException):
    """A process that ends at once."""


WRITES = 6
"""What a run of one case writes: the claim, the share, the record, the mask, the record, the line."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_case_whose_sending_ends_anywhere_is_unfinished_and_never_wrong(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    wanted = expected(tmp_path)["a.nii.gz"]
    bucket.put("one.csv", table(["a"]).encode())
    left = 0

    def ending(real: Any) -> Any:
        def asked(self: Store, *arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0 or (left == 0 and not after):
                raise Ended
            done = real(self, *arguments)
            if left == 0:
                raise Ended
            return done

        return asked

    monkeypatch.setattr(Store, "write", ending(Store.write))
    monkeypatch.setattr(Store, "send", ending(Store.send))
    for number in range(1, WRITES + 1):
        place, left = f"{bucket}/place-{number}", number
        with pytest.raises(Ended):
            run(f"{bucket}/one.csv", place)
        there = masks(bucket, f"place-{number}/")
        assert [bucket.get(f"place-{number}/{name}") for name in there] == [wanted] * len(there), "whole, or not there"
        left = 1000
        found, code = run(f"{bucket}/one.csv", place)
        assert found["a"] in ("done", "found")
        assert code == 0
        assert bucket.get(f"place-{number}/a.nii.gz") == wanted
    assert run(f"{bucket}/one.csv", place) == ({"a": "found"}, 0)
    assert join_shards(place).exit_code == 0
    left = WRITES + 1
    run(f"{bucket}/one.csv", f"{bucket}/undisturbed")
    assert left == 1, "each write has been the last one once"
