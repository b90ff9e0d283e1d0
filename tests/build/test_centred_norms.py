"""Centring changes nothing but the accuracy of instance normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from voxtile_build.graph.centred_norms import OPERATOR, centre_norms

Array = NDArray[np.float32]
CHANNELS = 2


def norm(shape: tuple[int, ...], epsilon: float = 1e-5, name: str = "x") -> onnx.ModelProto:
    """A graph that is one InstanceNormalization [batch, channel, *spatial] of scale 2 and bias 3."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(OPERATOR, [name, "scale", "bias"], ["y"], epsilon=epsilon)],
        "norm",
        [value(name, TensorProto.FLOAT, shape)],
        [value("y", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor("scale", TensorProto.FLOAT, [CHANNELS], [2.0] * CHANNELS),
            helper.make_tensor("bias", TensorProto.FLOAT, [CHANNELS], [3.0] * CHANNELS),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto, values: Array) -> Array:
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: Array = session.run(None, {session.get_inputs()[0].name: values})[0]
    return result


def exact(values: Array, epsilon: float = 1e-5) -> NDArray[np.float64]:
    """The definition, in double precision."""
    wide, axes = values.astype(np.float64), tuple(range(2, values.ndim))
    mean, variance = (getattr(wide, what)(axis=axes, keepdims=True) for what in ("mean", "var"))
    result: NDArray[np.float64] = 2 * (wide - mean) / np.sqrt(variance + epsilon) + 3
    return result


@pytest.mark.parametrize("spatial", [(9,), (8, 6), (8, 6, 7)])
def test_the_result_is_that_of_the_definition(spatial: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).normal(3, 2, (3, CHANNELS, *spatial)).astype(np.float32)
    np.testing.assert_allclose(run(centre_norms(norm(values.shape)), values), exact(values), rtol=1e-5, atol=1e-5)


def test_an_almost_constant_tile_keeps_its_accuracy() -> None:
    rng = np.random.default_rng(2)
    values = np.full((1, CHANNELS, 48, 48, 48), -1.7, np.float32)
    values[:, :, 20:24] += rng.normal(0, 0.01, (1, CHANNELS, 4, 48, 48)).astype(np.float32)
    plain, centred = (
        np.abs(run(m, values) - exact(values)).max() for m in (norm(values.shape), centre_norms(norm(values.shape)))
    )
    # In double precision the spread here is 0.003: single-precision sums of 110,592 values of 1.7 are no match.
    assert centred < 1e-3
    assert centred < plain / 5


def test_a_constant_tile_becomes_the_bias() -> None:
    values = np.full((1, CHANNELS, 32, 32, 32), 4.3, np.float32)
    np.testing.assert_allclose(run(centre_norms(norm(values.shape)), values), 3.0, atol=1e-3)


def test_the_model_given_is_left_alone_and_attributes_are_kept() -> None:
    model = norm((1, CHANNELS, 4, 4), epsilon=0.5)
    before = model.SerializeToString()
    values = np.random.default_rng(3).normal(size=(1, CHANNELS, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(run(centre_norms(model), values), exact(values, epsilon=0.5), rtol=1e-5, atol=1e-5)
    assert model.SerializeToString() == before


def test_several_norms_of_several_ranks_share_no_names() -> None:
    first, second = norm((1, CHANNELS, 4, 4)), norm((1, CHANNELS, 4, 4, 4), name="z")
    second.graph.output[0].name = second.graph.node[0].output[0] = "w"
    first.graph.node.extend(second.graph.node)
    first.graph.input.extend(second.graph.input)
    first.graph.output.extend(second.graph.output)
    centred = centre_norms(first)
    onnx.checker.check_model(centred, full_check=True)
    assert [node.op_type for node in centred.graph.node].count("ReduceMean") == 2 + 3


def test_a_model_without_the_operator_comes_back_as_it_was() -> None:
    value: Any = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    model = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [output]))
    assert centre_norms(model) == model
