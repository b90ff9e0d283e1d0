"""The two demonstrations: whose students they are, what the student is, and the command that makes it.

Both teachers tell grey from white matter. They were trained on the MNI152 template; the scans are three people's
heads and that one. No labels are used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from voxtile_build.importers.network import model_of
from voxtile_build.importers.nnunet.models import models_of
from voxtile_build.repository.folds import Model
from voxtile_build.slimming.scans import find_scans, split
from voxtile_build.slimming.student import student_spec
from voxtile_build.spec.network import Network
from voxtile_build.spec.spec import Spec, load_spec
from voxtile_build.spec.spec_to_toml import write_spec

from ..nnunet import BRAIN, folder_of

MODELS = Path(__file__).parents[2] / "models"
HELD_OUT = "pycortex-s1"
"""The head that no student is trained on: one person, one scan. It differs most from the others."""
SHARE = 0.25  # one of four
MOST_SEEDS = 1000
PATCH = (64, 64, 64)
"""nnU-Net's patch. The weights serve one of 96 voxels as well; 64 keep a training on two cores affordable."""


@dataclass(frozen=True)
class Demonstration:
    """A teacher and its student.

    Attributes:
        title: for readers.
        teacher: what the command is given, from a folder for what is made.
        network: of the student; None: the teacher's with fewer channels.
        width: share of the teacher's channels; None with `network`.
        options: more of the command.
    """

    title: str
    teacher: Callable[[Path], Path]
    network: Network | None = None
    width: float | None = None
    options: tuple[str, ...] = ()


DEMONSTRATIONS: Mapping[str, Demonstration] = MappingProxyType(
    {
        "swinunetr": Demonstration(
            "SwinUNETR 12 to a UNet 8-24-64-128",
            lambda _: MODELS / "brain-swinunetr.toml",
            network=Network(
                name="UNet",
                args={
                    "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [8, 24, 64, 128],
                    "strides": [2, 2, 2], "num_res_units": 1, "norm": "instance",
                },
            ),
        ),
        "plainconvunet": Demonstration(
            "nnU-Net PlainConvUNet 32…320 to half of its channels",
            lambda data: folder_of(BRAIN, PATCH, data),
            width=0.5,
            # Twice as many steps of one patch: the budget is a few hundred patches either way.
            options=("--batch", "1"),
        ),
    }
)  # fmt: skip


def teacher_of(demonstration: Demonstration, data: Path) -> Model:
    """Returns the model that the student learns from; `data` keeps what is made for it."""
    source = demonstration.teacher(data)
    return models_of(source, "teacher")[0] if source.is_dir() else model_of(load_spec(source))


def student_file(name: str, demonstration: Demonstration, data: Path) -> Path | None:
    """Returns the student's spec, written from its teacher's; None where the command cuts the teacher's channels."""
    if demonstration.network is None:
        return None
    path = data / f"{name}-student.toml"
    teacher = teacher_of(demonstration, data).spec
    student = student_spec(teacher, student_name(name), demonstration.network.args)
    path.unlink(missing_ok=True)
    write_spec(student.model_copy(update={"network": demonstration.network}), path)
    return path


def student_name(name: str) -> str:
    """Returns the student's public name."""
    return f"{name}-student"


def seed_for(held_out: str, scans: Path, spec: Spec) -> int:
    """Returns the first seed with which the command holds out exactly the scan called `held_out`.

    The command draws what it holds out; the demonstration wants one head that no other resembles.
    """
    found = find_scans(scans, spec)
    for seed in range(MOST_SEEDS):
        if [scan.files[0].name for scan in split(found, SHARE, seed)[1]] == [f"{held_out}.nii.gz"]:
            return seed
    raise ValueError(f"expected a seed below {MOST_SEEDS} that holds out {held_out}, found none in {scans}")


def command(
    name: str, demonstration: Demonstration, scans: Path, data: Path, out: Path, budget: tuple[str, str]
) -> list[str]:
    """Returns the command that makes the student in the folder `out`; budget is such as ("--hours", "0.75")."""
    given: dict[str, Any] = {"--scans": scans, "--output": out, "--name": student_name(name), "--held-out": SHARE}
    given["--seed"] = seed_for(HELD_OUT, scans, teacher_of(demonstration, data).spec)
    file = student_file(name, demonstration, data)
    given |= {"--width": demonstration.width} if file is None else {"--student": file}
    words = [str(word) for pair in given.items() for word in pair]
    teacher = str(demonstration.teacher(data))
    return [sys.executable, "-m", "voxtile_build", "distil", teacher, *words, *demonstration.options, *budget]
