"""`make serve`: which repository it serves. A script stands in for the server and prints what it is told."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The Makefile in a folder that looks as if `make setup` had been run there."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    [needed] = re.findall(r"^\$\(INSTALLED\): (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    server = tmp_path / ".venv" / "bin" / "voxtile-server"
    for file in [*(tmp_path / name for name in needed.split()), server]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    server.write_text('#!/bin/sh\necho "$@"\n')
    server.chmod(0o755)
    (tmp_path / ".venv" / ".installed").touch()
    (tmp_path / "model_repository").mkdir()
    return tmp_path


def add_model(repository: Path) -> None:
    (repository / "model").mkdir(parents=True)
    (repository / "model" / "config.pbtxt").touch()


def served(checkout: Path, *words: str) -> tuple[str, str]:
    """The repository that is served, and what is said before."""
    environment = {name: value for name, value in os.environ.items() if name != "MODEL_REPOSITORY"}
    done = subprocess.run(
        ["make", "--no-print-directory", "serve", *words],
        cwd=checkout, env=environment, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    *said, told = done.stdout.splitlines()
    return told.split()[1], " ".join(said)


def test_the_models_that_were_built_are_served(checkout: Path) -> None:
    add_model(checkout / "model_repository")
    add_model(checkout / "out" / "model_repository")
    assert served(checkout) == ("model_repository", "")


def test_after_the_demo_alone_its_models_are_served_and_that_is_said(checkout: Path) -> None:
    add_model(checkout / "out" / "model_repository")
    repository, said = served(checkout)
    assert repository == "out/model_repository"
    assert said.startswith("model_repository holds no model")


def test_without_any_model_the_server_says_so_itself(checkout: Path) -> None:
    assert served(checkout) == ("model_repository", "")


def test_a_named_repository_is_served_even_without_models(checkout: Path) -> None:
    add_model(checkout / "out" / "model_repository")
    assert served(checkout, "MODEL_REPOSITORY=mine") == ("mine", "")
