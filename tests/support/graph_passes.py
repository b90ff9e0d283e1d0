"""Runs one graph pass in tests, and compares the graph before it with the one after it."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from voxtile_build.arrays import Feed
from voxtile_build.graph.passes.verify import STRUCTURAL_TOLERANCE, GraphPass, PassReport, Verified, compare
from voxtile_build.sessions import run_graph


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


def largest_change(before: onnx.ModelProto, after: onnx.ModelProto, inputs: Sequence[Feed]) -> float:
    """Largest |Δ| over all outputs and all `inputs`; NaN if only one of the graphs gives NaN or that infinity."""
    return compare(run_graph(before, inputs), run_graph(after, inputs)).largest
