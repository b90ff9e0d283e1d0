"""The benchmark of doors runs, and each door gives the client's mask."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.volume.__main__ import PROCESSES, parse
from bench.volume.doors import DOORS


def test_every_door_is_measured_and_gives_the_clients_mask(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bench.volume", "--tiny", "--only", "unet", "--out", str(tmp_path)]
    assert subprocess.run(words, check=False).returncode == 0
    told = json.loads((tmp_path / "volume.json").read_text())
    assert told["left_out"] == []
    ((title, rows),) = told["tables"].items()
    assert [row["door"] for row in rows] == list(DOORS)
    for row in rows:
        assert row["same"] == "the client's"
        assert row["runs"] == 2
        assert row["seconds"] > 0
        assert all(row[name] > 1 << 20 for name in PROCESSES)
    assert rows[0]["ratio"] == 1
    page = (tmp_path / "volume.md").read_text()
    assert title in page
    assert all(f"| {door} |" in page for door in DOORS)


def test_an_unknown_workload_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--only", "free,nothing"])
    assert ended.value.code == 2
    assert "expected some of free,unet,swinunetr,memory, found nothing" in capsys.readouterr().err
