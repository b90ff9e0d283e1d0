"""The plan builder, for real: TensorRT-RTX's parser and builder run without a GPU."""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import tensorrt_rtx
import torch
from onnx import TensorProto, helper

from tests.support.small_networks import graph_of, plain, swin, unet
from voxtile_build.engines import find_engine
from voxtile_build.engines.gpu import Gpu
from voxtile_build.engines.onnxruntime import accelerator
from voxtile_build.engines.onnxruntime.accelerator import accelerator_parameters
from voxtile_build.engines.shapes import ShapesError, batch_shapes, input_shapes
from voxtile_build.engines.tensorrt import network as network_module
from voxtile_build.engines.tensorrt.layers import layers_by_type
from voxtile_build.engines.tensorrt.network import (
    Parsed,
    allow_decomposed_attention,
    check_network_precision,
    parse_onnx,
)
from voxtile_build.engines.tensorrt.plan import build_plan, error_log, plan_config
from voxtile_build.engines.tensorrt.runner import PlanRunner
from voxtile_build.engines.tensorrt.variants import VARIANTS
from voxtile_build.errors import EngineError
from voxtile_build.precision.mixed_precision import to_mixed
from voxtile_build.spec.serving import Serving

WEIGHT = np.random.default_rng(0).normal(size=(2, 1, 3, 3)).astype(np.float32)
FIRST = helper.make_node("Conv", ["x", "w"], ["a"], name="first_conv", pads=[1] * 4)
RELU = helper.make_node("Relu", ["a"], ["y"], name="relu")


def small() -> onnx.ModelProto:
    return graph_of([FIRST, RELU], {"w": WEIGHT})


def build(model: onnx.ModelProto, precision: Any = "fp32", *kept: str) -> bytes:
    shapes = batch_shapes(model, 1, 2, 4)
    return build_plan(tensorrt_rtx, model.SerializeToString(), shapes, precision, frozenset(kept)).content


def parsed(model: onnx.ModelProto) -> Parsed:
    return parse_onnx(tensorrt_rtx, model.SerializeToString(), error_log(tensorrt_rtx))


@pytest.mark.parametrize("network", [unet, plain, swin], ids=["UNet", "nnU-Net-shaped", "SwinUNETR"])
def test_networks_build_in_fp32(network: Callable[[], onnx.ModelProto]) -> None:
    assert len(build(network())) > 100_000


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("network", [unet, plain], ids=["UNet", "nnU-Net-shaped"])
def test_mixed_graphs_build_and_every_convolution_keeps_the_promise(
    network: Callable[[], onnx.ModelProto], precision: Any
) -> None:
    assert build(to_mixed(network(), precision), precision)


def test_fp32_is_not_computed_in_tf32_unless_it_is_asked_for() -> None:
    """TensorRT sets the flag by default: products would have 10 bits, and the plan would still be called fp32."""
    builder = parsed(small()).builder
    assert builder.create_builder_config().get_flag(tensorrt_rtx.BuilderFlag.TF32)
    for precision in VARIANTS:
        config = plan_config(tensorrt_rtx, builder, {}, precision.precision)
        assert config.get_flag(tensorrt_rtx.BuilderFlag.TF32) is (precision.precision == "tf32")


@pytest.mark.parametrize("level", get_args(Serving.model_fields["hardware_compatibility"].annotation))
def test_every_level_of_compatibility_is_one_of_tensorrts(level: str) -> None:
    assert level.upper() in tensorrt_rtx.HardwareCompatibilityLevel.__members__


def test_a_release_without_the_level_is_not_silently_taken() -> None:
    """TensorRT for RTX only warns, and would build a plan for one kind of GPU."""
    builder = parsed(small()).builder
    with pytest.raises(EngineError, match="builds no plans with hardware_compatibility = 'ampere_plus'"):
        plan_config(tensorrt_rtx, builder, {}, "fp32", "ampere_plus")


@pytest.mark.parametrize(("dtype", "taken"), [("fp32", True), ("fp16", True), ("int16", False)])
def test_tiles_travel_in_the_types_that_tensorrt_has(dtype: str, taken: bool) -> None:
    """The parser itself is asked, so that the list of types is not just ours."""
    kind = {
        "fp32": TensorProto.FLOAT,
        "fp16": TensorProto.FLOAT16,
        "int16": TensorProto.INT16,
    }
    model = small()
    cast = helper.make_node("Cast", ["roi"], ["x"], name="to_fp32", to=TensorProto.FLOAT)
    model.graph.node.insert(0, cast)
    model.graph.input[0].name, model.graph.input[0].type.tensor_type.elem_type = "roi", kind[dtype]
    assert (dtype in find_engine("tensorrt").input_dtypes) is taken
    if taken:
        parsed(model)
    else:
        with pytest.raises(EngineError, match="no 16-bit integers"):
            parsed(model)


def test_attention_operator_builds_because_it_may_be_decomposed() -> None:
    model = swin(flash=True)
    fused = sum(node.op_type == "Attention" for node in model.graph.node)
    assert fused == 5
    assert allow_decomposed_attention(tensorrt_rtx, parsed(model).network) == fused
    assert len(build(model)) > 100_000
    assert build(to_mixed(model), "fp16")


def test_attribute_that_the_parser_refuses_is_explained() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["q"], name="reshape"),
        helper.make_node("Attention", ["q"] * 3, ["y"], name="attention", softmax_precision=1),
    ]
    model = graph_of(nodes, {"shape": np.array([0, 0, 4, 16], np.int64)})
    model.opset_import[0].version = 23
    with pytest.raises(EngineError, match=r"'attention'.*softmax precision is not supported"):
        build(model)


def test_silent_fp32_build_is_refused_with_the_layer() -> None:
    with pytest.raises(EngineError, match="'first_conv' computes in FLOAT, but fp16"):
        build(small(), "fp16")


def test_layer_kept_higher_on_purpose_is_not_a_broken_promise() -> None:
    model = to_mixed(plain(), "fp16", kept=frozenset({"node_conv3d_1"}))
    build(model, "fp16", "node_conv3d_1")
    with pytest.raises(EngineError, match="node_conv3d_1"):
        build(model, "fp16")


def test_everything_kept_higher_is_no_fp16_network() -> None:
    with pytest.raises(EngineError, match="No layer computes in fp16"):
        build(small(), "fp16", "first_conv")


def test_int8_promise_needs_quantised_convolutions() -> None:
    with pytest.raises(EngineError, match="None of 1 convolutions"):
        build(small(), "int8")


@pytest.mark.parametrize(
    ("node", "constants", "domain", "layer", "says"),
    [
        (
            helper.make_node("Fancy", ["a"], ["y"], name="the_fancy", domain="my.domain"),
            {},
            "my.domain",
            "the_fancy",
            "no operator Fancy",
        ),
        (
            helper.make_node("StringNormalizer", ["a"], ["y"], name="strings"),
            {},
            None,
            "strings",
            "no operator StringNormalizer",
        ),
        (
            helper.make_node("Add", ["a", "k"], ["y"], name="half_add"),
            {"k": np.ones(1, np.float16)},
            None,
            "half_add",
            "types Float and Half",
        ),
        (
            helper.make_node("Where", ["a", "a", "a"], ["y"], name="float_where"),
            {},
            None,
            "float_where",
            "must have type Bool",
        ),
        (
            helper.make_node("MatMul", ["a", "k"], ["y"], name="odd_matmul"),
            {"k": np.ones((5, 5), np.float32)},
            None,
            "odd_matmul",
            "last dimension of input0 = 8",
        ),
    ],
    ids=["custom operator", "unsupported operator", "mixed types", "wrong type", "wrong shape"],
)
def test_bad_layer_is_named_with_the_cause(
    node: onnx.NodeProto, constants: dict[str, Any], domain: str | None, layer: str, says: str
) -> None:
    with pytest.raises(EngineError) as caught:
        build(graph_of([FIRST, node], {"w": WEIGHT, **constants}, domain))
    assert str(caught.value).startswith(f"Layer '{layer}' ({node.op_type}): ")
    assert says in str(caught.value)
    # The driver that is missing here is not what is wrong with the network.
    assert "driver" not in str(caught.value)


def test_kernel_of_another_type_is_a_parse_error_at_its_convolution() -> None:
    with pytest.raises(EngineError, match=r"'first_conv'.*same type"):
        build(graph_of([FIRST, RELU], {"w": WEIGHT.astype(np.float16)}))


def test_truncated_file_is_called_that() -> None:
    content = small().SerializeToString()[:-40]
    with pytest.raises(EngineError, match="truncated"):
        build_plan(tensorrt_rtx, content, {}, "fp32")


def test_batch_shapes_fix_all_but_the_batch() -> None:
    assert input_shapes(unet()) == {"roi": (-1, 1, 32, 32, 32)}
    sizes = batch_shapes(unet(), 1, 2, 4)["roi"]
    assert (sizes.minimum, sizes.maximum) == ((1, 1, 32, 32, 32), (4, 1, 32, 32, 32))


def test_batch_shapes_refuse_free_space() -> None:
    model = small()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(ShapesError, match="only the batch"):
        batch_shapes(model, 1, 1, 1)


def test_logger_outlives_a_failed_build_that_it_explains(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT points to the first logger for good; a second one would be freed under its feet."""
    first = error_log(tensorrt_rtx)
    with monkeypatch.context() as patched:
        patched.setattr(network_module, "allow_decomposed_attention", lambda *_: 0)
        with pytest.raises(EngineError, match="Attention operation was not supported by a dedicated kernel"):
            build(swin(flash=True))
        gc.collect()
    assert error_log(tensorrt_rtx) is first
    build(small())
    assert first.errors == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="states what happens where no GPU is")
def test_without_gpu_a_plan_is_not_opened() -> None:
    with pytest.raises(EngineError, match="sees no GPU here"):
        PlanRunner(tensorrt_rtx, build(small()))


def information(*types: str) -> str:
    layers = [{"Name": str(i), "Outputs": [{"Format/Datatype": kind}]} for i, kind in enumerate(types)]
    return json.dumps({"Layers": layers, "Bindings": []})


def test_inspector_types_are_read_in_old_and_new_spelling() -> None:
    old = "Channel major FP16 format where channel % 8 == 0"
    found = layers_by_type(information("Half", old, "Row major linear FP32", "BFloat16", "Int8"))
    assert found == {"bf16": 1, "fp16": 2, "fp32": 1, "int8": 1}


@pytest.mark.parametrize("text", ["", "null", "{}", '{"Layers": ["conv"]}', '{"Layers": null}', '{"Layers": [{}]}'])
def test_an_inspector_that_tells_no_types_stops_no_build(text: str) -> None:
    assert layers_by_type(text) == {}


def test_network_check_counts_the_layers_in_precision() -> None:
    convolutions = sum(node.op_type.startswith("Conv") for node in unet().graph.node)
    assert check_network_precision(parsed(unet()).network, "fp32") == convolutions


def test_accelerator_keeps_caches_apart_and_gives_the_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parameters(entry: str, model: onnx.ModelProto, gpu: Gpu | None) -> dict[str, str]:
        file = tmp_path / "model.onnx"
        file.write_bytes(model.SerializeToString())
        monkeypatch.setattr(accelerator, "visible_gpu", lambda: gpu)
        return accelerator_parameters(entry, file, Serving(max_batch_size=4, preferred_batch_size=(2,)))

    first = parameters("brain", unet(), Gpu("H100", "sm_90"))
    assert first["trt_profile_min_shapes"] == "roi:1x1x32x32x32"
    assert first["trt_profile_opt_shapes"] == "roi:2x1x32x32x32"
    assert first["trt_profile_max_shapes"] == "roi:4x1x32x32x32"
    assert all(isinstance(value, str) for value in first.values())
    others = (
        ("liver", unet(), Gpu("H100", "sm_90")),
        ("brain", unet(), None),
        ("brain", plain(), Gpu("H100", "sm_90")),
    )
    folders = {parameters(*other)["trt_engine_cache_path"] for other in others}
    assert len({first["trt_engine_cache_path"], *folders}) == 4
