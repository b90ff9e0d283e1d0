"""The plan builder, for real: TensorRT-RTX's parser and builder run without a GPU."""

import dataclasses
import gc
import json
import shlex
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
import pytest
import tensorrt_rtx
from onnx import helper

from tests.support.small_networks import graph_of, plain, swin, unet
from voxtile_build.engines.onnxruntime.accelerator import tensorrt_accelerator_parameters
from voxtile_build.engines.tensorrt.container import container_advice, container_command
from voxtile_build.engines.tensorrt.errors import (
    EngineBuildError,
    EnginePrecisionError,
    OnnxParseError,
    PlanMismatchError,
    ProfileError,
    TensorRtError,
)
from voxtile_build.engines.tensorrt.facts import PlanFacts, Runtime, check_plan_facts, sha256, this_runtime, visible_gpu
from voxtile_build.engines.tensorrt.inspect import check_engine_precision, engine_precisions, inspect_engine
from voxtile_build.engines.tensorrt.network import allow_decomposed_attention, check_network_precision, parse_onnx
from voxtile_build.engines.tensorrt.plan import EngineOptions, build_engine, error_log, write_plan
from voxtile_build.engines.tensorrt.profile import ShapeRange, batch_profile, input_shapes
from voxtile_build.precision.mixed_precision import to_mixed

WEIGHT = np.random.default_rng(0).normal(size=(2, 1, 3, 3)).astype(np.float32)
FIRST = helper.make_node("Conv", ["x", "w"], ["a"], name="first_conv", pads=[1] * 4)
RELU = helper.make_node("Relu", ["a"], ["y"], name="relu")


def small() -> onnx.ModelProto:
    return graph_of([FIRST, RELU], {"w": WEIGHT})


def build(model: onnx.ModelProto, precision: Any = "fp32", **options: Any) -> Any:
    profile = batch_profile(model, 1, 2, 4)
    return build_engine(tensorrt_rtx, model.SerializeToString(), profile, precision, EngineOptions(**options))


@pytest.mark.parametrize("network", [unet, plain, swin], ids=["UNet", "nnU-Net-shaped", "SwinUNETR"])
def test_networks_build_in_fp32_with_facts(network: Callable[[], onnx.ModelProto]) -> None:
    model = network()
    engine = build(model)
    facts = engine.facts
    assert len(engine.plan) > 100_000
    assert facts.onnx_sha256 == sha256(model.SerializeToString())
    assert facts.plan_sha256 == sha256(engine.plan)
    assert (facts.builder, facts.tensorrt_version) == ("tensorrt_rtx", tensorrt_rtx.__version__)
    assert facts.profile["roi"]["optimum"][0] == 2
    assert PlanFacts.from_json(facts.to_json()) == facts


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("network", [unet, plain], ids=["UNet", "nnU-Net-shaped"])
def test_mixed_graphs_build_and_every_convolution_keeps_the_promise(
    network: Callable[[], onnx.ModelProto], precision: Any
) -> None:
    assert build(to_mixed(network(), precision), precision).facts.precision == precision


def test_attention_operator_builds_because_it_may_be_decomposed() -> None:
    model = swin(flash=True)
    parsed = parse_onnx(tensorrt_rtx, model.SerializeToString(), error_log(tensorrt_rtx))
    fused = sum(node.op_type == "Attention" for node in model.graph.node)
    assert fused == 5
    assert allow_decomposed_attention(tensorrt_rtx, parsed.network) == fused
    assert len(build(model).plan) > 100_000
    assert build(to_mixed(model), "fp16").facts.precision == "fp16"


def test_attribute_that_the_parser_refuses_is_explained() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["q"], name="reshape"),
        helper.make_node("Attention", ["q"] * 3, ["y"], name="attention", softmax_precision=1),
    ]
    model = graph_of(nodes, {"shape": np.array([0, 0, 4, 16], np.int64)})
    model.opset_import[0].version = 23
    with pytest.raises(OnnxParseError, match=r"'attention'.*softmax precision is not supported"):
        build(model)


def test_silent_fp32_build_is_refused_with_the_layer() -> None:
    with pytest.raises(EnginePrecisionError, match="'first_conv' computes in FLOAT, but fp16") as caught:
        build(small(), "fp16")
    assert caught.value.layer == "first_conv"


def test_layer_kept_higher_on_purpose_is_not_a_broken_promise() -> None:
    model = to_mixed(plain(), "fp16", kept=frozenset({"node_conv3d_1"}))
    build(model, "fp16", kept_higher=frozenset({"node_conv3d_1"}))
    with pytest.raises(EnginePrecisionError, match="node_conv3d_1"):
        build(model, "fp16")


def test_everything_kept_higher_is_no_fp16_network() -> None:
    with pytest.raises(EnginePrecisionError, match="No layer computes in fp16"):
        build(small(), "fp16", kept_higher=frozenset({"first_conv"}))


def test_int8_promise_needs_quantised_convolutions() -> None:
    with pytest.raises(EnginePrecisionError, match="None of 1 convolutions"):
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
    with pytest.raises(OnnxParseError) as caught:
        build(graph_of([FIRST, node], {"w": WEIGHT, **constants}, domain))
    assert caught.value.layer == layer
    assert f"'{layer}'" in str(caught.value)
    assert says in str(caught.value)
    # The driver that is missing here is not what is wrong with the network.
    assert "driver" not in str(caught.value)


def test_kernel_of_another_type_is_a_parse_error_at_its_convolution() -> None:
    with pytest.raises(OnnxParseError, match=r"'first_conv'.*same type") as caught:
        build(graph_of([FIRST, RELU], {"w": WEIGHT.astype(np.float16)}))
    assert caught.value.layer == "first_conv"


def test_truncated_file_is_called_that() -> None:
    content = small().SerializeToString()[:-40]
    with pytest.raises(OnnxParseError, match="truncated"):
        build_engine(tensorrt_rtx, content, {}, "fp32")


def ranges(*bounds: tuple[int, ...]) -> dict[str, ShapeRange]:
    return {"x": ShapeRange(*bounds)}


@pytest.mark.parametrize(
    ("profile", "says"),
    [
        ({}, "'x' is missing from the profile"),
        ({**ranges(*[(1, 1, 8, 8)] * 3), "z": ShapeRange((1,), (1,), (1,))}, "'z' is no input"),
        (ranges((4, 1, 8, 8), (2, 1, 8, 8), (8, 1, 8, 8)), "axis 0: expected 1 <= minimum"),
        (ranges((1, 1, 8, 8), (9, 1, 8, 8), (4, 1, 8, 8)), "axis 0: expected 1 <= minimum"),
        (ranges((0, 1, 8, 8), (1, 1, 8, 8), (1, 1, 8, 8)), "axis 0: expected 1 <= minimum"),
        (ranges((1, 1, 8), (2, 1, 8), (4, 1, 8)), "4 axes"),
        (ranges(*[(1, 1, 9, 8)] * 3), "axis 2: the network fixes it to 8"),
    ],
)
def test_wrong_profile_names_input_and_axis(profile: dict[str, ShapeRange], says: str) -> None:
    with pytest.raises(ProfileError) as caught:
        build_engine(tensorrt_rtx, small().SerializeToString(), profile, "fp32")
    assert says in str(caught.value)


def test_batch_profile_fixes_all_but_the_batch() -> None:
    assert input_shapes(unet()) == {"roi": (-1, 1, 32, 32, 32)}
    sizes = batch_profile(unet(), 1, 2, 4)["roi"]
    assert (sizes.minimum, sizes.maximum) == ((1, 1, 32, 32, 32), (4, 1, 32, 32, 32))


def test_batch_profile_refuses_dynamic_space() -> None:
    model = small()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(ProfileError, match="only the batch"):
        batch_profile(model, 1, 1, 1)


def test_option_that_the_builder_ignores_is_refused() -> None:
    with pytest.raises(EngineBuildError, match="does not honour hardware compatibility 'ampere_plus'"):
        build(small(), hardware_compatibility="ampere_plus")


def test_logger_outlives_every_build() -> None:
    """TensorRT points to the first logger for good; a second one would be freed under its feet."""
    first = error_log(tensorrt_rtx)
    for _ in range(3):
        with pytest.raises(EngineBuildError):
            build(small(), hardware_compatibility="ampere_plus")
        gc.collect()
    assert error_log(tensorrt_rtx) is first
    build(small())
    assert first.errors == []


def test_limits_are_accepted_and_a_timing_cache_is_left_alone_without_gpu(tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    engine = build(small(), workspace_bytes=1 << 28, optimization_level=1, timing_cache=cache)
    assert engine.facts.timing_cache is (visible_gpu() is not None)
    assert cache.exists() is engine.facts.timing_cache


def test_progress_is_reported_and_can_stop_the_build() -> None:
    content, profile = plain().SerializeToString(), batch_profile(plain(), 1, 1, 1)
    seen: list[tuple[str, int, int]] = []

    def record(phase: str, done: int, total: int) -> bool:
        seen.append((phase, done, total))
        return True

    build_engine(tensorrt_rtx, content, profile, "fp32", progress=record)
    assert seen
    assert all(1 <= done <= total for _, done, total in seen)
    with pytest.raises(EngineBuildError):
        build_engine(tensorrt_rtx, content, profile, "fp32", progress=lambda *_: False)


def test_rtx_engine_is_never_published_as_a_plan(tmp_path: Path) -> None:
    entry = tmp_path / "brain_tensorrt"
    with pytest.raises(TensorRtError, match="not TensorRT plans"):
        write_plan(build(small()), entry)
    assert not entry.exists()


def served_facts(**changes: Any) -> PlanFacts:
    facts = PlanFacts(
        builder="tensorrt",
        tensorrt_version="10.14.1.48",
        gpu_architecture="sm_90",
        gpu_name="GPU",
        onnx_sha256=sha256(b"onnx"),
        plan_sha256=sha256(b"plan"),
        precision="fp16",
        profile={},
    )
    return dataclasses.replace(facts, **changes)


def test_plan_is_written_with_facts_that_read_back(tmp_path: Path) -> None:
    engine = dataclasses.replace(build(small()), plan=b"plan", facts=served_facts())
    path = write_plan(engine, tmp_path / "brain_tensorrt")
    assert path == tmp_path / "brain_tensorrt" / "1" / "model.plan"
    facts = PlanFacts.from_json((tmp_path / "brain_tensorrt" / "plan.json").read_text())
    check_plan_facts(facts, Runtime("10.14.1.48", "sm_90"), sha256(b"onnx"), path)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["model.plan", "plan.json"]


def test_plan_without_architecture_is_not_written(tmp_path: Path) -> None:
    engine = dataclasses.replace(build(small()), facts=served_facts(gpu_architecture=None))
    with pytest.raises(TensorRtError, match="no GPU architecture"):
        write_plan(engine, tmp_path / "brain_tensorrt")


@pytest.mark.parametrize(
    ("changes", "version", "architecture", "onnx_hash", "refused"),
    [
        ({}, "10.14.1.48", "sm_90", sha256(b"onnx"), []),
        ({}, "10.14.1.48", "sm_90", sha256(b"other"), ["ONNX file"]),
        ({}, "10.13.3.9", "sm_90", sha256(b"onnx"), ["TensorRT version"]),
        ({}, "10.14.1.48", "sm_89", sha256(b"onnx"), ["GPU architecture"]),
        ({}, "11.0.0", "sm_80", sha256(b"other"), ["ONNX file", "TensorRT version", "GPU architecture"]),
        ({"version_compatible": True}, "10.15.0", "sm_90", sha256(b"onnx"), []),
        ({"version_compatible": True}, "10.9.0", "sm_90", sha256(b"onnx"), ["TensorRT version"]),
        ({"version_compatible": True}, "11.0.0", "sm_90", sha256(b"onnx"), ["TensorRT version"]),
        ({"hardware_compatibility": "ampere_plus"}, "10.14.1.48", "sm_120", sha256(b"onnx"), []),
        (
            {"hardware_compatibility": "ampere_plus"},
            "10.14.1.48",
            "sm_75",
            sha256(b"onnx"),
            ["GPU architecture"],
        ),
    ],
)
def test_plan_facts_tell_every_difference(
    changes: dict[str, Any], version: str, architecture: str, onnx_hash: str, refused: list[str]
) -> None:
    facts, runtime = served_facts(**changes), Runtime(version, architecture)
    if not refused:
        check_plan_facts(facts, runtime, onnx_hash, b"plan")
        return
    with pytest.raises(PlanMismatchError) as caught:
        check_plan_facts(facts, runtime, onnx_hash, b"plan")
    found = ["ONNX file", "TensorRT version", "GPU architecture", "plan file"]
    assert [what for what in found if f"{what}: " in str(caught.value)] == refused


def test_swapped_plan_file_is_found(tmp_path: Path) -> None:
    with pytest.raises(PlanMismatchError, match="plan file"):
        check_plan_facts(served_facts(), Runtime("10.14.1.48", "sm_90"), sha256(b"onnx"), b"another plan")


def test_gpu_is_read_from_the_driver_tool(tmp_path: Path) -> None:
    tool = tmp_path / "smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 9.0'\n")
    tool.chmod(0o755)
    gpu = visible_gpu(str(tool))
    assert gpu is not None
    assert (gpu.name, gpu.architecture) == ("NVIDIA H100 80GB HBM3", "sm_90")


def test_driver_tool_that_fails_means_no_gpu(tmp_path: Path) -> None:
    tool = tmp_path / "smi"
    tool.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    tool.chmod(0o755)
    assert visible_gpu(str(tool)) is None
    assert visible_gpu(str(tmp_path / "absent")) is None


@pytest.mark.skipif(visible_gpu() is not None, reason="states what happens where no GPU is")
def test_without_gpu_the_runtime_and_the_inspector_say_so() -> None:
    with pytest.raises(PlanMismatchError, match="none is visible"):
        this_runtime(tensorrt_rtx)
    with pytest.raises(EngineBuildError, match="no usable GPU"):
        inspect_engine(tensorrt_rtx, build(small()).plan, error_log(tensorrt_rtx))


def information(*types: str) -> str:
    layers = [{"Name": str(i), "Outputs": [{"Format/Datatype": kind}]} for i, kind in enumerate(types)]
    return json.dumps({"Layers": layers, "Bindings": []})


def test_inspector_types_are_read_in_old_and_new_spelling() -> None:
    old = "Channel major FP16 format where channel % 8 == 0"
    found = engine_precisions(information("Half", old, "Row major linear FP32", "BFloat16", "Int8"))
    assert dict(found) == {"fp16": 2, "fp32": 1, "bf16": 1, "int8": 1}


def test_engine_that_came_out_in_fp32_is_refused() -> None:
    with pytest.raises(EnginePrecisionError, match="none of its layers"):
        check_engine_precision(information("Float", "Row major linear FP32"), "fp16")


def test_engine_that_hides_its_types_is_refused() -> None:
    with pytest.raises(EnginePrecisionError, match="only the names"):
        check_engine_precision(json.dumps({"Layers": ["conv"]}), "fp16")


def test_network_check_counts_the_layers_in_precision() -> None:
    parsed = parse_onnx(tensorrt_rtx, unet().SerializeToString(), error_log(tensorrt_rtx))
    convolutions = sum(node.op_type.startswith("Conv") for node in unet().graph.node)
    assert check_network_precision(parsed.network, "fp32") == convolutions


def test_container_command_survives_a_shell(tmp_path: Path) -> None:
    checkout = tmp_path / "a folder"
    checkout.mkdir()
    words = shlex.split(container_command(["spec", "models/my brain.toml"], checkout, "26.01", gpu="1"))
    assert words[:5] == ["docker", "run", "--rm", "--gpus", "device=1"]
    assert f"{checkout}:/voxtile" in words
    assert words[-3:-1] == ["bash", "-c"]
    assert words[-1].endswith("voxtile-build spec 'models/my brain.toml'")


def test_container_release_must_look_like_one(tmp_path: Path) -> None:
    with pytest.raises(TensorRtError, match=r"YY\.MM"):
        container_command(["spec"], tmp_path, "latest")


def test_container_advice_names_what_is_missing_and_the_image(tmp_path: Path) -> None:
    advice = container_advice("a GPU", ["spec", "m.toml"], tmp_path, "26.01")
    assert "a GPU is missing" in advice
    assert "tensorrt:26.01-py3" in advice
    assert container_command(["spec", "m.toml"], tmp_path, "26.01") in advice


def test_accelerator_keeps_caches_apart_and_gives_the_profile() -> None:
    def parameters(model: str, gpu: str, digest: str = "") -> dict[str, str]:
        profile = batch_profile(unet(), 1, 2, 4)
        return tensorrt_accelerator_parameters(
            model, gpu, PurePosixPath("/cache"), profile, workspace_bytes=1 << 30, onnx_sha256=digest
        )

    first = parameters("brain", "sm_90")
    assert first["trt_profile_min_shapes"] == "roi:1x1x32x32x32"
    assert first["trt_profile_opt_shapes"] == "roi:2x1x32x32x32"
    assert first["trt_profile_max_shapes"] == "roi:4x1x32x32x32"
    assert first["max_workspace_size_bytes"] == str(1 << 30)
    assert all(isinstance(value, str) for value in first.values())
    folders = {
        first["trt_engine_cache_path"],
        parameters("liver", "sm_90")["trt_engine_cache_path"],
        parameters("brain", "sm_89")["trt_engine_cache_path"],
        parameters("brain", "sm_90", sha256(b"a"))["trt_engine_cache_path"],
    }
    assert len(folders) == 4


@pytest.mark.parametrize("model", ["", "..", "a/b"])
def test_accelerator_refuses_a_name_that_leaves_its_folder(model: str) -> None:
    with pytest.raises(TensorRtError, match="model name"):
        tensorrt_accelerator_parameters(model, "sm_90", PurePosixPath("/cache"), batch_profile(unet(), 1, 1, 1))
