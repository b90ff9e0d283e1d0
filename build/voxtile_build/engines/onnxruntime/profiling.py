"""ONNX Runtime's own profiler: a JSON file with every kernel of every run."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxtile_build.arrays import Feed
from voxtile_build.engines.timing import Layer, Timed, mean, timed_runs
from voxtile_build.errors import EngineError
from voxtile_build.sessions import open_session

KERNEL = "_kernel_time"


def profile_onnxruntime(path: Path, inputs: Feed, threads: int, runs: int) -> Timed:
    """Times an ONNX file on the CPU, `runs` times plain and `runs` times profiled.

    Raises:
        EngineError: it does not load or run.
    """
    try:
        plain_session = open_session(path, threads=threads)
        plain = timed_runs(lambda: plain_session.run(["scores"], dict(inputs)), runs)
        with tempfile.TemporaryDirectory() as scratch:
            session = open_session(path, threads=threads, profile_prefix=Path(scratch, "profile"))
            profiled = timed_runs(lambda: session.run(["scores"], dict(inputs)), runs)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    except Exception as error:  # ONNX Runtime's kinds have no common base
        raise EngineError(f"{path}: ONNX Runtime cannot profile it: {error}") from error
    return Timed(mean(plain), mean(profiled), layers_of(events, runs))


def layers_of(events: Sequence[Mapping[str, Any]], runs: int) -> tuple[Layer, ...]:
    """The kernels of the last `runs` runs in a profile; the first run warms up. Events are in microseconds."""
    counted = sorted((event for event in events if event.get("name") == "model_run"), key=_start)[-runs:]
    spans = [(_start(event), _start(event) + int(event["dur"])) for event in counted]
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    for event in events:
        if event.get("cat") != "Node" or not str(event["name"]).endswith(KERNEL):
            continue
        if any(first <= _start(event) <= last for first, last in spans):
            operator = str(event["args"]["op_name"])
            name = (
                str(event["name"]).removesuffix(KERNEL) or f"{operator} {event['args'].get('node_index', '')}".strip()
            )
            seconds[name, operator] += int(event["dur"]) / 1e6 / len(spans)
    return tuple(Layer(name, operator, value) for (name, operator), value in seconds.items())


def _start(event: Mapping[str, Any]) -> int:
    return int(event["ts"])
