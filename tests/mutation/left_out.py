"""Runs the mutants that mutmut leaves out: constants of modules and classes, and functions with decorators.

Such code runs while its module is imported, or cannot be wrapped, so each mutant is a changed file in a copy, and its
tests run in a new process.
"""

from __future__ import annotations

import queue
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import unified_diff
from pathlib import Path

from tests.mutation.functions import ask_mutmut, change_of, environment, some_of, tests_by_function
from tests.mutation.groups import DISTRIBUTIONS, Group
from tests.mutation.results import KILLED, NO_TEST, SURVIVED, TIMEOUT, Outcome
from tests.mutation.staging import COPIED, module_name, staged_path

TIMEOUT_S = 300.0
"""A mutant whose tests take longer hangs: the tests of a group take a minute or two."""


def run_left_out(
    stage: Path, group: Group, workers: int, sample: float, seed: int, only: Sequence[str] = ()
) -> list[Outcome]:
    """Runs the mutants of the group that mutmut leaves out; arguments as for `run_functions`, which has run before."""
    jobs = [
        (module, name, where, code)
        for module in group.modules
        for name, where, code in _mutants(stage, module, sample, seed, only)
    ]
    if not jobs:
        return []
    copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for number in range(workers):
        copies.put(_copy(stage, stage / f"copy-{number}"))
    tests = {module: _tests(stage, group, module) for module in group.modules}

    def run(job: tuple[Path, str, str, str]) -> Outcome:
        module, name, where, code = job
        copy = copies.get()
        try:
            return _outcome(copy, module, name, where, code, tests[module])
        finally:
            copies.put(copy)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(run, jobs))


def _mutants(
    stage: Path, module: Path, sample: float, seed: int, only: Sequence[str]
) -> Iterator[tuple[str, str, str]]:
    """Yields the name of each mutant, the function that it stands in or "", and the changed file."""
    path = str(staged_path(module))
    made = {
        f"{module_name(module)}:{number}": one for number, one in enumerate(ask_mutmut(stage, "left-out", [path])[path])
    }
    for name in made if only else some_of(list(made), sample, f"{seed} {module}"):
        if not only or name in only:
            yield name, *made[name]


def _copy(stage: Path, copy: Path) -> Path:
    for folder in (*DISTRIBUTIONS.values(), *COPIED):
        shutil.copytree(stage / folder, copy / folder)
    shutil.copy(stage / "pyproject.toml", copy)
    return copy


def _tests(stage: Path, group: Group, module: Path) -> list[str]:
    """Returns the tests that reach a function of the module; all of the group's where none does."""
    reached = {
        test
        for function, tests in tests_by_function(stage).items()
        if function.startswith(f"{module_name(module)}.x")
        for test in tests
    }
    return sorted(reached) or list(group.tests)


def _outcome(copy: Path, module: Path, name: str, where: str, code: str, tests: list[str]) -> Outcome:
    path = copy / staged_path(module)
    original = path.read_text(encoding="utf-8")
    path.write_text(code, encoding="utf-8")
    try:
        status = _status(copy, tests)
    finally:
        path.write_text(original, encoding="utf-8")
    if status not in (SURVIVED, NO_TEST):
        return Outcome(module_name(module), name, status)
    diff = list(unified_diff(original.splitlines(), code.splitlines(), lineterm="", n=1))[2:]
    change = change_of(f"{module_name(module)}.{where}".rstrip("."), diff)
    return Outcome(module_name(module), name, status, change, "\n".join(diff))


def _status(copy: Path, tests: list[str]) -> str:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment(copy), capture_output=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return TIMEOUT
    return {0: SURVIVED, 5: NO_TEST}.get(done.returncode, KILLED)
