"""Verifies a graph pass by running the graph before and after it, and reports what the pass changed.

Knows nothing of what a pass is for.
"""

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

STRUCTURAL_TOLERANCE = 1e-5
"""Of the largest score: a structural pass may reorder fp32 sums, no more."""

NARROW_STEPS = 1
"""Steps of a narrow type that such a difference may move a value by, over the border between two."""


class PassError(EngineError):
    """A graph pass changed what the graph computes, or its inputs or outputs."""


@dataclass(frozen=True)
class PassReport:
    """What one pass did.

    Attributes:
        name: the pass.
        nodes_before: nodes of the graph before it.
        nodes_after: nodes of the graph after it.
        changed: operators whose count changed, with the counts (before, after).
        max_abs: largest |Δ| of the scores; None where it was not measured.
    """

    name: str
    nodes_before: int
    nodes_after: int
    changed: dict[str, tuple[int, int]]
    max_abs: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "changed": {op: list(counts) for op, counts in self.changed.items()}}


def report_of(name: str, before: onnx.ModelProto, after: onnx.ModelProto, max_abs: float | None = None) -> PassReport:
    """The report of a pass that made `after` of `before`."""
    old, new = (Counter(node.op_type for node in model.graph.node) for model in (before, after))
    changed = {op: (old[op], new[op]) for op in sorted(old | new) if old[op] != new[op]}
    return PassReport(name, len(before.graph.node), len(after.graph.node), changed, max_abs)


class Verified:
    """A graph under passes that keep what it computes. Each is verified by running the graph before and after it.

    Outputs of a narrow type (uint8, fp16) may differ by one step of it in single values: rounding turns a small
    difference into a whole step now and then. Their mean |Δ| keeps the tolerance.

    Attributes:
        model: the graph as the passes so far left it.
    """

    def __init__(self, model: onnx.ModelProto, inputs: Sequence[Feed], tolerance: float = STRUCTURAL_TOLERANCE) -> None:
        """Takes the inputs that the graph is run on, and the largest |Δ| as a share of the largest |score|."""
        if not inputs:
            raise PassError("A pass is verified on at least one input; none was given.")
        self.model, self._inputs, self._tolerance = model, inputs, tolerance
        self._scores: list[Scores] | None = None

    def apply(self, name: str, graph_pass: GraphPass) -> PassReport:
        """Run one pass on a copy, and take what it gives.

        Raises:
            PassError: the pass fails, its graph cannot run, or scores, inputs or outputs differ. The graph is kept.
        """
        try:
            before = onnx.ModelProto.FromString(self.model.SerializeToString())
            after = graph_pass(before)
        except Exception as error:  # passes are built on others' optimisers; none is needed for a right graph
            raise PassError(f"Pass '{name}' cannot take this graph: {error}") from error
        if after is before and after == self.model:  # a pass that finds nothing returns what it was given
            return report_of(name, self.model, after, 0.0)
        _check_interface(self.model, after)
        try:
            self._scores = self._scores or run_graph(self.model, self._inputs)
            scores = run_graph(after, self._inputs)
        except Exception as error:  # ONNX Runtime's kinds have no common base
            raise PassError(f"Pass '{name}' cannot be verified: {error}") from error
        report = report_of(name, self.model, after, self._checked(name, scores))
        self.model, self._scores = after, scores
        return report

    def _checked(self, name: str, scores: list[Scores]) -> float:
        """The largest |Δ| of the scores. Raises PassError where it is too large."""
        assert self._scores is not None  # run before the pass
        found = compare(self._scores, scores)
        allowed = self._tolerance * max(found.scale, 1.0)
        if not (found.largest <= allowed + NARROW_STEPS * found.step and found.mean <= allowed):
            raise PassError(
                f"Pass '{name}' changes the scores by {found.largest:.3g} (largest score {found.scale:.3g}); "
                f"at most {self._tolerance:.1g} of it is allowed. Build without this pass."
            )
        return found.largest


@dataclass(frozen=True)
class Difference:
    """Over all outputs.

    Attributes:
        largest: largest |Δ|; NaN where one graph gives NaN or another infinity than the other.
        mean: mean |Δ|.
        scale: largest |score| before.
        step: distance of two neighbours of the outputs' type at `scale`; 0 in fp32.
    """

    largest: float
    mean: float
    scale: float
    step: float


def compare(before: Sequence[Scores], after: Sequence[Scores]) -> Difference:
    """How much the outputs of two graphs differ, for the same feeds."""
    pairs = zip(before, after, strict=True)
    found = [_difference(value, new[name]) for old, new in pairs for name, value in old.items()]
    # np.max, not max: NaN must win.
    return Difference(
        *(float(np.max([getattr(one, field) for one in found])) for field in ("largest", "mean", "scale", "step"))
    )


def _difference(old: Array, new: Array) -> Difference:
    scale = float(np.max(np.abs(old.astype(np.float64)), initial=0.0))
    with np.errstate(invalid="ignore"):
        difference = np.abs(old.astype(np.float64) - new.astype(np.float64))
    # The same infinity on both sides is no difference.
    difference[(old == new)] = 0.0
    largest, mean = (float(reduce(difference)) if difference.size else 0.0 for reduce in (np.max, np.mean))
    return Difference(largest, mean, scale, _step(old.dtype, scale))


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
