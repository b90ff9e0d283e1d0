"""ONNX Runtime and OpenVINO in process: what a good engineer writes in an afternoon, and the entries' own files."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from voxtile_build.graph.torch_to_onnx import export, save

from .way_torch import WindowedScan, load_network
from .ways import Job

Array = NDArray[Any]
Engine = Callable[[Mapping[str, Array]], Array]


class RuntimeScan(WindowedScan):
    """MONAI's sliding window over a plain export of the network.

    runtime: onnxruntime or openvino. precision: "default" (as installed) or "f32"; onnxruntime has no other.
    """

    def __init__(self, job: Job) -> None:
        onnx_file = exported(job)
        engine = (
            onnxruntime_engine(onnx_file, job["device"])
            if job["runtime"] == "onnxruntime"
            else openvino_engine(onnx_file, hints(job["precision"]))
        )
        super().__init__(job, lambda window: torch.from_numpy(engine({"roi": window.numpy()})))


class EngineTile:
    """Tiles through an entry's own files; seconds a run of the batch, and the labels that come out."""

    def __init__(self, job: Job) -> None:
        folder = Path(job["files"]["folder"])
        self.job = job
        self.inputs: dict[str, Array] = {"roi": np.load(job["tiles"])}
        if job["intensity"]:
            self.inputs["intensity"] = np.tile(np.array([0, 1], np.float32), (len(self.inputs["roi"]), 1, 1))
        self.engine = (
            onnxruntime_engine(folder / "model.onnx", job["device"])
            if job["files"]["engine"] == "onnxruntime"
            else openvino_engine(folder / "model.xml", entry_properties(job["files"]["parameters"]))
        )
        self()

    def __call__(self) -> dict[str, Any]:
        begun = time.perf_counter()
        scores = self.engine(self.inputs)
        seconds = time.perf_counter() - begun
        np.save(self.job["mask"], scores.argmax(1).astype(np.uint8))
        return {"seconds": seconds / len(scores)}


def exported(job: Job) -> Path:
    """The ONNX file of a job's network, made once."""
    path = Path(job["onnx"])
    if not path.exists():
        model = export(load_network(job), (torch.zeros(2, 1, *job["roi"]),))
        partial = path.with_name(f"partial-{path.name}")
        save(model, partial)
        partial.rename(path)
    return path


def onnxruntime_engine(path: Path, device: str) -> Engine:
    """A session with default options."""
    import onnxruntime

    wanted = ["CUDAExecutionProvider"] if device == "cuda" else []
    session = onnxruntime.InferenceSession(str(path), providers=[*wanted, "CPUExecutionProvider"])
    return lambda inputs: session.run(["scores"], dict(inputs))[0]


def openvino_engine(path: Path, properties: Mapping[str, str]) -> Engine:
    """Compiled once for each set of input shapes: with free shapes it is slower, and nobody would leave it so."""
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    compiled: dict[int, Any] = {}

    def run(inputs: Mapping[str, Array]) -> Array:
        batch = len(inputs["roi"])
        if batch not in compiled:
            fixed = model.clone()
            fixed.reshape({name: list(value.shape) for name, value in inputs.items()})
            compiled[batch] = core.compile_model(fixed, "CPU", dict(properties))
        return np.array(compiled[batch](dict(inputs))["scores"])

    return run


def hints(precision: str) -> dict[str, str]:
    return {} if precision == "default" else {"INFERENCE_PRECISION_HINT": precision}


def entry_properties(parameters: Mapping[str, str]) -> dict[str, str]:
    """The properties under which the server would compile an entry of these parameters."""
    word = parameters.get("INFERENCE_PRECISION_HINT", "bf16" if parameters.get("HINT_BF16") else "f32")
    return {"INFERENCE_PRECISION_HINT": word, "PERFORMANCE_HINT": parameters.get("PERFORMANCE_HINT", "LATENCY")}
