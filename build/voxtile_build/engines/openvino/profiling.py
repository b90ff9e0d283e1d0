"""OpenVINO's own profiler: counters of every node after each run."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxtile_build.arrays import Feed
from voxtile_build.engines.openvino.core import core
from voxtile_build.engines.openvino.runner import HINT, THREADS
from voxtile_build.engines.timing import Layer, Timed, mean, timed_runs
from voxtile_build.errors import EngineError

PROPERTIES = (HINT, "PERFORMANCE_HINT", "NUM_STREAMS", THREADS)
"""The entry's parameters that are OpenVINO's own properties; the others are the server's."""


def profile_openvino(path: Path, inputs: Feed, parameters: Mapping[str, str], runs: int) -> Timed:
    """Times a model.xml on the CPU, `runs` times plain and `runs` times profiled.

    Raises:
        EngineError: it does not load or run.
    """
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    try:
        plain_request = _request(path, inputs, parameters, counted=False)
        plain = timed_runs(lambda: plain_request.infer(dict(inputs)), runs)
        request = _request(path, inputs, parameters, counted=True)
        profiled = []
        request.infer(dict(inputs))
        for _ in range(runs):
            started = time.perf_counter()
            request.infer(dict(inputs))
            profiled.append(time.perf_counter() - started)
            for node in request.get_profiling_info():
                if node.status == node.Status.EXECUTED:
                    seconds[node.node_name, node.node_type] += node.real_time.total_seconds() / runs
    except RuntimeError as error:
        raise EngineError(f"{path}: OpenVINO cannot profile it: {error}") from error
    layers = tuple(Layer(name, operator, value) for (name, operator), value in seconds.items())
    return Timed(mean(plain), mean(profiled), layers)


def _request(path: Path, inputs: Feed, parameters: Mapping[str, str], *, counted: bool) -> Any:
    model = core().read_model(str(path))
    model.reshape({name: list(value.shape) for name, value in inputs.items()})
    properties = {name: parameters[name] for name in PROPERTIES if name in parameters}
    compiled = core().compile_model(model, "CPU", {**properties, "PERF_COUNT": counted})
    return compiled.create_infer_request()
