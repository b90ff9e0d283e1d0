"""`python -m bench`: measure, and write JSON, Markdown and a plot. See docs/performance.md."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .facts import machine_facts, roofline
from .settings import QUICK_SECTIONS, SECTIONS, Settings, say

Rows = list[dict[str, Any]]

SCANS = ("unet", "swinunetr", "nnunet")
FILES = ("scans.json", "parts.json", "engines.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the chosen sections; returns 0, or 2 where an argument is wrong."""
    settings = parse(arguments)
    settings.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    facts = machine_facts(settings.device) | {"quick": settings.quick, "roofline": roofline(settings.device)}
    for section in settings.sections:
        say(f"section {section}, {time.monotonic() - begun:.0f} s after the start")
        file, measure = section_of(section)
        keep(settings.out / file, section, measure(settings))
        write_pages(settings, facts | {"seconds": round(time.monotonic() - begun)})
    say(f"{time.monotonic() - begun:.0f} s; tables in {settings.out / 'bench.md'}")
    return 0


def parse(arguments: Sequence[str] | None) -> Settings:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/bench"), metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="small scans, few repetitions: within 10 minutes")
    parser.add_argument(
        "--only",
        metavar="A,B",
        help=f"of {','.join(SECTIONS)}; left out, all of them, of a quick run all but swinunetr and engines",
    )
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


def section_of(section: str) -> tuple[str, Callable[[Settings], Rows]]:
    """The file that a section's rows go to, and what measures them; imported only when it is its turn."""
    if section in SCANS:
        from .scan_rows import measure_scans

        return "scans.json", lambda settings: measure_scans(section, settings)
    module = importlib.import_module(f".section_{section}", __package__)
    return ("engines.json" if section == "engines" else "parts.json"), module.measure


def keep(path: Path, section: str, rows: Rows) -> None:
    """Puts a section's rows into its file in place of those of an earlier run; other sections' rows stay."""
    kept = [row for row in load(path) if row["section"] != section]
    content = sorted(
        [*kept, *({"section": section, **row} for row in rows)], key=lambda row: SECTIONS.index(row["section"])
    )
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> Rows:
    """The rows in a file; none where there is no file yet."""
    rows: Rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return rows


def write_pages(settings: Settings, facts: dict[str, Any]) -> None:
    """machine.json, bench.md and bench.png of what has been measured so far."""
    from .plot import draw
    from .tables import page

    out = settings.out
    told = {**facts, "left_out": settings.left_out}
    (out / "machine.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    scans, parts, engines = (load(out / file) for file in FILES)
    (out / "bench.md").write_text(page(told, scans, parts, engines), encoding="utf-8")
    if scans:
        draw(scans, out / "bench.png")


if __name__ == "__main__":
    sys.exit(main())
