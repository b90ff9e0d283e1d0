"""Which layers reduced precision hurts, on chains of 1 × 1 convolutions whose rounding NumPy can follow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from voxtile_build.precision import reduced
from voxtile_build.precision.mixed_precision import FP16_MAX, Fp16OverflowError
from voxtile_build.precision.quantize_qdq import QuantizationError
from voxtile_build.precision.ranges import tensor_ranges
from voxtile_build.precision.sensitivity import (
    _largest_first,
    _mean_change,
    _with_rounded,
    rank_fp16,
    rank_int8,
    round_weights,
)
from voxtile_build.sessions import run_graph

Array = NDArray[Any]
FINE = (0.5, -0.25)
"""Weights that half precision holds exactly, in the two channels of a layer."""
COARSE = (1 / 3, -0.7)


def chain(layers: Mapping[str, Array], operator: str = "Conv", computed: bool = False) -> onnx.ModelProto:
    """roi [batch, 1, 3, 4] through a layer of each name to scores; weights are [output, input] matrices.

    Args:
        layers: the weights of each layer.
        operator: of every layer but the first and the last, which are convolutions.
        computed: whether the weights are the outputs of nodes, and no constants.
    """
    nodes, constants, last = [], [], "roi"
    for index, (name, matrix) in enumerate(layers.items()):
        kind = operator if 0 < index < len(layers) - 1 else "Conv"
        stored = matrix.T if kind == "ConvTranspose" else matrix
        constants.append(numpy_helper.from_array(stored[..., None, None].astype(np.float32), f"{name} weights"))
        weights = f"{name} weights"
        if computed:
            nodes.append(helper.make_node("Identity", [weights], [f"{name} copied"], name=f"{name} copy"))
            weights = f"{name} copied"
        result = "scores" if index == len(layers) - 1 else f"{name} result"
        nodes.append(helper.make_node(kind, [last, weights], [result], name=name))
        last = result
    return model_of(nodes, constants)


def model_of(nodes: Sequence[onnx.NodeProto], constants: Sequence[onnx.TensorProto]) -> onnx.ModelProto:
    roi = helper.make_tensor_value_info("roi", TensorProto.FLOAT, ["batch", 1, 3, 4])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "score", 3, 4])
    graph = helper.make_graph(list(nodes), "chain", [roi], [scores], list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def diagonal(weights: tuple[float, float]) -> Array:
    return np.diag(weights)


def between(**layers: Array) -> dict[str, Array]:
    """The layers between a first one, which makes two channels, and a last one."""
    return {"first": np.array([[1.0], [-0.5]]), **layers, "last": np.array([[1.0, -2.0], [0.5, 1.0], [2.0, 0.25]])}


def roi(seed: int = 0, factor: float = 1.0) -> dict[str, Array]:
    return {"roi": (factor * np.random.default_rng(seed).normal(size=(1, 1, 3, 4))).astype(np.float32)}


def through(values: Array, matrices: Sequence[Array]) -> Array:
    for matrix in matrices:
        values = np.einsum("oi,bixy->boxy", matrix, values)
    return values


# int8


def in_127_steps(values: Array, largest: Any) -> Array:
    scale = largest / 127
    return np.clip(np.rint(values / scale), -128, 127) * scale


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("layer", [0, 1])
def test_one_layers_input_and_weights_are_rounded_and_no_others(operator: str, layer: int) -> None:
    """Weights by the largest of each output channel, the input by the largest of all."""
    rng = np.random.default_rng(3)
    middle = {"one": rng.normal(size=(3, 2)), "two": rng.normal(size=(2, 3)) * [[1.0], [40.0]]}
    layers = between(**middle)
    model = chain(layers, operator)
    before = model.SerializeToString()
    name, matrix = list(middle.items())[layer]
    ranges = {"first result": 3.0, "one result": 1.25}
    source = list(ranges)[layer]
    copy = _with_rounded(model, name, ranges)
    onnx.checker.check_model(copy)
    found = run_graph(copy, [roi()])[0]["scores"]
    assert model.SerializeToString() == before
    matrices = [weights.astype(np.float32).astype(np.float64) for weights in layers.values()]
    values = in_127_steps(through(roi()["roi"].astype(np.float64), matrices[: 1 + layer]), ranges[source])
    rounded = in_127_steps(matrix, np.abs(matrix).max(axis=1, keepdims=True))
    expected = through(values, [rounded, *matrices[2 + layer :]])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert np.abs(found - run_graph(model, [roi()])[0]["scores"]).max() > 1e-3


def test_weights_that_are_computed_stay_and_the_input_is_rounded() -> None:
    layers = between(one=diagonal(COARSE))
    model = chain(layers, computed=True)
    found = run_graph(_with_rounded(model, "one", {"first result": 2.5}), [roi()])[0]["scores"]
    first, one, last = layers.values()
    expected = through(in_127_steps(through(roi()["roi"], [first]), 2.5), [one, last])
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("ranges", [{}, {"first result": 0.0}])
def test_an_input_that_is_zero_throughout_stays_zero(ranges: dict[str, float]) -> None:
    model = chain(between(one=diagonal(COARSE)))
    rounded = _with_rounded(model, "one", ranges)
    assert not run_graph(rounded, [{"roi": np.zeros((1, 1, 3, 4), np.float32)}])[0]["scores"].any()
    tiny = run_graph(rounded, [roi()])[0]["scores"]
    assert 0 < np.abs(tiny).max() < 5e-12


def test_weights_are_whole_steps_of_the_largest_in_each_output_channel() -> None:
    weights = np.array([[[-127.0, 0.4]], [[0.0, 0.0]], [[0.02, 1.0]]], np.float32)
    rounded = round_weights(weights)
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, [[[-127, 0]], [[0, 0]], [[3 / 127, 1]]], rtol=1e-6)


def test_a_layer_that_int8_rounds_more_comes_first() -> None:
    """In two output channels of very different weights, a scale a channel loses nothing; in one, the small one is lost.

    The inputs of all layers are whole steps of their ranges, so that the weights alone decide.
    """
    layers = between(
        lossless=diagonal((1.0, 0.001)),
        worst=np.array([[1.0, 0.4], [0.0, 1.0]]) * 100,
        bad=np.array([[1.0, 0.004], [0.0, 1.0]]) / 100,
    )
    model = chain(layers)
    feed = {"roi": np.array([127, -64, 2, 20, 30, 0, 4, -8, 16, 88, -100, 126], np.float32).reshape(1, 1, 3, 4)}
    ranges = tensor_ranges(model, [feed])
    assert rank_int8(model, feed, ranges) == ["worst", "bad", "lossless"]


def test_transposed_convolutions_are_ranked_where_asked_for() -> None:
    model = chain(between(one=diagonal(FINE), two=diagonal(COARSE)), "ConvTranspose")
    ranges = tensor_ranges(model, [roi()])
    with pytest.raises(QuantizationError):
        rank_int8(model, roi(), ranges)
    assert set(rank_int8(model, roi(), ranges, ("ConvTranspose",))) == {"one", "two"}


# fp16


EXACT = {"roi": np.array([1, -2, 4, 8, -16, 32, 0, 1, 2, 4, -8, -1], np.float32).reshape(1, 1, 3, 4)}


def test_layers_that_lose_more_digits_come_first_each_of_them_alone() -> None:
    """The first channel counts a thousand times as much in the scores. Halves hold the input and the first layers."""
    layers = between(fine=diagonal((0.5, -0.25)), little=diagonal((0.5, 1 / 3)), much=diagonal((0.7, 1.0)))
    layers["last"] = np.array([[1000.0, 1.0]])
    model = chain(layers)
    model.graph.node.insert(2, helper.make_node("Relu", ["fine result"], ["positive"], name="relu"))
    model.graph.node[3].input[0] = "positive"
    ranked = rank_fp16(model, [EXACT], tensor_ranges(model, [EXACT]))
    assert set(ranked[:2]) == {"much", "last"}
    assert ranked[2:] == ["little", "first", "fine"]


def test_a_layer_that_overflows_comes_first_and_so_does_one_that_reads_what_does() -> None:
    model = chain(between(coarse=diagonal(COARSE), loud=np.eye(2) * 4096))
    dim, glaring = EXACT, {"roi": EXACT["roi"] * 32}
    assert tensor_ranges(model, [dim])["loud result"] < FP16_MAX
    assert set(rank_fp16(model, [dim], tensor_ranges(model, [dim]))[:2]) == {"coarse", "last"}
    assert rank_fp16(model, [dim], tensor_ranges(model, [glaring]))[:3] == ["loud", "last", "coarse"]


# What is compared


def test_a_change_is_the_mean_of_all_outputs_and_inputs() -> None:
    old = [{"a": np.array([1.0, 2.0], np.float32), "b": np.array([[0.0]])}, {"a": np.zeros(2), "b": np.ones((1, 1))}]
    new = [{"a": np.array([1.0, 5.0], np.float32), "b": np.array([[-1.0]])}, {"a": np.zeros(2), "b": np.ones((1, 1))}]
    assert _mean_change(old, new) == (1.5 + 1 + 0 + 0) / 4
    with pytest.raises(ValueError, match="shorter"):
        _mean_change(old, new[:1])


def test_halves_that_would_overflow_are_compared_in_more_digits() -> None:
    old, new = np.array([60000, 0], np.float16), np.array([-60000, 0], np.float16)
    assert _mean_change([{"a": old}], [{"a": new}]) == 60000


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_the_largest_change(value: float) -> None:
    assert _mean_change([{"a": np.zeros(2)}], [{"a": np.array([0.0, value])}]) == math.inf


def test_layers_of_one_effect_keep_their_order() -> None:
    effects = {"a": 1.0, "b": 3.0, "c": math.inf, "d": 3.0, "e": math.inf}
    assert _largest_first(list(effects), effects.__getitem__) == ["c", "e", "b", "d", "a"]


# The graphs that engines share


def graphs_of(base: onnx.ModelProto, *feeds: dict[str, Array], fused: onnx.ModelProto | None = None) -> Any:
    """The first feed is the example."""
    calibration = SimpleNamespace(feeds=feeds, example=feeds[0], as_dict=lambda: {"tiles": len(feeds)})
    return SimpleNamespace(base=base, fused=fused, calibration=calibration)


def low_layers(model: onnx.ModelProto, kind: int) -> set[str]:
    """Layers whose weights are of this type."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return {node.name for node in model.graph.node if node.op_type == "Conv" and types[node.input[1]] == kind}


def prepared(**layers: Array) -> onnx.ModelProto:
    """A chain behind a node that prepares the scan."""
    model = chain(between(**layers))
    model.graph.node.insert(0, helper.make_node("Mul", ["roi", "factor"], ["image"], name="prepare"))
    model.graph.node[1].input[0] = "image"
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "factor"))
    return model


def type_of_the_preparation(model: onnx.ModelProto) -> int:
    (node,) = (node for node in model.graph.node if node.name == "prepare")
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return types[node.input[1]]


@pytest.mark.parametrize(
    ("make", "kind"), [(reduced.fp16_graph, TensorProto.FLOAT16), (reduced.bf16_graph, TensorProto.BFLOAT16)]
)
def test_layers_run_in_low_precision_but_those_that_are_kept_and_the_preparation(make: Any, kind: int) -> None:
    model = prepared(one=diagonal(FINE), two=diagonal(COARSE))
    for kept in ((), ("two",), ("two", "last")):
        made, _ = make(graphs_of(model, roi()), frozenset(kept))
        assert low_layers(made, kind) == {"first", "one", "two", "last"} - set(kept)
        assert low_layers(made, TensorProto.FLOAT) == set(kept)
        assert type_of_the_preparation(made) == TensorProto.FLOAT
    assert low_layers(make(graphs_of(model, roi()))[0], kind) == {"first", "one", "two", "last"}


def test_the_facts_say_what_was_kept_and_what_it_was_calibrated_on() -> None:
    graphs = graphs_of(chain(between(two=diagonal(FINE), one=diagonal(COARSE))), roi(), roi(1))
    kept = frozenset({"two", "one"})
    calibration = {"tiles": 2}
    expected = {"kept": ["one", "two"], "kept_near_overflow": [], "calibration": calibration}
    assert reduced.fp16_graph(graphs, kept)[1] == expected
    assert reduced.fp16_graph(graphs)[1] == {**expected, "kept": []}
    assert reduced.bf16_graph(graphs, kept)[1] == {}


def bright(peak: float) -> dict[str, Array]:
    """Its largest value is `peak`, on which the ranges of a chain of identities depend alone."""
    values = np.zeros((1, 1, 3, 4), np.float32)
    values[0, 0, 1, 2] = peak
    return {"roi": values}


def identities() -> onnx.ModelProto:
    return chain({"first": np.ones((1, 1)) / 1024, "loud": np.ones((1, 1)) * 1024, "last": np.ones((1, 1)) / 1024})


def test_layers_that_brighter_scans_would_overflow_stay_in_fp32_and_are_named() -> None:
    """A quarter of fp16's range is left for them. Every calibration tile counts."""
    graphs = graphs_of(identities(), bright(1.0), bright(60000.0), bright(2.0))
    made, facts = reduced.fp16_graph(graphs)
    assert facts["kept_near_overflow"] == ["first", "last", "loud"]
    assert low_layers(made, TensorProto.FLOAT16) == set()
    made, facts = reduced.fp16_graph(graphs, frozenset({"loud"}))
    assert (facts["kept"], facts["kept_near_overflow"]) == (["loud"], ["first", "last"])
    made, facts = reduced.fp16_graph(graphs_of(identities(), bright(16000.0)))
    assert facts["kept_near_overflow"] == []
    assert low_layers(made, TensorProto.FLOAT16) == {"first", "loud", "last"}


def test_a_tile_that_overflows_a_layer_is_refused_by_its_name_unless_it_is_kept() -> None:
    graphs = graphs_of(identities(), bright(1.0), bright(70000.0))
    with pytest.raises(Fp16OverflowError) as caught:
        reduced.fp16_graph(graphs)
    assert caught.value.layer == "first"
    made, _ = reduced.fp16_graph(graphs, frozenset({"first", "loud", "last"}))
    assert low_layers(made, TensorProto.FLOAT) == {"first", "loud", "last"}


def test_what_the_preparation_reads_may_lie_beyond_fp16() -> None:
    """The mark of voxels outside the scan is far beyond it."""
    model = prepared(one=diagonal(FINE))
    for tensor in model.graph.initializer:
        if tensor.name == "factor":
            tensor.CopyFrom(numpy_helper.from_array(np.array(1e-6, np.float32), "factor"))
    made, facts = reduced.fp16_graph(graphs_of(model, bright(1e6)))
    assert facts["kept_near_overflow"] == []
    assert type_of_the_preparation(made) == TensorProto.FLOAT


def test_int8_says_how_many_convolutions_it_holds_and_leaves_those_that_are_kept() -> None:
    graphs = graphs_of(chain(between(two=diagonal(FINE), one=diagonal(COARSE), more=diagonal(COARSE))), roi(), roi(1))
    for kept in ([], ["two"], ["one", "two"]):
        made, facts = reduced.int8_graph(graphs, frozenset(kept))
        assert facts == {"int8_convolutions": 3 - len(kept), "kept": kept, "calibration": {"tiles": 2}}
        from_int8 = {node.output[0] for node in made.graph.node if node.op_type == "DequantizeLinear"}
        quantised = {node.name for node in made.graph.node if node.op_type == "Conv" and node.input[0] in from_int8}
        assert quantised == {"one", "two", "more"} - set(kept)
    assert reduced.int8_graph(graphs)[1]["kept"] == []


def test_int8_is_calibrated_on_every_tile() -> None:
    """The tile that is not the example is a hundred times as bright."""
    model = chain(between(one=np.eye(2)))
    graphs = graphs_of(model, roi(), roi(1, factor=100))
    made, _ = reduced.int8_graph(graphs)
    feed = roi(1, factor=100)
    right = run_graph(model, [feed])[0]["scores"]
    np.testing.assert_allclose(run_graph(made, [feed])[0]["scores"], right, atol=np.abs(right).max() / 50)


def test_a_stepwise_runner_shows_rounding_and_overflow_without_a_warning() -> None:
    made, _ = reduced.fp16_graph(graphs_of(identities(), bright(1.0)))
    run = reduced.stepwise_runner(made)
    assert run(bright(3.0))[0, 0, 1, 2] == np.float32(np.float16(3.0 / 1024))
    assert not np.isfinite(run(bright(70000.0))).all()


def test_layers_are_ranked_for_fp16_on_the_example_with_the_ranges_of_every_tile() -> None:
    layers = between(loud=np.eye(2) * 100, coarse=diagonal(COARSE), fine=np.eye(2) / 256)
    dim, glaring = EXACT, {"roi": EXACT["roi"] * 300}
    by_example = reduced.layers_by_fp16(graphs_of(chain(layers), dim))
    assert by_example[-2:] == ["first", "loud"]  # which lose nothing
    overflowing = reduced.layers_by_fp16(graphs_of(chain(layers), dim, glaring))
    assert overflowing[:3] == ["loud", "coarse", "fine"]
    assert overflowing[-1] == "first"


def test_layers_are_ranked_for_int8_on_the_graph_that_the_engine_reads() -> None:
    mixing = np.array([[1.0, 0.004], [0.0, 1.0]])
    base = chain(between(exact=np.eye(2), one=mixing * 50))
    fused = chain(between(exact=np.eye(2), two=mixing * 50, more=np.eye(2)), "ConvTranspose")
    graphs = graphs_of(base, roi(), roi(1, factor=1e4), fused=fused)
    assert reduced.layers_by_int8(graphs) == rank_int8(base, roi(), tensor_ranges(base, [roi()]))
    assert set(reduced.layers_by_int8(graphs)) == {"exact", "one"}
    assert set(reduced.fused_layers_by_int8(graphs)) == {"exact", "two", "more"}
    mixed = chain(between(exact=np.eye(2), two=mixing))
    assert set(reduced.fused_layers_by_int8(graphs_of(base, roi(), fused=mixed))) == {"exact", "two"}
