"""Opens ONNX graphs in ONNX Runtime on the CPU. Knows nothing of specs, of engines or of Triton."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import ModelProto

from voxtile_build.arrays import Array, Feed

ERRORS_ONLY = 3
"""ONNX Runtime's severity; its warnings are about graphs, and not for the user."""

IN_ORDER_OF_USE = ort.ExecutionOrder.PRIORITY_BASED
"""Nodes run as soon as their inputs are there and their outputs are wanted, which holds the fewest tensors."""


def open_session(
    model: ModelProto | bytes | Path,
    *,
    threads: int = 0,
    order: ort.ExecutionOrder = ort.ExecutionOrder.DEFAULT,
    profile_prefix: Path | None = None,
) -> ort.InferenceSession:
    """The graph, opened on the CPU.

    Args:
        model: the graph, the bytes of its file, or the file, beside which large weights may lie.
        threads: CPU threads of one run; 0 for all cores.
        order: the order in which nodes run.
        profile_prefix: the start of the path that ONNX Runtime writes its profile to; None for no profile.

    Raises:
        Exception: of ONNX Runtime's own kinds, which have no common base, where the graph cannot be opened.
    """
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.execution_order = order
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    given = model.SerializeToString() if isinstance(model, ModelProto) else model
    return ort.InferenceSession(
        str(given) if isinstance(given, Path) else given, options, providers=["CPUExecutionProvider"]
    )


def run_graph(model: ModelProto, feeds: Sequence[Feed]) -> list[dict[str, Array]]:
    """All outputs of `model` by name, for each feed."""
    session = open_session(model)
    names = [output.name for output in session.get_outputs()]
    return [
        {name: np.asarray(value) for name, value in zip(names, session.run(names, dict(feed)), strict=True)}
        for feed in feeds
    ]
