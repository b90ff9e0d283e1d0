"""Graph passes: each keeps what the graph computes, on real networks and on graphs with one thing to find."""

import copy
import json
import warnings
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import tensorrt_rtx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bench.memory import forget_peak, peak_rss_bytes
from tests.support.graph_passes import apply_pass, largest_change
from tests.support.small_networks import SWIN_ROI, UNET_ROI, blobs, graph_of, overflowing, plain, swin, unet
from voxtile_build.engines.openvino.core import core as the_core
from voxtile_build.engines.openvino.quantize import quantize_openvino, quantized_convolutions
from voxtile_build.engines.shapes import batch_shapes
from voxtile_build.engines.tensorrt.plan import build_plan
from voxtile_build.graph.optimise import name_nodes, optimise
from voxtile_build.graph.passes.verify import PassError, Verified
from voxtile_build.precision.mixed_precision import (
    FP16_MAX,
    HEADROOM,
    Fp16OverflowError,
    first_overflow,
    low_nodes,
    out_of_range,
    refuse_overflow,
    to_mixed,
)
from voxtile_build.precision.quantize_qdq import QuantizationError, quantizable, quantize_dynamic, quantize_qdq
from voxtile_build.precision.ranges import tensor_ranges
from voxtile_build.precision.run_stepwise import run_stepwise
from voxtile_build.sessions import run_graph

# fp16 has 11 significant bits; a few dozen layers of it, on scores of a few units.
FP16_TOLERANCE = 2e-2
# Exposing a tensor as an output may change which kernels are fused.
RANGE_TOLERANCE = 1e-6

X = np.random.default_rng(1).normal(size=(2, 1, 8, 8)).astype(np.float32)
PLAIN_FEEDS = [{"roi": blobs(UNET_ROI, seed=seed)} for seed in range(3)]


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


# verify


def test_report_counts_what_changed_and_is_json() -> None:
    twice = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Identity", ["a"], ["y"])]
    after, report = apply_pass("optimise", optimise, graph_of(twice, {}), [{"x": X}])
    assert (report.nodes_before, report.nodes_after) == (2, 1)
    assert report.changed == {"Identity": (1, 0)}
    assert report.max_abs == 0.0
    assert json.loads(json.dumps(report.as_dict()))["changed"] == {"Identity": [1, 0]}
    assert operators(after) == {"Relu": 1}


def test_pass_that_changes_the_scores_is_refused() -> None:
    def negate(model: onnx.ModelProto) -> onnx.ModelProto:
        model.graph.node[0].op_type = "Neg"
        return model

    model = graph_of([helper.make_node("Abs", ["x"], ["y"])], {})
    with pytest.raises(PassError, match="'negate' changes the scores"):
        apply_pass("negate", negate, model, [{"x": X}])
    assert model.graph.node[0].op_type == "Abs"


def test_pass_that_makes_nan_is_refused() -> None:
    def root(model: onnx.ModelProto) -> onnx.ModelProto:
        model.graph.node[0].op_type = "Sqrt"
        return model

    model = graph_of([helper.make_node("Abs", ["x"], ["y"])], {})
    assert np.isnan(largest_change(model, root(copy.deepcopy(model)), [{"x": X}]))
    with pytest.raises(PassError, match="by nan"):
        apply_pass("root", root, model, [{"x": X}])


def test_same_infinity_on_both_sides_is_no_difference() -> None:
    model = graph_of([helper.make_node("Div", ["x", "zero"], ["y"])], {"zero": np.zeros(1, np.float32)})
    assert largest_change(model, model, [{"x": np.ones_like(X)}]) == 0.0


def narrow(to: int, shift: float) -> onnx.ModelProto:
    """Scores of 0 … 200 and a `shift`, rounded to a narrow type."""
    nodes = [
        helper.make_node("Abs", ["x"], ["positive"]),
        helper.make_node("Mul", ["positive", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["shifted"]),
        helper.make_node("Round", ["shifted"], ["whole"]) if to == TensorProto.UINT8 else
        helper.make_node("Identity", ["shifted"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["y"], to=to),
    ]  # fmt: skip
    model = graph_of(nodes, {"scale": np.float32([50]), "shift": np.float32([shift])})
    model.graph.output[0].type.tensor_type.elem_type = to
    return model


@pytest.mark.parametrize("to", [TensorProto.UINT8, TensorProto.FLOAT16])
def test_narrow_scores_may_cross_a_border_now_and_then_but_not_all_at_once(to: int) -> None:
    x = np.random.default_rng(2).uniform(0, 4, (64, 1, 8, 8)).astype(np.float32)
    before = narrow(to, 0.0)
    # Single values lie at a border: one step, of a difference far smaller than it.
    after, report = apply_pass("shift", lambda _: narrow(to, 1e-3), before, [{"x": x}])
    assert after.graph.node[-1].op_type == "Cast"
    assert report.max_abs is not None
    assert report.max_abs >= 0.06
    step = 1.0 if to == TensorProto.UINT8 else 0.125
    with pytest.raises(PassError, match="changes the scores"):
        apply_pass("shift", lambda _: narrow(to, step), before, [{"x": x}])
    with pytest.raises(PassError, match="changes the scores"):
        apply_pass("shift", lambda _: narrow(to, step / 20), before, [{"x": x}])


def test_pass_may_not_rename_an_output() -> None:
    before = graph_of([helper.make_node("Relu", ["x"], ["y"])], {})
    after = copy.deepcopy(before)
    after.graph.node[0].output[0] = after.graph.output[0].name = "z"
    with pytest.raises(PassError, match="may not change the graph's outputs"):
        apply_pass("rename", lambda _: after, before, [{"x": X}])


def test_verifying_on_nothing_is_refused() -> None:
    with pytest.raises(PassError, match="at least one input"):
        Verified(plain(), [])


# optimise


def test_swin_masks_become_constants_and_scores_stay() -> None:
    before = swin()
    assert operators(before)["ScatterND"] >= 27
    folded, report = apply_pass("optimise", optimise, before, [{"roi": blobs(SWIN_ROI)}])
    assert operators(folded)["ScatterND"] == 0
    assert report.changed["ScatterND"][1] == 0
    assert report.nodes_after < 0.7 * report.nodes_before
    # The first mask, 45 windows of 343² comparisons, is left to two of them: no tensor above the bound is stored.
    assert max(np.prod(tensor.dims) for tensor in folded.graph.initializer) <= 4_000_000
    assert operators(folded)["Where"] == 2


def test_bound_decides_what_is_stored() -> None:
    nodes = [
        helper.make_node("Expand", ["one", "shape"], ["wide"]),
        helper.make_node("Add", ["x", "wide"], ["y"]),
    ]
    constants: dict[str, NDArray[Any]] = {
        "one": np.ones(1, np.float32),
        "shape": np.array([1, 1, 8, 8], np.int64),
    }
    model = graph_of(nodes, constants)
    assert operators(optimise(copy.deepcopy(model), 64)) == {"Add": 1}
    assert operators(optimise(copy.deepcopy(model), 63)) == {"Expand": 1, "Add": 1}


def test_what_depends_on_the_input_is_not_folded() -> None:
    model = graph_of([helper.make_node("Relu", ["x"], ["y"])], {})
    assert operators(optimise(copy.deepcopy(model))) == {"Relu": 1}


def test_it_removes_what_computes_nothing() -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Cast", ["a"], ["b"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["b"], ["c"], perm=[0, 2, 3, 1]),
        helper.make_node("Transpose", ["c"], ["d"], perm=[0, 3, 1, 2]),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    model = graph_of(nodes, {"dead": np.ones(5, np.float32)})
    after, _ = apply_pass("optimise", optimise, model, [{"x": X}])
    assert operators(after) == {"Relu": 1}
    assert not after.graph.initializer


def test_it_joins_transposes_that_do_not_cancel() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 2, 3, 1]),
        helper.make_node("Transpose", ["a"], ["y"], perm=[0, 2, 1, 3]),
    ]
    after, _ = apply_pass("optimise", optimise, graph_of(nodes, {}), [{"x": X}])
    assert operators(after) == {"Transpose": 1}


@pytest.mark.parametrize("network", [unet, plain], ids=["UNet", "nnU-Net-shaped"])
def test_it_keeps_networks_bit_for_bit(network: Any) -> None:
    _, report = apply_pass("optimise", optimise, network(), PLAIN_FEEDS[:1], tolerance=0.0)
    assert report.max_abs == 0.0


def test_names_are_given_once_and_kept() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="Neg_1"),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("Neg", ["b"], ["y"]),
    ]
    names = [node.name for node in name_nodes(graph_of(nodes, {})).graph.node]
    assert names[0] == "Neg_1"
    assert len(set(names)) == 3
    assert all(names)


# ranges


def test_ranges_equal_those_of_the_tensors_themselves() -> None:
    model, feed = plain(), PLAIN_FEEDS[0]
    exposed = copy.deepcopy(model)
    names = [node.output[0] for node in model.graph.node][:-1]
    exposed.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
    values = run_graph(exposed, [feed])[0]
    ranges = tensor_ranges(model, [feed])
    for name in names:
        assert ranges[name] == pytest.approx(np.abs(values[name]).max(), rel=RANGE_TOLERANCE)
    assert ranges["roi"] == np.abs(feed["roi"]).max()
    weight = model.graph.initializer[0]
    assert ranges[weight.name] == np.abs(numpy_helper.to_array(weight)).max()


def test_ranges_grow_with_more_scans() -> None:
    alone = tensor_ranges(plain(), PLAIN_FEEDS[:1])
    more = tensor_ranges(plain(), PLAIN_FEEDS)
    assert all(more[name] >= alone[name] for name in alone)


def test_ranges_hold_no_more_at_a_time_where_there_are_more_tensors() -> None:
    x = np.ones((1 << 16, 1, 8, 8), np.float32)
    names = ["x", *(f"t{index}" for index in range(40)), "y"]
    model = graph_of([helper.make_node("Exp", [one], [other]) for one, other in pairwise(names)], {})
    forget_peak()
    before = peak_rss_bytes()
    tensor_ranges(model, [{"x": x}])
    assert peak_rss_bytes() - before < 8 * x.nbytes


def test_a_tensor_that_is_not_finite_counts_as_infinite() -> None:
    nodes = [helper.make_node("Sqrt", ["x"], ["a"]), helper.make_node("Div", ["x", "z"], ["y"])]
    ranges = tensor_ranges(graph_of(nodes, {"z": np.zeros(1, np.float32)}), [{"x": -np.abs(X)}])
    assert ranges["y"] == np.inf
    assert ranges["a"] == np.inf


# mixed fp16


@pytest.mark.parametrize("network", [unet, plain], ids=["UNet", "nnU-Net-shaped"])
def test_mixed_network_agrees_with_fp32_within_half_precision(network: Any) -> None:
    mixed = to_mixed(network())
    onnx.checker.check_model(mixed, full_check=True)
    assert 0 < largest_change(network(), mixed, PLAIN_FEEDS) < FP16_TOLERANCE


def typed(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model)
    return {v.name: v.type.tensor_type.elem_type for v in [*inferred.graph.value_info, *inferred.graph.output]}


def test_norms_stay_fp32_and_convolutions_go_down() -> None:
    mixed = to_mixed(plain())
    types = typed(mixed)
    for node in mixed.graph.node:
        if node.op_type == "InstanceNormalization":
            assert types[node.output[0]] == TensorProto.FLOAT
        if node.op_type.startswith("Conv"):
            assert types[node.output[0]] == TensorProto.FLOAT16


def test_swin_in_fp16_keeps_norms_and_softmax_in_fp32_and_no_fp32_weight_of_a_product() -> None:
    mixed = to_mixed(optimise(swin()))
    types = typed(mixed)
    kinds = {
        op: {types[node.output[0]] for node in mixed.graph.node if node.op_type == op}
        for op in ("Softmax", "LayerNormalization", "InstanceNormalization", "MatMul", "Conv", "ConvTranspose")
    }
    assert kinds["Softmax"] == kinds["LayerNormalization"] == {TensorProto.FLOAT}
    assert kinds["InstanceNormalization"] == {TensorProto.FLOAT}
    assert kinds["MatMul"] == kinds["Conv"] == kinds["ConvTranspose"] == {TensorProto.FLOAT16}
    build_plan(tensorrt_rtx, mixed.SerializeToString(), batch_shapes(mixed, 1, 1, 2), "fp16")


def test_attention_operator_goes_down() -> None:
    shape = np.array([0, 0, 4, 16], np.int64)
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["q"], name="reshape"),
        helper.make_node("Attention", ["q", "q", "q"], ["y"], name="attention"),
    ]
    model = graph_of(nodes, {"shape": shape})
    model.opset_import[0].version = 23
    mixed = to_mixed(model)
    attention = next(node for node in mixed.graph.node if node.op_type == "Attention")
    assert typed(mixed)[attention.output[0]] == TensorProto.FLOAT16
    assert 0 <= largest_change(model, mixed, [{"x": X}]) < FP16_TOLERANCE


def test_inputs_and_outputs_keep_their_types_and_names() -> None:
    mixed = to_mixed(plain())
    assert [v.type.tensor_type.elem_type for v in mixed.graph.output] == [TensorProto.FLOAT]
    assert run_graph(mixed, PLAIN_FEEDS[:1])[0]["scores"].dtype == np.float32


def test_an_output_that_is_read_again_inside_still_works() -> None:
    weight = np.random.default_rng(2).normal(size=(1, 1, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], name="one", pads=[1] * 4),
        helper.make_node("Conv", ["y", "w"], ["z"], name="two", pads=[1] * 4),
    ]
    model = graph_of(nodes, {"w": weight})
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    mixed = to_mixed(model)
    assert largest_change(model, mixed, [{"x": X}]) < 0.1 * FP16_TOLERANCE * np.abs(weight).sum()


def test_each_tensor_is_cast_once() -> None:
    mixed = to_mixed(plain())
    casts = [(node.input[0], node.attribute[0].i) for node in mixed.graph.node if node.op_type == "Cast"]
    assert len(casts) == len(set(casts))
    names = [tensor.name for tensor in mixed.graph.initializer]
    assert len(names) == len(set(names))


def test_followers_between_two_norms_stay_up() -> None:
    norm = {"s": np.ones(1, np.float32), "b": np.zeros(1, np.float32), "w": np.ones((1, 1, 1, 1), np.float32)}
    nodes = [
        helper.make_node("InstanceNormalization", ["x", "s", "b"], ["a"], name="norm1"),
        helper.make_node("Relu", ["a"], ["c"], name="between"),
        helper.make_node("InstanceNormalization", ["c", "s", "b"], ["d"], name="norm2"),
        helper.make_node("Relu", ["d"], ["e"], name="before_conv"),
        helper.make_node("Conv", ["e", "w"], ["y"], name="conv"),
    ]
    assert low_nodes(graph_of(nodes, norm)) == {"before_conv", "conv"}


def test_nodes_that_share_a_constant_are_no_neighbours() -> None:
    constants: dict[str, NDArray[Any]] = {
        "two": np.full(1, 2, np.float32),
        "w": np.ones((1, 1, 1, 1), np.float32),
        "s": np.ones(1, np.float32),
        "b": np.zeros(1, np.float32),
    }
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["a"], name="far"),
        helper.make_node("InstanceNormalization", ["a", "s", "b"], ["c"], name="norm"),
        helper.make_node("Conv", ["c", "w"], ["d"], name="conv"),
        helper.make_node("Mul", ["d", "two"], ["y"], name="near"),
    ]
    assert low_nodes(graph_of(nodes, constants)) == {"conv", "near"}


def test_resize_keeps_its_scales_in_fp32() -> None:
    constants: dict[str, NDArray[Any]] = {
        "w": np.ones((1, 1, 1, 1), np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        helper.make_node("Resize", ["a", "", "scales"], ["y"], name="resize", mode="nearest"),
    ]
    model = graph_of(nodes, constants)
    mixed = to_mixed(model)
    assert low_nodes(model) == {"conv", "resize"}
    assert {t.name: t.data_type for t in mixed.graph.initializer}["scales"] == TensorProto.FLOAT
    assert largest_change(model, mixed, [{"x": X}]) < FP16_TOLERANCE


def test_unknown_layer_control_flow_and_local_functions_are_refused() -> None:
    with pytest.raises(ValueError, match="no nodes of these names"):
        to_mixed(plain(), kept=frozenset({"absent"}))
    branch = helper.make_graph([], "branch", [], [])
    flow = graph_of(
        [helper.make_node("If", ["c"], ["y"], name="either", then_branch=branch, else_branch=branch)],
        {"c": np.array(True)},
    )
    with pytest.raises(ValueError, match="'either' \\(If\\) is control flow"):
        to_mixed(flow)
    local = copy.deepcopy(plain())
    local.functions.append(helper.make_function("d", "f", [], [], [], []))
    with pytest.raises(ValueError, match="local functions"):
        to_mixed(local)


# stepwise


@pytest.mark.parametrize("network", [unet, plain], ids=["UNet", "nnU-Net-shaped"])
def test_stepwise_equals_one_run_in_fp32(network: Any) -> None:
    whole = run_graph(network(), PLAIN_FEEDS)
    steps = run_stepwise(network(), PLAIN_FEEDS)
    for one, other in zip(whole, steps, strict=True):
        np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-5)


def test_stepwise_rounds_between_layers() -> None:
    nodes = [helper.make_node("Add", ["x", "k"], ["a"]), helper.make_node("Sub", ["a", "k"], ["y"])]
    model = graph_of(nodes, {"k": np.full(1, 4096, np.float16)})
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    feed = {"x": np.full_like(X, 1.0, dtype=np.float16)}
    # fp16 steps by 4 above 4096: 1 is lost, where fp32 in between would keep it.
    assert (run_stepwise(model, [feed])[0]["y"] == 0).all()


# overflow

LOUD = [{"roi": blobs((24, 20, 16), seed=seed)} for seed in range(2)]


def test_layer_that_overflows_is_named() -> None:
    ranges = tensor_ranges(overflowing(), LOUD)
    layer, largest = first_overflow(overflowing(), ranges) or ("", 0.0)
    assert layer == "node_conv3d_1"
    assert largest > FP16_MAX
    with pytest.raises(Fp16OverflowError, match="'node_conv3d_1' reaches") as caught:
        refuse_overflow(overflowing(), ranges)
    assert (caught.value.layer, caught.value.max_abs) == (layer, largest)


def test_reader_of_the_loud_tensor_overflows_too() -> None:
    ranges = tensor_ranges(overflowing(), LOUD)
    found = first_overflow(overflowing(), ranges, frozenset({"node_conv3d_1"}))
    assert found is not None
    assert found[0] == "node_conv3d_2"
    refuse_overflow(overflowing(), ranges, frozenset({"node_conv3d_1", "node_conv3d_2"}))


def test_quiet_network_has_no_overflow() -> None:
    ranges = tensor_ranges(plain(), PLAIN_FEEDS)
    assert first_overflow(plain(), ranges) is None
    refuse_overflow(plain(), ranges)


def test_weight_beyond_the_range_is_an_overflow() -> None:
    weight = np.full((1, 1, 1, 1), 1e6, np.float32)
    model = graph_of([helper.make_node("Conv", ["x", "w"], ["y"], name="heavy")], {"w": weight})
    ranges = tensor_ranges(model, [{"x": X * 1e-6}])
    assert first_overflow(model, ranges) == ("heavy", 1e6)


def test_plain_fp16_breaks_where_the_check_says_and_the_range_gated_one_does_not() -> None:
    model = overflowing()
    reference = run_graph(model, LOUD)[0]["scores"]
    broken = run_stepwise(to_mixed(model), LOUD)[0]["scores"]
    kept = frozenset(out_of_range(model, tensor_ranges(model, LOUD)))
    gated = run_stepwise(to_mixed(model, kept=kept), LOUD)[0]["scores"]
    assert kept == {"node_conv3d_1", "node_conv3d_2"}
    assert not np.isfinite(broken).all()
    # What a CPU engine makes of the same graph, and why it cannot be asked whether fp16 overflows.
    assert np.isfinite(run_graph(to_mixed(model), LOUD)[0]["scores"]).all()
    assert np.abs(gated - reference).max() < FP16_TOLERANCE


def test_headroom_keeps_layers_before_they_overflow() -> None:
    model = graph_of([helper.make_node("Relu", ["x"], ["y"], name="relu")], {})
    feed = [{"x": np.full_like(X, 1.01 * FP16_MAX / HEADROOM)}]
    assert set(out_of_range(model, tensor_ranges(model, feed))) == {"relu"}
    feed = [{"x": np.full_like(X, 0.99 * FP16_MAX / HEADROOM)}]
    assert not out_of_range(model, tensor_ranges(model, feed))


def test_overflow_is_no_matter_for_bf16() -> None:
    mixed = to_mixed(overflowing(), "bf16")
    assert {TensorProto.BFLOAT16, TensorProto.FLOAT} >= {t.data_type for t in mixed.graph.initializer}
    build_plan(tensorrt_rtx, mixed.SerializeToString(), batch_shapes(mixed, 1, 1, 2), "bf16")


# int8


def test_first_and_last_convolutions_are_left_alone() -> None:
    names = [node.name for node in plain().graph.node if node.op_type == "Conv"]
    assert quantizable(plain()) == names[1:-1]
    assert quantizable(plain(), frozenset(names[1:3])) == names[3:-1]


def test_quantised_graph_runs_close_to_fp32_and_builds() -> None:
    quantised = quantize_qdq(plain(), PLAIN_FEEDS)
    counts = operators(quantised)
    assert counts["QuantizeLinear"] == 5
    # One for each activation and one for each weight; outputs and biases have none.
    assert counts["DequantizeLinear"] == 10
    reference = run_graph(plain(), PLAIN_FEEDS)[0]["scores"]
    found = run_graph(quantised, PLAIN_FEEDS)[0]["scores"]
    assert np.mean(reference.argmax(1) != found.argmax(1)) < 0.05
    assert build_plan(tensorrt_rtx, quantised.SerializeToString(), batch_shapes(plain(), 1, 2, 4), "int8").content


def test_weights_are_symmetric_with_a_scale_a_channel() -> None:
    quantised = quantize_qdq(plain(), PLAIN_FEEDS)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantised.graph.initializer}
    scales = [
        constants[node.input[1]]
        for node in quantised.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    ]
    points = [constants[n.input[2]] for n in quantised.graph.node if n.op_type.endswith("zeLinear")]
    assert {scale.size for scale in scales} == {8, 16}
    assert all((point == 0).all() for point in points)


def test_kept_layer_is_not_quantised() -> None:
    kept = "node_conv3d_3"
    quantised = quantize_qdq(plain(), PLAIN_FEEDS[:1], frozenset({kept}))
    layer = next(node for node in quantised.graph.node if node.name == kept)
    producers = {output: node.op_type for node in quantised.graph.node for output in node.output}
    assert producers.get(layer.input[0]) != "DequantizeLinear"
    assert operators(quantised)["QuantizeLinear"] == 4


def test_int8_without_scans_or_without_layers_is_refused() -> None:
    with pytest.raises(QuantizationError, match="at least one scan"):
        quantize_qdq(plain(), [])
    with pytest.raises(QuantizationError, match="No convolution is left"):
        quantize_qdq(plain(), PLAIN_FEEDS, frozenset(quantizable(plain())))


def test_dynamic_int8_takes_the_products_by_constants() -> None:
    weight = np.random.default_rng(3).normal(size=(8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="product"),
        helper.make_node("MatMul", ["a", "a"], ["y"], name="attention"),
    ]
    model = graph_of(nodes, {"w": weight})
    quantised = quantize_dynamic(model)
    assert operators(quantised)["MatMulInteger"] == 1
    assert operators(quantised)["MatMul"] == 1
    before, after = (run_graph(m, [{"x": X}])[0]["y"] for m in (model, quantised))
    assert np.abs(before - after).max() < 0.05 * np.abs(before).max()
    with pytest.raises(QuantizationError, match="nothing to quantise"):
        quantize_dynamic(model, frozenset({"product"}))
    with pytest.raises(QuantizationError, match="nothing to quantise"):
        quantize_dynamic(plain())


def openvino_model() -> openvino.Model:
    return the_core().read_model(plain().SerializeToString())


def quantize_quietly(*arguments: Any) -> openvino.Model:
    with warnings.catch_warnings():
        # NNCF's own imports use what later releases of its dependencies drop.
        warnings.simplefilter("ignore")
        return quantize_openvino(*arguments)


def test_openvino_int8_runs_close_to_fp32(capsys: pytest.CaptureFixture[str]) -> None:
    model = openvino_model()
    quantised = quantize_quietly(model, PLAIN_FEEDS)
    assert quantized_convolutions(model) == 0
    # Five convolutions between the first and the last, and the transposed one.
    assert quantized_convolutions(quantised) == 6
    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    before, after = (the_core().compile_model(m, "CPU", precision)(PLAIN_FEEDS[0])[0] for m in (model, quantised))
    assert np.mean(before.argmax(1) != after.argmax(1)) < 0.05
    assert capsys.readouterr().out == ""


def test_openvino_int8_keeps_a_layer_by_its_onnx_name() -> None:
    quantised = quantize_quietly(openvino_model(), PLAIN_FEEDS[:1], frozenset({"node_conv3d_3"}))
    assert quantized_convolutions(quantised) == 5


def test_openvino_int8_refuses_unknown_names_and_no_scans() -> None:
    with pytest.raises(QuantizationError, match="at least one scan"):
        quantize_quietly(openvino_model(), [])
    with pytest.raises(QuantizationError, match="no operations"):
        quantize_quietly(openvino_model(), PLAIN_FEEDS[:1], frozenset({"absent"}))
