"""The one optimiser of ONNX graphs: computes constants once and leaves out what computes nothing.

It applies onnxscript's own rules, except for one whose time grows with the square of the nodes. `slice_split_rule`
looks for two slices that make up one split, and for that compares every node with every other: two thirds of the export
of a SwinUNETR, whose graph it leaves as it is. Engines split and slice as they like.

Knows nothing of networks, of specs or of precision.
"""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes import Sequential
from onnx_ir.passes import common as passes
from onnxscript import rewriter
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter.rules.common import slice_split_rule

ROUNDS = 2
"""As many as onnxscript takes: what a rewriting leaves can be folded, and the other way round."""

MAX_ELEMENTS = 4_000_000
"""Elements of the largest tensor that is written into the file. SwinUNETR's first mask at a ROI of 96³ has
343³ = 40 million; two comparisons rebuild it from the 343² window labels, which are folded in any case."""

RULES = tuple(rule for rule in rewriter._DEFAULT_REWRITE_RULES if rule is not slice_split_rule)
"""All that onnxscript's own optimizer applies, except for one; there is no public name for them together."""


def optimise(model: onnx.ModelProto, max_elements: int = MAX_ELEMENTS) -> onnx.ModelProto:
    """A graph of fewer nodes that computes the same; every node keeps or gets a name.

    Args:
        model: the graph.
        max_elements: the most elements of a tensor that is computed now and stored. A larger one stays a node, and
            what leads to it is folded.

    Returns:
        Another graph. Its sums may be of another order where a normalisation is merged into a convolution.
    """
    graph = ir.from_proto(model)
    # Identities go first: a rule does not see through them.
    passes.IdentityEliminationPass()(graph)
    simplify(graph, input_size_limit=max_elements, output_size_limit=max_elements)
    return name_nodes(ir.to_proto(graph))


def simplify(model: ir.Model, **limits: int) -> None:
    """Folds constants, applies `RULES`, and keeps every constant and every computation once; in place.

    Args:
        model: the graph, as the exporter gives it.
        limits: of `onnxscript.optimizer.fold_constants_ir`: `input_size_limit` and `output_size_limit`, in elements.
    """
    passes.InlinePass()(model)
    rewrite = Sequential(rewriter.RewritePass(RULES), passes.RemoveUnusedNodesPass(), passes.RemoveUnusedOpsetsPass())
    for _ in range(ROUNDS):
        folded: Any = fold_constants_ir(model, onnx_shape_inference=True, **limits)
        if not (rewrite(model).modified or folded.modified):
            break
    for last in (
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ):
        last(model)


def name_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Gives each node of `model` itself that has no name one that no other has.

    Precision and errors speak of layers by name.
    """
    taken = {node.name for node in model.graph.node}
    for index, node in enumerate(model.graph.node):
        if not node.name:
            node.name = next(
                name
                for name in (f"{node.op_type}_{index}{'_' * more}" for more in range(len(taken) + 1))
                if name not in taken
            )
            taken.add(node.name)
    return model
