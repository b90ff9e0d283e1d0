"""ONNX Runtime's own profiler: a JSON of every kernel of every run."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
from tritonclient.grpc import model_config_pb2 as pb

from voxtile_build.errors import EngineError
from voxtile_build.profile.profile import Inputs, Layer, Timed, mean, timed_runs

ERRORS_ONLY = 3
KERNEL = "_kernel_time"


def profile_onnxruntime(folder: Path, inputs: Inputs, config: pb.ModelConfig, runs: int) -> Timed:
    """Time `folder`/model.onnx on the CPU with the threads that `config` gives it.

    Raises EngineError where it does not load or run.
    """
    path = folder / "model.onnx"
    try:
        unwatched = _session(path, config, None)
        plain = timed_runs(lambda: unwatched.run(["scores"], dict(inputs)), runs)
        with tempfile.TemporaryDirectory() as scratch:
            session = _session(path, config, Path(scratch))
            profiled = timed_runs(lambda: session.run(["scores"], dict(inputs)), runs)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    except Exception as error:  # ONNX Runtime's kinds have no common base
        raise EngineError(f"{path}: ONNX Runtime cannot profile it: {error}") from error
    return Timed(mean(plain), mean(profiled), layers_of(events, runs))


def layers_of(events: Sequence[Mapping[str, Any]], runs: int) -> tuple[Layer, ...]:
    """The kernels in the last `runs` of a profile's runs; the first one warms up. Times are in microseconds."""
    counted = sorted((event for event in events if event.get("name") == "model_run"), key=_begin)[-runs:]
    spans = [(_begin(event), _begin(event) + int(event["dur"])) for event in counted]
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    for event in events:
        if event.get("cat") != "Node" or not str(event["name"]).endswith(KERNEL):
            continue
        if any(first <= _begin(event) <= last for first, last in spans):
            operator = str(event["args"]["op_name"])
            name = (
                str(event["name"]).removesuffix(KERNEL) or f"{operator} {event['args'].get('node_index', '')}".strip()
            )
            seconds[name, operator] += int(event["dur"]) / 1e6 / len(spans)
    return tuple(Layer(name, operator, value) for (name, operator), value in seconds.items())


def _begin(event: Mapping[str, Any]) -> int:
    return int(event["ts"])


def _session(path: Path, config: pb.ModelConfig, profile_folder: Path | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = int(config.parameters["intra_op_thread_count"].string_value or 0)
    if profile_folder is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_folder / "profile")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
