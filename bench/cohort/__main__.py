"""Measures a cohort of tiny scans on a network that costs nothing: a run to its end, and one that is killed thrice."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from voxtile.batch.cohort.collect import collect
from voxtile.outputs.report import Seconds
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.options import ServerOptions

from ..entries import free_entry
from ..machine import machine_facts, roofline
from ..settings import Settings, say
from .report import cohort_block
from .running import Run, batch, lines, masks

SHAPE = (20, 18, 16)
ROI = (16, 16, 16)
KILLS = 3
STEPS = tuple(name for name in Seconds.model_fields if name != "total")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, and writes cohort.json and cohort.md; returns 1 if a case was lost or done twice."""
    parser = argparse.ArgumentParser(prog="python -m bench.cohort", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench-cohort"), metavar="DIR")
    parser.add_argument("--cases", type=int, default=2000, metavar="N", help="how many scans; 2000")
    given = parser.parse_args(arguments)
    if given.cases < 8 * KILLS:
        parser.error(f"--cases: expected at least {8 * KILLS}, found {given.cases}")
    figures = measure(Settings(given.out.resolve(), quick=True), given.cases)
    (given.out / "cohort.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (given.out / "cohort.md").write_text(cohort_block(figures) + "\n", encoding="utf-8")
    say(f"figures in {given.out / 'cohort.md'}")
    return 1 if figures["twice"] or figures["lost"] else 0


def measure(settings: Settings, cases: int) -> dict[str, Any]:
    """The figures of both runs."""
    machine = {**machine_facts(settings.device), "roofline": roofline(settings.device)}
    entry = free_entry(2, "int16", "fp16", ROI, settings)
    manifest, listed_s = _manifest(settings.data / f"cohort-{cases}", cases)
    options = ServerOptions(model_control_mode="explicit", load_models=(entry.name,))
    with EmbeddedServer(settings.repository, options) as server:
        place = _empty(settings.work / "straight")
        straight = batch(manifest, place, entry.name, server.grpc_url)
        say(f"{cases} cases, not killed: {straight.seen[-1][0]:.0f} s")
        killed, seen = _killed(manifest, _empty(settings.work / "killed"), entry.name, server.grpc_url, cases)
    begin = time.perf_counter()
    joined = collect(place)
    collected_s = time.perf_counter() - begin
    wrong = {name: count for name, count in joined.counts.items() if name != "done"}
    if straight.code or wrong or len(joined.rows) != cases:
        raise RuntimeError(f"expected {cases} masks and exit code 0, found {joined.counts} and {straight.code}")
    return {
        "machine": machine,
        "cases": cases,
        "straight": _costs(straight, place),
        "listed_s": listed_s,
        "collected_s": collected_s,
        "killed": killed,
        **seen,
    }


def _costs(run: Run, place: Path) -> dict[str, Any]:
    """What a case costs, from the second tenth on; where the seconds go; and how both and memory grow."""
    steps = [line["seconds"] for line in lines(place)]
    case_s = run.seconds_a_case(0.1, 1)
    return {
        "first_s": run.first_s,
        "case_s": case_s,
        "steps_s": {step: float(np.median([seconds[step] for seconds in steps])) for step in STEPS},
        "slower": run.seconds_a_case(0.75, 1) / run.seconds_a_case(0.1, 0.35),
        "bytes_early": run.largest_bytes(0.1, 0.35),
        "bytes_late": run.largest_bytes(0.75, 1),
    }


def _killed(
    manifest: Path, place: Path, model: str, url: str, cases: int
) -> tuple[list[dict[str, Any]], Mapping[str, int]]:
    """A row for each of the runs, of which all but the last are killed; and how many cases were lost or done twice."""
    rows, before, changed = [], dict[str, tuple[int, int]](), 0
    for number in range(1, KILLS + 2):
        kill_at = None if number > KILLS else number * cases // (KILLS + 1)
        run = batch(manifest, place, model, url, kill_at)
        now = masks(place)
        changed += sum(now.get(name) != mask for name, mask in before.items())
        rows.append({"found": len(before), "masks": len(now), "first_s": run.first_s, "code": run.code})
        before = now
        say(f"run {number}: {rows[-1]}")
    counts = Counter(line["case"] for line in lines(place) if line["status"] == "done")
    lost = cases - len(set(before) & set(counts))
    return rows, {"twice": changed + sum(count - 1 for count in counts.values()), "lost": lost}


def _manifest(folder: Path, cases: int) -> tuple[Path, float]:
    """The manifest of so many tiny scans, each another one, and the seconds that `voxtile manifest` took."""
    scans, rng = folder / "scans", np.random.default_rng(0)
    scans.mkdir(parents=True, exist_ok=True)
    for number in range(cases):
        path = scans / f"{number:05d}.nii.gz"
        if not path.exists():
            nib.save(nib.Nifti1Image(rng.integers(0, 999, SHAPE, np.int16), np.eye(4)), path)
    manifest, begin = folder / "cases.csv", time.perf_counter()
    manifest.unlink(missing_ok=True)  # of an earlier run
    words = [sys.executable, "-m", "voxtile", "manifest", str(scans), "-o", str(manifest)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return manifest, time.perf_counter() - begin


def _empty(place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    return place


if __name__ == "__main__":
    sys.exit(main())
