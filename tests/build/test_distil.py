"""From a teacher and scans without labels to a student that is served; killed at random moments, it ends the same."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load
from typer.testing import CliRunner

from tests.support.distilling import SHAPE, scan_values, teacher_weights, write_scans, write_teacher
from tests.support.killed_distilling import NAME, PHASES, STEPS
from tests.support.nnunet_folders import Training, configuration, write_folder
from voxtile.cli.app import app
from voxtile_build.cli import commands as cli
from voxtile_build.importers.nnunet.models import models_of
from voxtile_build.repository.card import card_of, get_card
from voxtile_build.repository.config import read_config
from voxtile_build.slimming import distil as flow
from voxtile_build.slimming.training import Trained, TrainingStopped
from voxtile_build.spec.spec import load_spec
from voxtile_server.embedded import EmbeddedServer

ROOT = Path(__file__).parents[2]
SCANS = 4
HELD_OUT = 1


@dataclass(frozen=True)
class Runs:
    """Runs of the same command on the same scans: one undisturbed, one that was killed.

    children: what is known of each child: `whole`, `killed` and `last`.
    """

    folder: Path
    children: dict[str, Any]

    @property
    def whole(self) -> Path:
        return self.folder / "undisturbed" / "out"

    @property
    def killed(self) -> Path:
        return self.folder / "killed" / "out"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    write_teacher(folder)
    write_scans(folder / "scans", SCANS)
    for name in ("undisturbed", "killed"):
        (folder / name).mkdir()
    seed = random.SystemRandom().randrange(2**31)
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.killed_distilling", str(folder), str(seed)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    return Runs(folder, json.loads(done.stdout.splitlines()[-1]))


def report(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((output / f"{NAME}.distillation.json").read_text())
    return content


def test_a_run_that_was_killed_five_times_ends_as_an_undisturbed_one(runs: Runs) -> None:
    assert runs.children["whole"]["code"] == runs.children["last"]["code"] == 0
    assert [child["code"] for child in runs.children["killed"]] == [-signal.SIGKILL] * len(PHASES)
    weights = [(output / f"{NAME}.safetensors").read_bytes() for output in (runs.whole, runs.killed)]
    assert weights[0] == weights[1]
    whole, killed = report(runs.whole), report(runs.killed)
    assert whole["agreement"] == killed["agreement"]
    assert whole["scans"] == killed["scans"]
    assert whole["training"]["steps"] == killed["training"]["steps"] == STEPS


def test_nothing_is_left_of_the_work(runs: Runs) -> None:
    for output in (runs.whole, runs.killed):
        assert {path.name.partition(".")[0] for path in output.iterdir()} == {NAME}


def test_no_scan_is_read_for_labels_that_are_there(runs: Runs) -> None:
    whole, *killed, last = runs.children["whole"], *runs.children["killed"], runs.children["last"]
    assert set(Counter(whole["read"]).values()) == {1}
    assert len(whole["read"]) == SCANS
    held_out = last["read"]  # all labels were there
    assert len(held_out) == HELD_OUT
    for child in killed:
        assert max(Counter(child["read"]).values(), default=0) <= 1
    # A scan is read again only by the child after the one that was killed while it was labelled.
    reads = Counter(name for child in killed for name in child["read"] if name not in held_out)
    assert sum(reads.values()) <= SCANS - HELD_OUT + len(killed)


def test_the_report_holds_no_names(runs: Runs) -> None:
    for file in runs.whole.iterdir():
        assert b"scan_" not in file.read_bytes(), file.name
        assert os.fsencode(runs.folder) not in file.read_bytes(), file.name


@pytest.fixture(scope="module")
def served(runs: Runs) -> Iterator[EmbeddedServer]:
    repository = runs.folder / "models"
    specs = [str(file) for file in (runs.whole / f"{NAME}.toml", runs.folder / "teacher.toml")]
    assert cli.main(["spec", *specs, "--repository", str(repository), "--quiet"]) == 0
    with EmbeddedServer(repository) as server:
        yield server
        server.kill()


def test_a_mask_says_whose_student_made_it(runs: Runs, served: EmbeddedServer, tmp_path: Path) -> None:
    scan, mask = runs.folder / "scans" / "scan_0.nii.gz", tmp_path / "mask.nii.gz"
    called = CliRunner().invoke(app, ["segment", str(scan), "-o", str(mask), "--model", NAME, "--url", served.grpc_url])
    assert called.exit_code == 0, called.output
    found = nib.load(mask)
    assert found.shape == SHAPE
    assert len(np.unique(np.asarray(found.dataobj))) > 1
    told = CliRunner().invoke(app, ["why", str(mask)]).output
    assert "student of" in told
    assert "teacher" in told


# What a run says and leaves where it does not end well


def distil(runs: Runs, output: Path, *more: str) -> int:
    """The command in this process, with the teacher from the repository: one step of training."""
    arguments = (runs.folder / "teacher.toml", "--width", "0.5", "--scans", runs.folder / "scans", "--output", output)
    given = ("--steps", "1", "--threads", "1", "--quiet", "--repository", runs.folder / "models", *more)
    return cli.main(["distil", *map(str, (*arguments, *given))])


def test_a_student_that_agrees_too_little_is_kept_and_not_published(
    runs: Runs, served: EmbeddedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distil(runs, tmp_path / "out", "--name", "poor", "--min-dice", "1") == 4
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert all(word in error for word in ("expected at least 1 ", "longer", "more scans", "wider"))
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".safetensors", ".toml", ".md", ".json", ".jsonl"}
    assert not list((runs.folder / "models").glob("poor*"))


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C is heard, also where a shell that runs the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_ctrl_c_leaves_what_was_made_and_says_how_to_go_on(
    runs: Runs,
    served: EmbeddedServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read, names = flow.read, []

    def interrupted(scan: Any, spec: Any) -> Any:
        names.append(scan.name)
        if len(names) == 2:
            signal.raise_signal(signal.SIGINT)
        return read(scan, spec)

    monkeypatch.setattr(flow, "read", interrupted)
    scans = shutil.copytree(runs.folder / "scans", tmp_path / "scans")
    given = ("--name", "cut", "--min-dice", "1", "--scans", str(scans))
    assert distil(runs, tmp_path / "out", *given) == 130
    assert capsys.readouterr().err == "voxtile-build: interrupted; the same command with --resume goes on\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".cut-distilling"]
    assert distil(runs, tmp_path / "out", *given) == 2
    assert "go on with it by --resume" in capsys.readouterr().err
    assert distil(runs, tmp_path / "out", *given, "--seed", "5", "--resume") == 2
    assert "--seed 0 then, 5 now" in capsys.readouterr().err
    first, *_ = files = sorted(scans.iterdir())
    aside = first.rename(tmp_path / "aside")
    assert distil(runs, tmp_path / "out", *given, "--resume") == 2
    assert "scans (1 missing);" in capsys.readouterr().err
    aside.rename(first)
    for file in files:  # in another order
        file.rename(scans / f"{9 - files.index(file)}_{file.name}")
    assert distil(runs, tmp_path / "out", *given, "--resume") == 4
    assert not any(name.endswith(f"_{names[0]}") for name in names)  # its labels were there
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_a_training_that_diverges_ends_with_its_last_good_weights(
    runs: Runs,
    served: EmbeddedServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = {key: torch.full_like(value, 0.25) for key, value in load(teacher_weights((2, 4), 0)).items()}

    def diverged(*_: Any, **__: Any) -> None:
        raise TrainingStopped("step 9: it diverged", Trained(good, 7, 1.0, ((7, 0.5),), "cpu"), is_over=True)

    monkeypatch.setattr(flow, "train", diverged)
    assert distil(runs, tmp_path / "out", "--name", "lost", "--min-dice", "1") == 4
    assert "step 9: it diverged" in capsys.readouterr().err
    found = load((tmp_path / "out" / "lost.safetensors").read_bytes())
    assert all(torch.equal(found[key], value) for key, value in good.items())


# nnU-Net


def test_an_nnunet_folder_teaches_one_student_with_the_same_preparation(tmp_path: Path) -> None:
    plan = configuration((16, 16, 16), (2.0, 1.0, 1.0), normalization_schemes=["ZScoreNormalization"])
    training = Training("3d_fullres", {"3d_fullres": plan}, folds=(0, 1), channels=("MR",), mirror_axes=(0,))
    folder = write_folder(tmp_path / "results", training)
    for number in range(2):
        image = nib.Nifti1Image(scan_values(number), np.diag([1.0, 1.0, 2.0, 1.0]))
        (tmp_path / "scans").mkdir(exist_ok=True)
        nib.save(image, tmp_path / "scans" / f"case{number}_0000.nii.gz")
    arguments = ("distil", folder, "--width", "0.5", "--scans", tmp_path / "scans", "--output", tmp_path / "out")
    more = ("--name", "small", "--steps", "2", "--threads", "1", "--min-dice", "0", "--any-modality", "--quiet")
    assert cli.main([*map(str, (*arguments, *more))]) == 0
    student = load_spec(tmp_path / "out" / "small.toml")
    teacher = models_of(folder, "teacher")[0]
    assert student.tiling.mirror_axes == ()
    assert student.nnunet == teacher.spec.nnunet
    made = json.loads((tmp_path / "out" / "small.distillation.json").read_text())
    assert (made["teacher"]["networks"], made["teacher"]["mirrored_passes"]) == (2, 2)
    assert made["training"]["start"] != "random"
    repository = tmp_path / "models"
    assert cli.main(["spec", str(tmp_path / "out" / "small.toml"), "--repository", str(repository), "--quiet"]) == 0
    card = get_card(read_config(repository / "small"), repository / "small")
    assert card.nnunet == card_of(teacher.spec, "onnxruntime", card.certificates, card.provenance).nnunet
