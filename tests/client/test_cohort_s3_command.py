"""Cohorts on S3 as processes: killed, stopped, without their store, and on a real server of models."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from aiobotocore.client import AioBaseClient
from botocore.exceptions import ClientError

from tests.support.commands import run
from tests.support.in_memory_commands import ROOT, command, finish, save_scan, start, transport
from tests.support.killed_sending import KILL
from tests.support.s3_server import Bucket, S3Server, s3_server
from voxtile import Segmenter
from voxtile.batch.sums import sha256_of
from voxtile_server.embedded import EmbeddedServer

NAMES = ("a", "b", "c", "d")
CALLS = 24
"""Requests within which a child is killed; four cases take some fifty."""


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket with a manifest of four scans; spools are made in `spools`."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "spools").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "spools"))
    made = s3.bucket(f"test-{abs(hash(request.node.nodeid)):x}")
    s3.client.put_bucket_versioning(Bucket=made.name, VersioningConfiguration={"Status": "Enabled"})
    for number, name in enumerate(NAMES):
        made.put(f"in/{name}.nii.gz", save_scan(tmp_path / "in" / f"{name}.nii.gz", number, (20, 34, 33)))
    made.put("cases.csv", table().encode())
    return made


def table() -> str:
    return "case,any\n" + "".join(f"{name},in/{name}.nii.gz\n" for name in NAMES)


def versions(bucket: Bucket) -> Counter[str]:
    """How often each mask was written."""
    pages = bucket.server.client.list_object_versions(Bucket=bucket.name, Prefix="masks/")
    assert not pages["IsTruncated"]
    return Counter(one["Key"] for one in pages.get("Versions", ()) if one["Key"].endswith(".nii.gz"))


def finished(bucket: Bucket) -> set[str]:
    """The masks whose record says that they are there."""
    keys = [f"masks/.voxtile-batch/{name}.json" for name in NAMES]
    records = {key: json.loads(bucket.get(key)) for key in set(keys) & set(bucket.content())}
    return {
        key.replace(".voxtile-batch/", "").replace(".json", ".nii.gz")
        for key, record in records.items()
        if ".nii.gz" in record.get("stored", {})
    }


def child(module: str, *words: object, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    said = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, words)], stdout=said, stderr=said, text=True, env=environment
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_runs_that_are_killed_at_random_requests_do_nothing_twice_and_lose_nothing(
    bucket: Bucket, tmp_path: Path, seed: int
) -> None:
    asked = ("batch", "--manifest", f"{bucket}/cases.csv", "--out", f"{bucket}/masks")
    (tmp_path / "cases.csv").write_text(table())
    assert finish(start("batch", "--manifest", tmp_path / "cases.csv", "--out", tmp_path / "here"))[0] == 0
    wanted = {f"masks/{name}.nii.gz": (tmp_path / "here" / f"{name}.nii.gz").read_bytes() for name in NAMES}
    chance, kills, code = random.Random(seed), 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        done, before = finished(bucket), versions(bucket)
        at = chance.randint(5, CALLS) if kills < 5 else 10_000
        words = command(*asked)[3:]
        code, _, said = finish(
            child("tests.support.killed_sending", *words, **{KILL: f"{at} {chance.choice(['before', 'after'])}"})
        )
        kills += code == -signal.SIGKILL
        after = versions(bucket)
        assert {key: after[key] for key in done} == {key: before[key] for key in done}, "nothing twice"
        assert all(bucket.get(key) == wanted[key] for key in after), "whole, or not there"
    assert (code, kills > 0) == (0, True), said
    assert set(after) == set(wanted)
    assert finish(start(*asked))[:2] == (
        0,
        f"0 segmented, 4 found finished, 0 failed; shard 0/1 (all cases) of {asked[2]}\n",
    )
    joined = run("collect", f"{bucket}/masks")
    assert joined.exit_code == 0, joined.stderr
    assert f"4 done, 0 failed, 0 not tried; see {bucket}/masks/results.csv" in joined.stdout


FORTY = tuple(f"{number:02d}" for number in range(40))
BROKEN, KILLED = 22, 1
"""A scan of shard 2 of 4, and a shard."""

DIES_AT = 70
"""The request at which that shard is killed; ten cases take some hundred."""


def test_forty_scans_from_s3_to_s3_by_four_shards_one_of_them_killed_and_one_scan_broken(
    bucket: Bucket, tmp_path: Path
) -> None:
    for number, name in enumerate(FORTY):
        scan = save_scan(tmp_path / "forty" / f"{name}.nii.gz", number, (6 + number, 5, 4))
        bucket.put(f"forty/{name}.nii.gz", b"no scan" if number == BROKEN else scan)
    bucket.put("forty.csv", ("case,any\n" + "".join(f"{name},forty/{name}.nii.gz\n" for name in FORTY)).encode())
    asked = ("batch", "--manifest", f"{bucket}/forty.csv", "--out", f"{bucket}/masks", "-q")

    def shards(*options: str, kill: bool = False) -> list[int]:
        """The exit codes of four processes at the same time."""
        running = []
        for index in range(4):
            words = [*asked, "--shard", f"{index}/4", *options]
            dies = {KILL: f"{DIES_AT} before"} if kill and index == KILLED else {}
            module = "tests.support.killed_sending" if dies else "tests.support.in_memory_commands"
            running.append(child(module, *command(*words)[3:], **dies))
        return [finish(one)[0] for one in running]

    assert shards(kill=True) == [0, -signal.SIGKILL, 1, 0]
    before = versions(bucket)
    assert 30 - 1 <= len(before) < 39
    assert run("collect", f"{bucket}/masks").exit_code == 75
    assert shards("--retry-failed") == [0, 0, 1, 0]
    whole = set(FORTY) - {FORTY[BROKEN]}
    assert versions(bucket) == Counter(f"masks/{name}.nii.gz" for name in whole), "each mask was written once"
    joined = run("collect", f"{bucket}/masks")
    assert (joined.exit_code, joined.stderr) == (1, "")
    rows = list(csv.DictReader(io.StringIO(bucket.get("masks/results.csv").decode())))
    assert [row["case"] for row in rows] == list(FORTY), "one table, in the manifest's order"
    assert {row["case"] for row in rows if row["status"] == "done"} == whole
    assert (rows[BROKEN]["status"], rows[BROKEN]["attempt"]) == ("failed", "2"), "it was tried again"
    for row in rows:
        if row["status"] == "done":
            mask = bucket.get(f"masks/{row['output']}")
            assert row["output_sha256"] == hashlib.sha256(mask).hexdigest()
            assert row["scan_sha256"] == sha256_of(tmp_path / "forty" / f"{row['case']}.nii.gz")
    assert len({row["output_sha256"] for row in rows}) == 40, "the masks of forty scans"
    left = list((tmp_path / "spools").iterdir())
    assert not left, "that of the killed process was removed by a later one"


def test_a_store_that_takes_no_mask_is_told(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = AioBaseClient._make_api_call

    async def busy(self: Any, name: str, asked: Any) -> Any:
        if name == "PutObject" and asked["Key"] == "masks/b.nii.gz":
            raise ClientError({"Error": {"Code": "SlowDown", "Message": "later"}}, name)
        return await real(self, name, asked)

    monkeypatch.setattr(AioBaseClient, "_make_api_call", busy)
    monkeypatch.setattr("voxtile.segmenter.connect_transport", lambda *_: transport())
    asked = ("--manifest", f"{bucket}/cases.csv", "--out", f"{bucket}/masks", "--model", "phantom", "--url", "memory:1")
    done = run("batch", *asked)
    assert done.exit_code == 3
    assert "2 segmented, 0 found finished, 0 failed, 2 not tried" in done.stdout
    assert f"b: {bucket}/masks/b.nii.gz: expected an answer, found a server that is too busy (SlowDown)" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_writes_what_is_done_and_leaves_no_spool(
    bucket: Bucket, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    asked = ("batch", "--manifest", f"{bucket}/cases.csv", "--out", f"{bucket}/masks")
    running = start(*asked, seconds=0.3)
    while not versions(bucket):
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    running.send_signal(number)
    ended, _, said = finish(running)
    assert (ended, said.count("\n")) == (code, 1), said
    assert set(versions(bucket)) == finished(bucket)
    assert not list((tmp_path / "spools").iterdir())
    assert run("collect", f"{bucket}/masks").exit_code == 75
    assert finish(start(*asked))[0] == 0
    assert set(versions(bucket).values()) == {1}, "nothing twice"
    assert run("collect", f"{bucket}/masks").exit_code == 0


def test_a_store_that_goes_away_ends_the_run_and_no_case(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with s3_server() as other:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", other.environment["AWS_ENDPOINT_URL_S3"])
        there = other.bucket("goes-away")
        for name in NAMES:
            there.put(f"in/{name}.nii.gz", tmp_path / "in" / f"{name}.nii.gz")
        there.put("cases.csv", table().encode())
        running = start("batch", "--manifest", f"{there}/cases.csv", "--out", tmp_path / "masks", seconds=0.5)
        while not list((tmp_path / "masks").glob("*.nii.gz")):
            assert running.poll() is None, running.communicate()
            time.sleep(0.05)
    code, _, said = finish(running)
    assert code == 3, said
    assert run("collect", tmp_path / "masks").exit_code == 75, "none is recorded as failed"
    assert not list((tmp_path / "spools").iterdir())
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", bucket.server.environment["AWS_ENDPOINT_URL_S3"])
    assert finish(start("batch", "--manifest", f"{bucket}/cases.csv", "--out", tmp_path / "masks"))[0] == 0


def test_a_manifest_of_a_bucket_is_that_of_the_folder(bucket: Bucket, tmp_path: Path) -> None:
    for folder, out in ((tmp_path / "in", "here.csv"), (f"{bucket}/in", "there.csv")):
        assert run("manifest", folder, "-o", tmp_path / out).exit_code == 0
    here = (tmp_path / "here.csv").read_text()
    assert (tmp_path / "there.csv").read_text() == here.replace(",in/", f",{bucket}/in/")
    odd = {
        "series/IM0001": bytes(128) + b"DICM",
        "notes.txt": b"",
        "old/x.hdr": b"",
        "empty/": b"",
        "odd//x.nii.gz": b"",
    }
    for name, data in {"a.nii.gz": b"", **odd}.items():
        bucket.put(f"ds/{name}", data)
    done = run("manifest", f"{bucket}/ds", "-o", tmp_path / "ds.csv")
    assert done.exit_code == 1
    assert (tmp_path / "ds.csv").read_text().splitlines()[1:] == [f"a,{bucket}/ds/a.nii.gz"]
    assert "DICOM" in done.stderr
    assert "odd//x.nii.gz" in done.stderr
    assert "old/x: a scan of several files" in done.stderr
    assert str(tmp_path) not in done.stderr
    for arguments in ((f"{bucket}/nothing", "-o", tmp_path / "no.csv"), (f"{bucket}/in", "-o", f"{bucket}/c.csv")):
        refused = run("manifest", *arguments)
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert not list((tmp_path / "spools").iterdir())


def test_on_a_real_server_the_masks_are_those_of_the_scans(
    bucket: Bucket, server: EmbeddedServer, tmp_path: Path
) -> None:
    bucket.put("cases.csv", table().replace("any", "image").encode())
    asked = ("batch", "--manifest", f"{bucket}/cases.csv", "--out", f"{bucket}/masks", "--model", "small-unet", "-q")
    shards = [child("voxtile", *asked, "--shard", f"{index}/2", VOXTILE_URL=server.grpc_url) for index in range(2)]
    assert [finish(shard)[::2] for shard in shards] == [(0, "")] * 2
    assert run("collect", f"{bucket}/masks").exit_code == 0
    assert set(versions(bucket).values()) == {1}
    with Segmenter(server.grpc_url, "small-unet") as segmenter:
        for name in NAMES:
            (tmp_path / "mask.nii.gz").write_bytes(bucket.get(f"masks/{name}.nii.gz"))
            wanted = segmenter(tmp_path / "in" / f"{name}.nii.gz")
            np.testing.assert_array_equal(nib.load(tmp_path / "mask.nii.gz").dataobj, wanted.dataobj)
