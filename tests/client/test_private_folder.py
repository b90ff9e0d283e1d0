"""Folders for scans of patients: nobody else may look into them, and what a killed process has left is removed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.in_memory_commands import ROOT
from voxtile.errors import OutputError
from voxtile.io.private_folder import private_folder

HOLDS = """
import sys, time
from pathlib import Path
from voxtile.io.private_folder import private_folder
with private_folder("test", Path(sys.argv[1])) as folder:
    (folder / "in").mkdir()
    (folder / "in" / "scan.nii.gz").touch()
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process, and its folder."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    running = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert running.stdout is not None
    try:
        yield running, Path(running.stdout.readline().strip())
    finally:
        running.kill()
        running.communicate()


def test_a_folder_is_private_and_removed(tmp_path: Path) -> None:
    with private_folder("test", tmp_path) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "scan").touch()
        assert list(tmp_path.iterdir()) == [folder]
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_and_nothing_else(
    tmp_path: Path, other: tuple[subprocess.Popen[str], Path]
) -> None:
    process, left = other
    (tmp_path / "voxtile-test-file").touch()
    (tmp_path / f"{left.name}-link").symlink_to(tmp_path)
    other_machine = tmp_path / "voxtile-test-elsewhere-1"
    other_machine.mkdir()
    with private_folder("test", tmp_path) as mine, private_folder("test", tmp_path) as second:
        assert (left / "in" / "scan.nii.gz").exists(), "its process is at work"
        process.send_signal(signal.SIGKILL)
        process.wait()
        with private_folder("other", tmp_path):
            assert left.exists(), "a folder of another kind"
        with private_folder("test", tmp_path):
            assert not left.exists()
        assert mine.exists()
        assert second.exists(), "each is locked for itself"
    kept = {"voxtile-test-file", f"{left.name}-link", other_machine.name}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_where_none_can_be_made_is_told(tmp_path: Path) -> None:
    for where in (Path("/proc"), tmp_path / "gone"):
        with pytest.raises(OutputError, match=f"{where}: no folder can be made there"), private_folder("test", where):
            raise AssertionError("it was made")
