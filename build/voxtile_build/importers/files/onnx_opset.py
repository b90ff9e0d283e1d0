"""Converts an ONNX graph to another opset, and compares the results of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, version_converter

from voxtile_build.errors import ExportError
from voxtile_build.sessions import open_session

TOLERANCE = 1e-3
"""Root mean square by which results may differ, as a share of their spread. Another order of sums costs 1e-6 to 1e-4,
in single voxels of networks with many norms more; a wrong graph is off by far more on the whole."""
READABLE_IR = 10


def at_opset(model: ModelProto, opset: int, where: str, example: Mapping[str, NDArray[Any]]) -> ModelProto:
    """A graph in another opset, with the same results.

    Args:
        model: the graph.
        opset: the opset that is wanted.
        where: names the graph in errors.
        example: inputs by name, on which the results are compared.

    Raises:
        ExportError: an operator has no such version, or the results differ.
    """
    found = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if found == opset:
        return model
    converted = _converted(model, found, opset, where)
    expected, given = (_run(graph, example, where) for graph in (model, converted))
    for one, other in zip(expected, given, strict=True):
        if one.shape != other.shape or not _is_same(one, other):
            raise ExportError(
                f"{where}: converted from opset {found} to {opset}, the graph gives other results; "
                f"export it at opset {opset}"
            )
    return converted


def _is_same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    spread, largest = float(one.std(dtype=np.float64)), float(np.abs(one).max())
    error = float(np.sqrt(np.mean((one - other) ** 2, dtype=np.float64)))
    return error <= TOLERANCE * max(spread, TOLERANCE * largest)


def _converted(model: ModelProto, found: int, opset: int, where: str) -> ModelProto:
    try:
        converted: ModelProto = version_converter.convert_version(model, opset)
    except Exception:  # the converter refuses many operators that did not change
        converted = _relabelled(model, opset)
    converted.ir_version = min(converted.ir_version, READABLE_IR)
    try:
        inferred = onnx.shape_inference.infer_shapes(converted, check_type=True, strict_mode=True, data_prop=True)
        onnx.checker.check_model(inferred)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ExportError(
            f"{where}: expected a graph that can be written in opset {opset}, which servers read, found one of opset "
            f"{found} that cannot ({reason}); export it at opset {opset}"
        ) from None
    return converted


def _relabelled(model: ModelProto, opset: int) -> ModelProto:
    """The same graph under another opset; the checker refuses operators that it does not have."""
    result = ModelProto()
    result.CopyFrom(model)
    for entry in result.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset
    return result


def _run(model: ModelProto, example: Mapping[str, NDArray[Any]], where: str) -> list[NDArray[Any]]:
    try:
        return [np.asarray(output) for output in open_session(model).run(None, dict(example))]
    except Exception as error:  # ONNX Runtime's kinds have no common base
        raise ExportError(f"{where}: the graph does not run once its opset is changed: {error}") from error
