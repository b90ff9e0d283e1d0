"""Runs a graph before and after a pass, and reports what the pass changed."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx

from voxtile_build.arrays import Array, Feed
from voxtile_build.errors import EngineError
from voxtile_build.sessions import run_graph

GraphPass = Callable[[onnx.ModelProto], onnx.ModelProto]
Scores = dict[str, Array]

# A structural pass may reorder fp32 sums, no more: a few units in the last place of the largest score.
STRUCTURAL_TOLERANCE = 1e-5
# Steps of a narrow type that such a difference may move a value by: over the border between two.
NARROW_STEPS = 1


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


class Verified:
    """A graph under passes that keep what it computes, each verified by running the graph before and after it.

    model: the graph as the passes so far left it. inputs: what it is run on; `tolerance` is relative to its largest
    |score|. Where outputs are of a narrow type (uint8, fp16), single values may move by one of its steps, and their
    mean |Δ| keeps the tolerance: rounding makes a whole step of a small difference, as much more rarely as the step is
    larger.
    """

    def __init__(self, model: onnx.ModelProto, inputs: Sequence[Feed], tolerance: float = STRUCTURAL_TOLERANCE) -> None:
        if not inputs:
            raise PassError("A pass is verified on at least one input; none was given.")
        self.model, self._inputs, self._tolerance = model, inputs, tolerance
        self._scores: list[Scores] | None = None

    def apply(self, name: str, graph_pass: GraphPass) -> PassReport:
        """Run one pass on a copy, and take what it gives.

        Raises PassError, and keeps the graph, where the pass fails, the outputs differ by more, or the new graph cannot
        run.
        """
        try:
            before = onnx.ModelProto.FromString(self.model.SerializeToString())
            after = graph_pass(before)
        except Exception as error:  # passes are built on others' optimizers; none is needed for a right graph
            raise PassError(f"Pass '{name}' cannot take this graph: {error}") from error
        nodes = len(self.model.graph.node), len(after.graph.node)
        if after is before and after == self.model:  # a pass that finds nothing gives back what it was given
            return PassReport(name, *nodes, {}, 0.0)
        _check_interface(self.model, after)
        try:
            self._scores = self._scores or run_graph(self.model, self._inputs)
            scores = run_graph(after, self._inputs)
        except Exception as error:  # ONNX Runtime raises kinds of its own
            raise PassError(f"Pass '{name}' cannot be verified: {error}") from error
        found = _compare(self._scores, scores)
        allowed = self._tolerance * max(found.scale, 1.0)
        if not (found.largest <= allowed + NARROW_STEPS * found.step and found.mean <= allowed):
            raise PassError(
                f"Pass '{name}' changes the scores by {found.largest:.3g} (largest score {found.scale:.3g}); "
                f"at most {self._tolerance:.1g} of it is allowed. Build without this pass."
            )
        report = PassReport(name, *nodes, changed_operators(self.model, after), found.largest)
        self.model, self._scores = after, scores
        return report


def apply_pass(
    name: str,
    graph_pass: GraphPass,
    model: onnx.ModelProto,
    inputs: Sequence[Feed],
    tolerance: float = STRUCTURAL_TOLERANCE,
) -> tuple[onnx.ModelProto, PassReport]:
    """One pass, run on a copy and verified; see `Verified`."""
    verified = Verified(model, inputs, tolerance)
    report = verified.apply(name, graph_pass)
    return verified.model, report


def verify_pass(before: onnx.ModelProto, after: onnx.ModelProto, inputs: Sequence[Feed]) -> float:
    """Largest |Δ| over all outputs and all `inputs`, both graphs run by ONNX Runtime on the CPU.

    NaN where one graph gives NaN or another infinity than the other. Raises PassError where names differ.
    """
    if not inputs:
        raise PassError("A pass is verified on at least one input; none was given.")
    _check_interface(before, after)
    return _compare(run_graph(before, inputs), run_graph(after, inputs)).largest


def changed_operators(before: onnx.ModelProto, after: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Operators whose count differs: {operator: (before, after)}."""
    old, new = (Counter(node.op_type for node in model.graph.node) for model in (before, after))
    return {op: (old[op], new[op]) for op in sorted(old | new) if old[op] != new[op]}


@dataclass(frozen=True)
class _Difference:
    """Over all outputs: largest and mean |Δ|, the largest |score| before, and the step of the type there; 0 in fp32."""

    largest: float
    mean: float
    scale: float
    step: float


def _compare(before: Sequence[Scores], after: Sequence[Scores]) -> _Difference:
    pairs = zip(before, after, strict=True)
    found = [_difference(value, new[name]) for old, new in pairs for name, value in old.items()]
    # np.max, not max: NaN must win.
    return _Difference(
        *(float(np.max([getattr(one, figure) for one in found])) for figure in ("largest", "mean", "scale", "step"))
    )


def _difference(old: Array, new: Array) -> _Difference:
    scale = float(np.max(np.abs(old.astype(np.float64)), initial=0.0))
    with np.errstate(invalid="ignore"):
        difference = np.abs(old.astype(np.float64) - new.astype(np.float64))
    # The same infinity on both sides is no difference.
    difference[(old == new)] = 0.0
    largest, mean = (float(figure(difference)) if difference.size else 0.0 for figure in (np.max, np.mean))
    return _Difference(largest, mean, scale, _step(old.dtype, scale))


def _step(dtype: np.dtype[Any], scale: float) -> float:
    """Between two neighbours of a narrow type, at its largest value; 0 where the type is as fine as fp32."""
    if dtype.kind in "iu":
        return 1.0
    narrow = dtype.kind == "f" and dtype.itemsize < np.dtype(np.float32).itemsize and np.isfinite(scale)
    return float(np.spacing(np.array(scale, dtype))) if narrow else 0.0


def _check_interface(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    for what in ("input", "output"):
        old, new = (
            {(value.name, value.type.tensor_type.elem_type) for value in getattr(model.graph, what)}
            for model in (before, after)
        )
        if old != new:
            raise PassError(f"A pass may not change the graph's {what}s: expected {old}, found {new}.")
