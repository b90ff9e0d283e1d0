"""Measures every door for whole scans, and writes JSON and Markdown."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from voxtile_build.repository.volume import volume_repository, write_volume_entries
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.options import ServerOptions

from ..engines import Job
from ..entries import Entry, build_levels, engine_of, free_entry
from ..figures import Rows, spread
from ..machine import machine_facts
from ..memory import forget_peak, peak_rss_bytes
from ..scans import brain_crop, by, ct_scan
from ..settings import Settings, say
from ..subjects import subject_of
from ..tables import column, mebibytes, number, table
from ..turns import Make, Start, file_name, take_turns
from .doors import DOORS

WORKLOADS = ("free", "unet", "swinunetr", "memory")
PROCESSES = ("caller", "tritonserver", "engine", "scan entries", "gateway")
COLUMNS = (
    column("door", "door"), column("ratio", "ratio", "{:.2f}×".format), column("seconds", "seconds", number),
    column("lowest", "seconds_low", number), column("highest", "seconds_high", number), column("runs", "runs"),
    *(column(f"peak of {name}", name, mebibytes) for name in PROCESSES), column("mask", "same"),
)  # fmt: skip
EXPLANATION = (
    "Ratios are to the client with shared memory: above 1× is faster. Seconds run from the scan's file to the mask's, "
    "medians of repetitions that took turns. Peaks are of resident memory during a run, pages that processes share "
    "counted in each. Each door has a server of its own."
)


@dataclass(frozen=True)
class Workload:
    """A network on a scan: what is measured by every door."""

    title: str
    entry: Entry
    scan: Path
    warm_up: Path
    budget_s: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the chosen workloads; returns 1 if a mask differs from the client's."""
    settings, chosen = parse(arguments)
    settings.out.mkdir(parents=True, exist_ok=True)
    tables: dict[str, Rows] = {}
    for name in chosen:
        workload = workload_of(name, settings)
        say(f"{name}: {workload.title}")
        tables[workload.title] = measure(workload, settings)
        write(settings, tables)
    say(f"tables in {settings.out / 'volume.md'}")
    return 0 if all(row["same"] == "the client's" for rows in tables.values() for row in rows) else 1


def parse(arguments: Sequence[str] | None) -> tuple[Settings, tuple[str, ...]]:
    """Returns the settings and the workloads of a command line; exits with 2 if it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.volume", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench-volume"), metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="small scans, few repetitions")
    parser.add_argument("--only", metavar="A,B", default=",".join(WORKLOADS), help=f"of {','.join(WORKLOADS)}")
    parser.add_argument("--tiny", action="store_true", help="sizes at which only the program is tested")
    given = parser.parse_args(arguments)
    chosen = tuple(given.only.split(","))
    unknown = [name for name in chosen if name not in WORKLOADS]
    if unknown:
        parser.error(f"--only: expected some of {','.join(WORKLOADS)}, found {','.join(unknown)}")
    return Settings(given.out.resolve(), given.quick, given.tiny), chosen


def workload_of(name: str, settings: Settings) -> Workload:
    """Returns a workload, its network built."""
    roi = (settings.pick(96, 96, 16),) * 3
    if name == "memory":
        shape = settings.pick((512, 512, 300), (256, 256, 150), (64, 64, 40))
        entry = free_entry(2, "int16", "fp16", roi, settings)
        title = f"a network that costs nothing, two scores, made-up CT {by(shape)}"
        return Workload(title, entry, ct_scan(settings.data, shape), ct_scan(settings.data, roi), 0)
    crop = settings.pick((184, 232, 184), (128, 128, 128), (40, 36, 33))
    scan = brain_crop(settings.data, crop)
    if name == "free":
        entry = free_entry(2, "int16", "fp16", roi, settings)
        title = f"a network that costs nothing, two scores, MNI152 brain {by(crop)}"
        return Workload(title, entry, scan, brain_crop(settings.data, roi), 120)
    subject = subject_of("unet" if name == "unet" else "swinunetr-trained", settings)
    entry = build_levels(subject.model, name, ("fp32",), settings)["fp32"][engine_of(settings.device)]
    return Workload(f"{subject.title}, MNI152 brain {by(crop)}", entry, scan, subject.tile, 600)


def measure(workload: Workload, settings: Settings) -> Rows:
    """Returns a row for each door."""
    write_volume_entries(workload.entry.name, settings.repository, volume_repository(settings.repository))
    jobs: dict[str, tuple[Make, Job]] = {}
    around, masks = {}, {}
    with contextlib.ExitStack() as stack:
        for door, make in DOORS.items():
            if not (settings.tiny and jobs):  # seven servers are too many for a test
                doors = stack.enter_context(_served(workload.entry, settings))
            masks[door] = settings.work / f"{file_name(door)}.nii.gz"
            masks[door].unlink(missing_ok=True)
            more = {"scan": workload.scan, "warm_up": workload.warm_up, "mask": masks[door]}
            jobs[door] = (make, {**more, "name": workload.entry.name, **doors.addresses})
            around[door] = partial(_watched, doors)
        runs = take_turns(jobs, settings, workload.title, workload.budget_s, around)
    first = next(iter(runs))
    baseline, wanted = median(run["seconds"] for run in runs[first]), _digest(masks[first])
    return [
        {
            "door": door,
            **spread([run["seconds"] for run in some], baseline),
            **{name: max(run[name] for run in some) for name in PROCESSES if name in some[0]},
            "same": "the client's" if _digest(masks[door]) == wanted else "another",
        }
        for door, some in runs.items()
    ]


def write(settings: Settings, tables: dict[str, Rows]) -> None:
    """Writes volume.json and volume.md of what has been measured so far."""
    told = {"machine": machine_facts(settings.device), "left_out": settings.left_out, "tables": tables}
    (settings.out / "volume.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    blocks = [f"## {title}\n\n{table(rows, COLUMNS)}\n" for title, rows in tables.items()]
    text = "\n".join(["# Whole scans by each door\n", f"{EXPLANATION}\n", *blocks])
    (settings.out / "volume.md").write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Doors:
    """A server with its doors: their addresses, and the processes behind them by what they do."""

    addresses: dict[str, str]
    processes: dict[str, tuple[int, ...]]


@contextlib.contextmanager
def _served(entry: Entry, settings: Settings) -> Iterator[Doors]:
    wanted = (entry.name, f"{entry.name}_scan", f"{entry.name}_scan_stream")
    options = ServerOptions(
        http_port=0,
        model_control_mode="explicit",
        load_models=wanted,
        log_file=settings.work / "server.log",
        volume_repository=volume_repository(settings.repository),
    )
    with EmbeddedServer(settings.repository, options) as server, _gateway(server.grpc_url, settings) as (pid, address):
        stubs = psutil.Process(server.pid).children(recursive=True)
        scans = tuple(stub.pid for stub in stubs if any(f"/{entry.name}_scan" in word for word in stub.cmdline()))
        processes = {
            "tritonserver": (server.pid,),
            "engine": tuple(stub.pid for stub in stubs if stub.pid not in scans),
            "scan entries": scans,
            "gateway": (pid,),
        }
        yield Doors({"grpc": server.grpc_url, "http": server.http_url, "gateway": address}, processes)


@contextlib.contextmanager
def _gateway(url: str, settings: Settings) -> Iterator[tuple[int, str]]:
    """A gateway before a server: its process id and its address."""
    command = [
        sys.executable,
        "-m",
        "voxtile_server.gateway",
        "--port",
        "0",
        "--url",
        url,
        "--folder",
        str(settings.work),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"listens on (\S+),", process.stdout.readline())
        if found is None:
            raise RuntimeError("the gateway did not start; see what it says above")
        try:
            yield process.pid, found[1]
        finally:
            process.terminate()


def _watched(doors: Doors, start: Start) -> dict[str, Any]:
    """A run with the peaks of the processes behind the door; the highest of several of a kind."""
    pids = [pid for some in doors.processes.values() for pid in some]
    for pid in pids:
        forget_peak(pid)
    run = start().result()
    peaks = {name: max(map(peak_rss_bytes, some), default=0) for name, some in doors.processes.items()}
    return {**run, "caller": run["peak_rss_bytes"], **peaks}


def _digest(mask: Path) -> str:
    return hashlib.sha256(mask.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
