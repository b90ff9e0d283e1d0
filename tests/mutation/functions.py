"""Runs the mutants of functions and methods with mutmut, in a staged copy. Knows nothing of judgements.

mutmut gives each mutant a copy of its function, chooses between them at run time, and runs for each only the tests that
reach the function, in a forked process.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.mutation.groups import Group
from tests.mutation.judged import Change
from tests.mutation.results import KILLED, NO_TEST, SURVIVED, TIMEOUT, Outcome
from tests.mutation.staging import module_name, staged_path

MUTMUT = (sys.executable, "-P", str(Path(__file__).with_name("mutmut_run.py")))
"""Without the script's folder on the path: modules come from the copy with the mutants."""
STATUS = {0: SURVIVED, 5: NO_TEST, 33: NO_TEST, 24: TIMEOUT, 36: TIMEOUT, 152: TIMEOUT, -24: TIMEOUT}
"""By the exit code that mutmut records; every other code is a failed test."""

NOT_RUN = (None, 255)
"""Exit codes of a mutant whose tests could not be run."""


def run_functions(
    stage: Path, group: Group, workers: int, sample: float, seed: int, only: Sequence[str] = ()
) -> list[Outcome]:
    """Runs the mutants of the group's functions.

    Args:
        stage: a copy that was laid out for this group.
        group: the modules and their tests.
        workers: how many mutants are run at once.
        sample: the share of the mutants that is run.
        seed: chooses them.
        only: names of the mutants to run, instead of a sample.
    """
    names = {module: _mutant_names(stage, module) for module in group.modules}
    if only:
        wanted = [name for some in names.values() for name in some if name in only]
    else:
        wanted = [name for module in group.modules for name in some_of(names[module], sample, f"{seed} {module}")]
    if not wanted:
        return []
    everything = len(wanted) == sum(map(len, names.values()))
    command = [*MUTMUT, "run", "--max-children", str(workers), *([] if everything else wanted)]
    # A folder that does not exist when Python starts is never looked into.
    (stage / "mutants").mkdir()
    log = stage / "mutmut.log"
    with log.open("wb") as stream:
        done = subprocess.run(
            command, cwd=stage, env=environment(stage / "mutants"), stdout=stream, stderr=stream, check=False
        )
    if done.returncode != 0:
        words = re.split(r"[\r\n]+", log.read_text(errors="replace"))
        raise RuntimeError(f"mutmut ended with {done.returncode} (see {log}):\n" + "\n".join(words[-30:]))
    outcomes = [one for module in group.modules for one in _outcomes(stage, module, set(wanted))]
    return list(_with_diffs(stage, group, outcomes))


def ask_mutmut(stage: Path, question: str, asked: Any) -> Any:
    """Asks `mutmut_side`, in the staged copy."""
    command = [sys.executable, "-m", "tests.mutation.mutmut_side", question]
    told = subprocess.run(
        command,
        cwd=stage,
        env=environment(stage),
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(told.stdout)


def environment(path: Path) -> dict[str, str]:
    """The variables for a run of tests: the copy under `path` goes before the installed packages, in children too."""
    # torch's own threads do not survive a fork, and one thread a mutant is what two cores can take.
    return {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def tests_by_function(stage: Path) -> dict[str, list[str]]:
    """Returns the tests that reach each function, by mutmut's name of the function; none where mutmut has not run."""
    path = stage / "mutants" / "mutmut-stats.json"
    if not path.is_file():
        return {}
    stats = json.loads(path.read_text())
    tests: dict[str, list[str]] = stats["tests_by_mangled_function_name"]
    return tests


def change_of(where: str, diff: list[str]) -> Change:
    """Returns the change that the lines of a unified diff, without its head, show."""
    return Change(where, _side(diff, "-"), _side(diff, "+"))


def _side(lines: list[str], sign: str) -> str:
    return "\n".join(line[1:].strip() for line in lines if line.startswith(sign))


def some_of(names: list[str], sample: float, seed: str) -> list[str]:
    """Returns a share of `names`, in their order."""
    kept = set(random.Random(seed).sample(names, math.ceil(len(names) * sample)))
    return [name for name in names if name in kept]


def _mutant_names(stage: Path, module: Path) -> list[str]:
    path = str(staged_path(module))
    return [f"{module_name(module)}.{name}" for name in ask_mutmut(stage, "functions", [path])[path]]


def _outcomes(stage: Path, module: Path, wanted: set[str]) -> Iterator[Outcome]:
    meta = json.loads((stage / "mutants" / f"{staged_path(module)}.meta").read_text())
    for name, code in meta["exit_code_by_key"].items():
        if name in wanted:
            if code in NOT_RUN:
                raise RuntimeError(f"mutmut could not run the tests of {name}; see {stage / 'mutmut.log'}")
            yield Outcome(module_name(module), name, STATUS.get(code, KILLED))


def _with_diffs(stage: Path, group: Group, outcomes: list[Outcome]) -> Iterator[Outcome]:
    paths = {module_name(module): str(staged_path(module)) for module in group.modules}
    asked = [(paths[one.module], one.name) for one in outcomes if one.alive]
    diffs = ask_mutmut(stage, "diffs", asked)
    for one in outcomes:
        if not one.alive:
            yield one
            continue
        lines = diffs[one.name].splitlines()[2:]
        yield replace(one, change=change_of(function_name(one.name), lines), diff="\n".join(lines))


def function_name(mutant: str) -> str:
    """Returns the dotted name of a mutant's function: a.b.xǁClassǁmethod__mutmut_3 is one of a.b.Class.method."""
    module, _, mangled = mutant.partition("__mutmut_")[0].rpartition(".")
    plain = mangled.removeprefix("x_") if mangled.startswith("x_") else mangled.removeprefix("xǁ").replace("ǁ", ".")
    return f"{module}.{plain}"
