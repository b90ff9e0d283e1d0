"""The Python-based backends: their parts in this process, and all of it in the real server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import pytest
import tritonclient.grpc as triton
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, shared_memory

from tests.support import tiny_entries as tiny
from tests.support.tiny_entries import ROI
from voxtile_build.engines.openvino.core import core as the_core
from voxtile_server.backends import batching, contract, entry
from voxtile_server.backends.onnxruntime import session
from voxtile_server.backends.openvino import pages
from voxtile_server.backends.openvino import variants as ov_variants
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.install import fetch, layout
from voxtile_server.options import ServerOptions

Array = np.ndarray[Any, Any]
ENGINES = ("onnxruntime", "openvino")
TYPES = (
    ("TYPE_INT16", "TYPE_FP32"),
    ("TYPE_INT16", "TYPE_UINT8"),
    ("TYPE_INT16", "TYPE_FP16"),
    ("TYPE_FP16", "TYPE_FP16"),
    ("TYPE_FP32", "TYPE_FP32"),
)
NUMPY = {"TYPE_INT16": np.int16, "TYPE_UINT8": np.uint8, "TYPE_FP16": np.float16, "TYPE_FP32": np.float32}
# Both engines calculate in fp32; they only sum in another order.
FP32_TOLERANCE = 2e-6
# bfloat16 keeps 8 bits of the mantissa; the scores are probabilities.
BF16_TOLERANCE = 0.1
CARD = json.dumps({"schema": 1, "labels": {"0": "background", "1": 'with "quotes", ümlauts and \\'}})
QUEUE = {"dynamic_batching": {"max_queue_delay_microseconds": 200_000}}


# --- the contract ------------------------------------------------------------------------------------


def a_contract(
    *, max_batch_size: int = 4, inputs: Sequence[tiny.Tensor] = (), outputs: Sequence[tiny.Tensor] = ()
) -> Any:
    declared = [
        [{"name": n, "data_type": t, "dims": [str(size) for size in d]} for n, t, d in tensors]
        for tensors in (inputs or [("x", "TYPE_FP32", (3,))], outputs or [("y", "TYPE_FP32", (3,))])
    ]
    described = {"name": "m", "max_batch_size": max_batch_size, "input": declared[0], "output": declared[1]}
    return contract.parse_contract(described)


def in_graph(name: str, type_name: str = "TYPE_FP32", dims: Sequence[int] | None = (-1, 3)) -> Any:
    return contract.InGraph(name, type_name, tuple(dims) if dims is not None else None)


@pytest.mark.parametrize("dims", [(-1, 3), (-1, -1), None])
def test_a_graph_that_fits_its_config_is_taken(dims: Sequence[int] | None) -> None:
    contract.check_against_graph(a_contract(), [in_graph("x", dims=dims)], [in_graph("y", dims=dims)])


def test_graph_outputs_may_stay_undeclared() -> None:
    contract.check_against_graph(a_contract(), [in_graph("x")], [in_graph("y"), in_graph("z")])


def test_a_fixed_batch_of_one_serves_a_max_batch_size_of_one() -> None:
    tensors = [in_graph("x", dims=(1, 3))], [in_graph("y", dims=(1, 3))]
    contract.check_against_graph(a_contract(max_batch_size=1), *tensors)
    with pytest.raises(contract.ConfigError, match="max_batch_size 2, a free first axis; the graph has"):
        contract.check_against_graph(a_contract(max_batch_size=2), *tensors)


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([in_graph("roi")], [in_graph("y")], "declares input 'x', which the graph does not have; its inputs are 'roi'"),
        ([in_graph("x")], [in_graph("z")], "declares output 'y', which the graph does not have; its outputs are 'z'"),
        ([in_graph("x"), in_graph("k")], [in_graph("y")], r"the graph needs input \['k'\]"),
        ([in_graph("x", "TYPE_INT16")], [in_graph("y")], "'x': config.pbtxt says TYPE_FP32, the graph has TYPE_INT16"),
        ([in_graph("x")], [in_graph("y", "bf16")], "'y': config.pbtxt says TYPE_FP32, the graph has bf16"),
        ([in_graph("x", dims=(-1, 4))], [in_graph("y")], r"says dims \[3\] and .* the graph has \[-1, 4\]"),
        ([in_graph("x")], [in_graph("y", dims=(-1, 3, 1))], r"the graph has \[-1, 3, 1\]"),
        ([in_graph("x", dims=())], [in_graph("y")], r"the graph has \[\]"),
    ],
)  # fmt: skip
def test_a_graph_that_does_not_fit_is_refused(inputs: list[Any], outputs: list[Any], message: str) -> None:
    with pytest.raises(contract.ConfigError, match=message):
        contract.check_against_graph(a_contract(), inputs, outputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_type": "TYPE_STRING"}, "data_type TYPE_STRING is not supported; use one of TYPE_BOOL"),
        ({"reshape": {"shape": [1, 3]}}, "'reshape' is not supported"),
        ({"optional": True}, "'optional' is not supported"),
        ({"allow_ragged_batch": True}, "'allow_ragged_batch' is not supported"),
    ],
)
def test_a_declaration_that_cannot_be_kept_is_refused(change: dict[str, Any], message: str) -> None:
    tensor = {"name": "x", "data_type": "TYPE_FP32", "dims": [3]}
    with pytest.raises(contract.ConfigError, match=message):
        contract.parse_contract({"name": "m", "input": [tensor | change], "output": [tensor]})
    with pytest.raises(contract.ConfigError, match="must declare the model's inputs and outputs"):
        contract.parse_contract({"name": "m", "input": [tensor], "output": []})


# --- one run over many requests ----------------------------------------------------------------------


def request(x: Array, wanted: Sequence[str] = ("y",)) -> Any:
    return batching.Request({"x": x}, tuple(wanted))


class Overwriting:
    """An engine that hands out the same memory each time, as OpenVINO does; y = 2 · x."""

    def __init__(self) -> None:
        self.memory = np.zeros(4096, np.float32)
        self.batches: list[int] = []

    def __call__(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        x = inputs["x"]
        self.batches.append(x.shape[0])
        y = self.memory[: x.size].reshape(x.shape)
        np.multiply(x, 2, out=y)
        return dict.fromkeys(outputs, y)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=8))
def test_every_request_gets_its_own_part(sizes: list[tuple[int, int]]) -> None:
    """Whatever the batch sizes and however many shapes come together; each shape is run once."""
    rng, engine = np.random.default_rng(0), Overwriting()
    free = a_contract(inputs=[("x", "TYPE_FP32", (-1,))], outputs=[("y", "TYPE_FP32", (-1,))])
    arrays = [rng.normal(size=size).astype(np.float32) for size in sizes]
    answers = batching.answer([request(x) for x in arrays], free, engine)
    for x, tensors in zip(arrays, answers, strict=True):
        np.testing.assert_array_equal(tensors["y"], 2 * x)
    assert len(engine.batches) == len({width for _, width in sizes})


def test_one_request_is_passed_through_without_a_copy() -> None:
    x, seen = np.ones((2, 3), np.float32), []

    def run(inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        seen.append(inputs["x"])
        return {"y": inputs["x"]}

    [tensors] = batching.answer([request(x)], a_contract(), run)
    assert seen[0] is x
    assert np.shares_memory(tensors["y"], x)


def test_only_wanted_outputs_are_run_and_given() -> None:
    asked: list[Sequence[str]] = []
    two = a_contract(outputs=[("y", "TYPE_FP32", (3,)), ("z", "TYPE_FP32", (3,)), ("n", "TYPE_FP32", (3,))])

    def run(inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        asked.append(outputs)
        return dict.fromkeys(outputs, inputs["x"])

    x = np.ones((1, 3), np.float32)
    first, second = batching.answer([request(x, ["z"]), request(x, ["y", "z"])], two, run)
    assert asked == [("y", "z")]
    assert (set(first), set(second)) == ({"z"}, {"y", "z"})


def test_an_error_of_one_request_is_not_the_others() -> None:
    def run(inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        if np.isnan(inputs["x"]).any():
            raise RuntimeError("not a number")
        return {"y": inputs["x"]}

    arrays = [np.full((1, 3), value, np.float32) for value in (1, np.nan, 3)]
    first, second, third = batching.answer([request(x) for x in arrays], a_contract(), run)
    assert (first["y"][0, 0], third["y"][0, 0]) == (1, 3)
    assert isinstance(second, RuntimeError)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (np.zeros((2, 3)), r"expected float32 \[2, 3\], the engine gave float64 \[2, 3\]"),
        (np.zeros((2, 4), np.float32), r"the engine gave float32 \[2, 4\]"),
        (np.zeros((1, 3), np.float32), r"the engine gave float32 \[1, 3\]"),
        (np.zeros((), np.float32), r"the engine gave float32 \[\]"),
    ],
)
def test_an_answer_of_another_kind_is_an_error(given: Array, found: str) -> None:
    [error] = batching.answer([request(np.ones((2, 3), np.float32))], a_contract(), lambda *_: {"y": given})
    with pytest.raises(batching.OutputError, match=f"model 'm', output 'y': .*{found}"):
        raise error


def test_without_a_batch_axis_each_request_runs_alone() -> None:
    engine = Overwriting()
    arrays = [np.full(3, value, np.float32) for value in (1, 2)]
    answers = batching.answer([request(x) for x in arrays], a_contract(max_batch_size=0), engine)
    assert [list(tensors["y"]) for tensors in answers] == [[2, 2, 2], [4, 4, 4]]


# --- what the config's words become ------------------------------------------------------------------


def an_entry(parameters: Mapping[str, str] | None = None, *, on_gpu: bool = False, **config: Any) -> Any:
    words = {key: {"string_value": value} for key, value in (parameters or {}).items()}
    return entry.Entry({"name": "m", "parameters": words, **config}, Path("nowhere"), on_gpu, 1)


def test_onnxruntime_options_are_those_of_the_cpp_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {
        "intra_op_thread_count": "3", "inter_op_thread_count": "2", "execution_mode": "1",
        "enable_mem_arena": "0", "enable_mem_pattern": "false", "session.set_denormal_as_zero": "1",
    }  # fmt: skip
    options = session.session_options(an_entry(words))
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (False, False)
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"

    monkeypatch.setenv("VOXTILE_ENGINE_THREADS", "2")
    assert session.session_options(an_entry()).intra_op_num_threads == 2
    assert session.session_options(an_entry(words)).intra_op_num_threads == 3


@pytest.mark.parametrize(("level", "name"), [(-1, "BASIC"), (0, "ENABLE_ALL"), (1, "EXTENDED"), (2, "DISABLE_ALL")])
def test_onnxruntime_graph_levels_are_the_cpp_backends_numbers(level: int, name: str) -> None:
    options = session.session_options(an_entry(optimization={"graph": {"level": level}}))
    assert options.graph_optimization_level.name.endswith(name)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"intra_op_thread_count": "many"}, "intra_op_thread_count: expected a whole number from 0, got 'many'"),
        ({"execution_mode": "2"}, "execution_mode: 2 is not known; use one of 0, 1"),
        ({"enable_mem_arena": "maybe"}, "enable_mem_arena: 'maybe' is not known"),
    ],
)  # fmt: skip
def test_onnxruntime_refuses_what_it_does_not_know(words: dict[str, str], message: str) -> None:
    with pytest.raises(contract.ConfigError, match=message):
        session.session_options(an_entry(words))


def accelerators(**fields: Any) -> dict[str, Any]:
    return {"execution_accelerators": {f"{kind}_execution_accelerator": names for kind, names in fields.items()}}


def test_a_gpu_accelerator_without_a_gpu_is_told_and_left_out() -> None:
    told: list[str] = []
    wanted = an_entry(optimization=accelerators(gpu=[{"name": "tensorrt"}], cpu=[{"name": "openvino"}]))
    chosen = session.choose_providers(wanted, ["CUDAExecutionProvider", "CPUExecutionProvider"], told.append)
    assert chosen == [("CPUExecutionProvider", {})]
    assert [line.split(" is not")[0] for line in told] == [
        "m: gpu_execution_accelerator 'tensorrt'", "m: cpu_execution_accelerator 'openvino'",
    ]  # fmt: skip


def test_on_a_gpu_tensorrt_comes_first_and_cuda_behind() -> None:
    trt = {"name": "tensorrt", "parameters": {"precision_mode": "FP16", "max_workspace_size_bytes": "9",
                                              "trt_engine_cache_enable": "1"}}  # fmt: skip
    available = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    wanted = an_entry(on_gpu=True, optimization=accelerators(gpu=[trt]))
    (first, options), (second, cuda), (last, _) = session.choose_providers(wanted, available, pytest.fail)
    assert [first, second, last] == available
    assert options == {"device_id": "1", "trt_fp16_enable": "1", "trt_max_workspace_size": "9",
                       "trt_engine_cache_enable": "1"}  # fmt: skip
    assert cuda == {"device_id": "1"}


def test_accelerators_that_cannot_be_are_errors() -> None:
    unknown = an_entry(optimization=accelerators(cpu=[{"name": "magic"}]))
    with pytest.raises(contract.ConfigError, match=r"cpu_execution_accelerator: 'magic' is not known; .* openvino"):
        session.choose_providers(unknown, ["CPUExecutionProvider"], pytest.fail)
    with pytest.raises(contract.ConfigError, match="KIND_GPU, but this server's ONNX Runtime has no CUDA provider"):
        session.choose_providers(an_entry(on_gpu=True), ["CPUExecutionProvider"], pytest.fail)


def test_openvino_is_fp32_unless_told_otherwise() -> None:
    assert ov_variants.properties({})["INFERENCE_PRECISION_HINT"] == "f32"
    assert ov_variants.properties({"HINT_BF16": "yes"})["INFERENCE_PRECISION_HINT"] == "bf16"
    assert ov_variants.properties({"INFERENCE_PRECISION_HINT": "F16"})["INFERENCE_PRECISION_HINT"] == "f16"


def test_openvino_properties_are_those_of_the_cpp_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"PERFORMANCE_HINT": "throughput", "INFERENCE_NUM_THREADS": "2", "NUM_STREAMS": "auto"}
    assert ov_variants.properties(words) == {
        "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_NUM_THREADS": 2, "NUM_STREAMS": "AUTO",
    }  # fmt: skip
    monkeypatch.setenv("VOXTILE_ENGINE_THREADS", "1")
    assert ov_variants.properties({})["INFERENCE_NUM_THREADS"] == 1
    assert ov_variants.properties({"NUM_STREAMS": "2"})["NUM_STREAMS"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"HINT_BF16": "NO"}, "HINT_BF16: expected YES, got 'NO'"),
        ({"INFERENCE_PRECISION_HINT": "f8"}, "INFERENCE_PRECISION_HINT: 'f8' is not known; use one of f32, bf16, f16"),
        ({"HINT_BF16": "YES", "INFERENCE_PRECISION_HINT": "f32"}, "contradict; keep one"),
        ({"PERFORMANCE_HINT": "FAST"}, "PERFORMANCE_HINT: 'FAST' is not known"),
        ({"NUM_STREAMS": "few"}, "NUM_STREAMS: expected a whole number"),
    ],
)  # fmt: skip
def test_openvino_refuses_what_it_does_not_know(words: dict[str, str], message: str) -> None:
    with pytest.raises(contract.ConfigError, match=message):
        ov_variants.properties(words)


@pytest.fixture
def variants(tmp_path: Path) -> Any:
    path = tiny.write_doubling(tmp_path, "m", "openvino") / "1" / "model.xml"
    core = the_core()
    return ov_variants.Variants(core, core.read_model(path), {"STATIC_VARIANTS": "2"})


def test_openvino_variants_are_bounded_and_all_right(variants: Any) -> None:
    variants.prepare(a_contract(inputs=[("roi", "TYPE_INT16", ROI)]))
    assert variants.compiled == [((1, *ROI),)]
    for batch in (1, 3, 2, 4, 1, 3):
        x = np.arange(batch * np.prod(ROI), dtype=np.int16).reshape(batch, *ROI)
        np.testing.assert_array_equal(variants.run({"roi": x}, ["scores"])["scores"], 2.0 * x + 1)
    assert variants.compiled == [((1, *ROI),), ((3, *ROI),), None]


def resident(file: Path) -> int:
    """Bytes of this process's resident memory that are pages of `file`."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split()
        if "-" in fields[0]:
            inside = fields[-1] == str(file)
        elif inside and fields[0] == "Rss:":
            found += 1024 * int(fields[1])
    return found


@pytest.fixture
def weighty(tmp_path: Path) -> Path:
    """model.xml of a product with 16 MiB of weights."""
    weights = np.random.default_rng(3).standard_normal((2048, 2048)).astype(np.float32) / 2048
    x = ov.opset13.parameter([1, 2048], np.float32, name="x")
    model = ov.Model([ov.opset13.matmul(x, ov.opset13.constant(weights), False, False)], [x], "weighty")
    model.inputs[0].set_names({"x"})
    model.outputs[0].set_names({"y"})
    ov.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    return tmp_path / "model.xml"


def test_openvino_gives_the_weights_file_back_and_computes_the_same(weighty: Path) -> None:
    x = np.random.default_rng(4).standard_normal((1, 2048)).astype(np.float32)
    weights = weighty.with_suffix(".bin")
    answers = []
    for told in (None, weights):
        core = the_core()
        model = core.read_model(weighty)
        before = resident(weights)
        variants = ov_variants.Variants(core, model, {}, told)
        answers += [variants.run({"x": x}, ["y"])["y"].copy() for _ in range(3)]
        kept = resident(weights) - before
        assert (kept < 2**20) if told else (kept > 2**23)
    assert all(np.array_equal(answers[0], answer) for answer in answers)


def test_pages_of_a_file_that_nobody_maps_are_nobodys(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(bytes(10))
    assert pages.forget_pages(file) == 0


def test_what_was_freed_between_what_is_used_is_returned() -> None:
    """In a process of its own: what others have freed in this one would count."""
    program = r"""
import ctypes, re
from voxtile_server.backends.openvino.pages import return_freed
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def resident():
    return int(re.search(r"RssAnon:\s+(\d+)", open("/proc/self/status").read())[1]) * 1024
blocks = [libc.malloc(ctypes.c_size_t(16000)) for _ in range(4000)]
for block in blocks:
    ctypes.memset(block, 1, 16000)
for block in blocks[:-1]:  # the last one keeps the heap from shrinking by itself
    libc.free(block)
kept = resident()
return_freed()
assert kept - resident() > 3000 * 16000, (kept, resident())
assert ctypes.string_at(blocks[-1], 16000) == bytes([1]) * 16000
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_openvino_answers_each_sample_as_if_it_were_alone() -> None:
    seen: list[tuple[int, ...]] = []

    def run(inputs: dict[str, Array], outputs: list[str]) -> dict[str, Array]:
        """Overwrites what it gave before, as the real one does."""
        seen.append(inputs["roi"].shape)
        memory[...] = inputs["roi"] * 2 + inputs["offset"]
        return dict.fromkeys(outputs, memory)

    memory = np.zeros((1, 2, 3), np.float32)
    x, offset = np.arange(24, dtype=np.float32).reshape(4, 2, 3), np.arange(4, dtype=np.float32).reshape(4, 1, 1)
    for count in (1, 2, 4):
        answers = batching.one_by_one(run)({"roi": x[:count], "offset": offset[:count]}, ["a", "b"])
        for name in ("a", "b"):
            np.testing.assert_array_equal(answers[name], 2 * x[:count] + offset[:count])
            assert answers[name].dtype == np.float32
    assert set(seen) == {(1, 2, 3)}


def test_openvino_prepares_nothing_where_the_config_is_wrong(variants: Any) -> None:
    variants.prepare(a_contract(inputs=[("other", "TYPE_INT16", ROI)]))
    variants.prepare(a_contract(inputs=[("roi", "TYPE_INT16", (9, 9, 9, 9))]))
    assert variants.compiled == []


# --- in the server -----------------------------------------------------------------------------------


def name_of(engine: str, taken: str, given: str) -> str:
    return f"double_{engine}_{taken}_{given}".lower()


def write_repository(folder: Path) -> None:
    for engine in ENGINES:
        for taken, given_type in TYPES:
            tiny.write_doubling(folder, name_of(engine, taken, given_type), engine, taken, given_type)
        _write_convolution(folder, f"convolution_{engine}", engine)
        _write_scaled(folder, f"scaled_{engine}", engine)
        tiny.write_doubling(folder, f"unbatched_{engine}", engine, max_batch_size=0)
    _write_convolution(folder, "convolution_bf16", "openvino", parameters={"HINT_BF16": "YES"})
    index, found = [("index", "TYPE_INT64", (2,))], [("found", "TYPE_FP32", (2,))]
    tiny.write_entry(folder, tiny.config("lookup", "onnxruntime", index, found, **QUEUE), tiny.lookup())
    tiny.write_entry(
        folder,
        tiny.config("positive", "onnxruntime", [("x", "TYPE_INT64", (4,))], [("kept", "TYPE_INT64", (4,))],
                    max_batch_size=0),
        positive(),
    )  # fmt: skip
    warm = {"roi": {"data_type": "TYPE_INT16", "dims": list(ROI), "random_data": True}}
    tiny.write_ensemble(folder, "public", name_of("openvino", *TYPES[0]), parameters={"card": CARD})
    tiny.write_doubling(
        folder, "warm", "onnxruntime",
        instance_group=[{"count": 2, "kind": "KIND_AUTO"}],
        model_warmup=[{"name": "one", "batch_size": 1, "inputs": warm},
                      {"name": "all", "batch_size": 4, "inputs": warm}],
        optimization=accelerators(gpu=[{"name": "tensorrt"}]),
    )  # fmt: skip


def _write_convolution(folder: Path, name: str, engine: str, **fields: Any) -> None:
    scores = [("scores", "TYPE_FP32", (3, *ROI[1:]))]
    written = tiny.config(name, engine, [("roi", "TYPE_INT16", ROI)], scores, **fields)
    tiny.write_entry(folder, written, tiny.convolution())


def _write_scaled(folder: Path, name: str, engine: str) -> None:
    inputs = [("roi", "TYPE_INT16", ROI), ("intensity", "TYPE_FP32", (1, 2))]
    outputs = [("scores", "TYPE_FP32", ROI), ("mean", "TYPE_FP32", (1,))]
    tiny.write_entry(folder, tiny.config(name, engine, inputs, outputs, **QUEUE), tiny.scaled())


def positive() -> onnx.ModelProto:
    """The values above zero: how many, only the run can tell."""
    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["mask"]),
        helper.make_node("Compress", ["x", "mask"], ["kept"], axis=0),
    ]
    value = helper.make_tensor_value_info
    inside = helper.make_graph(
        nodes,
        "positive",
        [value("x", TensorProto.INT64, [4])],
        [value("kept", TensorProto.INT64, ["some"])],
        [helper.make_tensor("zero", TensorProto.INT64, [], [0])],
    )
    return helper.make_model(inside, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    folder = tmp_path_factory.mktemp("repository")
    write_repository(folder)
    with EmbeddedServer(folder, ServerOptions(threads=1)) as running:
        yield running
        running.kill()  # an orderly end takes Triton seconds, and is tested elsewhere


@pytest.fixture(scope="module")
def client(server: EmbeddedServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc_url) as connected:
        yield connected


def ask(
    client: triton.InferenceServerClient, model: str, outputs: Sequence[str] | None = None, **tensors: Array
) -> dict[str, Array]:
    inputs = []
    for name, array in tensors.items():
        inputs.append(triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    wanted = [triton.InferRequestedOutput(name) for name in outputs] if outputs else None
    result = client.infer(model, inputs, outputs=wanted, client_timeout=60)
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def scan(batch: int, dtype: Any = np.int16, offset: int = 0) -> Array:
    """Values that differ along every axis."""
    return (np.arange(batch * np.prod(ROI)) % 127 + offset).astype(dtype).reshape(batch, *ROI)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("taken", "given_type"), TYPES)
def test_the_declared_types_travel(
    client: triton.InferenceServerClient, engine: str, taken: str, given_type: str
) -> None:
    roi = scan(3, NUMPY[taken])
    scores = ask(client, name_of(engine, taken, given_type), roi=roi)["scores"]
    assert scores.dtype == NUMPY[given_type]
    np.testing.assert_array_equal(scores, (2.0 * roi + 1).astype(NUMPY[given_type]))


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_the_engines_agree_in_fp32(client: triton.InferenceServerClient, batch: int) -> None:
    """Also on a CPU whose bfloat16 OpenVINO would use by itself."""
    by_ort, by_openvino = (ask(client, f"convolution_{engine}", roi=scan(batch))["scores"] for engine in ENGINES)
    assert by_ort.shape == (batch, 3, *ROI[1:])
    np.testing.assert_allclose(by_openvino, by_ort, atol=FP32_TOLERANCE)


def test_bfloat16_is_used_where_the_config_says_so(client: triton.InferenceServerClient) -> None:
    exact = ask(client, "convolution_openvino", roi=scan(2))["scores"]
    rough = ask(client, "convolution_bf16", roi=scan(2))["scores"]
    np.testing.assert_allclose(rough, exact, atol=BF16_TOLERANCE)
    has_bf16 = "BF16" in the_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert bool(np.abs(rough - exact).max() > 10 * FP32_TOLERANCE) == has_bf16


@pytest.mark.parametrize("engine", ENGINES)
def test_queued_requests_are_run_together_and_come_apart_again(
    client: triton.InferenceServerClient, engine: str
) -> None:
    """Batches of different sizes, each with its own intensity figures."""
    model = f"scaled_{engine}"
    sizes = [1, 2, 1, 1, 3, 1, 2, 1, 1, 1]
    rois = [scan(size, offset=10 * number) for number, size in enumerate(sizes)]
    figures = [np.full((size, 1, 2), (number, number + 1), np.float32) for number, size in enumerate(sizes)]
    with ThreadPoolExecutor(len(sizes)) as pool:
        answers = list(pool.map(lambda pair: ask(client, model, roi=pair[0], intensity=pair[1]),
                                zip(rois, figures, strict=True)))  # fmt: skip
    for number, (roi, tensors) in enumerate(zip(rois, answers, strict=True)):
        expected = ((roi - np.float32(number)) / np.float32(number + 1)).astype(np.float32)
        np.testing.assert_allclose(tensors["scores"], expected, rtol=1e-6)
        np.testing.assert_allclose(tensors["mean"], expected.mean(axis=(2, 3, 4)), rtol=1e-5)
    statistics = client.get_inference_statistics(model, as_json=True)["model_stats"][0]
    assert int(statistics["execution_count"]) < int(statistics["inference_stats"]["success"]["count"])


@pytest.mark.parametrize("engine", ENGINES)
def test_requested_outputs_are_honoured(client: triton.InferenceServerClient, engine: str) -> None:
    figures = np.full((1, 1, 2), (3, 2), np.float32)
    tensors = ask(client, f"scaled_{engine}", ["mean"], roi=scan(1), intensity=figures)
    assert list(tensors) == ["mean"]
    np.testing.assert_allclose(tensors["mean"], (scan(1).mean(axis=(2, 3, 4)) - 3) / 2, rtol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_without_a_batch_axis(client: triton.InferenceServerClient, engine: str) -> None:
    roi = scan(1)[0]
    np.testing.assert_array_equal(ask(client, f"unbatched_{engine}", roi=roi)["scores"], 2.0 * roi + 1)


def test_a_bad_request_fails_alone(client: triton.InferenceServerClient) -> None:
    """Six requests queue for one execution; the fourth has an index that is in no table."""
    rows = [np.array([[number % 5, 4]]) for number in range(6)]
    rows[3] = np.array([[0, 99]])

    def outcome(row: Array) -> Any:
        try:
            return ask(client, "lookup", index=row)["found"]
        except InferenceServerException as error:
            return error.message()

    with ThreadPoolExecutor(len(rows)) as pool:
        outcomes = list(pool.map(outcome, rows))
    assert "model 'lookup': " in outcomes[3]
    assert "out of data bounds" in outcomes[3]
    for row, found in [*zip(rows, outcomes, strict=True)][:3] + [*zip(rows, outcomes, strict=True)][4:]:
        np.testing.assert_array_equal(found, 10.0 * row)


def test_an_answer_of_the_wrong_shape_is_an_error(client: triton.InferenceServerClient) -> None:
    whole = np.array([3, 1, 4, 1])
    np.testing.assert_array_equal(ask(client, "positive", x=whole)["kept"], whole)
    with pytest.raises(InferenceServerException, match=r"expected int64 \[4\], the engine gave int64 \[2\]"):
        ask(client, "positive", x=np.array([3, 0, 4, 0]))


def test_the_card_travels_in_the_public_entry(client: triton.InferenceServerClient) -> None:
    parameters = client.get_model_config("public").config.parameters
    assert json.loads(parameters["card"].string_value) == json.loads(CARD)
    np.testing.assert_array_equal(ask(client, "public", roi=scan(4))["scores"], 2.0 * scan(4) + 1)


def test_warm_up_instances_and_accelerators_are_honoured(
    server: EmbeddedServer, client: triton.InferenceServerClient
) -> None:
    np.testing.assert_array_equal(ask(client, "warm", roi=scan(2))["scores"], 2.0 * scan(2) + 1)
    log = server.log_file.read_text()
    assert log.count("TRITONBACKEND_ModelInstanceInitialize: warm_") == 2
    assert "warm: gpu_execution_accelerator 'tensorrt' is not available here; left out" in log


def test_system_shared_memory_carries_tensors(server: EmbeddedServer, client: triton.InferenceServerClient) -> None:
    roi = scan(4)
    size = roi.nbytes + 2 * roi.nbytes
    region = shared_memory.create_shared_memory_region("tensors", "/voxtile_test_backends", size)
    try:
        shared_memory.set_shared_memory_region(region, [roi])
        client.register_system_shared_memory("tensors", "/voxtile_test_backends", size, headers=server.key_header)
        taken = triton.InferInput("roi", roi.shape, "INT16")
        taken.set_shared_memory("tensors", roi.nbytes)
        given_back = triton.InferRequestedOutput("scores")
        given_back.set_shared_memory("tensors", 2 * roi.nbytes, offset=roi.nbytes)
        client.infer("public", [taken], outputs=[given_back])
        scores = shared_memory.get_contents_as_numpy(region, np.float32, roi.shape, offset=roi.nbytes)
        np.testing.assert_array_equal(scores, 2.0 * roi + 1)
    finally:
        client.unregister_system_shared_memory("tensors", headers=server.key_header)
        shared_memory.destroy_shared_memory_region(region)


def test_the_stub_runs_on_numpy_1(server: EmbeddedServer) -> None:
    """Under NumPy 2 every answer would be empty; the stub must not find another one by accident."""
    log = server.log_file.read_text()
    assert "NumPy" not in log
    [mapped] = {
        line.split()[-1].split("/numpy/")[0]
        for stub in Path("/proc").glob("[0-9]*/cmdline")
        if b"triton_python_backend_stub" in _read(stub) and str(server.pid).encode() in _read(stub)
        for line in _read(stub.with_name("maps")).decode().splitlines()
        if "_multiarray_umath" in line
    }
    assert Path(mapped).name.startswith("engines-")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # a process that has ended meanwhile
        return b""


ECHO = """
from ..contract import Contract, InGraph
from ..entry import Entry, Loaded
from ..serving import PythonModel


class TritonPythonModel(PythonModel):
    def load(self, entry: Entry, contract: Contract) -> Loaded:
        x, y = (InGraph(t.name, t.type_name, (-1, *t.dims)) for t in (*contract.inputs, *contract.outputs))
        return Loaded(lambda inputs, outputs: {"y": inputs["x"]}, [x], [y])
"""


def test_a_new_backend_is_one_folder(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = shutil.copytree(layout.OURS, tmp_path / "backends")
    (ours / "echo").mkdir()
    (ours / "echo" / "__init__.py").touch()
    (ours / "echo" / "model.py").write_text(ECHO)
    monkeypatch.setattr(layout, "OURS", ours)
    for fetched in (fetch.fetch_triton(cache), fetch.fetch_engines(cache)):
        (tmp_path / "cache").mkdir(exist_ok=True)
        (tmp_path / "cache" / fetched.name).symlink_to(fetched)
    tiny.write_entry(
        tmp_path / "models", tiny.config("same", "echo", [("x", "TYPE_FP32", (3,))], [("y", "TYPE_FP32", (3,))])
    )
    with EmbeddedServer(tmp_path / "models", ServerOptions(cache=tmp_path / "cache")) as server:
        with triton.InferenceServerClient(server.grpc_url) as client:
            x = np.ones((2, 3), np.float32)
            np.testing.assert_array_equal(ask(client, "same", x=x)["y"], x)
        server.kill()
