"""Engines behind one call: PyTorch, ONNX Runtime, OpenVINO and TensorRT in this process, and a plain Triton client.

Knows nothing of scans. What an engine needs is imported when it is opened.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Inputs = Mapping[str, Array]
Job = Mapping[str, Any]
Way = Callable[[], dict[str, Any]]
"""Called once a run; returns what was measured."""
Engine = Callable[[Inputs], Array]
"""Scores [tile, score, *roi] of a graph's inputs by name."""


def open_engine(job: Job) -> Engine:
    """Returns the engine of a job.

    Args:
        job: `engine`, a key of ENGINES; `device`, "cpu" or "cuda". For torch `spec` or `folder` (a trained nnU-Net
            folder), and `half`, `flash`, `compile`. For onnxruntime, openvino and tensorrt `file`, which is exported
            from that network if it is not there, and `properties` of OpenVINO. For grpc `url` and `name`.
    """
    return ENGINES[job["engine"]](job)


def run_tiles(job: Job) -> Way:
    """Runs the tiles of the file `tiles` [tile, channel, *roi], normalised; `seconds` are for one of them.

    Their labels go to the file `mask`. With `intensity`, the graph expects the numbers to normalise with.
    """
    engine, inputs = open_engine(job), with_intensity(np.load(job["tiles"]), job)

    def run() -> dict[str, Any]:
        started = time.perf_counter()
        scores = engine(inputs)
        seconds = time.perf_counter() - started
        np.save(job["mask"], scores.argmax(1).astype(np.uint8))
        return {"seconds": seconds / len(scores)}

    run()
    return run


def with_intensity(tiles: Array, job: Job) -> Inputs:
    """Returns the inputs of a graph for tiles that are normalised already."""
    inputs = {"roi": np.ascontiguousarray(tiles)}
    if job.get("intensity"):
        inputs["intensity"] = np.tile(np.array([0, 1], np.float32), (len(tiles), 1, 1))
    return inputs


def load_network(job: Job) -> Any:
    """Returns the job's network in PyTorch, fp32, with its weights."""
    from voxtile_build.importers import network as importer
    from voxtile_build.importers.nnunet.models import models_of

    if "folder" in job:
        return models_of(job["folder"], "bench")[0].folds[0].load()
    spec = job["spec"]
    if job.get("flash"):
        network = spec.network.model_copy(update={"args": {**spec.network.args, "use_flash_attention": True}})
        spec = spec.model_copy(update={"network": network})
    return importer.load_network(spec)


def _torch(job: Job) -> Engine:
    import torch

    device = job["device"]
    network = load_network(job).to(device)
    network = torch.compile(network) if job.get("compile") else network
    reduced = torch.float16 if device == "cuda" else torch.bfloat16

    def run(inputs: Inputs) -> Array:
        precision: Any = torch.autocast(device, reduced) if job.get("half") else nullcontext()
        with torch.inference_mode(), precision:
            return np.asarray(network(torch.from_numpy(inputs["roi"]).to(device)).float().cpu())

    return run


def _exported(job: Job) -> Path:
    """Returns the job's file, made of its network if it is not there."""
    from .scans import made

    def make(path: Path) -> None:
        import torch

        from voxtile_build.graph.torch_to_onnx import export, save

        save(export(load_network(job), (torch.zeros(2, 1, *job["roi"]),)), path)

    return made(job["file"], make)


def _onnxruntime(job: Job) -> Engine:
    """With default options."""
    import onnxruntime

    wanted = ["CUDAExecutionProvider"] if job["device"] == "cuda" else []
    session = onnxruntime.InferenceSession(str(_exported(job)), providers=[*wanted, "CPUExecutionProvider"])
    return lambda inputs: session.run(["scores"], dict(inputs))[0]


def _openvino(job: Job) -> Engine:
    """Compiled for the shapes of the first inputs: with free shapes it is slower, and nobody would keep that."""
    import openvino

    core = openvino.Core()
    model = core.read_model(str(_exported(job)))
    compiled: list[Any] = []

    def run(inputs: Inputs) -> Array:
        if not compiled:
            model.reshape({name: list(value.shape) for name, value in inputs.items()})
            compiled.append(core.compile_model(model, "CPU", dict(job["properties"])))
        return np.array(compiled[0](dict(inputs))["scores"])

    return run


def _tensorrt(job: Job) -> Engine:
    import tensorrt

    from voxtile_build.engines.tensorrt.runner import PlanRunner

    return PlanRunner(tensorrt, job["file"].read_bytes())


def _grpc(job: Job) -> Engine:
    """What one writes over Triton's own client: fp32, ask and wait."""
    from tritonclient.grpc import InferenceServerClient, InferInput

    client = InferenceServerClient(job["url"])

    def run(inputs: Inputs) -> Array:
        tensors = [InferInput(name, values.shape, "FP32") for name, values in inputs.items()]
        for tensor in tensors:
            tensor.set_data_from_numpy(inputs[tensor.name()])
        return np.array(client.infer(job["name"], tensors).as_numpy("scores"))

    return run


def _free(job: Job) -> Engine:
    """A network that costs nothing: it returns its input as `scores` channels."""
    return lambda inputs: np.repeat(inputs["roi"], job["scores"], 1)


ENGINES: Mapping[str, Callable[[Job], Engine]] = {
    "torch": _torch, "onnxruntime": _onnxruntime, "openvino": _openvino, "tensorrt": _tensorrt, "grpc": _grpc,
    "free": _free,
}  # fmt: skip
