"""ONNX as it is for ONNX Runtime's entry, and how to run it in this process."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from voxtile_build.errors import EngineError

Array = NDArray[Any]
ERRORS_ONLY = 3


def copy(onnx_file: Path, folder: Path) -> tuple[Path, ...]:
    """Copy the model, and the weights beside it where it has any, to `folder`/model.onnx."""
    # Here, because who only runs the file has no use for torch.
    from voxtile_build.graph.torch_to_onnx import EXTERNAL_SUFFIX

    target = folder / "model.onnx"
    shutil.copyfile(onnx_file, target)
    data = onnx_file.with_name(onnx_file.name + EXTERNAL_SUFFIX)
    if not data.exists():
        return (target,)
    # The graph names its data file, so the name must stay.
    return target, Path(shutil.copyfile(data, folder / data.name))


class OnnxRuntimeRunner:
    """Runs model.onnx on the CPU."""

    def __init__(self, path: Path, threads: int) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.intra_op_num_threads = threads
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's kinds have no common base
            raise EngineError(f"ONNX Runtime cannot load {path.name}: {error}") from error

    def __call__(self, inputs: Mapping[str, Array]) -> Array:
        """`scores` [batch, score, *spatial] for named inputs, batch first."""
        try:
            return np.asarray(self._session.run(["scores"], dict(inputs))[0])
        except Exception as error:
            batch = len(next(iter(inputs.values())))
            raise EngineError(f"ONNX Runtime fails at a batch of {batch}: {error}") from error
