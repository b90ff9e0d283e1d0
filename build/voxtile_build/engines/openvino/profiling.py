"""OpenVINO's own profiler: the counters of every node after each run."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import openvino as ov
from tritonclient.grpc import model_config_pb2 as pb

from voxtile_build.errors import EngineError
from voxtile_build.profile.profile import Inputs, Layer, Timed, mean, timed_runs

PROPERTIES = ("INFERENCE_PRECISION_HINT", "PERFORMANCE_HINT", "NUM_STREAMS", "INFERENCE_NUM_THREADS")
"""Those of an entry's parameters that are the engine's own; the others are the server's."""


def profile_openvino(folder: Path, inputs: Inputs, config: pb.ModelConfig, runs: int) -> Timed:
    """Time `folder`/model.xml on the CPU with the properties that `config` gives it.

    Raises EngineError where it does not load or run.
    """
    path = folder / "model.xml"
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    try:
        plain_request = _request(path, inputs, config, counted=False)
        plain = timed_runs(lambda: plain_request.infer(dict(inputs)), runs)
        request = _request(path, inputs, config, counted=True)
        profiled = []
        request.infer(dict(inputs))
        for _ in range(runs):
            begun = time.perf_counter()
            request.infer(dict(inputs))
            profiled.append(time.perf_counter() - begun)
            for node in request.get_profiling_info():
                if node.status == node.Status.EXECUTED:
                    seconds[node.node_name, node.node_type] += node.real_time.total_seconds() / runs
    except RuntimeError as error:
        raise EngineError(f"{path}: OpenVINO cannot profile it: {error}") from error
    layers = tuple(Layer(name, operator, value) for (name, operator), value in seconds.items())
    return Timed(mean(plain), mean(profiled), layers)


def _request(path: Path, inputs: Inputs, config: pb.ModelConfig, *, counted: bool) -> Any:
    core = ov.Core()
    model = core.read_model(str(path))
    model.reshape({name: list(value.shape) for name, value in inputs.items()})
    given = {name: config.parameters[name].string_value for name in PROPERTIES if name in config.parameters}
    compiled = core.compile_model(model, "CPU", {**given, "PERF_COUNT": counted})
    return compiled.create_infer_request()
