"""The exported file is what every server reads: right names, free batch, no traces of the machine, the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from tests.support.build_specs import ROI, spec, tiny_unet
from tests.support.exporting import exported_afresh
from voxtile_build.errors import ExportError
from voxtile_build.graph.torch_to_onnx import IR_VERSION, OPSET, checked, export, save
from voxtile_build.graph.wrapper import Wrapper, example_inputs, input_names
from voxtile_build.hashing import file_sha256
from voxtile_build.spec.input import PADDING

ZSCORE = {"dtype": "int16", "intensity": {"rule": "zscore"}}
# fp32 sums in another order differ by this much in logits of about 1.
CLOSE = 1e-4
HALF_CLOSE = 2e-3


def wrapped(**changes: Any) -> tuple[Wrapper, Any]:
    chosen = spec(**changes)
    return Wrapper(tiny_unet(), chosen).eval(), chosen


def exported(**changes: Any) -> onnx.ModelProto:
    module, chosen = wrapped(**changes)
    return export(module, example_inputs(chosen, 2), input_names=input_names(chosen))


@pytest.fixture(scope="module", autouse=True)
def _afresh() -> Iterator[None]:
    with exported_afresh():
        yield


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return exported(input=ZSCORE)


def test_names_opset_and_ir_are_those_of_the_oldest_server(model: onnx.ModelProto) -> None:
    assert [value.name for value in model.graph.input] == ["roi", "intensity"]
    assert [value.name for value in model.graph.output] == ["scores"]
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": OPSET}
    assert model.ir_version == IR_VERSION == 10


def test_the_batch_is_free_and_all_else_fixed(model: onnx.ModelProto) -> None:
    for value, rest in zip((*model.graph.input, *model.graph.output), ([1, *ROI], [1, 2], [3, *ROI]), strict=True):
        batch, *others = value.type.tensor_type.shape.dim
        assert batch.dim_param
        assert [axis.dim_value for axis in others] == rest


def test_every_tensor_has_its_shape_inferred(model: onnx.ModelProto) -> None:
    known = {value.name for value in (*model.graph.value_info, *model.graph.output)}
    assert {name for node in model.graph.node for name in node.output if name} <= known


def test_nothing_of_this_machine_is_in_the_file(model: onnx.ModelProto) -> None:
    content = model.SerializeToString()
    for trace in (str(Path.cwd()), str(Path(torch.__file__).parents[1]), "site-packages", "forward", torch.__version__):
        assert trace.encode() not in content


def test_the_same_network_gives_the_same_bytes(model: onnx.ModelProto) -> None:
    assert exported(input=ZSCORE).SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


CASES = [
    {},
    {"input": ZSCORE},
    {"input": {"dtype": "fp16", "intensity": {"rule": "range", "a_min": -10.0, "a_max": 20.0}}},
    {"input": {"intensity": {"rule": "fixed", "mean": [1.0], "std": [4.0], "lower": [-3.0], "upper": [9.0]}}},
    {"input": {"intensity": {"rule": "percentile", "lower": 1.0, "upper": 99.0, "clip": True}}},
    {"output": {"scores": "probabilities", "dtype": "uint8"}},
    {"output": {"scores": "probabilities", "dtype": "fp16", "regions": True}},
    {"output": {"scores": "foreground", "foreground": "two"}},
    {"output": {"scores": "labels", "dtype": "uint8"}},
]


@pytest.fixture(scope="module", params=CASES, ids=lambda changes: str(changes)[:60])
def case(request: pytest.FixtureRequest) -> tuple[Wrapper, Any, bytes]:
    """The module, its spec, and its graph, exported once for all batches."""
    module, chosen = wrapped(**request.param)
    model = export(module, example_inputs(chosen, 2), input_names=input_names(chosen))
    return module, chosen, model.SerializeToString()


@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_runtime_gives_what_pytorch_gives(case: tuple[Wrapper, Any, bytes], batch: int) -> None:
    module, chosen, content = case
    inputs = [value.clone() for value in example_inputs(chosen, batch)]
    values = torch.from_numpy(np.random.default_rng(batch).integers(-40, 90, inputs[0].shape))
    inputs[0] = values.to(inputs[0].dtype)
    inputs[0][..., -2:] = PADDING[chosen.input.dtype]
    if len(inputs) == 2:
        inputs[1] = torch.tensor([[[5.0, 12.0]]] * batch)
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = session.run(None, dict(zip(input_names(chosen), [value.numpy() for value in inputs], strict=True)))[0]
    with torch.inference_mode():
        expected = module(*inputs).numpy()
    assert found.dtype == expected.dtype
    if found.dtype == np.uint8:
        # A value that lies on the edge of two steps may fall to either side.
        assert np.mean(found != expected) < 1e-3
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1 or chosen.output.scores == "labels"
    else:
        close = CLOSE if found.dtype == np.float32 else HALF_CLOSE
        np.testing.assert_allclose(found, expected, rtol=close, atol=close)


def test_examples_with_a_batch_of_one_are_refused() -> None:
    module, chosen = wrapped()
    with pytest.raises(ExportError, match="batch of 2 or more"):
        export(module, example_inputs(chosen, 1))


class BatchInShape(nn.Module):
    """Mixes voxels of different tiles, as no exported network may."""

    def forward(self, roi: torch.Tensor) -> torch.Tensor:
        return roi.reshape(4, -1, *roi.shape[2:])


class Branching(nn.Module):
    """Looks at values to decide what to do, which cannot be traced."""

    def forward(self, roi: torch.Tensor) -> torch.Tensor:
        return roi if bool(roi.sum() > 0) else -roi


@pytest.mark.parametrize("network", [BatchInShape(), Branching()])
def test_a_network_that_cannot_be_exported_is_refused(network: nn.Module) -> None:
    with pytest.raises(ExportError, match=type(network).__name__):
        export(network, [torch.zeros(2, 4, 4, 4)])


def test_a_graph_that_is_not_valid_is_refused(model: onnx.ModelProto) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    broken.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ExportError, match="not valid ONNX"):
        checked(broken)


def test_a_small_model_is_one_file(tmp_path: Path, model: onnx.ModelProto) -> None:
    files = save(model, tmp_path / "model.onnx")
    assert files == (tmp_path / "model.onnx",)
    assert onnx.load(files[0]) == model


def test_large_weights_go_to_a_file_beside_it_that_moves_along(tmp_path: Path, model: onnx.ModelProto) -> None:
    first = tmp_path / "first"
    first.mkdir()
    files = save(model, first / "model.onnx", inline_limit=1000)
    again = save(model, first / "model.onnx", inline_limit=1000)
    assert [file.name for file in files] == ["model.onnx", "model.onnx.data"]
    assert file_sha256(*files) == file_sha256(*again)
    assert str(tmp_path).encode() not in files[0].read_bytes()
    moved = first.rename(tmp_path / "second")
    onnx.checker.check_model(str(moved / "model.onnx"))
    inputs = {"roi": np.ones((1, 1, *ROI), np.int16), "intensity": np.ones((1, 1, 2), np.float32)}
    plain = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, inputs)[0]
    found = ort.InferenceSession(str(moved / "model.onnx"), providers=["CPUExecutionProvider"]).run(None, inputs)[0]
    np.testing.assert_array_equal(found, plain)
    assert not model.graph.initializer[0].HasField("data_location")  # the caller's graph is untouched
