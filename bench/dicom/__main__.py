"""Measures reading a CT and writing objects about a mask of it, beside other programs; writes JSON and Markdown."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..engines import Job
from ..figures import Rows, spread
from ..machine import machine_facts
from ..scans import Shape, by
from ..settings import Settings, say
from ..tables import column, mebibytes, number, table
from ..turns import Make, take_turns
from . import reading, writing
from .series import ENHANCED, VARIANTS, mask, series
from .warming import warmed

TABLES = (*VARIANTS, "1", "25", "104", "objects")
BUDGET_S = 60.0
"""Of the repetitions of one table."""

SMALL: Shape = (48, 48, 20)
"""Of the scan that each way is run on before it is measured."""

COLUMNS = (
    column("way", "way"), column("ratio", "ratio", "{:.2f}×".format), column("seconds", "seconds", number),
    column("lowest", "seconds_low", number), column("highest", "seconds_high", number), column("runs", "runs"),
    column("memory", "memory", mebibytes), column("file", "bytes", lambda size: f"{size / 1e6:.2f} MB"),
    column("voxels", "same"),
)  # fmt: skip
EXPLANATION = (
    "Ratios are to the first row of each table: above 1× is faster. Seconds are of the wall clock, medians of "
    "repetitions that took turns, each way in a process of its own whose imports are done before. Memory is the peak "
    "above what the process held before its first run; dcm2niix is another process, and its memory is not counted. "
    "The last row of a table of readers is what the machine needs for the bytes alone."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the chosen tables; returns 1 if a way has other voxels than Voxtile, or could not be measured."""
    settings, chosen, rivals = parse(arguments)
    settings.out.mkdir(parents=True, exist_ok=True)
    tables: dict[str, Rows] = {}
    for name in chosen:
        title, jobs = jobs_of(name, settings, rivals)
        say(title)
        tables[title] = measure(title, jobs, settings)
        write(settings, tables)
    say(f"tables in {settings.out / 'dicom.md'}")
    differs = any(row.get("same") == "others" for rows in tables.values() for row in rows)
    return 1 if differs or settings.left_out else 0


def parse(arguments: Sequence[str] | None) -> tuple[Settings, tuple[str, ...], Path | None]:
    """Returns the settings, the tables and the folder of rivals; exits with 2 if the command line is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.dicom", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench-dicom"), metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="a small scan, few repetitions")
    parser.add_argument("--tiny", action="store_true", help="a size at which only the program is tested")
    parser.add_argument("--only", metavar="A,B", default=",".join(TABLES), help=f"of {','.join(TABLES)}")
    parser.add_argument(
        "--rivals", type=Path, metavar="DIR",
        help="where pip install --no-deps --target DIR has put totalsegmentator and dicom2nifti",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    chosen = tuple(given.only.split(","))
    unknown = [name for name in chosen if name not in TABLES]
    if unknown:
        parser.error(f"--only: expected some of {','.join(TABLES)}, found {','.join(unknown)}")
    if given.rivals and not (given.rivals / "totalsegmentator").is_dir():
        parser.error(f"--rivals: expected a folder with totalsegmentator in it, found {given.rivals}")
    settings = Settings(given.out.resolve(), given.quick, given.tiny)
    return settings, chosen, given.rivals and given.rivals.resolve()


def jobs_of(name: str, settings: Settings, rivals: Path | None) -> tuple[str, dict[str, tuple[Make, Job]]]:
    """Returns a table's title and its jobs by the name of their row, the data made."""
    shape: Shape = settings.pick((512, 512, 300), (256, 256, 150), (64, 48, 20))
    common: dict[str, Any] = {"work": str(settings.work), **({"rivals": str(rivals)} if rivals else {})}
    if name in VARIANTS:
        folders = [str(series(settings.data, one, name)) for one in (shape, SMALL)]
        job = {**common, "series": folders[0], "warm_up": {"series": folders[1]}}
        ways = {way: make for way, make in reading.WAYS.items() if way in _read_by(name, rivals)}
        return f"Reading a CT {by(shape)}, {name}", {way: (partial(warmed, make), job) for way, make in ways.items()}
    structures = 25 if name == "objects" else int(name)
    job = {**common, "structures": structures, **_given(shape, structures, settings)}
    job["warm_up"] = _given(SMALL, structures, settings)
    rows = _objects(job) if name == "objects" else _segs(job, rivals)
    what = f"{structures} structure{'s' if structures > 1 else ''} of a CT {by(shape)}"
    title = f"Writing other objects about {what}" if name == "objects" else f"Writing {what}"
    return title, {way: (partial(warmed, make), _filed(given, way, settings)) for way, make, given in rows}


def _given(shape: Shape, structures: int, settings: Settings) -> dict[str, Any]:
    """The scan and the mask that a writer is given."""
    file = settings.work / f"mask-{by(shape, 'x')}-{structures}.npy"
    np.save(file, mask(shape, structures))
    return {"series": str(series(settings.data, shape, "uncompressed")), "mask": str(file)}


def _read_by(variant: str, rivals: Path | None) -> set[str]:
    """The ways that read a variant."""
    left_out = set()
    if not rivals or variant == ENHANCED:  # TotalSegmentator's reader takes no object of many frames
        left_out.add("TotalSegmentator, to NIfTI")
    if variant == "JPEG-LS":  # Debian's dcm2niix is built without it
        left_out.add("dcm2niix, to NIfTI")
    return set(reading.WAYS) - left_out


def _segs(job: Job, rivals: Path | None) -> Iterator[tuple[str, Make, Job]]:
    yield "Voxtile, BINARY", writing.voxtile, {**job, "kind": "binary"}
    yield "highdicom, BINARY", writing.highdicom, {**job, "kind": "binary"}
    if rivals:
        yield "TotalSegmentator, BINARY", writing.totalsegmentator, {**job, "kind": "binary"}
    yield "Voxtile, LABELMAP", writing.voxtile, {**job, "kind": "labelmap"}
    yield "highdicom, LABELMAP", writing.highdicom, {**job, "kind": "labelmap"}


def _objects(job: Job) -> Iterator[tuple[str, Make, Job]]:
    yield "Voxtile, RTSTRUCT", writing.voxtile, {**job, "kind": "rtstruct"}
    yield "Voxtile, SR", writing.voxtile, {**job, "kind": "sr"}


def _filed(job: Job, way: str, settings: Settings) -> Job:
    letters = "".join(letter if letter.isalnum() else "-" for letter in way)
    return {**job, "file": str(settings.work / f"{letters}-{job['structures']}.dcm")}


def measure(title: str, jobs: Mapping[str, tuple[Make, Job]], settings: Settings) -> Rows:
    """Returns a row for each way that could be measured."""
    runs = take_turns(jobs, settings, title, BUDGET_S)
    if not runs:
        return []
    first = next(iter(runs.values()))
    baseline = median(run["seconds"] for run in first)
    return [
        {
            "way": way,
            **spread([run["seconds"] for run in some], baseline),
            "memory": max(run["peak_rss_bytes"] - run["idle_rss_bytes"] for run in some),
            **({"bytes": some[0]["bytes"]} if "bytes" in some[0] else {}),
            **_compared(some[0], first[0]),
        }
        for way, some in runs.items()
    ]


def _compared(run: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, str]:
    if "voxels" not in run:
        return {}
    return {"same": "Voxtile's" if run["voxels"] == first["voxels"] else "others"}


def write(settings: Settings, tables: Mapping[str, Rows]) -> None:
    """Writes dicom.json and dicom.md of what has been measured so far."""
    told = {"machine": machine_facts(settings.device), "left_out": settings.left_out, "tables": tables}
    (settings.out / "dicom.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    blocks = [f"## {title}\n\n{table(rows, COLUMNS)}\n" for title, rows in tables.items()]
    missing = [f"Left out: {one['where']}: {one['row']}: {one['reason']}\n" for one in settings.left_out]
    text = "\n".join(["# DICOM\n", f"{EXPLANATION}\n", *blocks, *missing])
    (settings.out / "dicom.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
