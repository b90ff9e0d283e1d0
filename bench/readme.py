"""The README's tables and those of docs/performance.md, generated from docs/performance.json.

`python -m bench.readme adopt out/bench` publishes a run's figures and writes the tables; `python -m bench.readme write`
writes the tables again from the published figures.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .tables import ENGINE_COLUMNS, EXPLANATION, PART_COLUMNS, SCAN_COLUMNS, grouped, machine

Figures = Mapping[str, Any]
"""Of one run: `machine`, `left_out`, and the rows in `scans`, `parts` and `engines`."""

ROOT = Path(__file__).parent.parent
FILES = ("scans", "parts", "engines")
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
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


def block(figures: Figures) -> str:
    """Returns the README's tables: whole scans, and memory."""
    if not figures["scans"]:
        return NO_FIGURES
    scans = [row for row in figures["scans"] if row["section"] != "transport"]
    memory = [row for row in figures.get("parts", []) if row["section"] == "memory"]
    tables = [*grouped(scans, "workload", SCAN_COLUMNS), EXPLANATION, *grouped(memory, "part", PART_COLUMNS)]
    return "\n\n".join([machine(figures["machine"]), *tables, *([] if "gpu" in figures["machine"] else [NO_GPU])])


def parts_block(figures: Figures) -> str:
    """Returns the tables of docs/performance.md: the wire, the parts, the engines, and what was left out."""
    wire = [row for row in figures["scans"] if row["section"] == "transport"]
    parts = [row for row in figures.get("parts", []) if row["section"] != "memory"]
    tables = [*grouped(wire, "workload", SCAN_COLUMNS), *grouped(parts, "part", PART_COLUMNS)]
    tables += grouped(figures.get("engines", []), "network", ENGINE_COLUMNS)
    missing = "\n".join(f"- {one['where']}: {one['row']}: {one['reason']}" for one in figures.get("left_out", []))
    tables += ["#### Left out", missing] if missing else []
    return "\n\n".join([machine(figures["machine"]), *tables]) if tables else NO_FIGURES


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
    for page, content in ((root / "README.md", block), (root / "docs" / "performance.md", parts_block)):
        page.write_text(with_block(page.read_text(encoding="utf-8"), content(figures)), encoding="utf-8")
    return 0


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    raise SystemExit(main())
