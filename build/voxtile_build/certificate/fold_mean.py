"""Makes the entry that averages the scores of a model's folds: a graph of three operators, run by ONNX Runtime.

It is an ordinary entry, so that the same repository works in the official container and in the embedded server.
"""

from __future__ import annotations

import json
from pathlib import Path

from onnx import ModelProto, TensorProto, checker, helper
from tritonclient.grpc import model_config_pb2 as pb

from voxtile_build.certificate.certificate import VERSION as CERTIFICATE_VERSION
from voxtile_build.certificate.device import device_name
from voxtile_build.certificate.mean_error import mean_error
from voxtile_build.engines import find_engine
from voxtile_build.errors import AcceptanceError, SpecError
from voxtile_build.graph.torch_to_onnx import IR_VERSION, OPSET, save
from voxtile_build.hashing import file_sha256
from voxtile_build.machine import machine, versions
from voxtile_build.repository.config import TRITON_TYPES, instances, write_config
from voxtile_build.repository.entries import CERTIFICATE, MEAN_ENGINE, mean_name, score_name
from voxtile_build.spec.spec import Spec

ONNX_TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}


def write_mean(spec: Spec, count: int, serves_on: str, staged: Path) -> str:
    """Write the entry that averages the scores of `count` folds into the folder `staged`; returns its name.

    It runs where the folds run, `cpu` or `gpu`: scores of folds on a GPU would otherwise travel to the CPU and back.

    Raises:
        SpecError: scores are labels, which have no average.
        AcceptanceError: the entry's mean is off by more than rounding.
    """
    if spec.output.scores == "labels":
        raise SpecError(f"{spec.name}: output.scores: labels of several networks have no average; use logits")
    entry = staged / mean_name(spec.name)
    version = entry / str(spec.version)
    version.mkdir(parents=True)
    (file,) = save(mean_graph(spec, count), version / "model.onnx")
    config = mean_config(spec, count, serves_on)
    _certify(spec, config, serves_on, file)
    write_config(config, entry)
    return entry.name


def mean_graph(spec: Spec, count: int) -> ModelProto:
    """The graph from `scores_0`, … [batch, score, *roi] to `scores`; all in the output's data type, summed in fp32."""
    kind = ONNX_TYPES[spec.output.dtype]
    sizes = spec.tiling.roi_size if spec.tiling.multiple is None else ("height", "width")
    shape: list[str | int | None] = ["batch", spec.output.score_count, *sizes]
    nodes = [helper.make_node("Cast", [score_name(i)], [f"single_{i}"], to=TensorProto.FLOAT) for i in range(count)]
    nodes.append(helper.make_node("Mean", [f"single_{i}" for i in range(count)], ["mean"]))
    rounded = spec.output.dtype == "uint8"
    if rounded:
        nodes.append(helper.make_node("Round", ["mean"], ["rounded"]))
    nodes.append(helper.make_node("Cast", ["rounded" if rounded else "mean"], ["scores"], to=kind))
    inputs = [helper.make_tensor_value_info(score_name(i), kind, shape) for i in range(count)]
    graph = helper.make_graph(nodes, "mean", inputs, [helper.make_tensor_value_info("scores", kind, shape)])
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="voxtile-build"
    )
    checker.check_model(model)
    return model


def mean_config(spec: Spec, count: int, serves_on: str) -> pb.ModelConfig:
    """The config of that entry."""
    config = pb.ModelConfig(
        name=mean_name(spec.name), backend=find_engine(MEAN_ENGINE).backend, max_batch_size=spec.serving.max_batch_size
    )
    config.version_policy.specific.versions.append(spec.version)
    kind, dims = TRITON_TYPES[spec.output.dtype], (spec.output.score_count, *spec.spatial_dims)
    for index in range(count):
        config.input.add(name=score_name(index), data_type=kind, dims=dims)
    config.output.add(name="scores", data_type=kind, dims=dims)
    config.instance_group.append(instances(spec.serving, serves_on))
    return config


def _certify(spec: Spec, config: pb.ModelConfig, serves_on: str, file: Path) -> None:
    """Compare the graph in `file` with NumPy's mean in float64, and write certificate.json beside it."""
    engine = find_engine(MEAN_ENGINE)
    error, limit = mean_error(config, engine.open(file.parent, engine.parameters(spec)))
    if not error <= limit:
        raise AcceptanceError(f"{mean_name(spec.name)}: expected an error of at most {limit:g}, found {error:g}")
    content = {
        "schema_version": CERTIFICATE_VERSION,
        "model": mean_name(spec.name),
        "version": spec.version,
        "engine": MEAN_ENGINE,
        "precision": "fp32",
        "device": {"kind": engine.measured_on, "name": device_name(engine.measured_on)},
        "serves_on": serves_on,
        "accepted": True,
        "acceptance": {"max_abs_error": limit},
        "metrics": {"max_abs_error": error},
        "hashes": {"files": {file.name: file_sha256(file)}},
        "versions": versions(),
        "machine": machine(),
    }
    (file.parent / CERTIFICATE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
