"""What is published of docs/performance.json: the README's summary, the chart, and the tables of docs/performance.md.

`python -m bench.readme adopt out/bench` publishes a run's figures and writes all three. `python -m bench.readme
adopt-gpu FILE.json` publishes a run of `python -m bench.gpu`, in docs/performance-gpu.json and in the page's section on
GPUs; `adopt-students FILE.json` one of `python -m bench.students`, in docs/performance-students.json and in the section
on students; `adopt-cohort FILE.json` one of `python -m bench.cohort`, in docs/performance-cohort.json and in the one on
cohorts. `python -m bench.readme write` writes everything again from the published figures.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from docs.generate import chart, summary

from .cohort.report import cohort_block
from .gpu.report import gpu_block
from .students.report import students_block
from .tables import ENGINE_COLUMNS, EXPLANATION, PART_COLUMNS, SCAN_COLUMNS, grouped, machine

Figures = Mapping[str, Any]
"""Of one run: `machine`, `left_out`, and the rows in `scans`, `parts` and `engines`."""

ROOT = Path(__file__).parent.parent
FILES = ("scans", "parts", "engines")
BEGIN, END = BENCH = "<!-- bench:begin -->", "<!-- bench:end -->"
GPU = "<!-- gpu:begin -->", "<!-- gpu:end -->"
STUDENTS = "<!-- students:begin -->", "<!-- students:end -->"
COHORT = "<!-- cohort:begin -->", "<!-- cohort:end -->"
SECTIONS = {"gpu": (GPU, gpu_block), "students": (STUDENTS, students_block), "cohort": (COHORT, cohort_block)}
"""Sections of the page with figures of a run of their own, docs/performance-NAME.json."""
CHART = "performance.svg"
NO_FIGURES = "No figures have been published yet; `make bench` measures this machine."
NO_GPU = "No row was measured on a GPU; `python -m bench --device cuda` is ready to, and has not been run on one."
KEPT = ("cpu", "cores", "memory_bytes", "gpu", "matrix_extensions", "versions", "quick", "roofline", "seconds")
"""What is published of a machine: nothing that says where it stands."""


def figures_of(out: Path) -> Figures:
    """Returns the figures of the run in `out`, as docs/performance.json keeps them."""
    facts = _read(out / "machine.json")
    rows = {name: _read(out / f"{name}.json") if (out / f"{name}.json").exists() else [] for name in FILES}
    missing = [{key: text.replace(str(ROOT), "") for key, text in one.items()} for one in facts.get("left_out", [])]
    return {"machine": {key: facts[key] for key in KEPT if key in facts}, **rows, "left_out": missing}


def summary_block(figures: Figures) -> str:
    """Returns what stands in the README: where it was measured, a table of a few rows, and the chart."""
    shown = summary.lines(figures)
    if not shown:
        return NO_FIGURES
    picture = f"![{chart.TITLE}. {chart.words(chart.charted(shown))}](docs/{CHART})"
    where = _where(figures["machine"])
    return "\n\n".join([f"Measured on {where}.", summary.as_table(shown), summary.NOTES, picture, *_no_gpu(figures)])


def tables_block(figures: Figures) -> str:
    """Returns all tables of docs/performance.md, and what was left out of them."""
    scans, parts, engines = (figures.get(name, []) for name in FILES)
    tables = [*grouped(scans, "workload", SCAN_COLUMNS), *([EXPLANATION] if scans else [])]
    tables += [*grouped(parts, "part", PART_COLUMNS), *grouped(engines, "network", ENGINE_COLUMNS)]
    if not tables:
        return NO_FIGURES
    missing = "\n".join(f"- {one['where']}: {one['row']}: {one['reason']}" for one in figures.get("left_out", []))
    left_out = ["#### Left out", missing] if missing else []
    return "\n\n".join([machine(figures["machine"]), *tables, *left_out, *_no_gpu(figures)])


def _where(facts: Mapping[str, Any]) -> str:
    """Returns the processors in a few words."""
    cores = f"{facts['cores']} cores of an {facts['cpu']}"
    return f"{facts['gpu']} and {cores}" if "gpu" in facts else cores


def _no_gpu(figures: Figures) -> list[str]:
    return [] if "gpu" in figures["machine"] else [NO_GPU]


def with_block(text: str, content: str, marks: tuple[str, str] = BENCH) -> str:
    """Returns `text` with `content` between two marks.

    Raises:
        ValueError: the marks are not there once each, in order.
    """
    begin, end = marks
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"expected {begin} and {end} once each, in this order")
    return f"{text.split(begin)[0]}{begin}\n{content}\n{end}{text.split(end)[1]}"


def block_of(text: str, marks: tuple[str, str] = BENCH) -> str:
    """Returns what stands between two marks of `text`."""
    found = re.search(f"{re.escape(marks[0])}\n(.*)\n{re.escape(marks[1])}", text, re.DOTALL)
    return found[1] if found else ""


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Publishes a run, or writes the published figures again."""
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=(__doc__ or "").partition("\n")[0])
    adopting = {f"adopt-{name}": name for name in SECTIONS}
    parser.add_argument("action", choices=("adopt", *adopting, "write"))
    parser.add_argument("out", nargs="?", type=Path, default=Path("out/bench"))
    chosen = parser.parse_args(arguments)
    published = root / "docs" / "performance.json"
    if chosen.action == "adopt":
        published.write_text(json.dumps(figures_of(chosen.out), indent=1) + "\n", encoding="utf-8")
    if chosen.action in adopting:
        _, block = SECTIONS[adopting[chosen.action]]
        block(run := _read(chosen.out))
        _figures_of_section(adopting[chosen.action], root).write_text(
            json.dumps(run, indent=1) + "\n", encoding="utf-8"
        )
    figures, readme, page = _read(published), root / "README.md", root / "docs" / "performance.md"
    readme.write_text(with_block(readme.read_text(encoding="utf-8"), summary_block(figures)), encoding="utf-8")
    text = with_block(page.read_text(encoding="utf-8"), tables_block(figures))
    for name, (marks, block) in SECTIONS.items():
        path = _figures_of_section(name, root)
        text = with_block(text, block(_read(path) if path.exists() else None), marks)
    page.write_text(text, encoding="utf-8")
    (root / "docs" / CHART).write_text(chart.draw(summary.lines(figures)), encoding="utf-8")
    return 0


def _figures_of_section(name: str, root: Path) -> Path:
    return root / "docs" / f"performance-{name}.json"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    raise SystemExit(main())
