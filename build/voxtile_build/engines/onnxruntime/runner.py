"""Runs model.onnx in this process. Needs no PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from voxtile_build.arrays import Array, Feed
from voxtile_build.errors import EngineError
from voxtile_build.sessions import open_session

FILE = "model.onnx"

THREADS = "intra_op_thread_count"
"""Triton's parameter for the CPU threads of one run."""


class OnnxRuntimeRunner:
    """Runs an ONNX file on the CPU."""

    def __init__(self, path: Path, threads: int) -> None:
        """Opens the file; 0 threads are all cores.

        Raises:
            EngineError: ONNX Runtime cannot load it.
        """
        try:
            self._session = open_session(path, threads=threads)
        except Exception as error:  # ONNX Runtime's kinds have no common base
            raise EngineError(f"ONNX Runtime cannot load {path.name}: {error}") from error

    def __call__(self, inputs: Feed) -> Array:
        """`scores` [batch, score, *spatial] for inputs by name, batch first."""
        try:
            return np.asarray(self._session.run(["scores"], dict(inputs))[0])
        except Exception as error:
            batch = len(next(iter(inputs.values())))
            raise EngineError(f"ONNX Runtime fails at a batch of {batch}: {error}") from error
