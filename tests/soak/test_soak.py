"""A soak of one minute and a quarter: everything goes wrong at least once, and nothing is lost or left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_short_soak_loses_nothing() -> None:
    command = [sys.executable, "-m", "tests.soak", "--minutes", "1.25"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
