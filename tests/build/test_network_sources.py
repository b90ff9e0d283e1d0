"""A network by file — ONNX, TorchScript, torch.export — serves what the file itself says; a bad file leaves nothing."""

from __future__ import annotations

import copy
import json
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from monai.networks.nets import BasicUNetPlusPlus, SegResNet, SwinUNETR
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

from tests.support.build_specs import ROI, fields, tiny_unet
from tests.support.network_files import (
    KINDS,
    NAMES,
    Write,
    repacked,
    sha256,
    spec_of,
    tiny,
    write_exported,
    write_onnx,
    write_traced,
)
from voxtile_build.build import build
from voxtile_build.errors import BuildError, ExportError, NetworkError, SpecError, WeightsError
from voxtile_build.graph.composing import to_onnx
from voxtile_build.graph.wrapper import wrap
from voxtile_build.importers.files.onnx_opset import at_opset
from voxtile_build.importers.files.torchscript_file import TOLERANCE, open_torchscript, require_same
from voxtile_build.importers.network import load_network
from voxtile_build.networks.float64 import in_float64
from voxtile_build.spec.spec import Spec, parse_spec

SUM_ORDER = 2e-5
"""Of the largest score: another exporter writes the same sums in another order."""


def rois(batch: int) -> torch.Tensor:
    values = torch.rand(batch, 1, *ROI, generator=torch.Generator().manual_seed(batch)) * 2
    values[:, :, -2:] = torch.finfo(torch.float32).min
    return values


def run(model: ModelProto, roi: torch.Tensor) -> NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(["scores"], {"roi": roi.numpy()})[0]
    return found


def entries(repository: Path) -> list[str]:
    return sorted(path.name for path in repository.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_of_a_file_is_the_wrapped_network(name: str, tmp_path: Path) -> None:
    network = tiny_unet()
    spec = spec_of(tiny(tmp_path / name))
    expected = wrap(network, spec)
    found = wrap(load_network(spec), spec)
    graph = to_onnx(found, spec)
    for batch in (1, 2, 5):
        with torch.inference_mode():
            scores = expected(rois(batch)).numpy()
            np.testing.assert_allclose(
                found(rois(batch)).numpy(), scores, rtol=0, atol=SUM_ORDER * np.abs(scores).max()
            )
        np.testing.assert_allclose(run(graph, rois(batch)), scores, rtol=0, atol=SUM_ORDER * np.abs(scores).max())


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_published_with_its_own_certificate(name: str, tmp_path: Path) -> None:
    file = tiny(tmp_path / name)
    published = build(spec_of(file), tmp_path / "models")
    assert published.entries == ("tiny_onnxruntime", "tiny_openvino", "tiny")
    assert published.card.provenance.network == name
    assert published.card.provenance.weights_sha256 == sha256(file)
    for engine in ("onnxruntime", "openvino"):
        certificate = json.loads((tmp_path / f"models/tiny_{engine}/1/certificate.json").read_text())
        assert certificate["accepted"]
        assert certificate["hashes"]["weights"] == sha256(file)


def test_the_weights_of_an_onnx_file_stay_as_they_are(tmp_path: Path) -> None:
    file = tiny(tmp_path / "net.onnx")
    spec = spec_of(file)
    graph = to_onnx(wrap(load_network(spec), spec), spec).graph
    given = {numpy_helper.to_array(tensor).tobytes() for tensor in onnx.load(file).graph.initializer}
    assert given
    assert given <= {numpy_helper.to_array(tensor).tobytes() for tensor in graph.initializer}


@pytest.mark.parametrize(
    "changes",
    [
        {"input": {"intensity": {"rule": "zscore"}, "dtype": "int16"}},
        {"output": {"scores": "foreground", "foreground": "two", "dtype": "uint8"}},
        {"output": {"scores": "labels", "dtype": "uint8"}},
        {"output": {"regions": True, "scores": "probabilities", "dtype": "fp16"}},
    ],
    ids=["zscore", "foreground", "labels", "regions"],
)
def test_every_rule_and_score_goes_around_a_file_too(changes: dict[str, Any], tmp_path: Path) -> None:
    network = tiny_unet()
    spec = spec_of(write_onnx(network, tmp_path / "net.onnx"), **changes)
    graph = to_onnx(wrap(load_network(spec), spec), spec)
    roi = (rois(2).clamp(min=0) * 100).to(torch.int16 if spec.input.dtype == "int16" else torch.float32)
    inputs = {"roi": roi, "intensity": torch.tensor([[[80.0, 40.0]], [[90.0, 30.0]]])}
    names = [value.name for value in graph.graph.input]
    assert names == (["roi", "intensity"] if spec.whole_scan_intensity else ["roi"])
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(["scores"], {name: inputs[name].numpy() for name in names})[0]
    with torch.inference_mode():
        expected = wrap(network, spec)(*(inputs[name] for name in names)).numpy()
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    far = np.abs(found.astype(np.float64) - expected) > (1 if found.dtype == np.uint8 else 1e-3)
    assert far.mean() <= 1e-3


def test_a_program_of_a_fixed_batch_is_served_one_by_one_and_no_more(tmp_path: Path) -> None:
    file = write_exported(tiny_unet(), tmp_path / "net.pt2", batch=1)
    with pytest.raises(
        NetworkError, match=r"net.pt2: serving.max_batch_size: the file takes a batch of 1 .*found max_batch_size 2"
    ):
        build(spec_of(file), tmp_path / "models")
    published = build(spec_of(file, serving={"max_batch_size": 1}), tmp_path / "models")
    assert published.card.certificates["onnxruntime"].accepted


def test_an_onnx_file_of_a_fixed_batch_of_several_is_refused(tmp_path: Path) -> None:
    file = tiny(tmp_path / "net.onnx")
    model = onnx.load(file)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, file)
    with pytest.raises(
        NetworkError, match="takes a batch of 2 and no other, found max_batch_size 2; export the network again"
    ):
        load_network(spec_of(file))


def test_sizes_left_open_in_the_file_become_those_of_the_roi(tmp_path: Path) -> None:
    file = tiny(tmp_path / "net.onnx")
    model = onnx.load(file)
    for value in (*model.graph.input, *model.graph.output):
        for axis, name in zip(value.type.tensor_type.shape.dim[2:], "xyz", strict=True):
            axis.dim_param = name
    del model.graph.value_info[:]
    onnx.save(model, file)
    spec = spec_of(file, tiling={"roi_size": [8, 8, 8]})
    graph = to_onnx(wrap(load_network(spec), spec), spec).graph
    shapes = [
        [axis.dim_param or axis.dim_value for axis in v.type.tensor_type.shape.dim]
        for v in (*graph.input, *graph.output)
    ]
    assert shapes == [["batch", 1, 8, 8, 8], ["batch", 3, 8, 8, 8]]


@pytest.mark.parametrize("opset", [18, 21, 23])
def test_another_opset_is_brought_to_the_one_that_servers_read(opset: int, tmp_path: Path) -> None:
    network = tiny_unet()
    file = write_onnx(network, tmp_path / "net.onnx", opset, ir_version=11)
    spec = spec_of(file)
    graph = to_onnx(wrap(load_network(spec), spec), spec)
    assert [entry.version for entry in graph.opset_import] == [20]
    assert graph.ir_version == 10
    with torch.inference_mode():
        expected = wrap(network, spec)(rois(2)).numpy()
    np.testing.assert_allclose(run(graph, rois(2)), expected, rtol=0, atol=SUM_ORDER * np.abs(expected).max())


def test_an_operator_that_the_opset_lacks_is_refused_by_name(tmp_path: Path) -> None:
    axes: list[str | int | None] = ["batch", 1, *ROI]
    image, scores = (helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name in "xy")
    nodes = [helper.make_node("Swish", ["x"], ["y"])]
    graph = helper.make_graph(nodes, "g", [image], [scores])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    with pytest.raises(ExportError, match=r"net.onnx: expected a graph that can be written in opset 20.*Swish"):
        at_opset(model, 20, "net.onnx", {"x": np.zeros((1, 1, *ROI), np.float32)})


class Several(nn.Module):
    """Three outputs, each another multiple."""

    def __init__(self) -> None:
        super().__init__()
        self.network = tiny_unet()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scores = self.network(x)
        return scores, scores * 2, scores * 3


@pytest.mark.parametrize(("write", "name"), KINDS[1:])
@pytest.mark.parametrize(("head", "factor"), [(0, 1.0), (-1, 3.0)])
def test_the_head_is_chosen_and_never_guessed(
    write: Write, name: str, head: int, factor: float, tmp_path: Path
) -> None:
    several = Several().eval()
    file = write(several, tmp_path / name)
    with pytest.raises(NetworkError, match=r"network.head: missing; the network gives 3 outputs"):
        wrap(load_network(spec_of(file)), spec_of(file))
    with pytest.raises(NetworkError, match=r"network.head: expected one of the network's 3 outputs, 0 … 2, found 3"):
        wrap(load_network(spec_of(file, head=3)), spec_of(file, head=3))
    spec = spec_of(file, head=head)
    graph = to_onnx(wrap(load_network(spec), spec), spec)
    with torch.inference_mode():
        expected = factor * wrap(several.network, spec)(rois(2)).numpy()
    np.testing.assert_allclose(run(graph, rois(2)), expected, rtol=0, atol=SUM_ORDER * np.abs(expected).max())


def test_the_head_of_a_network_by_name_is_chosen(tmp_path: Path) -> None:
    torch.manual_seed(0)
    args = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "features": [4] * 6, "deep_supervision": True}
    network = BasicUNetPlusPlus(**args).eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    given = fields(
        network={"name": "BasicUNetPlusPlus", "args": args},
        weights={"file": "w.safetensors", "sha256": sha256(tmp_path / "w.safetensors")},
        tiling={"roi_size": [32, 32, 32]},
    )
    image = torch.rand(1, 1, 32, 32, 32)
    for head in (0, 3, -1):
        given["network"]["head"] = head
        spec = parse_spec(given, "tiny.toml", tmp_path)
        with torch.inference_mode():
            torch.testing.assert_close(load_network(spec)(image), network(image)[head], rtol=0, atol=0)
    del given["network"]["head"]
    spec = parse_spec(given, "tiny.toml", tmp_path)
    with pytest.raises(NetworkError, match=r"found 4; choose one with network.head"):
        wrap(load_network(spec), spec)


class Runs:
    """Unpickled, it leaves a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def same(_: str, data: bytes) -> bytes:
    return data


def pickled(folder: Path) -> bytes:
    return pickle.dumps(Runs(folder / "ran"))


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-700])
    return path


def bad_pt_pickle(folder: Path) -> Path:
    torch.save({"a": Runs(folder / "ran")}, folder / "net.pt")
    return folder / "net.pt"


def bad_pt2_weights(folder: Path) -> Path:
    path = tiny(folder / "net.pt2")

    def change(name: str, data: bytes) -> bytes:
        if name.endswith("weights/weight_0"):
            return pickled(folder)
        return data.replace(b'"use_pickle": false', b'"use_pickle": true') if name.endswith("_config.json") else data

    return repacked(path, change)


def bad_pt2_object(folder: Path) -> Path:
    return repacked(tiny(folder / "net.pt2"), same, {"data/constants/custom_obj_0": pickled(folder)})


def bad_pt2_library(folder: Path) -> Path:
    return repacked(tiny(folder / "net.pt2"), same, {"data/aotinductor/model/x.so": b"\x7fELF"})


def bad_pt2_size(folder: Path) -> Path:
    """Sizes are read by sympy, which evaluates them."""
    code = f"__import__('os').mkdir('{folder / 'ran'}')"

    def change(name: str, data: bytes) -> bytes:
        if "/models/" not in name:
            return data
        parsed = json.loads(data)

        def put(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: code if key == "expr_str" else put(part) for key, part in value.items()}
            return [put(part) for part in value] if isinstance(value, list) else value

        return json.dumps(put(parsed)).encode()

    return repacked(tiny(folder / "net.pt2"), change)


def bad_pt2_operator(folder: Path) -> Path:
    def change(name: str, data: bytes) -> bytes:
        return data.replace(b"torch.ops.aten.conv3d.default", b"torch.hub.load") if "/models/" in name else data

    return repacked(tiny(folder / "net.pt2"), change)


def bad_onnx_truncated(folder: Path) -> Path:
    return truncated(tiny(folder / "net.onnx"))


def bad_onnx_external(folder: Path) -> Path:
    file = tiny(folder / "net.onnx")
    onnx.save(onnx.load(file), file, save_as_external_data=True, location="net.data", size_threshold=16)
    return file


def onnx_changed(folder: Path, change: Callable[[ModelProto], Any]) -> Path:
    file = tiny(folder / "net.onnx")
    model = onnx.load(file)
    change(model)
    file.write_bytes(model.SerializeToString())
    return file


def bad_onnx_operator(folder: Path) -> Path:
    def change(model: ModelProto) -> None:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        model.graph.node[0].domain = "com.microsoft"
        model.graph.node[0].op_type = "FusedConv"

    return onnx_changed(folder, change)


def bad_onnx_inputs(folder: Path) -> Path:
    extra = helper.make_tensor_value_info("age", TensorProto.FLOAT, ["b", 1])
    return onnx_changed(folder, lambda model: model.graph.input.append(extra))


def bad_onnx_type(folder: Path) -> Path:
    def change(model: ModelProto) -> None:
        nodes = [helper.make_node("Cast", ["x"], ["x32"], to=TensorProto.FLOAT)]
        for node in model.graph.node:
            node.input[:] = ["x32" if name == "x" else name for name in node.input]
        nodes += list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16

    return onnx_changed(folder, change)


def bad_kind(folder: Path) -> Path:
    (folder / "net.h5").write_bytes(b"\x89HDF")
    return folder / "net.h5"


def bad_two_dimensions(folder: Path) -> Path:
    axes: list[str | int | None] = ["b", 1, 8, 8]
    image, scores = (helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [image], [scores])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    return folder / "net.onnx"


REFUSED: list[Any] = [
    (bad_onnx_truncated, {}, "net.onnx: expected a whole ONNX file, found a damaged one"),
    (bad_onnx_external, {}, "expected one file with the weights inside"),
    (bad_onnx_operator, {}, "found com.microsoft.FusedConv"),
    (bad_onnx_inputs, {}, r"expected one input, the image, found \['x', 'age'\]"),
    (bad_onnx_type, {}, "of type float .*found 'x' of type float16"),
    (bad_two_dimensions, {}, "3 spatial axes as inferer.roi_size has, found .*1, 8, 8"),
    (bad_kind, {}, "network.file: expected one of .onnx, .pt, .ts, .pt2, found '.h5'"),
    (bad_pt_pickle, {}, "net.pt: expected TorchScript .*found a pickle of torch.save"),
    (lambda folder: truncated(tiny(folder / "net.pt")), {}, "found a truncated file"),
    (lambda folder: truncated(tiny(folder / "net.pt2")), {}, "net.pt2: .*truncated"),
    (bad_pt2_weights, {}, "with pickled tensors; it could run code"),
    (bad_pt2_object, {}, "custom_obj_0', which is not part of an exported network; it could run code"),
    (bad_pt2_library, {}, "x.so', which is not part of an exported network"),
    (bad_pt2_size, {}, "found the size .*__import__.*it could run code"),
    (bad_pt2_operator, {}, "found the operator torch.hub.load"),
    (
        lambda folder: tiny(folder / "net.onnx"),
        {"output": {"labels": ["background", "one"]}},
        r"output.labels: expected the network to give \[1, 2, 16, 8, 12\].*found \[1, 3, 16, 8, 12\]",
    ),
    (
        lambda folder: tiny(folder / "net.pt2"),
        {"output": {"labels": ["a", "b", "c", "d"]}},
        r"output.labels: expected the network to give \[1, 4",
    ),
    (
        lambda folder: tiny(folder / "net.onnx"),
        {"tiling": {"roi_size": [16, 16, 16]}},
        r"inferer.roi_size: the network takes \[16, 8, 12\] voxels, found \[16, 16, 16\]",
    ),
    (
        lambda folder: tiny(folder / "net.onnx"),
        {"input": {"channels": ["T1", "T2"]}},
        "the network takes 1 channels, but input.channels names 2",
    ),
]


@pytest.mark.parametrize(("write", "changes", "expected"), REFUSED)
def test_a_bad_file_is_refused_by_name_and_leaves_nothing(
    write: Callable[[Path], Path], changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    spec = spec_of(write(tmp_path), **changes)
    with pytest.raises(BuildError, match=expected):
        build(spec, tmp_path / "models")
    assert entries(tmp_path / "models") == []
    assert not (tmp_path / "ran").exists(), "the file's code ran"
    assert not list(tmp_path.glob(".models.building/*"))


def by_name(folder: Path, weights: Path) -> Spec:
    given = fields(weights={"file": weights.name, "sha256": sha256(weights)})
    return parse_spec(given, "tiny.toml", folder)


def test_a_wrong_state_dict_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    save_file(SegResNet(3, 8, 1, 3).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"w.safetensors: the weights do not fit the network.*missing.*unexpected"):
        build(by_name(tmp_path, tmp_path / "w.safetensors"), tmp_path / "models")
    assert entries(tmp_path / "models") == []


def test_a_pickle_with_code_as_weights_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Runs(tmp_path / "ran")}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"w.pt: expected tensors only, found a pickle with other .*could run code"):
        build(by_name(tmp_path, tmp_path / "w.pt"), tmp_path / "models")
    assert not (tmp_path / "ran").exists()
    assert entries(tmp_path / "models") == []


def test_what_was_published_before_stays_when_a_bad_file_follows(tmp_path: Path) -> None:
    good = spec_of(tiny(tmp_path / "net.onnx"))
    build(good, tmp_path / "models", engines=["onnxruntime"])
    before = {path: path.read_bytes() for path in (tmp_path / "models").rglob("*") if path.is_file()}
    with pytest.raises(NetworkError):
        build(spec_of(bad_onnx_truncated(tmp_path)), tmp_path / "models")
    assert {path: path.read_bytes() for path in (tmp_path / "models").rglob("*") if path.is_file()} == before


def test_another_file_than_the_one_that_was_meant_is_refused(tmp_path: Path) -> None:
    spec = spec_of(tiny(tmp_path / "net.onnx"))
    write_onnx(tiny_unet(seed=6), tmp_path / "net.onnx")
    with pytest.raises(WeightsError, match=r"net.onnx: expected sha256 .*correct network.sha256"):
        load_network(spec)
    (tmp_path / "net.onnx").unlink()
    with pytest.raises(WeightsError, match=r"net.onnx: cannot be read .*check network.file"):
        load_network(spec)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ({}, "either name, with args, or file, with sha256, found neither"),
        ({"name": "UNet", "file": "n.onnx", "sha256": "0" * 64}, "found both"),
        ({"file": "n.onnx"}, "file and sha256 go together"),
        ({"name": "UNet", "sha256": "0" * 64}, "file and sha256 go together"),
        ({"file": "n.onnx", "sha256": "0" * 64, "args": {"a": 1}}, r"args \['a'\] are those of a network by name"),
        ({"name": "UNet", "head": "last"}, "network.head: .*whole number"),
    ],
)
def test_a_network_has_one_source(network: dict[str, Any], expected: str) -> None:
    given = fields()
    given["network"] = network
    with pytest.raises(SpecError, match=expected):
        parse_spec(given, "tiny.toml", Path())


def test_a_file_takes_no_weights_beside_it() -> None:
    given = fields(weights={"file": "w.safetensors", "sha256": "0" * 64})
    given["network"] = {"file": "n.onnx", "sha256": "0" * 64}
    with pytest.raises(SpecError, match=r"\[weights\] belongs to a network by name"):
        parse_spec(given, "tiny.toml", Path())


class Residual(nn.Module):
    """Residual blocks with instance norms far from zero, softmax inside: fp32 itself is off by about 0.001."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 3, 1)
        self.blocks = nn.ModuleList(nn.Conv3d(8, 8, 3, padding=1) for _ in range(3))
        with torch.no_grad():
            self.stem.bias.add_(3000.0)  # type: ignore[operator, union-attr]
            self.head.weight.mul_(8)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        values = self.stem(image)
        for block in self.blocks:
            values = torch.relu(values + nn.functional.instance_norm(block(values)))
        logits: torch.Tensor = self.head(nn.functional.instance_norm(values))
        return torch.softmax(logits, 1)


def residual(folder: Path) -> tuple[nn.Module, Path]:
    torch.manual_seed(1)
    network = Residual().eval()
    return network, write_traced(network, folder / "net.pt", ROI)


def test_where_pytorch_itself_is_off_by_more_torchscript_may_be_too(tmp_path: Path) -> None:
    network, file = residual(tmp_path)
    image = torch.randn(3, 1, *ROI, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        own = (network(image).double() - in_float64(network, image)).abs().max()
    assert own > 3 * TOLERANCE  # else this test says nothing
    assert [published.split("_")[0] for published in build(spec_of(file), tmp_path / "models").entries] == ["tiny"] * 3


def test_another_network_is_told_from_rounding(tmp_path: Path) -> None:
    """The graph has one weight in a thousand wrong; rounding is as large as the usual limit."""
    _, file = residual(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript as such
        module = torch.jit.load(str(file)).eval()
    right = open_torchscript(file, file.read_bytes()).to_onnx((1, *ROI), 20, None)
    wrong = ModelProto.FromString(right.SerializeToString())
    constants = [node.attribute[0].t for node in wrong.graph.node if node.op_type == "Constant"]
    tensor = max(constants, key=lambda one: np.prod(one.dims))
    values = numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[::1000] *= -3
    tensor.CopyFrom(numpy_helper.from_array(values))
    require_same(file, module, right, (1, *ROI), None)
    with pytest.raises(ExportError, match="gives other results"):
        require_same(file, module, wrong, (1, *ROI), None)


@pytest.mark.parametrize("slab", [1, 2**40])
def test_float64_is_pytorchs_own_in_any_slabs(slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxtile_build.networks.float64.COLUMN_BYTES", slab)
    torch.manual_seed(2)
    network = nn.Sequential(
        nn.Conv3d(2, 4, (3, 5, 3), stride=(2, 1, 1), padding=(1, 2, 0), dilation=(2, 1, 1)),
        nn.InstanceNorm3d(4),
        nn.Conv3d(4, 4, 3, padding=1, groups=2, bias=False),
        nn.ConvTranspose3d(4, 2, 2, 2),
    )
    image = torch.randn(2, 2, 11, 9, 8)
    with torch.no_grad():
        expected = copy.deepcopy(network).double()(image.double())
    torch.testing.assert_close(in_float64(network, image), expected, rtol=0, atol=1e-12)
    assert next(network.parameters()).dtype == torch.float32


def test_a_network_that_names_its_type_has_no_float64() -> None:
    class Single(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.float() * 2

    assert in_float64(Single(), torch.zeros(1, 1, 2, 2, 2)) is None


def test_a_traced_swin_transformer_is_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = SwinUNETR(1, 3, feature_size=12, spatial_dims=2, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)).eval()
    spec = spec_of(write_traced(network, tmp_path / "net.pt", (64, 64)), tiling={"roi_size": [64, 64], "slice_axis": 1})
    graph = to_onnx(wrap(load_network(spec), spec), spec)
    roi = torch.rand(3, 1, 64, 64)
    with torch.inference_mode():
        expected = wrap(network, spec)(roi).numpy()
    np.testing.assert_allclose(run(graph, roi), expected, rtol=0, atol=SUM_ORDER * np.abs(expected).max())
