"""docs/how-to/nnunet.md: every fenced command is run, in order, on a generated results folder."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.support.nnunet_folders import Oracle, Training, configuration, single_precision, write_folder, write_scan

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "nnunet.md"
SECONDS = 300
TRAINING = Training("3d_fullres", {"3d_fullres": configuration((16, 16, 16), (1.5, 1.0, 1.0))}, folds=(0, 1))


def commands() -> list[list[str]]:
    """The page's shell commands, one a line of its `sh` blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def run(command: Sequence[str], folder: Path, address: str | None = None) -> None:
    """Run one of the page's commands in `folder`, from this environment."""
    environment = {**os.environ, **({"VOXTILE_URL": address} if address else {})}
    done = subprocess.run(
        [str(Path(sys.executable).with_name(command[0])), *command[1:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"


def serve(command: Sequence[str], folder: Path) -> tuple[subprocess.Popen[str], str]:
    """Start the page's server on free ports; its process, and the address of its gRPC service once it is ready."""
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0", "--ready-file", str(folder / "ready.json")]
    process = subprocess.Popen(
        [sys.executable, *command[1:], *ports],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        found = re.search(r"grpc\S*\s+(?:\w+://)?(\S+:\d+)", line, re.I)
        if found:
            return process, found[1]
    raise AssertionError("the server ended before it told its address")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_page_from_results_folder_to_masks(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "nnUNet_results" / "Dataset042_Mine", TRAINING, seed=3)
    write_folder(tmp_path / "nnUNet_results" / "Dataset042_Mine", replace(TRAINING, name="3d_lowres", configurations={
        "3d_lowres": TRAINING.configurations["3d_fullres"]
    }))  # fmt: skip
    files = write_scan(tmp_path / "imagesTs", "case", (24, 20, 17), (1.1, 0.9, 1.7))
    text = PAGE.read_text(encoding="utf-8")
    settings = re.findall(r"as\s`(\w+\.toml)`[^`]*^```toml\n(.*?)^```$", text, re.M | re.S)
    assert [name for name, _ in settings] == ["settings.toml", "reduced.toml"]
    for name, content in settings:
        (tmp_path / name).write_text(content)
    install, *rest = commands()
    name, version = install[-1].split("==")
    assert install[:3] == ["pip", "install", "--no-deps"]
    assert metadata.version(name) == version, "the page pins what the tests run with"
    serving = next(index for index, command in enumerate(rest) if command[0] == "python")
    for command in rest[:serving]:
        run(command, tmp_path)
    process, address = serve(rest[serving], tmp_path)
    try:
        for command in rest[serving + 1 :]:
            run(command, tmp_path, address)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    with single_precision():
        probabilities = Oracle(folder, TRAINING.folds).predict(files, tmp_path / "oracle.nii.gz")
    expected = np.asarray(nib.load(tmp_path / "oracle.nii.gz").dataobj)
    for mask in ("case.nii.gz", "labelsPr/case.nii.gz"):
        assert (np.asarray(nib.load(tmp_path / mask).dataobj) != expected).sum() <= expected.size // 20_000
    with np.load(tmp_path / "case.npz") as content:
        np.testing.assert_allclose(content["probabilities"], probabilities, atol=1e-4)


def test_page_names_options_and_entries_that_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    build = subprocess.run(
        [sys.executable, "-m", "voxtile_build", "nnunet", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for option in ("--folds", "--checkpoint", "--engines", "--configuration", "--settings"):
        assert option in text
        assert option in build
