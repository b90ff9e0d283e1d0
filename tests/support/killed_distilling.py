"""Distils in children that kill themselves with SIGKILL at random moments, and once undisturbed; nothing cleans up.

Run as `python -m tests.support.killed_distilling FOLDER SEED`, where FOLDER holds teacher.toml and scans. Prints JSON:
for each child its exit code, its accesses to files of the run, and the scans that it prepared. A moment is such an
access, because whatever lies between two of them is lost either way.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.support.exporting import share_operators
from voxtile_build.cli.commands import main as build
from voxtile_build.slimming import distil
from voxtile_build.slimming.training import training

NAME = "student"
STEPS = 24
PHASES = ("teacher", "pool", "pool", "training", NAME + ".")
"""Part of the path of the files in whose accesses a child dies: five children, one after the other."""
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


@dataclass
class Child:
    """What is known of one child."""

    code: int
    accesses: dict[str, int]
    read: list[str]


def run(folder: Path, output: Path, phase: str = "", number: int = 0) -> Child:
    """Distils in a child. It dies before its access with this number, from 1, to a file of the phase."""
    log = output.parent / "child.jsonl"
    log.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        os._exit(_distil(folder, output, log, phase, number))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    accesses = Counter(line["phase"] for line in lines if "phase" in line)
    return Child(code, dict(accesses), [line["scan"] for line in lines if "scan" in line])


def _distil(folder: Path, output: Path, log: Path, phase: str, number: int) -> int:
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    seen: Counter[str] = Counter()

    def accessed(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or not isinstance(arguments[0], str | Path):
            return
        place = os.path.relpath(arguments[0], output)
        for one in dict.fromkeys(PHASES):
            if not place.startswith("..") and one in place.replace(f".{NAME}-distilling", ""):
                seen[one] += 1
                if one == phase and seen[one] == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                os.write(stream, f"{json.dumps({'phase': one})}\n".encode())

    read = distil.read

    def read_and_told(scan: Any, spec: Any) -> Any:
        os.write(stream, f"{json.dumps({'scan': scan.name})}\n".encode())
        return read(scan, spec)

    distil.read = read_and_told
    training.FEWEST_SECONDS = training.MOST_SECONDS = 0.0
    sys.addaudithook(accessed)
    return build(command(folder, output))


def command(folder: Path, output: Path) -> list[str]:
    """The arguments: one and the same for every child, as in a job that starts again."""
    return [
        *("distil", str(folder / "teacher.toml"), "--width", "0.5", "--scans", str(folder / "scans")),
        *("--output", str(output), "--name", NAME, "--steps", str(STEPS), "--held-out", "0.3", "--threads", "1"),
        *("--min-dice", "0", "--quiet", "--resume"),
    ]


def main(folder: Path, seed: int) -> None:
    """Prints what became of the children: the undisturbed one, those that died, the one that ended."""
    torch.set_num_threads(1)
    share_operators()
    chance = random.Random(seed)
    whole = run(folder, folder / "undisturbed" / "out")
    left = Counter(whole.accesses)
    killed = []
    for phase in PHASES:
        number = chance.randint(1, max(left[phase] // PHASES.count(phase), 1))
        killed.append(run(folder, folder / "killed" / "out", phase, number))
    last = run(folder, folder / "killed" / "out")
    print(json.dumps({"whole": vars(whole), "killed": [vars(one) for one in killed], "last": vars(last)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
