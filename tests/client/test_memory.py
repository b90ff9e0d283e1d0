"""The memory allowed is kept to: by a real client in a process of its own, and with labels that do not change."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from bench.entries import OPEN, build_network
from bench.settings import Settings
from tests.support.heads import head, image
from tests.support.memory_limits import limit_for
from voxtile import MemoryLimitError, Segmenter
from voxtile.budget import MIB
from voxtile.cli.app import app
from voxtile_build.spec.spec import parse_spec
from voxtile_server.embedded import EmbeddedServer

SHAPE = (150, 256, 256)
SCORES = 14
STEP = 50.0
"""Values of the scan between one label and the next."""
FLIPPED_BY_HALF = 1e-2
"""Of voxels whose 14 scores reach 90 and differ by less than 1 from band to band: as hard a case as there is."""
ALLOWANCE = 16 * MIB
"""By how much a process may exceed its limit: pages of libraries that are mapped and shared with others."""


class Bands(torch.nn.Module):
    """Scores of which the i-th is the largest where the input lies between i and i + 1 steps."""

    def forward(self, roi: torch.Tensor) -> torch.Tensor:
        index = torch.arange(SCORES, dtype=torch.float32).reshape(1, SCORES, *[1] * (roi.ndim - 2))
        scores: torch.Tensor = roi.float() / STEP * index - index * (index + 1) / 2
        return scores


@pytest.fixture(scope="module")
def bands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server of the models `bands` (3D) and `flat-bands` (2D, slices across the second axis)."""
    settings = Settings(tmp_path_factory.mktemp("bands"), tiny=True)
    for name, tiling in (
        ("bands", {"roi_size": [48, 48, 48]}),
        ("flat-bands", {"roi_size": [24, 24], "slice_axis": 1}),
    ):
        fields: dict[str, Any] = {
            "name": name,
            "network": {"name": "Identity"},
            "input": {"channels": ["any"], "dtype": "int16"},
            "output": {"labels": [f"band {index}" for index in range(SCORES)]},
            "tiling": {**tiling, "overlap": 0.25, "mode": "gaussian"},
            "serving": {"engines": ["openvino"], "max_batch_size": 2, "warm_up": False},
            "acceptance": OPEN,
        }
        build_network(Bands(), parse_spec(fields, "test", settings.data), settings)
    with EmbeddedServer(settings.repository) as server:
        yield server
        server.kill()


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth waves with noise over every band, int16, uncompressed."""
    waves = sum(
        np.sin(np.linspace(0, 9, n)).reshape([-1 if a == k else 1 for a in range(3)]) for k, n in enumerate(SHAPE)
    )
    values = 350 + 110 * waves + np.random.default_rng(1).normal(0, 15, SHAPE)
    path = tmp_path_factory.mktemp("scan") / "scan.nii"
    nib.save(nib.Nifti1Image(np.rint(values).astype(np.int16), np.eye(4)), path)
    return path


PROGRAM = """
import sys
from voxtile.chains.prepare import prepare_scan
from voxtile.cli.app import app
from voxtile.outputs.report import peak_rss_bytes
try:
    app(sys.argv[1:])
finally:
    print(peak_rss_bytes(), file=sys.stderr)
"""


def in_a_process(url: str, scan: Path, mask: Path, *options: str) -> tuple[dict[str, Any], int]:
    """The report of `voxtile segment` in a fresh interpreter, and that process's peak to the end in bytes."""
    words = ["segment", str(scan), "-o", str(mask), "-m", "bands", "--url", url, "--quiet", "--json", "-", *options]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), int(done.stderr.split()[-1])


@dataclass(frozen=True)
class Unbound:
    """What a process without a limit told, took and wrote."""

    report: dict[str, Any]
    peak: int
    labels: NDArray[Any]


@pytest.fixture(scope="module")
def unbound(bands: EmbeddedServer, scan: Path) -> Unbound:
    mask = scan.with_name("mask.nii")
    report, peak = in_a_process(bands.grpc_url, scan, mask)
    return Unbound(report, peak, np.asarray(nib.load(mask).dataobj))


@pytest.mark.parametrize("share", [0.55, 0.47])
def test_a_process_keeps_to_its_limit_and_its_labels_do_not_change(
    bands: EmbeddedServer, scan: Path, unbound: Unbound, tmp_path: Path, share: float
) -> None:
    free = unbound.report
    assert (free["strips"], free["tiles_sent_again"], free["changes"]) == (1, 0, [])
    limit = int(share * free["predicted_peak_bytes"]) // MIB
    tight, peak = in_a_process(bands.grpc_url, scan, tmp_path / "tight.nii", "--max-ram", str(limit))
    for report, taken in ((free, unbound.peak), (tight, peak)):
        predicted, again = report["predicted_peak_bytes"] // MIB, report["tiles_sent_again"]
        print(f"predicted {predicted} MiB, taken {taken // MIB}; {report['strips']} strips, {again} tiles sent again")
    assert tight["strips"] > 1
    assert tight["tiles_sent_again"] > 0
    assert tight["changes"] == []
    assert tight["predicted_peak_bytes"] <= limit * MIB < unbound.peak
    assert peak <= limit * MIB + ALLOWANCE
    assert len(np.unique(unbound.labels)) == SCORES
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "tight.nii").dataobj), unbound.labels)


# Through the real server, scan by scan -----------------------------------------------------------------------


@pytest.mark.parametrize("strips", [2, 5])
def test_strips_change_neither_labels_nor_scores(server: EmbeddedServer, strips: int) -> None:
    """One tile at a time in both runs: an engine's sums may differ with the size of a batch."""
    scan = image(head((48, 53, 61)))
    told: list[tuple[int, int]] = []
    with Segmenter(server.grpc_url, "small-unet", keep_scores=True, sw_batch_size=1, in_flight=1) as free:
        whole, limit = free.segment(scan), limit_for(free, scan, strips)
    with Segmenter(server.grpc_url, "small-unet", keep_scores=True, sw_batch_size=1, max_ram_mib=limit / MIB) as tight:
        cut = tight.segment(scan, lambda *counts: told.append(counts))
    np.testing.assert_array_equal(cut.labels, whole.labels)
    np.testing.assert_array_equal(cut.scores, whole.scores)
    report = cut.report
    assert (report.strips, report.in_flight, report.batch, report.changes) == (strips, 1, 1, [])
    assert report.tiles == whole.report.tiles
    assert report.tiles_sent_again > 0
    assert report.bytes_sent * whole.report.tiles == whole.report.bytes_sent * (report.tiles + report.tiles_sent_again)
    total = report.tiles + report.tiles_sent_again
    assert told == [(number, total) for number in range(1, total + 1)]


def test_tiles_of_slices_are_never_sent_again(bands: EmbeddedServer) -> None:
    rng = np.random.default_rng(4)
    scan = image(rng.integers(0, 700, (40, 60, 50)).astype(np.float32), np.eye(4))
    with Segmenter(bands.grpc_url, "flat-bands", sw_batch_size=1) as free:
        whole, limit = free.segment(scan), limit_for(free, scan, 7)
    with Segmenter(bands.grpc_url, "flat-bands", max_ram_mib=limit / MIB) as tight:
        cut = tight.segment(scan)
    np.testing.assert_array_equal(cut.labels, whole.labels)
    assert len(np.unique(whole.labels)) == SCORES
    assert (cut.report.strips, cut.report.tiles_sent_again) == (7, 0)


def test_skipping_and_spot_checks_go_on_in_strips(server: EmbeddedServer) -> None:
    values = np.zeros((40, 110, 36), np.float32)
    values[:, :45] = head((40, 45, 36))
    scan = image(values)
    with Segmenter(server.grpc_url, "small-unet", skip_empty=True, spot_check=2, sw_batch_size=1, in_flight=1) as free:
        whole, limit = free.segment(scan), limit_for(free, scan, 3)
    with Segmenter(
        server.grpc_url, "small-unet", skip_empty=True, spot_check=2, sw_batch_size=1, max_ram_mib=limit / MIB
    ) as tight:
        cut = tight.segment(scan)
    np.testing.assert_array_equal(cut.labels, whole.labels)
    assert (cut.report.strips, whole.report.strips) == (3, 1)
    assert cut.report.skipped_tiles == whole.report.skipped_tiles > 0
    assert cut.report.spot_checked_tiles == 2
    assert cut.report.spot_check_changed_tiles == whole.report.spot_check_changed_tiles
    assert cut.report.tiles == whole.report.tiles


def test_half_precision_is_the_last_resort_asked_for_and_named(bands: EmbeddedServer) -> None:
    waves = 330 + 300 * np.sin(np.indices((60, 48, 72)) / 9).prod(0)
    scan = image((waves + np.random.default_rng(5).normal(0, 9, waves.shape)).astype(np.float32), np.eye(4))
    with Segmenter(bands.grpc_url, "bands") as free:
        whole, least = free.segment(scan), limit_for(free, scan, 6)
        limit = limit_for(free, scan, 6, half=True)
    assert limit < least
    with (
        Segmenter(bands.grpc_url, "bands", max_ram_mib=limit / MIB) as strict,
        pytest.raises(MemoryLimitError, match=rf"at least about {-(-least // MIB)} MiB .* --allow-half-scores"),
    ):
        strict.segment(scan)
    with Segmenter(bands.grpc_url, "bands", max_ram_mib=limit / MIB, half_scores=True) as lenient:
        halved = lenient.segment(scan)
    assert halved.report.changes == ["scores summed in half precision"]
    assert halved.report.predicted_peak_bytes <= limit
    changed = float((halved.labels != whole.labels).mean())
    print(f"flipped by half precision: {changed:.2e}")
    assert 0 < changed < FLIPPED_BY_HALF
    with Segmenter(bands.grpc_url, "bands", max_ram_mib=least / MIB, half_scores=True) as enough:
        exact = enough.segment(scan)
    assert exact.report.changes == []
    np.testing.assert_array_equal(exact.labels, whole.labels)


@pytest.mark.parametrize("command", ["segment", "batch"])
def test_the_commands_allow_half_precision(bands: EmbeddedServer, tmp_path: Path, command: str) -> None:
    """And advise it only where it would be enough."""
    (tmp_path / "in").mkdir()
    scan = image(np.random.default_rng(6).integers(0, 700, (60, 96, 144)).astype(np.float32), np.eye(4))
    nib.save(scan, tmp_path / "in" / "head.nii.gz")
    with Segmenter(bands.grpc_url, "bands") as free:
        most = max(count for count in range(1, 10) if _possible(free, scan, count))
        least, halved = limit_for(free, scan, most), limit_for(free, scan, most, half=True)
    between = -(-halved // MIB)
    assert between < least // MIB
    source, target = ("in/head.nii.gz", "m.nii.gz") if command == "segment" else ("in", "out")
    paths = [str(tmp_path / source), *(["-o"] if command == "segment" else []), str(tmp_path / target)]
    words = [command, *paths, "-m", "bands", "--url", bands.grpc_url, "--max-ram"]
    failed = 2 if command == "segment" else 1
    for allowance, more, code, advised in (
        ("1", [], failed, False),
        ("1", ["--allow-half-scores"], failed, False),
        (str(between), [], failed, True),
        (str(between), ["--allow-half-scores"], 0, False),
    ):
        result = CliRunner().invoke(app, [*words, allowance, *more])
        assert result.exit_code == code, result.output
        # With 1 MiB the scan is not even read.
        told = "--max-ram leaves 0 MiB" if allowance == "1" else f"--max-ram allows {allowance} MiB"
        assert (told in result.output) == (code != 0)
        assert ("--allow-half-scores" in result.output) == advised


def _possible(segmenter: Segmenter, scan: Any, strips: int) -> bool:
    try:
        return limit_for(segmenter, scan, strips) > 0
    except StopIteration:
        return False


# Predictions -------------------------------------------------------------------------------------------------
