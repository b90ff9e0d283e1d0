"""Tiny model entries for the server's tests: a graph written with onnx.helper, a config through its schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
from google.protobuf import json_format, text_format
from onnx import NodeProto, TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2

ONNX_TYPES = {
    "TYPE_UINT8": TensorProto.UINT8,
    "TYPE_INT16": TensorProto.INT16,
    "TYPE_INT64": TensorProto.INT64,
    "TYPE_FP16": TensorProto.FLOAT16,
    "TYPE_FP32": TensorProto.FLOAT,
}
# name, type, dims without the batch axis
Tensor = tuple[str, str, Sequence[int]]
ROI = (1, 4, 5, 6)
ONE_ON_CPU = [{"count": 1, "kind": "KIND_CPU"}]


def graph(
    nodes: Sequence[NodeProto],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    constants: Mapping[str, np.ndarray[Any, Any]],
    *,
    batched: bool = True,
) -> onnx.ModelProto:
    """A checked ONNX model (opset 20, IR 10), its batch axis free."""

    def value(tensor: Tensor) -> Any:
        name, type_name, dims = tensor
        return helper.make_tensor_value_info(name, ONNX_TYPES[type_name], [*(["batch"] if batched else []), *dims])

    model = helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [value(tensor) for tensor in inputs],
            [value(tensor) for tensor in outputs],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def doubling(taken: str, given: str, *, batched: bool = True) -> onnx.ModelProto:
    """scores = 2 · roi + 1, calculated in fp32."""
    nodes = [
        helper.make_node("Cast", ["roi"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "two"], ["doubled"]),
        helper.make_node("Add", ["doubled", "one"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["scores"], to=ONNX_TYPES[given]),
    ]
    constants = {"two": np.float32(2), "one": np.float32(1)}
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    return graph(nodes, [("roi", taken, ROI)], [("scores", given, ROI)], arrays, batched=batched)


def convolution(channels: int = 3) -> onnx.ModelProto:
    """Two lopsided 3D convolutions, instance norm and softmax: enough to tell axes and precisions apart."""
    rng = np.random.default_rng(5)
    constants = {
        "w1": rng.normal(size=(8, 1, 3, 3, 3)).astype(np.float32),
        "w2": rng.normal(size=(channels, 8, 3, 3, 3)).astype(np.float32),
        "scale": np.ones(8, np.float32),
        "bias": np.zeros(8, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["roi"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[1] * 6),
        helper.make_node("InstanceNormalization", ["c1", "scale", "bias"], ["n1"]),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1] * 6),
        helper.make_node("Softmax", ["c2"], ["scores"], axis=1),
    ]
    outputs = [("scores", "TYPE_FP32", (channels, *ROI[1:]))]
    return graph(nodes, [("roi", "TYPE_INT16", ROI)], outputs, constants)


def scaled() -> onnx.ModelProto:
    """scores = (roi - intensity[…, 0]) / intensity[…, 1], and the mean of the scores as a second output."""
    nodes = [
        helper.make_node("Cast", ["roi"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Slice", ["intensity", "zero", "one", "axis"], ["shift2"]),
        helper.make_node("Slice", ["intensity", "one", "two", "axis"], ["scale2"]),
        helper.make_node("Unsqueeze", ["shift2", "spatial"], ["shift"]),
        helper.make_node("Unsqueeze", ["scale2", "spatial"], ["scale"]),
        helper.make_node("Sub", ["x", "shift"], ["centred"]),
        helper.make_node("Div", ["centred", "scale"], ["scores"]),
        helper.make_node("ReduceMean", ["scores", "all"], ["mean"], keepdims=0),
    ]
    constants = {
        "zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "axis": np.array([2]),
        "spatial": np.array([3, 4]), "all": np.array([2, 3, 4]),
    }  # fmt: skip
    inputs = [("roi", "TYPE_INT16", ROI), ("intensity", "TYPE_FP32", (1, 2))]
    return graph(nodes, inputs, [("scores", "TYPE_FP32", ROI), ("mean", "TYPE_FP32", (1,))], constants)


def lookup(size: int = 5) -> onnx.ModelProto:
    """found = table[index]; an index outside the table fails at run time, for its request alone."""
    nodes = [helper.make_node("Gather", ["table", "index"], ["found"], axis=0)]
    constants = {"table": np.arange(size, dtype=np.float32) * 10}
    return graph(nodes, [("index", "TYPE_INT64", (2,))], [("found", "TYPE_FP32", (2,))], constants)


def config(
    name: str,
    backend: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    *,
    max_batch_size: int = 4,
    parameters: Mapping[str, str] | None = None,
    **fields: Any,
) -> model_config_pb2.ModelConfig:
    """A ModelConfig; `fields` are further ones in their JSON form."""
    kind = {"platform": "ensemble"} if backend == "ensemble" else {"backend": backend}
    instances = {} if backend == "ensemble" else {"instance_group": ONE_ON_CPU}
    described = {
        "name": name,
        "max_batch_size": max_batch_size,
        "input": [{"name": n, "data_type": t, "dims": list(d)} for n, t, d in inputs],
        "output": [{"name": n, "data_type": t, "dims": list(d)} for n, t, d in outputs],
        "parameters": {key: {"string_value": value} for key, value in (parameters or {}).items()},
        **kind,
        **instances,
        **fields,
    }
    return json_format.ParseDict(described, model_config_pb2.ModelConfig())


def write_entry(repository: Path, written: model_config_pb2.ModelConfig, model: onnx.ModelProto | None = None) -> Path:
    """Write an entry; its backend says whether the graph becomes model.onnx or model.xml. Returns its folder."""
    folder = repository / written.name
    version = folder / "1"
    version.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(text_format.MessageToString(written), encoding="utf-8")
    if model is not None and written.backend == "onnxruntime":
        onnx.save(model, version / "model.onnx")
    elif model is not None:
        ov.save_model(ov.convert_model(_with_file(model, version)), version / "model.xml", False)
    return folder


def _with_file(model: onnx.ModelProto, folder: Path) -> Path:
    """OpenVINO converts files; the file is left beside the IR under another name."""
    path = folder / "source.onnx"
    onnx.save(model, path)
    return path


def write_doubling(
    repository: Path, name: str, backend: str = "onnxruntime", taken: str = "TYPE_INT16",
    given: str = "TYPE_FP32", **fields: Any,
) -> Path:  # fmt: skip
    """An entry of the doubling network, with config fields as for `config`."""
    batched = fields.get("max_batch_size", 4) > 0
    written = config(name, backend, [("roi", taken, ROI)], [("scores", given, ROI)], **fields)
    return write_entry(repository, written, doubling(taken, given, batched=batched))


def write_ensemble(repository: Path, name: str, step: str, **fields: Any) -> Path:
    """A public entry in front of one doubling entry."""
    maps = {"input_map": {"roi": "roi"}, "output_map": {"scores": "scores"}}
    steps = {"step": [{"model_name": step, "model_version": -1, **maps}]}
    inputs, outputs = [("roi", "TYPE_INT16", ROI)], [("scores", "TYPE_FP32", ROI)]
    return write_entry(repository, config(name, "ensemble", inputs, outputs, ensemble_scheduling=steps, **fields))
