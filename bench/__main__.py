"""`python -m bench`: measure, and write JSON, Markdown and a plot. See docs/performance.md."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .figures import Rows
from .settings import QUICK_SECTIONS, SECTIONS, Settings, say

FILES = {
    "resampling": ("parts.json", ".section_resampling"),
    "memory": ("parts.json", ".section_memory"),
    "engines": ("engines.json", ".section_engines"),
}
"""The file of a section's rows, and the module that measures them, which is imported only then; others are of scans."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the chosen sections; returns 0, or exits with 2 if an argument is wrong."""
    from .machine import machine_facts, roofline

    settings = parse(arguments)
    settings.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    facts = machine_facts(settings.device) | {"quick": settings.quick, "roofline": roofline(settings.device)}
    for section in settings.sections:
        say(f"section {section}, {time.monotonic() - started:.0f} s after the start")
        file, module = FILES.get(section, ("scans.json", ".section_scans"))
        keep(settings.out / file, section, importlib.import_module(module, __package__).measure(section, settings))
        write_pages(settings, facts | {"seconds": round(time.monotonic() - started)})
    say(f"{time.monotonic() - started:.0f} s; tables in {settings.out / 'bench.md'}")
    return 0


def parse(arguments: Sequence[str] | None) -> Settings:
    """Returns the settings that a command line asks for; exits with 2 if it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/bench"), metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="small scans, few repetitions: within 10 minutes")
    parser.add_argument("--only", metavar="A,B", help=f"of {','.join(SECTIONS)}; a quick run leaves out two by itself")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--with-compile", action="store_true", help="torch.compile too: minutes a network")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    wanted = chosen.only.split(",") if chosen.only else QUICK_SECTIONS if chosen.quick else SECTIONS
    unknown = [name for name in wanted if name not in SECTIONS]
    if unknown:
        parser.error(f"--only: expected some of {','.join(SECTIONS)}, found {','.join(unknown)}")
    sections = tuple(name for name in SECTIONS if name in wanted)
    return Settings(chosen.out.resolve(), chosen.quick, chosen.tiny, chosen.device, chosen.with_compile, sections)


def keep(path: Path, section: str, rows: Rows) -> None:
    """Puts a section's rows into a file in place of those of an earlier run; other sections' rows stay."""
    there: Rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    kept = [row for row in there if row["section"] != section] + [{"section": section, **row} for row in rows]
    content = sorted(kept, key=lambda row: SECTIONS.index(row["section"]))
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_pages(settings: Settings, facts: dict[str, Any]) -> None:
    """Writes machine.json, bench.md and bench.svg of what has been measured so far."""
    from docs.generate import chart, summary

    from .readme import figures_of, tables_block

    told = json.dumps({**facts, "left_out": settings.left_out}, indent=1)
    (settings.out / "machine.json").write_text(told + "\n", encoding="utf-8")
    figures = figures_of(settings.out)
    text = f"# Benchmark\n\n{tables_block(figures)}\n"
    (settings.out / "bench.md").write_text(text, encoding="utf-8")
    (settings.out / "bench.svg").write_text(chart.draw(summary.lines(figures)), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
