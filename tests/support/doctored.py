"""Small repositories of every kind, written by the build's own writers around tiny graphs, and ways to break them.

Nothing is trained or measured: the certificates are made up, and say what the files are.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2 as pb

from tests.support import tiny_entries as tiny
from tests.support.specs import PROVENANCE, spec
from voxtile.card import Card, Certificate
from voxtile_build.certificate.device import device_name
from voxtile_build.engines import find_engine
from voxtile_build.repository.card import card_of
from voxtile_build.repository.config import engine_config, public_config, write_config, write_engine_config
from voxtile_build.repository.entries import CERTIFICATE, CONFIG, entry_name
from voxtile_build.repository.folds import aggregate
from voxtile_build.repository.model_set import ModelSet, write_set
from voxtile_build.spec.spec import Spec

NUMPY = {"fp32": np.float32, "fp16": np.float16, "int16": np.int16}
ONNX = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "int16": TensorProto.INT16}
H200 = {"name": "NVIDIA H200", "architecture": "sm_90", "uuid": ""}
TENSORRT = {"gpu": H200, "tensorrt": "11.1.0.10", "hardware_compatibility": "none"}


def model(
    repository: Path,
    name: str = "tiny",
    *,
    engines: Sequence[str] = ("onnxruntime",),
    folds: int = 1,
    facts: Mapping[str, Any] = {},
    nnunet: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Card:
    """A public model with its entries and certificates, as the build writes them; `changes` are of the spec."""
    serving = {**changes.pop("serving", {}), "engines": list(engines)}
    made = spec(name=name, serving=serving, **changes)
    names = [name] if folds == 1 else [f"{name}_fold_{fold}" for fold in range(folds)]
    certificates = {engine: [_entry(repository, made, fold, engine, facts) for fold in names] for engine in engines}
    if folds > 1:
        from voxtile_build.certificate.fold_mean import write_mean  # imports torch

        write_mean(made, folds, "cpu", repository)
    together = {engine: aggregate(found) for engine, found in certificates.items()}
    versions = {"onnxruntime": "1.31.1", "openvino": "2026.4.1-22982"}
    card = card_of(made, engines[0], together, PROVENANCE.model_copy(update={"versions": versions}))
    if nnunet is not None:
        card = card.model_copy(update={"nnunet": dict(nnunet)})
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "README").write_text("An ensemble has no file of its own.\n")
    write_config(public_config(made, card, names), folder)
    return card


def model_set(repository: Path, name: str, parts: Sequence[Card]) -> Card:
    """The public entry of a set of models that are there already."""
    labels = parts[0].labels
    painted = tuple((part.name, {1: labels[number + 1].value}) for number, part in enumerate(parts))
    made = ModelSet(name, "a set", labels, painted, (1.0, 1.0, 1.0), 1)
    return write_set(made, {part.name: part for part in parts}, repository)


def _entry(repository: Path, made: Spec, fold: str, engine: str, facts: Mapping[str, Any]) -> Certificate:
    """One engine's entry; returns its certificate in short."""
    kind = find_engine(engine)
    own = made.model_copy(update={"name": fold})
    config = engine_config(own, kind)
    folder = repository / entry_name(fold, engine)
    version = folder / "1"
    version.mkdir(parents=True)
    write_engine_config(config, folder)
    _engine_files(made, engine, version)
    device = kind.certified_on(made)
    named = H200["name"] if kind.serves_on(made) == "gpu" else device_name("cpu")
    return certify(folder, engine, device, named, kind.serves_on(made), facts)


def certify(
    entry: Path, engine: str, device: str, named: str, serves_on: str, facts: Mapping[str, Any] = {}
) -> Certificate:
    """Write certificate.json for the files of version 1 as they are; returns its short form."""
    version = entry / "1"
    (version / "samples.npz").write_bytes(b"samples")
    files = {file.name: _sha256(file) for file in sorted(version.iterdir()) if file.name.startswith("model.")}
    content = {
        "engine": engine,
        "acceptance": {},
        "metrics": {},
        "versions": {},
        "hashes": {"files": files},
        "samples": {"file": "samples.npz", "sha256": _sha256(version / "samples.npz")},
        **({"precision_facts": dict(facts)} if facts else {}),
    }
    (version / CERTIFICATE).write_text(json.dumps(content))
    return Certificate(
        sha256=_sha256(version / CERTIFICATE), accepted=True, precision="fp32", dice_min=1.0, changed_fraction=0.0,
        max_abs_error=1e-6, device=device, device_name=named, serves_on=serves_on,
    )  # fmt: skip


def _engine_files(made: Spec, engine: str, version: Path) -> None:
    graph = network(made)
    if engine == "onnxruntime":
        onnx.save(graph, version / "model.onnx")
    elif engine == "openvino":
        import openvino as ov

        source = version / "source.onnx"
        onnx.save(graph, source)
        ov.save_model(ov.convert_model(source), version / "model.xml", False)
        source.unlink()
    elif engine == "aotinductor":
        with zipfile.ZipFile(version / "model.pt2", "w") as package:
            package.writestr("model/data", b"compiled code")
    else:
        (version / "model.plan").write_bytes(b"a plan")


def network(made: Spec, *, opset: int = 20, ir: int = 10) -> onnx.ModelProto:
    """scores = roi times 1, 2, …; with statistics of the whole scan, less the first of them."""
    dims = list(made.spatial_dims)
    free = [size if size > 0 else f"side_{axis}" for axis, size in enumerate(dims)]
    count = made.output.score_count
    factors = np.arange(1, count + 1, dtype=np.float32).reshape(1, count, *(1,) * len(dims))
    nodes = [
        helper.make_node("Cast", ["roi"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "factors"], ["scaled"]),
    ]
    taken = [helper.make_tensor_value_info("roi", ONNX[made.input.dtype], ["batch", 1, *free])]
    constants = {"factors": factors}
    last = "scaled"
    if made.whole_scan_intensity:
        taken.append(helper.make_tensor_value_info("intensity", TensorProto.FLOAT, ["batch", 1, 2]))
        constants["axes"] = np.array([2])
        nodes += [
            helper.make_node("ReduceSum", ["intensity", "axes"], ["summed"], keepdims=1),
            helper.make_node("Unsqueeze", ["summed", "later"], ["shift"]),
            helper.make_node("Sub", ["scaled", "shift"], ["shifted"]),
        ]
        constants["later"] = np.arange(3, len(dims) + 2)
        last = "shifted"
    nodes.append(helper.make_node("Identity", [last], ["scores"]))
    given = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", count, *free])]
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "tiny", taken, given, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# Ways to break -------------------------------------------------------------------------------------------------------

Change = Callable[[pb.ModelConfig], None]


def change_config(entry: Path, change: Change, file: str = CONFIG) -> None:
    """Change the configuration of an entry."""
    config = text_format.Parse((entry / file).read_text(), pb.ModelConfig())
    change(config)
    (entry / file).write_text(text_format.MessageToString(config))


def change_card(entry: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the fields of the card of a public entry."""

    def changed(config: pb.ModelConfig) -> None:
        fields = json.loads(config.parameters["card"].string_value)
        change(fields)
        config.parameters["card"].string_value = json.dumps(fields)

    change_config(entry, changed)


def recertify(repository: Path, name: str, engine: str = "onnxruntime", **changes: Any) -> None:
    """Let certificate and card fit the files of an entry that was changed on purpose."""
    device = {"device": "cpu", "named": device_name("cpu"), "serves_on": "cpu", **changes}
    found = certify(repository / f"{name}_{engine}", engine, **device)
    change_card(repository / name, lambda card: card["certificates"].__setitem__(engine, found.model_dump(mode="json")))


def name_certificate(repository: Path, name: str, engine: str = "onnxruntime") -> None:
    """Let the card name certificate.json as it is, whatever it holds."""
    digest = _sha256(repository / f"{name}_{engine}" / "1" / CERTIFICATE)
    change_card(repository / name, lambda card: card["certificates"][engine].update(sha256=digest))


def replace_graph(repository: Path, name: str, graph: onnx.ModelProto) -> None:
    """Put another graph in the place of an entry's, and certify it."""
    onnx.save(graph, repository / f"{name}_onnxruntime" / "1" / "model.onnx")
    recertify(repository, name)


def plain(repository: Path, name: str = "double", **fields: Any) -> Path:
    """An entry without a card, as others than voxtile-build write it."""
    return tiny.write_doubling(repository, name, **fields)
