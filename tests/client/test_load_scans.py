"""`voxtile load-test` with a scan of its own for each model, and loads that end before their time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import grpc
import nibabel as nib
import numpy as np
import pytest

from tests.support.commands import refused, run
from tests.support.fake_triton import FakeTriton
from tests.support.heads import head, image
from voxtile import InputError, Options, Segmenter
from voxtile.load.loop import Sample
from voxtile.load.measure import LoadTest
from voxtile.load.plan import Load
from voxtile.load.plot import draw_loads
from voxtile.load.result import result_of
from voxtile.load.server import ServerWork
from voxtile.load.table import load_lines
from voxtile.triton.retry import RetryPolicy
from voxtile_server.embedded import EmbeddedServer

PAUSE_S = 0.2


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A scan of zeros and ones, which the scripted server gives back as labels."""
    (tmp_path / "in").mkdir()
    values = (np.random.default_rng(3).random((9, 11, 8)) < 0.4).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 1.2, 0.9, 1.0])), tmp_path / "in" / "scan.nii")
    return tmp_path / "in" / "scan.nii"


# Scans ------------------------------------------------------------------------------------------------------------


def test_each_model_gets_its_own_scan(server: EmbeddedServer, tmp_path: Path) -> None:
    """The server's own figures say so: it computes as many tiles as the scan of each model has."""
    files = {"identity": tmp_path / "small.nii", "small-unet": tmp_path / "large.nii"}
    nib.save(image(head((30, 30, 30))), files["identity"])
    nib.save(image(head((90, 40, 30))), files["small-unet"])

    def tiles_of(model: str, file: str) -> int:
        with Segmenter(server.grpc_url, model) as segmenter:
            return segmenter.segment(files[file]).report.tiles

    tiles = {name: tiles_of(name, name) for name in files}
    assert tiles["identity"] != tiles_of("identity", "small-unet"), "the scans are told apart by their tiles"
    words = ("load-test", "-m", "identity", "-m", "small-unet", "--url", server.grpc_url, "--scans", 6, "--json")
    for given in (
        (files["identity"], "--scan", f"small-unet={files['small-unet']}"),
        (*("--scan", f"identity={files['identity']}"), "--scan", f"small-unet={files['small-unet']}"),
    ):
        done = run(*words, *given)
        assert done.exit_code == 0, done.output
        entries = {one["entry"]: one["tiles"] for one in json.loads(done.stdout)["server"]["entries"]}
        assert entries == {
            "identity_onnxruntime": 3 * tiles["identity"],
            "small-unet_openvino": 3 * tiles["small-unet"],
        }


def test_a_scan_of_its_own_has_a_file_for_each_channel(scan: Path) -> None:
    with FakeTriton(lambda tiles: tiles[:, :1], channels=["T1", "T2"]) as fake:
        words = ("load-test", "-m", "model", "--url", fake.url, "--scans", 2, "--scan", f"model={scan}")
        assert "expected 2 channels, one file each (T1, T2), found 1" in run(*words).stderr
        assert run(*words, "--scan", f"model={scan}").exit_code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "expected a scan for each model, found none for model"),
        (("--scan", "model"), "--scan: expected NAME=FILE, found 'model'"),
        (("--scan", "=scan.nii"), "--scan: expected NAME=FILE"),
        (("--scan", "model="), "--scan: expected NAME=FILE"),
        (("--scan", "other=scan.nii"), "--scan: expected the name of a --model (model), found 'other'"),
        (("--scan", "model=head.json", "--json-file", "head.json"), "would replace the scan"),
        (("scan.nii", "--rate", "1/h", "--duration", "1s"), "with it nothing would be measured"),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    scan: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...], said: str
) -> None:
    scan.with_name("head.json").write_bytes(scan.read_bytes())
    monkeypatch.chdir(scan.parent)
    with FakeTriton() as fake:
        done = run("load-test", "-m", "model", "--url", fake.url, *words)
        assert not fake.calls
    assert said in refused(done, scan.parent, "scan.nii", "head.json")


def test_a_rate_has_a_scan_within_its_duration() -> None:
    assert Load(rate=1.0, pattern="even", duration_s=1e-3).demand().next() == 0.0
    first = Load(rate=1.0).demand().next()
    assert first is not None
    with pytest.raises(InputError, match="after which the first scan comes"):
        Load(rate=1.0, duration_s=first)


# Loads that end ---------------------------------------------------------------------------------------------------


def test_a_server_that_is_gone_is_waited_for_once(scan: Path) -> None:
    """Each scan would wait as long again, and a hundred of them for hours."""

    def gone(_request: Any, context: Any, _right: Any) -> Any:
        return context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    options = Options(retry_policy=RetryPolicy(no_response_timeout_s=1.0))
    with FakeTriton() as fake, LoadTest([fake.url], {"model": 1.0}, scan, options) as test:
        result = test.run(
            Load(clients=2, scans=100),
            progress=lambda done, _: fake.rules.update(ModelInfer=gone) if done > 3 else None,
        )
    assert result.ended_early == "no server answered for as long as a scan waits"
    assert result.scans >= 3
    assert 1 <= result.failed <= 2, "those that were on their way"


def test_an_interruption_counts_the_time_until_then_and_the_scans_that_were_not_done(scan: Path) -> None:
    """A server that stalls, and is given up by hand, would have looked as fast as before."""

    def interrupt(done: int, _total: int | None) -> None:
        if done == 3:
            time.sleep(PAUSE_S)
            raise KeyboardInterrupt

    with FakeTriton() as fake, LoadTest([fake.url], {"model": 1.0}, scan) as test:
        with pytest.raises(KeyboardInterrupt):
            test.run(Load(clients=1, rate=1000.0, pattern="even", scans=50), progress=interrupt)
        (result,) = test.results
    assert (result.scans, result.ended_early) == (3, "interrupted")
    assert result.wall_seconds >= max(one.arrived + one.seconds for one in result.samples) + PAUSE_S - 1e-3
    assert result.scans_per_hour == pytest.approx(3 * 3600 / result.wall_seconds, rel=1e-2)
    assert 1 <= result.unfinished <= 47
    assert f"unfinished       {result.unfinished}" in list(load_lines(result))


@pytest.mark.parametrize("name", ["a$b$c_{", "b$^$", "_hidden", "$"])
def test_a_plot_shows_a_models_name_as_it_is(name: str, tmp_path: Path) -> None:
    """Not as a formula, and in the legend; warnings are errors here."""
    samples = [Sample(name, number, number + 0.1, number + 0.5) for number in (0.0, 1.0)]
    draw_loads([result_of(samples, {name: 1.0}, "closed", None, 1, ServerWork())], None, tmp_path / "load.png")
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")


def test_a_load_that_is_done_has_nothing_unfinished(scan: Path) -> None:
    with FakeTriton() as fake, LoadTest([fake.url], {"model": 1.0}, scan) as test:
        result = test.run(Load(clients=2, scans=3))
    assert result.unfinished == 0
    assert not any(line.startswith("unfinished") for line in load_lines(result))
