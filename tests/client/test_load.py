"""`voxtile load-test`: several clients at once, numbers that add up."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import pytest

from tests.support.commands import run
from tests.support.heads import head, image
from voxtile import ModelError
from voxtile.cli.load_test import run_load_test
from voxtile_server.embedded import EmbeddedServer


def test_numbers_add_up(server: EmbeddedServer, tmp_path: Path) -> None:
    scan = tmp_path / "head.nii"
    nib.save(image(head((40, 37, 33))), scan)
    result = run(
        "load-test", scan, "--model", "small-unet", "--url", server.grpc_url, "--clients", 3, "--scans", 7, "--json"
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["clients"], found["scans"], found["retries"]) == (3, 7, 0)
    assert found["scans_per_hour"] == pytest.approx(7 * 3600 / found["wall_seconds"], rel=1e-2)
    assert 0 < found["seconds_median"] <= found["seconds_longest"] <= found["wall_seconds"]
    assert "scans per hour" in run("load-test", scan, "-m", "small-unet", "--url", server.grpc_url, "--scans", 1).stdout


def test_a_failure_is_raised_and_not_counted(server: EmbeddedServer) -> None:
    with pytest.raises(ModelError, match="'nothing' is not offered"):
        run_load_test([server.grpc_url], "nothing", image(head((20, 20, 20))))
