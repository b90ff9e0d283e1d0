"""`python -m bench.students`: make the two students of docs/performance.md by the real command, and measure them.

`train NAME --out DIR --minutes 45` makes one, `ladder --out DIR` measures those that are made, from fp32 PyTorch to the
student in reduced precision, and writes DIR/students.json. `python -m bench.readme adopt-students DIR/students.json`
publishes it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from voxtile_build.importers.network import model_of
from voxtile_build.repository.folds import Model
from voxtile_build.spec.spec import load_spec

from ..scans import by
from ..settings import Settings, say
from .demonstrations import DEMONSTRATIONS, HELD_OUT, student_name, teacher_of
from .heads import HeadError
from .ladder import Pair, measure, middle
from .training import HEADS, TrainingError, train

RESULT = "students.json"
SCAN = (96, 96, 96)
"""Voxels of the held-out head that the ladder segments: 8 tiles. fp32 PyTorch needs minutes for the whole head."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains or measures; returns 0, 1 if a student could not be made, or exits with 2 if an argument is wrong."""
    chosen = parse(arguments)
    out: Path = chosen.out.resolve()
    if chosen.action == "ladder":
        ladders(chosen.names, out, chosen.remark)
        return 0
    budget = ("--steps", str(chosen.steps)) if chosen.steps else ("--hours", f"{(chosen.minutes or 45) / 60:g}")
    more = ("--threads", str(chosen.threads)) if chosen.threads else ()
    for name in chosen.names:
        try:
            train(name, out, budget, more)
        except (HeadError, TrainingError) as error:
            sys.stderr.write(f"bench.students: {error}\n")
            return 1
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns what a command line asks for; exits with 2 if it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.students", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=("train", "ladder"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(DEMONSTRATIONS)}; left out: all")
    parser.add_argument("--out", type=Path, default=Path("out/students"), metavar="DIR")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, metavar="N", help="of labelling and training; 45 by default")
    budget.add_argument("--steps", type=int, metavar="N", help="of training")
    parser.add_argument("--threads", type=int, metavar="N", help="of the training; left out: all")
    parser.add_argument("--remark", default="", metavar="TEXT", help="a sentence on how the ladder was measured")
    chosen = parser.parse_args(arguments)
    if unknown := [name for name in chosen.names if name not in DEMONSTRATIONS]:
        parser.error(f"expected some of {', '.join(DEMONSTRATIONS)}, found {', '.join(unknown)}")
    chosen.names = chosen.names or list(DEMONSTRATIONS)
    return chosen


def ladders(names: Sequence[str], out: Path, remark: str = "") -> None:
    """Measures the students that are in `out`, and writes RESULT; rows of other students there stay."""
    from ..machine import machine_facts, roofline

    settings = Settings(out, sections=())
    facts = machine_facts("cpu")
    facts["roofline"] = roofline("cpu")
    path = out / RESULT
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rows = [row for row in result.get("ladders", []) if row["workload"] not in names]
    for name in names:
        say(f"ladder of {name}; load {os.getloadavg()[0]:.1f}")
        rows += measure(_pair(name, out), settings)
        told = {one: out / f"{one}.training.json" for one in DEMONSTRATIONS}
        result = {
            "machine": facts,
            "remark": remark,
            "trainings": {one: json.loads(file.read_text()) for one, file in told.items() if file.exists()},
            "ladders": sorted(rows, key=lambda row: list(DEMONSTRATIONS).index(row["workload"])),
            "left_out": settings.left_out,
        }
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _pair(name: str, out: Path) -> Pair:
    demonstration = DEMONSTRATIONS[name]
    teacher: Model = teacher_of(demonstration, out / "data")
    student = model_of(load_spec(out / name / f"{student_name(name)}.toml"))
    x, y, z = teacher.spec.tiling.roi_size
    scan = middle(out / HEADS / f"{HELD_OUT}.nii.gz", SCAN, out / "data")
    title = f"{demonstration.title}, ROI {by((x, y, z))}, the middle {by(SCAN)} of the held-out head"
    return Pair(name, title, teacher, student, demonstration.teacher(out / "data"), scan, (x, y, z))


if __name__ == "__main__":
    sys.exit(main())
