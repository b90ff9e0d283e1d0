"""The optimiser gives the graph of onnxscript's own optimizer, except for slices that could be called a split."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from monai.networks.nets import SwinUNETR
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules.common import slice_split_rule
from torch import Tensor, nn

from tests.support.build_specs import tiny_unet
from voxtile_build.graph.optimise import RULES, simplify
from voxtile_build.graph.torch_to_onnx import finished, quiet


class Repeating(nn.Module):
    """Computes one thing twice, adds zero, turns and turns back, and slices halves that a split could give."""

    def forward(self, x: Tensor) -> Tensor:
        twice = x.exp() + x.exp() + 0.0
        turned = twice.permute(0, 1, 4, 2, 3).permute(0, 1, 3, 4, 2)
        half = turned.shape[2] // 2
        return turned[:, :, :half] * 1.0 + turned[:, :, half:] * (torch.ones(2, 3).sum() - 5)


NETWORKS = {
    "UNet": (tiny_unet, (16, 16, 16)),
    "SwinUNETR": (lambda: SwinUNETR(1, 2, feature_size=12, depths=(2, 1, 1, 1)), (64, 32, 32)),
    "repeating": (Repeating, (8, 6, 4)),
}


@pytest.fixture(scope="module", params=NETWORKS)
def raw(request: pytest.FixtureRequest) -> tuple[onnx.ModelProto, nn.Module, Tensor]:
    """As exported, nothing optimised."""
    make, shape = NETWORKS[request.param]
    network, example = make().eval(), torch.rand(2, 1, *shape)
    batch = ({0: torch.export.Dim("batch")},)
    with quiet(), torch.no_grad():
        program = torch.onnx.export(network, (example,), dynamo=True, optimize=False, dynamic_shapes=batch)
    assert program is not None
    return program.model_proto, network, example


def after(raw: onnx.ModelProto, step: object) -> onnx.ModelProto:
    model = ir.serde.deserialize_model(raw)
    step(model)
    return finished(ir.serde.serialize_model(model))


def test_it_leaves_what_the_optimizer_leaves(raw: tuple[onnx.ModelProto, nn.Module, Tensor]) -> None:
    ours, theirs = after(raw[0], simplify), after(raw[0], optimizer.optimize_ir)
    assert len(ours.graph.node) < len(raw[0].graph.node)
    if any(node.op_type == "Split" for node in theirs.graph.node):
        assert sum(node.op_type == "Slice" for node in ours.graph.node) == 2
    else:
        assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)


def test_it_computes_the_same(raw: tuple[onnx.ModelProto, nn.Module, Tensor]) -> None:
    proto, network, example = raw
    session = ort.InferenceSession(after(proto, simplify).SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: example.numpy()})[0]
    with torch.inference_mode():
        np.testing.assert_allclose(found, network(example).numpy(), rtol=1e-4, atol=1e-4)


def test_the_rules_are_the_optimizers_but_for_one() -> None:
    assert [rule for rule in rewriter._DEFAULT_REWRITE_RULES if rule not in RULES] == [slice_split_rule]
