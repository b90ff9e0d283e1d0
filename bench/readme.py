"""The README's tables and those of docs/performance.md, generated from docs/performance.json.

`python -m bench.readme adopt out/bench` makes a run's figures the published ones and writes the tables;
`python -m bench.readme write` writes the tables again from the figures that are there.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .tables import AGREEMENT, ENGINE_COLUMNS, PART_COLUMNS, README_COLUMNS, grouped, left_out, machine

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
NO_FIGURES = "No figures have been published yet; `make bench` measures this machine."
NO_GPU = "No row was measured on a GPU; `python -m bench --device cuda` is ready to, and has not been run on one."


def block(published: Mapping[str, Any]) -> str:
    """What stands in the README for the figures of one run: whole scans, and memory."""
    scans = published["scans"]
    if not scans:
        return NO_FIGURES
    facts = published["machine"]
    tables = grouped(scans, "workload", README_COLUMNS, 4)
    memory = grouped(_of_memory(published, True), "part", PART_COLUMNS, 4)
    closing = [] if "gpu" in facts else [NO_GPU]
    return "\n\n".join([_machine(facts), *tables, AGREEMENT, *memory, *closing])


def parts_block(published: Mapping[str, Any]) -> str:
    """What stands in docs/performance.md: the parts, the engines, and what was left out."""
    parts, engines = _of_memory(published, False), published.get("engines", [])
    if not (parts or engines):
        return NO_FIGURES
    blocks = [_machine(published["machine"]), *grouped(parts, "part", PART_COLUMNS, 4)]
    blocks += grouped(engines, "network", ENGINE_COLUMNS, 4)
    missing = published.get("left_out", [])
    return "\n\n".join([*blocks, *(["#### Left out", left_out(missing)] if missing else [])])


def _of_memory(published: Mapping[str, Any], wanted: bool) -> list[dict[str, Any]]:
    return [row for row in published.get("parts", []) if (row["section"] == "memory") == wanted]


def _machine(facts: Mapping[str, Any]) -> str:
    return machine({**facts, "versions": {}}).replace(" .", ".").replace("..", ".")


def with_block(text: str, content: str) -> str:
    """`text` with `content` between the markers. Raises ValueError unless both are there once, in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"expected {BEGIN} and {END} once each, in this order")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{content}\n{END}{rest.split(END)[1]}"


def block_of(text: str) -> str:
    """What stands between the markers of `text`."""
    found = re.search(f"{re.escape(BEGIN)}\n(.*)\n{re.escape(END)}", text, re.DOTALL)
    return found[1] if found else ""


def published_of(out: Path) -> dict[str, Any]:
    """The figures of a run in `out`, as docs/performance.json keeps them: nothing of where they were made."""
    facts = json.loads((out / "machine.json").read_text(encoding="utf-8"))
    kept = ("cpu", "cores", "memory_bytes", "gpu", "matrix_extensions", "versions", "quick", "roofline", "seconds")
    rows = {file: _rows(out / f"{file}.json") for file in ("scans", "parts", "engines")}
    machine_of_run = {key: facts[key] for key in kept if key in facts}
    missing = [
        {key: str(value).replace(str(ROOT), "") for key, value in one.items()} for one in facts.get("left_out", [])
    ]
    return {"machine": machine_of_run, **rows, "left_out": missing}


def _rows(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    return rows


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=("adopt", "write"))
    parser.add_argument("out", nargs="?", type=Path, default=Path("out/bench"))
    chosen = parser.parse_args(arguments)
    figures = root / "docs" / "performance.json"
    if chosen.action == "adopt":
        figures.write_text(json.dumps(published_of(chosen.out), indent=1) + "\n", encoding="utf-8")
    published = json.loads(figures.read_text(encoding="utf-8"))
    for page, content in ((root / "README.md", block), (root / "docs" / "performance.md", parts_block)):
        page.write_text(with_block(page.read_text(encoding="utf-8"), content(published)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
