"""Every precision is what it says, names the layer that forbids it, and is searched for where that is asked."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.support.build_specs import spec, tiny_unet
from tests.support.precision_graphs import Attending, graphs_of
from tests.support.small_networks import loud_network
from voxtile_build.build import build
from voxtile_build.cache import VARIABLE
from voxtile_build.engines import find_engine, select
from voxtile_build.engines.base import Compiled, Engine, Variant
from voxtile_build.engines.gpu import Gpu
from voxtile_build.engines.openvino.core import core as the_core
from voxtile_build.engines.openvino.quantize import quantized_convolutions
from voxtile_build.engines.openvino.variants import has_bf16
from voxtile_build.engines.release import RELEASE, TENSORRT_IMAGE
from voxtile_build.engines.select import calibration_metrics, compile_at
from voxtile_build.engines.shapes import Shapes, serving_shapes
from voxtile_build.engines.tensorrt import variants as tensorrt_variants
from voxtile_build.engines.tensorrt.fits import fitting
from voxtile_build.engines.tensorrt.plan import build_plan
from voxtile_build.engines.tensorrt.variants import kept_higher, plan_graph
from voxtile_build.errors import AcceptanceError, ContainerNeeded, SpecError
from voxtile_build.evaluation.whole_scan import torch_runner
from voxtile_build.graph.graphs import Graphs
from voxtile_build.graph.report import as_json, as_lines
from voxtile_build.precision.mixed_precision import Fp16OverflowError, preparing_nodes
from voxtile_build.precision.quantize_qdq import QuantizationError
from voxtile_build.precision.ranges import tensor_ranges
from voxtile_build.precision.reduced import fp16_graph, stepwise_runner
from voxtile_build.precision.search import Metrics
from voxtile_build.precision.sensitivity import rank_int8, round_weights
from voxtile_build.repository.config import read_config
from voxtile_build.spec.input import PADDING
from voxtile_build.spec.precision import Precision
from voxtile_build.spec.serving import Serving
from voxtile_build.spec.spec import Spec

# Random weights give scores so close to each other that rounding changes more voxels than in a trained network.
LENIENT = {"min_dice": 0.9, "max_changed": 0.05, "allow_unseen_labels": True}
# bf16 keeps 8 bits, of scores around 1.
BF16 = 0.1
CENTRED = 5e-5
"""Limit on the error of scores up to 10. Measured: 1e-6 with centred norms, 7e-4 (OpenVINO) and 1.6e-3 without."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    return graphs_of(tiny_unet(), spec(acceptance=LENIENT), tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    return graphs_of(loud_network(), spec(acceptance=LENIENT), tmp_path_factory.mktemp("loud"))


@pytest.fixture(scope="module")
def attending(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    return graphs_of(Attending(), spec(), tmp_path_factory.mktemp("attending"))


def asking(graphs: Graphs, gpus: str = "none", **precision: str) -> Spec:
    """The graphs' spec, asking for another precision."""
    changes = {"precision": Precision(**precision), "serving": Serving(max_batch_size=2, gpus=gpus)}
    return graphs.spec.model_copy(update=changes)


def compiled_at(graphs: Graphs, engine: str, folder: Path, gpus: str = "none", *, wanted: str) -> Compiled:
    version = folder / "entry" / "1"
    version.mkdir(parents=True)
    return compile_at(find_engine(engine), graphs, asking(graphs, gpus, **{engine: wanted}), version)


def scores_of(compiled: Compiled, graphs: Graphs) -> tuple[Any, Any]:
    feed = graphs.calibration.example
    return compiled.run(feed), torch_runner(graphs.wrapper)(feed)


def operators(file: Path) -> list[str]:
    return [node.op_type for node in onnx.load(file).graph.node]


# fp16


def test_plain_fp16_is_refused_with_the_layer_that_overflows(loud: Graphs, tmp_path: Path) -> None:
    convolutions = [node.name for node in loud.base.graph.node if node.op_type == "Conv"]
    with pytest.raises(Fp16OverflowError, match=f"'{convolutions[1]}' reaches") as caught:
        compiled_at(loud, "onnxruntime", tmp_path, wanted="fp16")
    assert caught.value.layer == convolutions[1]
    assert caught.value.max_abs > 65504


def test_auto_finds_a_mixture_that_passes_as_a_gpu_would_round_it(loud: Graphs, tmp_path: Path) -> None:
    found = compiled_at(loud, "onnxruntime", tmp_path, "all", wanted="auto")
    convolutions = [node.name for node in loud.base.graph.node if node.op_type == "Conv"]
    search = found.facts["search"]
    assert found.precision == "fp16"
    assert search["order"] == ["fp16", "fp32"]
    assert f"'{convolutions[1]}' reaches" in search["path"][0]["refused_because"][0]
    assert set(convolutions[1:3]) <= set(search["accepted"]["kept"])
    model = onnx.load(found.files[0])
    assert onnx.TensorProto.FLOAT16 in {tensor.data_type for tensor in model.graph.initializer}
    metrics = calibration_metrics(loud, stepwise_runner(model))
    assert min(metrics.dice.values()) >= LENIENT["min_dice"]
    assert metrics.changed <= LENIENT["max_changed"]
    # Opened from where it will be served, by the engine that serves it.
    assert found.files == (tmp_path / "entry" / "1" / "model.onnx",)
    assert np.isfinite(found.run(loud.calibration.example)).all()


def test_the_mark_of_voxels_outside_the_scan_is_no_overflow(tiny: Graphs, tmp_path: Path) -> None:
    found = compiled_at(tiny, "onnxruntime", tmp_path, wanted="fp16")
    assert found.facts["kept"] == []
    assert found.facts["rounding"] < 0.05
    given, expected = scores_of(found, tiny)
    assert np.abs(given - expected).max() < 0.05
    assert "Cast" in operators(found.files[0])


def test_preparing_nodes_end_at_the_first_layer_of_the_network(tiny: Graphs) -> None:
    kinds = {node.name: node.op_type for node in tiny.base.graph.node}
    preparing = {kinds[name] for name in preparing_nodes(tiny.base)}
    assert "Where" in preparing
    assert not preparing & {"Conv", "ConvTranspose", "InstanceNormalization", "PRelu"}


def test_layers_that_brighter_scans_would_overflow_stay_in_fp32(loud: Graphs) -> None:
    feeds = loud.calibration.feeds
    ranges = tensor_ranges(loud.base, feeds)
    first = next(node for node in loud.base.graph.node if node.op_type == "Conv")
    # So bright that the first layer comes near the limit, and no further.
    factor = 40_000 / ranges[first.output[0]]
    brighter = tuple({"roi": np.where(feed["roi"] == PADDING["fp32"], 0, feed["roi"]) * factor} for feed in feeds)
    bright = dataclasses.replace(
        loud.calibration, feeds=tuple({"roi": feed["roi"].astype(np.float32)} for feed in brighter)
    )
    louder = copy.copy(loud)
    louder.calibration = bright
    rest = frozenset(node.name for node in loud.base.graph.node) - {first.name}
    _, facts = fp16_graph(louder, rest)
    assert facts["kept_near_overflow"] == [first.name]


# int8


def test_int8_for_onnxruntime_is_in_the_graph(tiny: Graphs, tmp_path: Path) -> None:
    found = compiled_at(tiny, "onnxruntime", tmp_path, wanted="int8")
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(operators(found.files[0]))
    assert found.facts["int8_convolutions"] >= 1
    assert found.facts["calibration"]["generated"] is True
    assert "generated phantom" in " ".join(found.warnings)
    given, expected = scores_of(found, tiny)
    assert 0 < np.abs(given - expected).max() < 1.0


def test_int8_for_openvino_is_what_the_file_says(tiny: Graphs, tmp_path: Path) -> None:
    found = compiled_at(tiny, "openvino", tmp_path, wanted="int8")
    model = the_core().read_model(str(found.files[0]))
    assert quantized_convolutions(model) == found.facts["int8_convolutions"] >= 1
    # What is not int8 is bf16 only where the CPU can.
    assert found.parameters["INFERENCE_PRECISION_HINT"] == ("bf16" if has_bf16() else "f32")


def test_dynamic_int8_of_a_network_without_products_is_refused(tiny: Graphs, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="multiplies by no constant matrix"):
        compiled_at(tiny, "onnxruntime", tmp_path, wanted="int8-dynamic")


def test_dynamic_int8_of_products(attending: Graphs, tmp_path: Path) -> None:
    found = compiled_at(attending, "onnxruntime", tmp_path, wanted="int8-dynamic")
    assert "MatMulInteger" in operators(found.files[0])
    given, expected = scores_of(found, attending)
    assert 0 < np.abs(given - expected).max() < 0.5


def test_int8_that_misses_the_figures_is_refused_and_nothing_is_published(tmp_path: Path) -> None:
    strict = spec(
        precision={"onnxruntime": "int8"},
        serving={"engines": ["onnxruntime"]},
        acceptance={"min_dice": 1.0, "max_changed": 0.0},
    )
    repository = tmp_path / "repository"
    with pytest.raises(AcceptanceError, match=r"onnxruntime engine \(int8\) is not accepted.*changed_fraction"):
        build(strict, repository, network=tiny_unet())
    assert [path.name for path in repository.iterdir() if path.is_dir()] == []


def test_weights_are_rounded_to_steps_of_their_channel() -> None:
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3, 3)).astype(np.float32)
    weights[2] *= 100
    rounded = round_weights(weights)
    for channel, found in zip(weights, rounded, strict=True):
        step = np.abs(channel).max() / 127
        assert np.abs(found - channel).max() <= step / 2 * (1 + 1e-5)
        assert len(np.unique(np.rint(found / step))) <= 255
    assert round_weights(np.zeros((2, 1, 1), np.float32)).tolist() == [[[0]], [[0]]]


def test_layers_that_int8_hurts_most_come_first(loud: Graphs) -> None:
    ranges = tensor_ranges(loud.base, loud.calibration.feeds)
    convolutions = [node.name for node in loud.base.graph.node if node.op_type == "Conv"]
    ranked = rank_int8(loud.base, loud.calibration.example, ranges)
    assert sorted(ranked) == sorted(convolutions[1:-1])
    # One value that stretches a layer's range leaves few steps to all the others.
    coarse = dict(ranges)
    node = next(node for node in loud.base.graph.node if node.name == ranked[-1])
    coarse[node.input[0]] *= 1000
    assert rank_int8(loud.base, loud.calibration.example, coarse)[0] == ranked[-1]


# bf16 and attention


def test_bf16_says_what_this_cpu_really_computes_in(tiny: Graphs, tmp_path: Path) -> None:
    found = compiled_at(tiny, "openvino", tmp_path, wanted="bf16")
    assert found.parameters == {"INFERENCE_PRECISION_HINT": "bf16", "HINT_BF16": "YES"}
    assert found.facts["native"] is has_bf16()
    if has_bf16():
        assert found.facts["effective"] == "bf16"
        # OpenVINO leaves single layers, such as a convolution of one channel, in fp32.
        assert found.facts["layers"]["bf16"] >= found.facts["layers"].get("fp32", 0)
        assert found.warnings == ()
    else:
        assert found.warnings
    given, expected = scores_of(found, tiny)
    assert np.abs(given - expected).max() < BF16


def test_attention_of_the_same_weights_is_split_(attending: Graphs, tmp_path: Path) -> None:
    found = compiled_at(attending, "openvino", tmp_path, wanted="bf16")
    report = next(report for report in attending.reports["base"] if "queries" in report.name)
    # One product for all three becomes one for each.
    assert report.changed["MatMul"][1] == report.changed["MatMul"][0] + 2
    given, expected = scores_of(found, attending)
    assert np.abs(given - expected).max() < BF16


def test_a_network_without_attention_keeps_its_graph(tiny: Graphs) -> None:
    reports = {report.name: report.changed for report in tiny.reports["base"]}
    assert reports["split queries, keys and values"] == reports["group windows"] == {}


class FarFromZero(nn.Module):
    """A norm of values whose mean is large against their spread, which plain float32 sums lose."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm3d(1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.norm(image + 3000) * factor for factor in (1, 2, 3)], 1)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_norms_of_fp32_engines_keep_their_accuracy(engine: str, tmp_path: Path) -> None:
    """Against float64, of an image that float32 holds exactly after the shift."""
    asked = spec(output={"scores": "logits", "dtype": "fp32"}, acceptance=LENIENT)
    graphs = graphs_of(FarFromZero(), asked, tmp_path)
    roi = (np.random.default_rng(0).integers(0, 2048, (1, *asked.roi_shape)) / 1024).astype(np.float32)
    with torch.inference_mode():
        expected = FarFromZero().double()(torch.from_numpy(roi).double())[0].numpy()  # the wrapper casts to float32
    found = compiled_at(graphs, engine, tmp_path, wanted="fp32").run({"roi": roi})[0]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < CENTRED


# auto on the CPU


@pytest.mark.parametrize("gpus", ["none", "all"])
@pytest.mark.parametrize("has_bf16", [True, False])
def test_auto_tries_in_a_fixed_order(monkeypatch: pytest.MonkeyPatch, gpus: str, has_bf16: bool) -> None:
    monkeypatch.setattr("voxtile_build.engines.openvino.variants.has_bf16", lambda: has_bf16)
    asked = spec(serving={"engines": ["onnxruntime"], "gpus": gpus})
    orders = {
        name: [variant.precision for variant in find_engine(name).search(asked)] for name in ("openvino", "onnxruntime")
    }
    assert orders == {
        "openvino": ["int8", "bf16", "fp32"] if has_bf16 else ["int8", "fp32"],
        "onnxruntime": ["int8", "int8-dynamic", "fp32"] if gpus == "none" else ["fp16", "fp32"],
    }


class Attempted(Engine):
    """An engine whose variants are files; the Dice of each is made up."""

    name, backend, gpu, version = "attempted", "attempted", False, "1"

    def __init__(self, **dice: float) -> None:
        self.dice = dice

    def variants(self) -> tuple[Variant, ...]:
        return tuple(Variant(name, functools.partial(self.built, name)) for name in self.dice)

    def built(self, name: str, _: Graphs, __: Spec, folder: Path, ___: frozenset[str]) -> Compiled:
        (folder / "model").write_text(name)
        return Compiled((folder / "model",), name, lambda _: name)  # type: ignore[arg-type, return-value]

    def open(self, folder: Path, _: Any, __: Any = None) -> Any:
        return (folder / "model").read_text


@pytest.mark.parametrize(
    ("min_dice", "expected"), [(0.5, "first"), (0.9, "first"), (0.91, "second"), (0.95, "second"), (0.96, "third")]
)
def test_auto_takes_the_first_that_keeps_min_dice(
    tiny: Graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, min_dice: float, expected: str
) -> None:
    engine = Attempted(first=0.9, second=0.95, third=1.0)
    left_behind: list[int] = []

    def metrics(_: Graphs, run: Any) -> Metrics:
        left_behind.append(len(list(tmp_path.rglob("model"))))
        return Metrics({"one": engine.dice[run(None)]}, 0.0)

    monkeypatch.setattr(select, "calibration_metrics", metrics)
    limits = tiny.spec.acceptance.model_copy(update={"min_dice": min_dice, "max_changed": 0.0})
    version = tmp_path / "entry" / "1"
    version.mkdir(parents=True)
    asked = tiny.spec.model_copy(update={"acceptance": limits})
    found = select._searched(engine, tiny, asked, version)
    assert found.precision == expected
    assert found.facts["search"]["order"] == ["first", "second", "third"]
    tried = [step["precision"] for step in found.facts["search"]["path"]]
    assert list(found.seconds) == [f"auto {number}: {name}" for number, name in enumerate(tried, 1)]
    assert set(left_behind) == {1}, "files of attempts that were refused are removed"
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["model"]


def test_auto_takes_the_first_that_keeps_the_segmentation(tiny: Graphs, tmp_path: Path) -> None:
    found = compiled_at(tiny, "openvino", tmp_path, wanted="auto")
    search = found.facts["search"]
    assert search["order"] == (["int8", "bf16", "fp32"] if has_bf16() else ["int8", "fp32"])
    assert search["accepted"] == search["path"][-1]
    assert search["accepted"]["precision"] == found.precision
    assert search["order"].index(found.precision) == len({step["precision"] for step in search["path"]}) - 1
    assert json.loads(json.dumps(search)) == search
    assert all(file.parent == tmp_path / "entry" / "1" for file in found.files)
    assert np.isfinite(found.run(tiny.calibration.example)).all()


def test_auto_ends_at_fp32_where_nothing_may_change(tiny: Graphs, tmp_path: Path) -> None:
    acceptance = tiny.spec.acceptance.model_copy(update={"min_dice": 1.0, "max_changed": 0.0})
    lossless = asking(tiny, openvino="auto").model_copy(update={"acceptance": acceptance})
    version = tmp_path / "entry" / "1"
    version.mkdir(parents=True)
    found = compile_at(find_engine("openvino"), tiny, lossless, version)
    # The others were tried and refused with their metrics.
    assert found.precision == "fp32" or found.facts["search"]["accepted"]["changed"] == 0.0
    for step in found.facts["search"]["path"][:-1]:
        assert not step["accepted"]
        assert step["refused_because"]


# TensorRT


def test_without_a_gpu_a_plan_is_refused_and_the_container_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi, whatever the machine has
    asked = spec(serving={"engines": ["tensorrt"]}, precision={"tensorrt": "fp16"})
    repository = tmp_path / "repository"
    with pytest.raises(ContainerNeeded, match=rf"a GPU and TensorRT are missing.*{RELEASE}.*{RELEASE}") as caught:
        build(asked, repository, network=tiny_unet())
    assert caught.value.image == TENSORRT_IMAGE
    assert [path.name for path in repository.iterdir() if path.is_dir()] == []


def test_an_input_type_that_an_engine_lacks_is_refused_by_name(tmp_path: Path) -> None:
    asked = spec(
        input={"dtype": "int16", "intensity": {"rule": "none"}}, serving={"engines": ["onnxruntime", "tensorrt"]}
    )
    with pytest.raises(SpecError, match=r"input\.dtype: expected .*tensorrt takes \(fp32, fp16\), found int16"):
        build(asked, tmp_path / "repository", network=tiny_unet())


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16", "int8"])
def test_the_graph_of_each_precision_builds_a_real_engine_of_that_precision(tiny: Graphs, precision: Any) -> None:
    """TensorRT for RTX, whose builder needs no GPU; `build_plan` refuses a plan of another precision."""
    import tensorrt_rtx as trt

    model, facts = plan_graph(tiny, precision)
    shapes = serving_shapes(model, tiny.spec.serving)
    assert shapes["roi"].maximum == (2, *tiny.spec.roi_shape)
    assert build_plan(trt, model.SerializeToString(), shapes, precision, kept_higher(facts)).content


class NoGpu:
    """In place of the GPU that a plan runs on: what the inspector would say of it, and no scores."""

    def __init__(self, _: Any, plan: bytes, device: int) -> None:
        assert len(plan) > 10_000
        assert device == 1

    def information(self, shapes: Shapes) -> str:
        assert shapes["roi"].maximum[0] == 2
        return json.dumps({"Layers": [{"Name": "conv", "Outputs": [{"Datatype": "Half"}]}]})


@pytest.mark.filterwarnings("ignore:.*no-ops in TensorRT-RTX:DeprecationWarning")
def test_what_auto_finds_on_the_cpu_becomes_a_plan_with_all_that_is_told_of_it(
    tiny: Graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan is TensorRT's for RTX; only the GPU that would run it is made up."""
    h200 = Gpu("NVIDIA H200", "sm_90", "GPU-1a")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(tensorrt_variants, "MODULE", "tensorrt_rtx")
    monkeypatch.setattr(tensorrt_variants, "served_gpus", lambda _: {1: h200})
    monkeypatch.setattr(tensorrt_variants, "use_gpu", lambda _: None)
    monkeypatch.setattr(tensorrt_variants, "PlanRunner", NoGpu)
    found = compiled_at(tiny, "tensorrt", tmp_path, wanted="auto")
    version = tmp_path / "entry" / "1"
    assert found.precision == "fp16"
    assert found.files == (version / "model.plan",)
    assert json.loads((version / "layers.json").read_text())["Layers"][0]["Name"] == "conv"
    assert found.facts["layers"] == {"fp16": 1}
    assert (found.facts["gpu"]["name"], found.facts["hardware_compatibility"]) == ("NVIDIA H200", "none")
    assert found.facts["search"]["order"] == ["fp16", "fp32"]
    assert [*found.seconds] == ["auto 1: fp16", "plan, without earlier timings"]
    (timings,) = (tmp_path / "cache" / "tensorrt").iterdir()
    assert timings.name == f"NVIDIA-H200-sm-90-{found.facts['tensorrt']}.timings"
    again = compiled_at(tiny, "tensorrt", tmp_path / "again", wanted="fp16")
    assert [*again.seconds] == ["plan, with earlier timings"]
    assert fitting(json.loads(json.dumps(again.facts)), {0: h200}, again.facts["tensorrt"]) == 0


def test_on_gpus_the_server_builds_the_engine_itself(tmp_path: Path) -> None:
    asked = spec(
        serving={"engines": ["onnxruntime"], "gpus": [0, 1], "preferred_batch_size": [2], "max_batch_size": 4},
        precision={"onnxruntime": "auto"},
        acceptance=LENIENT,
    )
    build(asked, tmp_path, network=loud_network())
    config = read_config(tmp_path / "tiny_onnxruntime")
    accelerator, cuda = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, cuda.name) == ("tensorrt", "cuda")
    assert dict(cuda.parameters) == {"use_tf32": "0"}
    assert accelerator.parameters["trt_profile_min_shapes"] == "roi:1x1x16x8x12"
    assert accelerator.parameters["trt_profile_opt_shapes"] == "roi:2x1x16x8x12"
    assert accelerator.parameters["trt_profile_max_shapes"] == "roi:4x1x16x8x12"
    assert accelerator.parameters["trt_layer_norm_fp32_fallback"] == "true"
    certificate = json.loads((tmp_path / "tiny_onnxruntime" / "1" / "certificate.json").read_text())
    assert certificate["accepted"]
    assert certificate["precision_facts"]["search"]["path"][-1]["accepted"]
    page = (tmp_path / "tiny_onnxruntime" / "1" / "certificate.md").read_text()
    assert "## The search for a precision" in page
    assert "generated phantom" in page


def test_on_the_cpu_no_accelerator_is_asked_for(tmp_path: Path) -> None:
    from voxtile_build.repository.config import engine_config

    config = engine_config(spec(), find_engine("onnxruntime"), {"intra_op_thread_count": "3"})
    assert not config.HasField("optimization")
    assert config.parameters["intra_op_thread_count"].string_value == "3"


# What the build says of its graphs


def test_every_pass_is_reported_with_nodes_before_and_after(attending: Graphs) -> None:
    assert attending.base is not None
    lines = list(as_lines(attending.reports))
    assert any(line.startswith("base: optimise: ") for line in lines)
    assert any(line.startswith("fp32: centre norms: ") for line in lines)
    for graph, passes in as_json(attending.reports).items():
        for made in passes:
            assert f"{graph}: {made['name']}: {made['nodes_before']} -> {made['nodes_after']} nodes" in "\n".join(lines)
    assert json.loads(json.dumps(as_json(attending.reports)))
