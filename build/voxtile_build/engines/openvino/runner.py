"""Runs model.xml in this process. Needs no PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from voxtile_build.arrays import Array, Feed
from voxtile_build.engines.openvino.core import core
from voxtile_build.errors import EngineError

FILE = "model.xml"

HINT = "INFERENCE_PRECISION_HINT"
"""OpenVINO's property, and Triton's parameter, for the precision: f32 or bf16."""

THREADS = "INFERENCE_NUM_THREADS"
"""OpenVINO's property, and Triton's parameter, for the CPU threads of one run."""


class OpenVinoRunner:
    """Runs model.xml on the CPU. It compiles once for each batch size, or once for all shapes if slices have any size.

    The embedded server runs each sample alone, a batch of one; the container runs larger batches whole.
    """

    def __init__(self, xml: Path, threads: int, precision: str = "f32") -> None:
        """Opens the file; 0 threads are all cores. precision: the value of `HINT`."""
        self._model = core().read_model(str(xml))
        # OpenVINO's own choice is bfloat16 on a CPU that has it.
        self._properties: dict[str, Any] = {HINT: precision, "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            self._properties[THREADS] = threads
        # As the server does: one graph for all shapes where slices of any size come.
        self._any_size = any(size.is_dynamic for size in list(self._model.input("roi").partial_shape)[1:])
        self._compiled: dict[int, Any] = {}

    def __call__(self, inputs: Feed) -> Array:
        """`scores` [batch, score, *spatial] for inputs by name, batch first."""
        batch = len(inputs["roi"])
        try:
            results = self.compiled(inputs)(dict(inputs))
        except RuntimeError as error:
            raise EngineError(f"OpenVINO fails at a batch of {batch}: {error}") from error
        return np.array(results["scores"])

    def compiled(self, inputs: Feed) -> Any:
        """OpenVINO's compiled model for the shapes of `inputs`."""
        batch = 0 if self._any_size else len(inputs["roi"])
        if batch not in self._compiled:
            self._compiled[batch] = self._compile(inputs)
        return self._compiled[batch]

    def _compile(self, inputs: Feed) -> Any:
        model = self._model.clone()
        if not self._any_size:
            model.reshape({name: list(value.shape) for name, value in inputs.items()})
        try:
            return core().compile_model(model, "CPU", self._properties)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot compile the graph: {error}") from error
