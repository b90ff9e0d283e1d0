"""Takes out what computes nothing: identities, casts to the same type, transpose pairs, dead constants."""

import onnx
import onnx_ir
from onnx_ir.passes import Sequential
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)
from onnxscript.rewriter import RewriteRuleSet, rewrite
from onnxscript.rewriter.rules.common import (
    no_op_cast_rule,
    no_op_transpose_rule,
    reshape_reshape_rule,
    transpose_transpose_rule,
    unsqueeze_unsqueeze_rule,
)

_RULES = RewriteRuleSet(
    [
        no_op_cast_rule,
        no_op_transpose_rule,
        transpose_transpose_rule,
        reshape_reshape_rule,
        unsqueeze_unsqueeze_rule,
    ]
)


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph, bit for bit in its results, with fewer nodes; every node keeps or gets a name."""
    # Identities go first: a rule does not see through them.
    return name_nodes(_tidy(rewrite(_tidy(model), pattern_rewrite_rules=_RULES)))


def _tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    tidy = Sequential(
        LiftConstantsToInitializersPass(),
        IdentityEliminationPass(),
        CommonSubexpressionEliminationPass(),
        DeduplicateInitializersPass(),
        RemoveUnusedNodesPass(),
        RemoveUnusedOpsetsPass(),
    )
    tidied: onnx.ModelProto = onnx_ir.to_proto(tidy(onnx_ir.from_proto(model)).model)
    return tidied


def name_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Gives each unnamed node a name that no other has: precision and errors speak of layers by name."""
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
