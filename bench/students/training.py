"""Makes a demonstration's student by the real command, in a process of its own, and keeps what became of it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxtile_build.errors import AcceptanceError

from ..settings import say
from .demonstrations import DEMONSTRATIONS, command, student_name
from .heads import fetch_heads

HEADS, PACKAGES = "heads", "packages"


class TrainingError(RuntimeError):
    """The command did not make a student."""


def train(name: str, out: Path, budget: tuple[str, str], more: Sequence[str] = ()) -> dict[str, Any]:
    """Makes the student of a demonstration in the folder `out`/NAME; returns what is published of it.

    Args:
        name: of DEMONSTRATIONS.
        out: of everything; scans and packages are kept there, too.
        budget: an option of the command with its value, such as ("--hours", "0.75").
        more: further options of the command.

    Raises:
        TrainingError: there is this student already, or the command failed; one that agrees too little is made all the
            same.
        HeadError: a scan cannot be downloaded.
    """
    demonstration, made = DEMONSTRATIONS[name], out / name
    for folder in (made, out / "data"):
        folder.mkdir(parents=True, exist_ok=True)
    report = made / f"{student_name(name)}.distillation.json"
    if report.exists():
        raise TrainingError(f"{report}: this student is made already; give another --out, or remove {made}")
    scans = out / HEADS
    fetch_heads(scans, out / PACKAGES)
    line = [*command(name, demonstration, scans, out / "data", made, budget), *more]
    say(" ".join(line[2:]))
    started = time.monotonic()
    ended = subprocess.run(line, check=False).returncode
    if ended not in (0, AcceptanceError.exit_code) or not report.exists():
        raise TrainingError(f"{name}: voxtile-build distil ended with exit code {ended}, and no student was made")
    told = " ".join([f"train {name}", *budget, *more])
    facts = {
        "title": demonstration.title,
        "command": f"python -m bench.students {told}",
        "wall_seconds": round(time.monotonic() - started),
        **published(json.loads(report.read_text(encoding="utf-8"))),
    }
    (out / f"{name}.training.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return facts


def published(report: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is published of a distillation's report."""
    agreement, training = report["agreement"], report["training"]
    keys = ("dice_mean", "dice_min", "hausdorff_95_mm_max", "volume_difference_percent_max")
    return {
        "labels": {label: {key: figures[key] for key in keys} for label, figures in agreement["labels"].items()},
        "dice_min": agreement["dice_min"],
        "changed_fraction": agreement["changed_fraction"],
        "held_out_shapes": [scan["shape"] for scan in agreement["scans"]],
        "training": training,
        "teacher_engine": f"{report['teacher']['engine']} {report['teacher']['precision']}".strip(),
    }
