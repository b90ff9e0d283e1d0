"""Runs a graph before and after a pass, and reports what the pass changed."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from ..errors import EngineError

Feed = Mapping[str, NDArray[Any]]
GraphPass = Callable[[onnx.ModelProto], onnx.ModelProto]

# A structural pass may reorder fp32 sums, no more: a few units in the last place of the largest score.
STRUCTURAL_TOLERANCE = 1e-5


class PassError(EngineError):
    """A graph pass changed what the graph computes, or its inputs or outputs."""


@dataclass(frozen=True)
class PassReport:
    """What one pass did. `changed`: counts (before, after) of an operator; `max_abs`: max |Δ| of scores,
    None where it was not measured."""

    name: str
    nodes_before: int
    nodes_after: int
    changed: dict[str, tuple[int, int]]
    max_abs: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "changed": {op: list(counts) for op, counts in self.changed.items()}}


def apply_pass(
    name: str,
    graph_pass: GraphPass,
    model: onnx.ModelProto,
    inputs: Sequence[Feed],
    tolerance: float = STRUCTURAL_TOLERANCE,
) -> tuple[onnx.ModelProto, PassReport]:
    """Runs one pass on a copy and verifies it; `tolerance` is relative to the largest |score| before.

    Raises PassError where the outputs differ by more, or the new graph cannot run.
    """
    before = onnx.ModelProto.FromString(model.SerializeToString())
    after = graph_pass(before)
    max_abs, scale = _compare(model, after, inputs)
    if not max_abs <= tolerance * max(scale, 1.0):
        raise PassError(
            f"Pass '{name}' changes the scores by {max_abs:.3g} (largest score {scale:.3g}); "
            f"at most {tolerance:.1g} of it is allowed. Build without this pass."
        )
    return after, PassReport(
        name, len(model.graph.node), len(after.graph.node), changed_operators(model, after), max_abs
    )


def verify_pass(before: onnx.ModelProto, after: onnx.ModelProto, inputs: Sequence[Feed]) -> float:
    """Largest |Δ| over all outputs and all `inputs`, both graphs run by ONNX Runtime on the CPU.

    NaN where one graph gives NaN or another infinity than the other. Raises PassError where names differ.
    """
    return _compare(before, after, inputs)[0]


def changed_operators(before: onnx.ModelProto, after: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Operators whose count differs: {operator: (before, after)}."""
    old, new = (Counter(node.op_type for node in model.graph.node) for model in (before, after))
    return {op: (old[op], new[op]) for op in sorted(old | new) if old[op] != new[op]}


def run_graph(model: onnx.ModelProto, inputs: Sequence[Feed]) -> list[dict[str, NDArray[Any]]]:
    """Outputs by name for each feed, from ONNX Runtime on the CPU."""
    opened = open_graph(model)
    names = [output.name for output in opened.get_outputs()]
    return [dict(zip(names, opened.run(names, dict(feed)), strict=True)) for feed in inputs]


def open_graph(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """The graph opened by ONNX Runtime on the CPU, without a word on standard error."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _compare(before: onnx.ModelProto, after: onnx.ModelProto, inputs: Sequence[Feed]) -> tuple[float, float]:
    if not inputs:
        raise PassError("A pass is verified on at least one input; none was given.")
    _check_interface(before, after)
    differences, scales = [], []
    for old, new in zip(run_graph(before, inputs), run_graph(after, inputs), strict=True):
        for name, value in old.items():
            differences.append(_max_difference(value, new[name]))
            scales.append(float(np.max(np.abs(value.astype(np.float64)), initial=0.0)))
    # np.max, not max: NaN must win.
    return float(np.max(differences)), float(np.max(scales))


def _max_difference(old: NDArray[Any], new: NDArray[Any]) -> float:
    with np.errstate(invalid="ignore"):
        difference = np.abs(old.astype(np.float64) - new.astype(np.float64))
    # The same infinity on both sides is no difference.
    difference[(old == new)] = 0.0
    return float(np.max(difference, initial=0.0))


def _check_interface(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    for what in ("input", "output"):
        old, new = (
            {(value.name, value.type.tensor_type.elem_type) for value in getattr(model.graph, what)}
            for model in (before, after)
        )
        if old != new:
            raise PassError(f"A pass may not change the graph's {what}s: expected {old}, found {new}.")
