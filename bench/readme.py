"""What is published of docs/performance.json: the README's summary, the chart, and the tables of docs/performance.md.

`python -m bench.readme adopt out/bench` publishes a run's figures and writes all three; `python -m bench.readme write`
writes them again from the published figures.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from docs.generate import chart, summary

from .tables import ENGINE_COLUMNS, EXPLANATION, PART_COLUMNS, SCAN_COLUMNS, grouped, machine

Figures = Mapping[str, Any]
"""Of one run: `machine`, `left_out`, and the rows in `scans`, `parts` and `engines`."""

ROOT = Path(__file__).parent.parent
FILES = ("scans", "parts", "engines")
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
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


def with_block(text: str, content: str) -> str:
    """Returns `text` with `content` between the marks.

    Raises:
        ValueError: the marks are not there once each, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"expected {BEGIN} and {END} once each, in this order")
    return f"{text.split(BEGIN)[0]}{BEGIN}\n{content}\n{END}{text.split(END)[1]}"


def block_of(text: str) -> str:
    """Returns what stands between the marks of `text`."""
    found = re.search(f"{re.escape(BEGIN)}\n(.*)\n{re.escape(END)}", text, re.DOTALL)
    return found[1] if found else ""


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Publishes a run, or writes the published figures again."""
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=("adopt", "write"))
    parser.add_argument("out", nargs="?", type=Path, default=Path("out/bench"))
    chosen = parser.parse_args(arguments)
    published = root / "docs" / "performance.json"
    if chosen.action == "adopt":
        published.write_text(json.dumps(figures_of(chosen.out), indent=1) + "\n", encoding="utf-8")
    figures = _read(published)
    for page, content in ((root / "README.md", summary_block), (root / "docs" / "performance.md", tables_block)):
        page.write_text(with_block(page.read_text(encoding="utf-8"), content(figures)), encoding="utf-8")
    (root / "docs" / CHART).write_text(chart.draw(summary.lines(figures)), encoding="utf-8")
    return 0


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    raise SystemExit(main())
