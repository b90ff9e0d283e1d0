"""`voxtile load-test` on real servers: numbers that add up, failures that are counted, a load that is interrupted."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import nibabel as nib
import numpy as np
import pytest

from tests.support.commands import refused, run
from tests.support.fake_triton import FakeTriton
from tests.support.heads import head, image
from voxtile import ModelError, Segmenter, TileError
from voxtile.load.measure import MOST_FAILURES, LoadTest, run_load_test
from voxtile.load.plan import Load
from voxtile.load.server import Watch
from voxtile.load.target import Target
from voxtile.triton.connection import ConnectionConfig
from voxtile.triton.endpoint import Endpoint
from voxtile.triton.statistics import entries_behind, read_use
from voxtile_server.embedded import EmbeddedServer

ROUNDED = 1e-6
"""Sums of Triton's nanoseconds, as seconds."""


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "head.nii"
    nib.save(image(head((40, 37, 33))), file)
    return file


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A scan of zeros and ones, which the scripted server gives back as labels."""
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "labelled.nii"
    values = (np.random.default_rng(3).random((9, 11, 8)) < 0.4).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 1.2, 0.9, 1.0])), file)
    return file


# The real server -----------------------------------------------------------------------------------------------


def test_numbers_add_up(server: EmbeddedServer, scan: Path) -> None:
    result = run(
        "load-test", scan, "--model", "small-unet", "--url", server.grpc_url, "--clients", 3, "--scans", 7, "--json"
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["clients"], found["scans"], found["failed"], found["retries"]) == (3, 7, 0, 0)
    assert found["scans_per_hour"] == pytest.approx(7 * 3600 / found["wall_seconds"], rel=1e-2)
    assert 0 < found["seconds_median"] <= found["seconds_longest"] <= found["wall_seconds"]
    assert [one["p"] for one in found["percentiles"]] == [50]
    assert found["percentiles"][0]["seconds"] == pytest.approx(found["seconds_median"], abs=1e-4)
    parts = found["latency"]
    assert sum(parts[name] for name in ("waiting", "client", "compute", "queue")) == pytest.approx(parts["mean"])
    assert all(seconds >= 0 for seconds in parts.values())
    assert parts["mean"] == pytest.approx(sum(one["seconds"] for one in found["samples"]) / 7, abs=1e-5)


def test_the_servers_figures_are_those_of_what_was_sent(server: EmbeddedServer, scan: Path) -> None:
    with Segmenter(server.grpc_url, "small-unet") as segmenter:
        tiles = segmenter.segment(scan).report.tiles
    result = run_load_test([server.grpc_url], "small-unet", scan, clients=2, scans=5)
    (entry,) = result.server.entries
    assert (entry.entry, entry.failed, result.server.note) == ("small-unet_openvino", 0, "")
    assert entry.tiles == result.server.tiles == 5 * tiles
    assert result.tiles_per_second == pytest.approx(5 * tiles / result.wall_seconds, rel=1e-2)
    assert 0 < entry.executions <= entry.requests <= entry.tiles
    assert entry.queue_share + entry.compute_share + entry.other_share == pytest.approx(1)
    assert min(entry.queue_share, entry.compute_share) > 0
    assert entry.other_share >= -ROUNDED  # a request waits and is computed within the time that it is there
    assert entry.busy_seconds <= entry.compute_seconds * entry.requests + ROUNDED  # a batch counts once
    assert 0 < entry.busy <= 1  # there is one instance
    assert result.latency is not None
    assert result.latency.compute is not None
    assert result.latency.compute <= entry.busy_seconds / 5 + ROUNDED


def test_what_others_send_meanwhile_is_told(server: EmbeddedServer, scan: Path) -> None:
    with Segmenter(server.grpc_url, "identity") as other:
        watch = Watch([server.grpc_url], ConnectionConfig(), {"identity": other.card})
        watch.begin()
        tiles = other.segment(scan).report.tiles
        own = watch.end(1.0, {"identity": 1}, tiles, exact=True)
        watch.begin()
        other.segment(scan)
        other.segment(scan)
        foreign = watch.end(1.0, {"identity": 1}, tiles, exact=True)
        watch.close()
    assert (own.tiles, own.note) == (tiles, "")
    assert own.own_seconds is not None
    assert (foreign.tiles, foreign.own_seconds) == (2 * tiles, None)
    assert foreign.note == f"{tiles:,} tiles of other clients are among these"


def test_the_statistics_are_read_of_every_entry(server: EmbeddedServer) -> None:
    endpoint = Endpoint(server.grpc_url, ConnectionConfig())
    try:
        use = read_use(endpoint)
        assert set(use) == {name for name, _ in endpoint.models()}
        assert entries_behind(endpoint, "identity") == ["identity_onnxruntime"]
        assert entries_behind(endpoint, "identity_onnxruntime") == ["identity_onnxruntime"]
    finally:
        endpoint.close()


def test_several_models_share_a_load(server: EmbeddedServer, scan: Path) -> None:
    result = run(
        "load-test", scan, "-m", "small-unet", "-m", "identity=3", "--url", server.grpc_url, "--scans", 8, "--json"
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["model"], found["shares"]) == ("small-unet, identity", {"small-unet": 0.25, "identity": 0.75})
    assert {one["model"]: one["scans"] for one in found["by_model"]} == {"small-unet": 2, "identity": 6}
    entries = {one["entry"]: one["tiles"] for one in found["server"]["entries"]}
    assert set(entries) == {"small-unet_openvino", "identity_onnxruntime"}
    assert sum(entries.values()) == found["server"]["tiles"]
    assert found["server"]["note"] == ""


def test_scans_come_at_a_rate_whatever_the_server_does(server: EmbeddedServer, scan: Path) -> None:
    words = ("load-test", scan, "-m", "identity", "--url", server.grpc_url, "--scans", 6, "--json", "--clients", 1)
    result = run(*words, "--rate", "20/s", "--arrivals", "even")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["arrivals"], found["rate_per_hour"], found["clients"]) == ("even", 72_000, 1)
    assert [one["arrived"] for one in found["samples"]] == pytest.approx([number / 20 for number in range(6)])
    assert all(0 <= one["waited"] < one["seconds"] for one in found["samples"])
    assert found["wall_seconds"] >= 5 / 20


def test_the_table_tells_which_percentiles_there_are_too_few_scans_for(server: EmbeddedServer, scan: Path) -> None:
    found = run("load-test", scan, "-m", "identity", "--url", server.grpc_url, "--scans", 12).stdout
    for words in ("scans per hour", "needs 20", "needs 100", "identity_onnxruntime", "queue", "of a mean scan"):
        assert words in found
    assert "needs 10 " not in found


def test_a_load_rises_until_the_target_is_lost(server: EmbeddedServer, scan: Path, tmp_path: Path) -> None:
    files = ("--json-file", tmp_path / "load.json", "--plot", tmp_path / "load.png")
    words = ("load-test", scan, "-m", "identity", "--url", server.grpc_url, *files)
    result = run(*words, "--until", "p50<1ms")  # no server is so fast
    assert result.exit_code == 0, result.output
    assert "p50<0.001 s: kept by no load; it is lost at 1 client" in result.stdout
    assert "1 client: " in result.stderr
    found = json.loads((tmp_path / "load.json").read_text())
    assert (found["held"], found["lost"], found["interrupted"]) == (None, 0, False)
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")
    result = run(*words, "--until", "p50<1h", "--clients", 64, "--scans", 64)
    assert result.exit_code == 0, result.output
    assert "kept at 64 clients" in result.stdout
    assert "no higher load was tried" in result.stdout


# A server that fails -------------------------------------------------------------------------------------------


def failing(some: Callable[[int], bool]) -> Callable[[Any, Any, Callable[[], Any]], Any]:
    """A rule: fails those requests, counted from 0, for which `some` holds."""
    numbers = itertools.count()

    def rule(_request: Any, context: Any, right: Callable[[], Any]) -> Any:
        return context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no more") if some(next(numbers)) else right()

    return rule


def test_an_absent_model_ends_the_test() -> None:
    with FakeTriton() as fake, pytest.raises(ModelError, match="'nothing' is not offered"):
        run_load_test([fake.url], "nothing", image(head((20, 20, 20))))


def test_single_failures_are_counted_and_told(labelled: Path) -> None:
    with FakeTriton() as fake:
        one = (*("load-test", labelled, "-m", "model", "--url", fake.url, "--clients", 1), "--scans", 1)
        assert run(*one).exit_code == 0
        tiles = fake.count("ModelInfer") // 2  # one segmentation comes before the one that counts
        fake.rules["ModelInfer"] = failing(lambda number: 2 * tiles <= number < 2 * tiles + 1)
        result = run(*one[:-1], 14, "--json", "--json-file", labelled.parents[1] / "load.json")
    assert result.exit_code == 1, result.output
    found = json.loads(result.stdout)
    assert found == json.loads((labelled.parents[1] / "load.json").read_text())
    assert (found["scans"], found["failed"], len(found["samples"])) == (13, 1, 14)
    ((text, count),) = found["failures"].items()
    assert "no more" in text
    assert count == 1
    assert [bool(one["failure"]) for one in found["samples"]] == [False, True, *[False] * 12]
    assert found["latency"]["compute"] is None  # this server tells no figures
    assert "the server does not tell its figures" in found["server"]["note"]


@pytest.mark.parametrize("axes", [(), (0,), (0, 2)])
def test_every_flip_of_a_tile_is_a_tile(labelled: Path, axes: tuple[int, ...]) -> None:
    with FakeTriton(mirror_axes=axes) as fake, LoadTest([fake.url], {"model": 1.0}, labelled) as test:
        before = len(fake.calls)
        result = test.run(Load(clients=2, scans=3))
        sent = sum(one.request.inputs[0].shape[0] for one in fake.calls[before:] if one.method == "ModelInfer")
    assert sent == pytest.approx(result.tiles_per_second * result.wall_seconds, rel=1e-2)


def test_a_load_of_which_every_scan_fails_ends_soon_and_raises_the_first_failure(labelled: Path) -> None:
    with FakeTriton() as fake:
        with Segmenter(fake.url, "model") as segmenter:
            segmenter.segment(labelled)
        tiles = fake.count("ModelInfer")
        fake.rules["ModelInfer"] = failing(lambda number: number >= tiles)
        with LoadTest([fake.url], {"model": 1.0}, labelled) as test:
            with pytest.raises(TileError, match="no more"):
                test.run(Load(clients=3, scans=500))
            (result,) = test.results
    assert MOST_FAILURES <= result.failed < MOST_FAILURES + 3
    assert result.ended_early == f"{MOST_FAILURES} scans in a row failed"


def test_a_load_that_surely_misses_its_target_ends_early(labelled: Path) -> None:
    with FakeTriton() as fake, LoadTest([fake.url], {"model": 1.0}, labelled) as test:
        lost = test.run(Load(clients=1, scans=100), Target(50, 1e-6))
        kept = test.run(Load(clients=1, scans=2), Target(50, 1e6))
    assert (lost.held, kept.held) == (False, True)
    assert lost.ended_early == "it surely misses p50<1e-06 s"
    assert lost.scans == 51


def test_a_load_with_a_failure_does_not_keep_its_target(labelled: Path) -> None:
    with FakeTriton() as fake, LoadTest([fake.url], {"model": 1.0}, labelled) as test:
        test.run(Load(clients=1, scans=1))
        done = fake.count("ModelInfer") // 2
        fake.rules["ModelInfer"] = failing(lambda number: number == 3 * done)
        result = test.run(Load(clients=1, scans=20), Target(50, 1e6))
    assert (result.held, result.ended_early, result.scans) == (False, "a scan failed", 3)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_load_tells_what_it_measured(labelled: Path, number: signal.Signals, code: int) -> None:
    written, process = labelled.parents[1] / "load.json", None
    seen = itertools.count()

    def interrupt(_request: Any, _context: Any, right: Callable[[], Any]) -> Any:
        if next(seen) == enough and process is not None:
            process.send_signal(number)
        return right()

    with FakeTriton() as fake:
        with Segmenter(fake.url, "model") as segmenter:
            segmenter.segment(labelled)
        enough = 6 * fake.count("ModelInfer")  # in the fifth scan that counts, or later
        fake.rules["ModelInfer"] = interrupt
        words = ("load-test", labelled, "-m", "model", "--url", fake.url, "--scans", "100000", "--json-file", written)
        process = subprocess.Popen(
            [sys.executable, "-m", "voxtile", *map(str, words)],
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell starts what it runs in the background with SIGINT ignored, and that is inherited.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        output, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    assert "interrupted" in output
    assert errors.count("\n") == 1
    found = json.loads(written.read_text())
    assert (found["ended_early"], found["failed"]) == ("interrupted", 0)
    assert found["scans"] >= 3
    assert f"scans            {found['scans']}" in output


# Bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rate", "60"), "--rate: expected scans a time, such as 60/h"),
        (("--rate", "0/h"), "--rate: expected scans a time"),
        (("--arrivals", "even"), "expected --rate with them"),
        (("--seed", 3), "expected --rate with them"),
        (("--duration", "10"), "--duration: expected a time above 0 with ms, s, min or h"),
        (("--until", "p95"), "--until: expected a percentile and its limit"),
        (("--until", "p95<30s", "--scans", 8), "expected at least 20 --scans, found 8"),
        (("--until", "p99<30s", "--scans", 99), "expected at least 100 --scans, found 99"),
        (("--until", "p95<30s", "--duration", "1h"), "found --duration"),
        (("-m", "model"), "expected each model once, found 'model' twice"),
        (("-m", "other=0"), "expected NAME or NAME=SHARE with a share above 0"),
        (("-m", "=2"), "expected the name of a model"),
        (("--clients", 0), "--clients"),
        (("--json-file", "load.txt"), "expected a name that ends in .json"),
        (("--plot", "load.pdf"), "expected a name that ends in .png"),
        (("--plot", "absent/load.png"), "expected a folder"),
        (("--json-file", "load.json", "--plot", "load.json"), "expected a name that ends in .png"),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    labelled: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...], said: str
) -> None:
    monkeypatch.chdir(labelled.parents[1])
    with FakeTriton() as fake:
        result = run("load-test", labelled, "-m", "model", "--url", fake.url, *words)
        assert not fake.calls
    assert said in refused(result, labelled.parents[1], "in")


def test_no_scan_is_replaced(labelled: Path) -> None:
    with FakeTriton() as fake:
        for name in ("head.json", "head.png"):
            given = labelled.with_name(name)
            given.write_bytes(labelled.read_bytes())
            option = "--json-file" if given.suffix == ".json" else "--plot"
            result = run("load-test", given, "-m", "model", "--url", fake.url, option, given)
            assert "would replace the scan" in refused(
                result, labelled.parent, *{p.name for p in labelled.parent.iterdir()}
            )
            assert given.read_bytes() == labelled.read_bytes()
        assert not fake.calls
