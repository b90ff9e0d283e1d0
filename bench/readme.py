"""The README's table, generated from docs/performance.json.

`python -m bench.readme adopt out/bench` makes a run's figures the published ones and writes the table;
`python -m bench.readme write` writes the table again from the figures that are there.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .tables import AGREEMENT, README_COLUMNS, grouped, machine

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
NO_FIGURES = "No figures have been published yet; `make bench` measures this machine."
NO_GPU = "No row was measured on a GPU; `python -m bench --device cuda` is ready to, and has not been run on one."


def block(published: Mapping[str, Any]) -> str:
    """What stands between the markers for the figures of one run: `machine` and `scans`."""
    scans = published["scans"]
    if not scans:
        return NO_FIGURES
    facts = published["machine"]
    tables = grouped(scans, "workload", README_COLUMNS, 4)
    closing = [] if "gpu" in facts else [NO_GPU]
    return "\n\n".join([machine({**facts, "versions": {}}).replace(" .", "."), *tables, AGREEMENT, *closing])


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
    kept = ("cpu", "cores", "memory_bytes", "gpu", "matrix_extensions", "versions", "quick", "roofline")
    scans = json.loads((out / "scans.json").read_text(encoding="utf-8"))
    return {"machine": {key: facts[key] for key in kept if key in facts}, "scans": scans}


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=("adopt", "write"))
    parser.add_argument("out", nargs="?", type=Path, default=Path("out/bench"))
    chosen = parser.parse_args(arguments)
    figures = root / "docs" / "performance.json"
    if chosen.action == "adopt":
        figures.write_text(json.dumps(published_of(chosen.out), indent=1) + "\n", encoding="utf-8")
    readme = root / "README.md"
    published = json.loads(figures.read_text(encoding="utf-8"))
    readme.write_text(with_block(readme.read_text(encoding="utf-8"), block(published)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
