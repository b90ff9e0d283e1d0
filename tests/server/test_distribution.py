"""`pip install ./server`: what the distribution carries, used from outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "server" / "voxtile_server"
SHIPPED = (".py", ".txt", ".html", ".css", ".js", ".svg")


def test_the_distribution_is_whole_and_serves_without_the_checkout(repository: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "server", clone / "server", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".gitignore", clone)
    (clone / ".git").mkdir()
    target = tmp_path / "installed"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(target),
        str(clone / "server"),
    ]
    subprocess.run(pip, check=True, timeout=300)
    package = target / "voxtile_server"
    wanted = {path.relative_to(SOURCE) for path in SOURCE.rglob("*") if path.suffix in SHIPPED}
    assert {path.relative_to(package) for path in package.rglob("*") if path.suffix in SHIPPED} == wanted

    # Only the installed copy is on the path; what the server says of itself tells which one ran.
    environment = {**os.environ, "PYTHONPATH": str(target)}

    def told(*words: str | Path) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert told(target / "bin" / "voxtile-server", "--version").startswith("voxtile-server ")
    ask = "import voxtile_server as s, os; print(s.__file__, os.environ['VOXTILE_URL'])"
    run_with = (sys.executable, "-m", "voxtile_server.run_with", "--repository", repository, "--")
    assert told(*run_with, sys.executable, "-c", ask).startswith(f"{package / '__init__.py'} 127.0.0.1:")
