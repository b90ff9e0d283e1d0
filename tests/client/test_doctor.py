"""`voxtile doctor` of repositories: nothing in good ones, one finding in each broken one, as the server judges them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import pytest
import yaml
from tritonclient.grpc import InferenceServerClient
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException

from tests.support import doctored
from tests.support import tiny_entries as tiny
from tests.support.commands import run
from tests.support.doctored import H200, TENSORRT, change_card, change_config, model, model_set, network, plain
from tests.support.judges import judge
from tests.support.specs import spec
from tests.support.umask import usual_umask
from voxtile.doctor.checks.graphs.onnx_header import read_header
from voxtile.doctor.checks.rights import container_can_read
from voxtile.doctor.finding import Finding, exit_code
from voxtile.doctor.lint import Server, lint
from voxtile.doctor.machine import Gpu, Machine
from voxtile.doctor.releases import release_named, release_of_server, security_floor
from voxtile.errors import InputError
from voxtile_build.certificate.device import device_name
from voxtile_build.engines.release import RELEASE
from voxtile_build.repository.volume import VolumeSettings, volume_repository, write_volume_entries
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.install.layout import served_backends
from voxtile_server.options import EMBEDDED_RELEASE, EMBEDDED_VERSION, Endpoints, triton_options
from voxtile_server.restricted import new_key, restriction_options

ROOT = Path(__file__).parents[2]
PINS = ROOT / "server" / "voxtile_server" / "install" / "engines.txt"
GIB = 1 << 30
ONE_GPU = (Gpu("NVIDIA H200", "sm_90", 139 * GIB),)
MACHINE = Machine((), 64 * GIB, 8 * GIB, device_name("cpu"), frozenset({"sse4_2", "avx2"}))
"""A machine with what the small models need, so that tests look at no real one."""

Make = Callable[[Path, str], object]


def found_in(
    *folders: Path, release: str = "embedded", machine: Machine | None = MACHINE, **server: str | Path
) -> list[Finding]:
    """What is found, without what is well."""
    made = Server(release_named(release), machine, **server)  # type: ignore[arg-type]
    return [finding for finding in lint(folders, made) if finding.severity != "ok"]


@pytest.fixture(autouse=True)
def _containers_may_read_what_is_made() -> Iterator[None]:
    with usual_umask():
        yield


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """An empty repository that others may read, as a folder of pytest's own may not be."""
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def codes(findings: list[Finding]) -> list[str]:
    return [finding.code for finding in findings]


# Good repositories ---------------------------------------------------------------------------------------------------


def _two_engines(root: Path, name: str) -> None:
    model(root, name, engines=("openvino", "onnxruntime"), input={"dtype": "int16", "intensity": {"rule": "zscore"}})


def _cascade(root: Path, name: str) -> None:
    model(root, f"{name}low")
    model(root, name, nnunet={"previous_stage": f"{name}low", "label_channels": []})


def _slices(root: Path, name: str) -> None:
    tiling = {"roi_size": [16, 12], "slice_axis": 2, "multiple": 4, "overlap": 0.0}
    model(root, name, network={"args": {"spatial_dims": 2}}, tiling=tiling)


def _set(root: Path, name: str) -> None:
    model_set(root, name, [model(root, f"{name}left"), model(root, f"{name}right")])


def _volume(root: Path, name: str) -> None:
    model(root, name)
    write_volume_entries(name, root, volume_repository(root), VolumeSettings(max_ram_mib=100))


GOOD: dict[str, Make] = {
    "one engine": lambda root, name: model(root, name),
    "two engines, statistics": _two_engines,
    "folds of two engines": lambda root, name: model(root, name, engines=("onnxruntime", "openvino"), folds=3),
    "half precision in": lambda root, name: model(root, name, input={"dtype": "fp16"}),
    "whole slices": _slices,
    "cascade": _cascade,
    "set": _set,
    "no card": lambda root, name: plain(root, name),
    "no backend but a file that tells it": lambda root, name: change_config(
        plain(root, name), lambda config: config.ClearField("backend")
    ),
    "whole scans": _volume,
    "AOTInductor": lambda root, name: model(root, name, engines=("aotinductor",), facts={"instructions": ["avx2"]}),
}


@pytest.mark.parametrize("make", GOOD.values(), ids=GOOD)
def test_a_good_repository_has_no_fault(make: Make, models: Path) -> None:
    make(models, "tiny")
    assert found_in(models) == []
    # In the pinned container there is nothing but what the certificates do not speak of: its own versions.
    assert {finding.severity for finding in found_in(models, release=RELEASE)} <= {"note"}


def test_a_good_repository_for_gpus_has_no_fault_where_they_are(models: Path) -> None:
    model(models, engines=("tensorrt",), serving={"gpus": [0]}, facts=TENSORRT)
    machine = replace(MACHINE, gpus=ONE_GPU)
    found = found_in(models, release=RELEASE, machine=machine)
    assert [(finding.severity, finding.code) for finding in found] == [("note", "release-unknown")]


def test_what_the_build_really_writes_has_no_fault(repository: Path) -> None:
    assert found_in(repository, machine=None) == []
    done = run("doctor", repository, "--elsewhere")
    assert done.exit_code == 0
    assert done.stdout.startswith("ok    ")


# Broken ones ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Broken:
    """A repository with one fault.

    Attributes:
        code: of the finding.
        make: writes it.
        loads: whether the real server loads the model; None where it is not asked.
        release: that is to serve it.
        machine: that is to serve it; None for another.
        severity: of the finding.
    """

    code: str
    make: Make
    loads: bool | None = None
    release: str = "embedded"
    machine: Machine | None = MACHINE
    severity: str = "error"


def broken(then: Callable[[Path, str], object], **fields: object) -> Make:
    """A good model that something is done to; `fields` are those of `model`."""

    def make(root: Path, name: str) -> None:
        model(root, name, **fields)  # type: ignore[arg-type]
        then(root, name)

    return make


def public(change: Callable[[pb.ModelConfig], object]) -> Callable[[Path, str], None]:
    """Changes the configuration of the public entry."""
    return lambda root, name: change_config(root / name, lambda config: void(change(config)))


def behind(change: Callable[[pb.ModelConfig], object]) -> Callable[[Path, str], None]:
    """Changes the configuration of the engine's entry."""
    return lambda root, name: change_config(root / f"{name}_onnxruntime", lambda config: void(change(config)))


def carded(change: Callable[[dict], object]) -> Callable[[Path, str], None]:  # type: ignore[type-arg]
    """Changes the card."""
    return lambda root, name: change_card(root / name, lambda card: void(change(card)))


def void(_: object) -> None:
    """Nothing: lambdas that change something give something back."""


def onnx_of(root: Path, name: str) -> Path:
    return root / f"{name}_onnxruntime" / "1" / "model.onnx"


def graph(**changes: object) -> Callable[[Path, str], None]:
    """Another graph, with a certificate; `changes` are those of `network`, or of a spec."""
    heads = {key: changes.pop(key) for key in ("opset", "ir") if key in changes}
    return lambda root, name: doctored.replace_graph(root, name, network(spec(**changes), **heads))  # type: ignore[arg-type]


def renamed_output(root: Path, name: str) -> None:
    made = onnx.load(onnx_of(root, name))
    made.graph.output[0].name = made.graph.node[-1].output[0] = "scores_of_another"
    doctored.replace_graph(root, name, made)


def fixed_batch(root: Path, name: str) -> None:
    made = onnx.load(onnx_of(root, name))
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    doctored.replace_graph(root, name, made)


def cut_off(root: Path, name: str) -> None:
    file = onnx_of(root, name)
    file.write_bytes(file.read_bytes()[:-20])
    doctored.recertify(root, name)


def step(config: pb.ModelConfig) -> pb.ModelEnsembling.Step:
    return config.ensemble_scheduling.step[0]


def second_repository(root: Path, name: str) -> None:
    """Faults of a link to a model outside."""
    elsewhere = root.parent / f"{name}-elsewhere.onnx"
    shutil.move(onnx_of(root, name), elsewhere)
    onnx_of(root, name).symlink_to(elsewhere)


def fold_without(root: Path, name: str) -> None:
    shutil.rmtree(root / f"{name}_fold_1_openvino")


def wrong_digest(card: dict) -> None:  # type: ignore[type-arg]
    card["certificates"]["onnxruntime"]["sha256"] = "0" * 64


def certificate_of(root: Path, name: str) -> Path:
    return onnx_of(root, name).with_name("certificate.json")


def queue(config: pb.ModelConfig, **fields: int) -> None:
    for key, value in fields.items():
        setattr(config.dynamic_batching.default_queue_policy, key, value)


def groups(config: pb.ModelConfig, kind: str, **fields: object) -> None:
    config.ClearField("instance_group")
    config.instance_group.add(kind=pb.ModelInstanceGroup.Kind.Value(kind), **fields)


def changed_tensor(config: pb.ModelConfig, name: str, **fields: object) -> None:
    """Changes a tensor in a configuration, and in the card nothing."""
    (tensor,) = [one for one in (*config.input, *config.output) if one.name == name]
    for key, value in fields.items():
        if isinstance(value, list):
            tensor.ClearField(key)
            getattr(tensor, key).extend(value)
        else:
            setattr(tensor, key, value)


def both(*changes: Callable[[Path, str], None]) -> Callable[[Path, str], None]:
    return lambda root, name: [change(root, name) for change in changes] and None


def halves(root: Path, name: str, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    _set(root, name)
    change_card(root / name, lambda card: void(change(card)))


def volume_config(change: Callable[[pb.ModelConfig], object]) -> Make:
    """An entry for whole scans beside a model, changed."""

    def make(root: Path, name: str) -> None:
        _volume(root, name)
        shutil.rmtree(volume_repository(root) / f"{name}_scan_stream")
        change_config(volume_repository(root) / f"{name}_scan", lambda config: void(change(config)))

    return make


def networks(config: pb.ModelConfig, **fields: object) -> None:
    described = json.loads(config.parameters["networks"].string_value)
    described[0].update(fields)
    config.parameters["networks"].string_value = json.dumps(described)


def volume_without_model(root: Path, name: str) -> None:
    _volume(root, name)
    shutil.rmtree(volume_repository(root) / f"{name}_scan_stream")
    shutil.rmtree(root / name)
    shutil.rmtree(root / f"{name}_onnxruntime")
    model(root, "another")


def nameless(root: Path, name: str) -> None:
    """No backend, in the configuration or by the name of a file."""
    change_config(plain(root, name), lambda config: config.ClearField("backend"))
    (root / name / "1" / "model.onnx").rename(root / name / "1" / "network.onnx")


def ensemble(root: Path, name: str, change: Callable[[pb.ModelConfig], object]) -> None:
    """An ensemble without a card, changed."""
    plain(root, f"{name}_behind")
    change_config(tiny.write_ensemble(root, name, f"{name}_behind"), lambda config: void(change(config)))


def extra_output(config: pb.ModelConfig) -> None:
    config.output.add(name="more", data_type=pb.TYPE_FP32, dims=[1])


def other_shape(config: pb.ModelConfig) -> None:
    changed_tensor(config, "scores", dims=[1, 4, 5, 7])


def other_type(config: pb.ModelConfig) -> None:
    changed_tensor(config, "roi", data_type=pb.TYPE_FP32)


BROKEN: dict[str, Broken] = {
    # folders and files
    "an empty folder": Broken("no-model", lambda root, name: None),
    "a folder that is no model": Broken("no-config", broken(lambda root, name: (root / ".git").mkdir())),
    "text that is no configuration": Broken(
        "config-unreadable",
        broken(lambda root, name: void((root / name / "config.pbtxt").write_text("name: {"))),
        False,
    ),
    "bytes that are no text": Broken(
        "config-unreadable",
        broken(lambda root, name: void((root / name / "config.pbtxt").write_bytes(b"\xff\xfe"))),
        False,
    ),
    "an unknown key": Broken(
        "config-unreadable",
        broken(lambda root, name: void((root / name / "config.pbtxt").write_text("max_batch: 1\n"))),
        False,
    ),
    "a name that is not the folder's": Broken(
        "name-differs",
        lambda root, name: change_config(plain(root, name), lambda c: setattr(c, "name", "other")),
        False,
    ),
    "a name with a space": Broken("odd-name", lambda root, name: plain(root, "two words")),
    "no version": Broken("no-version", lambda root, name: shutil.rmtree(plain(root, name) / "1"), False),
    "a version with a leading zero": Broken(
        "no-version", lambda root, name: (plain(root, name) / "1").rename(root / name / "01"), False
    ),
    "a version that the policy wants": Broken(
        "version-missing",
        lambda root, name: change_config(plain(root, name), lambda c: c.version_policy.specific.versions.append(7)),
        False,
    ),
    "a second version that the policy wants": Broken(
        "version-missing",
        lambda root, name: change_config(
            plain(root, name), lambda c: c.version_policy.specific.versions.extend([1, 7])
        ),
        True,
        severity="warning",
    ),
    "an empty version": Broken(
        "version-empty", lambda root, name: (plain(root, name) / "1" / "model.onnx").unlink(), False
    ),
    "no model.onnx": Broken("file-missing", broken(lambda root, name: onnx_of(root, name).unlink()), False),
    "no weights beside an IR": Broken(
        "file-missing",
        broken(lambda root, name: (root / f"{name}_openvino" / "1" / "model.bin").unlink(), engines=("openvino",)),
        False,
    ),
    "an empty model.onnx": Broken(
        "file-empty", broken(lambda root, name: void(onnx_of(root, name).write_bytes(b""))), False
    ),
    "a file for its owner alone": Broken(
        "not-readable", broken(lambda root, name: onnx_of(root, name).chmod(0o600)), None, RELEASE, None
    ),
    "a folder for its owner alone": Broken(
        "not-readable", broken(lambda root, name: (root / name).chmod(0o700)), None, RELEASE, None
    ),
    "a link out of the repository": Broken("link-outside", broken(second_repository)),
    "a link to nothing": Broken(
        "link-broken",
        broken(lambda root, name: (onnx_of(root, name).unlink(), onnx_of(root, name).symlink_to("model.old"))),
        False,
    ),
    "names that differ in capitals": Broken(
        "case-clash", lambda root, name: (plain(root, name), plain(root, name.upper())), None, severity="warning"
    ),
    "a staging folder": Broken(
        "staging-left", broken(lambda root, name: (root.parent / f".{root.name}.building").mkdir()), severity="warning"
    ),
    "half a publication": Broken(
        "staging-left",
        broken(
            lambda root, name: (
                (root.parent / f".{root.name}.building").mkdir(),
                (root.parent / f".{root.name}.building" / ".journal.json").write_text("{}"),
            )
        ),
    ),
    # configurations
    "no backend": Broken("no-backend", nameless, False),
    "a plan for the embedded server": Broken(
        "backend-missing",
        lambda root, name: model(root, name, engines=("tensorrt",), serving={"gpus": "all"}, facts=TENSORRT),
        machine=None,
    ),
    "a backend that no image has": Broken(
        "backend-missing",
        lambda root, name: change_config(plain(root, name), lambda c: setattr(c, "backend", "mxnet")),
        None,
        RELEASE,
    ),
    "a GPU that is not there": Broken(
        "no-gpu", lambda root, name: change_config(plain(root, name), lambda c: groups(c, "KIND_GPU")), None, RELEASE
    ),
    "a second GPU that is not there": Broken(
        "no-gpu",
        lambda root, name: change_config(plain(root, name), lambda c: groups(c, "KIND_GPU", gpus=[0, 1])),
        None,
        RELEASE,
        replace(MACHINE, gpus=ONE_GPU),
    ),
    "OpenVINO on a GPU": Broken(
        "device-not-served",
        lambda root, name: change_config(plain(root, name, backend="openvino"), lambda c: groups(c, "KIND_GPU")),
        None,
        RELEASE,
        replace(MACHINE, gpus=ONE_GPU),
    ),
    "GPUs for instances on the CPU": Broken(
        "device-not-served",
        lambda root, name: change_config(plain(root, name), lambda c: groups(c, "KIND_CPU", gpus=[0])),
        False,
    ),
    "a type that no backend has": Broken(
        "type-not-taken",
        lambda root, name: change_config(
            plain(root, name, backend="openvino"), lambda c: changed_tensor(c, "scores", data_type=pb.TYPE_STRING)
        ),
    ),
    "a preferred size above the largest": Broken(
        "preferred-size", broken(behind(lambda c: c.dynamic_batching.preferred_batch_size.append(9))), False
    ),
    "timeouts in the queue": Broken(
        "queue-policy", broken(behind(lambda c: queue(c, default_timeout_microseconds=1000))), True, severity="warning"
    ),
    "timeouts that callers may set": Broken(
        "queue-policy", broken(behind(lambda c: queue(c, allow_timeout_override=1))), True, severity="warning"
    ),
    "priorities": Broken(
        "queue-policy", lambda root, name: model(root, name, serving={"priority_levels": 3}), True, severity="warning"
    ),
    "a long delay": Broken(
        "queue-delay",
        lambda root, name: model(root, name, serving={"max_queue_delay_microseconds": 500_000}),
        True,
        severity="warning",
    ),
    "a bounded queue in an ensemble": Broken(
        "queue-of-step", broken(behind(lambda c: queue(c, max_queue_size=4))), True, severity="warning"
    ),
    "a request above 2 GiB": Broken(
        "message-too-large",
        lambda root, name: model(
            root,
            name,
            tiling={"roi_size": [512, 512, 256]},
            serving={"max_batch_size": 8},
            output={"labels": ["background", "one"]},
        ),
        severity="warning",
    ),
    # ensembles
    "a step that is not there": Broken(
        "step-missing", broken(lambda root, name: shutil.rmtree(root / f"{name}_onnxruntime")), False
    ),
    "a fold that is not there": Broken(
        "step-missing", broken(lambda root, name: shutil.rmtree(root / f"{name}_fold_1_onnxruntime"), folds=2), False
    ),
    "a version of a step that is not there": Broken(
        "step-version", broken(public(lambda c: setattr(step(c), "model_version", 3))), False
    ),
    "larger batches than a step's": Broken(
        "batch-size", broken(public(lambda c: setattr(c, "max_batch_size", 3))), False
    ),
    "an input that no step has": Broken(
        "tensor-mismatch", broken(public(lambda c: step(c).input_map.__setitem__("mask", "roi"))), False
    ),
    "an input that gets nothing": Broken(
        "tensor-mismatch",
        broken(public(lambda c: step(c).input_map.pop("intensity")), input={"intensity": {"rule": "zscore"}}),
        False,
    ),
    "an output that no step has": Broken(
        "tensor-mismatch", broken(public(lambda c: step(c).output_map.__setitem__("more", "spare"))), False
    ),
    "a tensor from nowhere": Broken(
        "tensor-mismatch", broken(public(lambda c: step(c).input_map.__setitem__("roi", "scan"))), False
    ),
    "an output that nobody gives": Broken(
        "tensor-mismatch", lambda root, name: ensemble(root, name, extra_output), False
    ),
    "an output of another shape": Broken(
        "tensor-mismatch", lambda root, name: ensemble(root, name, other_shape), False
    ),
    "an input of another type": Broken("tensor-mismatch", lambda root, name: ensemble(root, name, other_type), False),
    "folds of which one is no step": Broken(
        "tensor-mismatch", broken(public(lambda c: c.ensemble_scheduling.step.pop(1)), folds=2), False
    ),
    "an ensemble of itself": Broken(
        "ensemble-circle",
        lambda root, name: ensemble(root, name, lambda c: setattr(step(c), "model_name", c.name)),
        False,
    ),
    "no steps": Broken("no-step", broken(public(lambda c: c.ensemble_scheduling.ClearField("step"))), False),
    "an ensemble with instances": Broken("ensemble-instances", broken(public(lambda c: groups(c, "KIND_CPU"))), False),
    # cards
    "a card that is no JSON": Broken(
        "card-unreadable", broken(public(lambda c: setattr(c.parameters["card"], "string_value", "{")))
    ),
    "a card of another type": Broken("card-tensor", broken(carded(lambda c: c["output"].update(dtype="fp16")))),
    "a card of another ROI": Broken("card-tensor", broken(carded(lambda c: c.update(roi_size=[16, 8, 8])))),
    "a card with statistics": Broken(
        "card-tensor", broken(carded(lambda c: c.update(intensity={"rule": "zscore", "mask": "all"})))
    ),
    "another model's card": Broken("card-name", broken(carded(lambda c: c.update(name="another"))), severity="warning"),
    "a card of another engine": Broken(
        "card-engine", broken(carded(lambda c: c.update(engine="openvino")), engines=("onnxruntime", "openvino"))
    ),
    "an engine that is gone": Broken(
        "engine-missing",
        broken(lambda root, name: shutil.rmtree(root / f"{name}_openvino"), engines=("onnxruntime", "openvino")),
        severity="warning",
    ),
    "a fold of an engine that is gone": Broken(
        "fold-missing", broken(fold_without, engines=("onnxruntime", "openvino"), folds=2), severity="warning"
    ),
    "a cascade without its first stage": Broken(
        "model-missing", lambda root, name: model(root, name, nnunet={"previous_stage": "gone", "label_channels": []})
    ),
    "a set of other weights": Broken(
        "part-weights",
        lambda root, name: halves(root, name, lambda c: c["parts"]["models"][0].update(weights_sha256="0")),
    ),
    "a set that paints what is not there": Broken(
        "part-labels", lambda root, name: halves(root, name, lambda c: c["parts"]["models"][0].update(labels={"9": 1}))
    ),
    # engines' files
    "an opset of tomorrow": Broken("onnx-too-new", broken(graph(opset=27)), False),
    "an IR of tomorrow": Broken("onnx-too-new", broken(graph(ir=14)), False),
    "half a file": Broken("engine-unreadable", broken(cut_off), False),
    "an IR that is none": Broken(
        "engine-unreadable",
        lambda root, name: (plain(root, name, backend="openvino") / "1" / "model.xml").write_text("<html/>"),
        False,
    ),
    "a package that is none": Broken(
        "engine-unreadable",
        broken(
            lambda root, name: (
                void((root / f"{name}_aotinductor" / "1" / "model.pt2").write_bytes(b"no zip")),
                doctored.recertify(root, name, "aotinductor"),
            ),
            engines=("aotinductor",),
        ),
        False,
    ),
    "a graph of another type": Broken("graph-differs", broken(graph(input={"dtype": "int16"})), False),
    "a graph of another ROI": Broken("graph-differs", broken(graph(tiling={"roi_size": [16, 8, 8]})), False),
    "a graph with another output": Broken("graph-differs", broken(renamed_output), False),
    "a graph with a fixed batch": Broken("graph-differs", broken(fixed_batch)),
    "a graph that wants more": Broken("graph-differs", broken(graph(input={"intensity": {"rule": "zscore"}})), False),
    "a CPU without an instruction": Broken(
        "cpu-differs",
        lambda root, name: model(root, name, engines=("aotinductor",), facts={"instructions": ["avx2", "amx_bf16"]}),
    ),
    # certificates
    "a changed engine": Broken(
        "certified-file-changed", broken(lambda root, name: onnx.save(network(spec(), ir=9), onnx_of(root, name)))
    ),
    "a changed reference": Broken(
        "certified-file-changed",
        broken(lambda root, name: void(onnx_of(root, name).with_name("samples.npz").write_bytes(b"x"))),
    ),
    "no reference": Broken(
        "certified-file-missing", broken(lambda root, name: onnx_of(root, name).with_name("samples.npz").unlink())
    ),
    "no certificate": Broken("certificate-missing", broken(lambda root, name: certificate_of(root, name).unlink())),
    "a certificate that is none": Broken(
        "certificate-unreadable",
        broken(
            lambda root, name: (
                void(certificate_of(root, name).write_text("[]")),
                doctored.name_certificate(root, name),
            )
        ),
    ),
    "another certificate than the card's": Broken("certificate-differs", broken(carded(wrong_digest))),
    "an engine that was refused": Broken(
        "not-certified", broken(carded(lambda c: c["certificates"]["onnxruntime"].update(accepted=False)))
    ),
    "a certificate of another CPU": Broken(
        "other-device",
        broken(carded(lambda c: c["certificates"]["onnxruntime"].update(device_name="Another CPU"))),
        severity="warning",
    ),
    "a certificate of the CPU for a GPU": Broken(
        "other-device",
        broken(carded(lambda c: c["certificates"]["onnxruntime"].update(serves_on="gpu"))),
        severity="warning",
    ),
    # entries for whole scans
    "whole scans of a model that is gone": Broken("volume-model-missing", volume_without_model),
    "whole scans of nothing": Broken(
        "volume-unreadable", volume_config(lambda c: setattr(c.parameters["networks"], "string_value", "[]"))
    ),
    "whole scans in no JSON": Broken(
        "volume-unreadable", volume_config(lambda c: setattr(c.parameters["networks"], "string_value", "{"))
    ),
    "whole scans within no number": Broken(
        "volume-unreadable", volume_config(lambda c: setattr(c.parameters["max_ram_mib"], "string_value", "much"))
    ),
    "whole scans of another version": Broken(
        "volume-stale", volume_config(lambda c: networks(c, version="2")), severity="warning"
    ),
    "whole scans of another batch": Broken(
        "volume-stale", volume_config(lambda c: networks(c, max_batch_size=7)), severity="warning"
    ),
    "more whole scans than memory": Broken(
        "memory",
        volume_config(lambda c: setattr(c.parameters["max_ram_mib"], "string_value", str(65 * 1024))),
        severity="warning",
    ),
    # machines
    "more weights than memory": Broken(
        "memory", lambda root, name: model(root, name), machine=replace(MACHINE, memory_bytes=100)
    ),
    "little shared memory": Broken(
        "shared-memory",
        lambda root, name: model(root, name),
        machine=replace(MACHINE, shared_bytes=64 << 20),
        severity="warning",
    ),
    "a port that is taken": Broken(
        "port-taken",
        lambda root, name: model(root, name),
        machine=replace(MACHINE, taken_ports=(8001,)),
        severity="warning",
    ),
    # releases
    "a release with published faults": Broken(
        "security-floor", lambda root, name: plain(root, name), None, "26.06", severity="warning"
    ),
}


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN)
def test_a_broken_repository_has_its_finding_and_no_other(case: Broken, models: Path) -> None:
    case.make(models, "tiny")
    found = found_in(models, release=case.release, machine=case.machine)
    found = [finding for finding in found if finding.severity != "note"]  # of other versions than a certificate's
    assert {(finding.code, finding.severity) for finding in found} == {(case.code, case.severity)}
    for finding in found:
        assert all((finding.where, finding.what, finding.code))
        assert "\n" not in finding.line
    assert exit_code(found) == {"warning": 1, "error": 2}[case.severity]


def test_the_corpus_is_large() -> None:
    assert len(BROKEN) >= 25
    assert len(GOOD) >= 10


@pytest.fixture(scope="module")
def explicit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with judge(tmp_path_factory.mktemp("judged") / "models") as running:
        yield running


def test_the_real_server_loads_what_has_no_error_and_refuses_what_has_one(explicit: EmbeddedServer) -> None:
    asked = {title: case for title, case in BROKEN.items() if case.loads is not None}
    with InferenceServerClient(explicit.grpc_url) as client:
        loaded = {}
        for number, (title, case) in enumerate(asked.items()):
            case.make(explicit.repository, f"m{number}")
            try:
                client.load_model(f"m{number}", headers=explicit.key_header)
                loaded[title] = True
            except InferenceServerException:
                loaded[title] = False
    assert loaded == {title: case.loads for title, case in asked.items()}
    assert sum(loaded.values()) > 3
    for title, case in asked.items():
        assert case.loads == (case.severity == "warning"), title


# Several repositories, plans, NumPy, options --------------------------------------------------------------------------


def test_one_name_in_two_repositories_is_found(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for root in (one, other):
        plain(root)
    (found,) = found_in(one, other)
    assert found.code == "name-twice"
    assert str(one) in found.what
    assert found_in(one, one) == []  # given twice is one


def test_entries_beside_a_repository_are_examined_with_it_and_not_those_elsewhere(tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    volume_without_model(root, "tiny")
    assert codes(found_in(root)) == ["volume-model-missing"]
    assert codes(found_in(root, volume_repository(root))) == ["volume-model-missing"]
    assert codes(found_in(volume_repository(root))) == ["volume-model-missing"]
    moved = volume_repository(root).rename(tmp_path / "elsewhere")
    assert found_in(root) == []
    assert codes(found_in(root, moved)) == ["volume-model-missing"]


@pytest.mark.parametrize(
    ("facts", "machine", "expected"),
    [
        (TENSORRT, ONE_GPU, []),
        ({**TENSORRT, "tensorrt": "10.14.1.48"}, ONE_GPU, ["plan-version"]),
        (TENSORRT, (Gpu("NVIDIA A100", "sm_80", GIB),), ["gpu-differs"]),
        ({**TENSORRT, "hardware_compatibility": "ampere_plus"}, (Gpu(H200["name"], "sm_80", GIB),), []),
        ({**TENSORRT, "hardware_compatibility": "ampere_plus"}, (Gpu(H200["name"], "sm_75", GIB),), ["gpu-differs"]),
        ({}, ONE_GPU, ["plan-unknown"]),
    ],
)
def test_a_plan_fits_one_version_and_one_architecture(
    facts: dict[str, object], machine: tuple[Gpu, ...], expected: list[str], models: Path
) -> None:
    model(models, engines=("tensorrt",), serving={"gpus": "all"}, facts=facts)
    server = Server(replace(release_named(RELEASE), tensorrt="11.1.0.10"), replace(MACHINE, gpus=machine))
    found = [finding for finding in lint([models], server) if finding.code not in ("examined", "other-device")]
    assert codes(found) == expected


def test_plans_of_two_versions_are_never_served_together(models: Path) -> None:
    for name, version in (("one", "11.1.0.10"), ("two", "10.14.1.48")):
        model(models, name, engines=("tensorrt",), serving={"gpus": "all"}, facts={**TENSORRT, "tensorrt": version})
    found = found_in(models, release=RELEASE, machine=None)
    assert [finding.code for finding in found if finding.severity == "error"] == ["plans-differ"]


def test_numpy_2_is_found_where_the_stubs_would_take_it(tmp_path: Path) -> None:
    root, engines = tmp_path / "models", tmp_path / "engines"
    plain(root)
    (engines / "numpy-1.26.4.dist-info").mkdir(parents=True)
    assert found_in(root, engines=engines) == []
    (engines / "numpy-1.26.4.dist-info").rename(engines / "numpy-2.0.0.dist-info")
    assert codes(found_in(root, engines=engines)) == ["numpy-2"]
    assert found_in(root, engines=engines, release=RELEASE) == []


def compose_options(name: str, service: str) -> str:
    """tritonserver's options in a compose file of this project."""
    content = yaml.safe_load((ROOT / "server" / "deploy" / name).read_text())
    return " ".join(content["services"][service]["command"]).replace("$$", "$")


def test_the_options_of_this_projects_containers_leave_nothing_open(tmp_path: Path) -> None:
    _volume(tmp_path / "models", "tiny")
    options = compose_options("compose.volume.yaml", "triton-cpu")
    assert not [
        one for one in found_in(tmp_path / "models", release=RELEASE, options=options) if one.severity != "note"
    ]


@pytest.mark.parametrize(
    ("without", "more", "release", "expected"),
    [
        ("--http-max-input-size=2147483647", "", RELEASE, ["http-limit"]),
        ("--http-max-input-size=2147483647", "", "24.10", ["security-floor"]),
        ("--http-max-input-size=2147483647", " --allow-http=false", RELEASE, []),
        ("--grpc-restricted-protocol=model-repository,trace,logging:voxtile=$key", "", RELEASE, ["open-control"]),
        ("--grpc-restricted-protocol=model-repository,trace,logging:voxtile=$key",
         " --grpc-restricted-protocol trace:a=b --grpc-restricted-protocol model-repository,logging:c=d", RELEASE, []),
        ("--allow-client-shm=false", " --allow-client-shm=true", RELEASE, ["open-control"] * 2),
        ("--allow-client-shm=false", " --allow-client-shm=true --grpc-address=127.0.0.1 --http-address=::1",
         RELEASE, []),
    ],
)  # fmt: skip
def test_options_that_leave_something_open_or_shut(
    without: str, more: str, release: str, expected: list[str], tmp_path: Path
) -> None:
    _volume(tmp_path / "models", "tiny")
    options = compose_options("compose.volume.yaml", "triton-cpu")
    assert without in options
    if release == "24.10":  # before 26.04, clients share memory, which these options close by a key
        more += " --grpc-restricted-protocol=shared-memory:a=b --http-restricted-api=shared-memory:a=b"
    found = found_in(tmp_path / "models", release=release, options=options.replace(without, "") + more)
    assert [finding.code for finding in found if finding.severity != "note"] == expected


def test_the_embedded_servers_own_options_leave_nothing_open(models: Path) -> None:
    plain(models)
    options = triton_options("models", Endpoints("0.0.0.0", 8000, 8001, None), gpu=False)
    options += restriction_options(new_key(), http=True)
    assert found_in(models, options=" ".join(options)) == []


# Releases and formats -------------------------------------------------------------------------------------------------


def test_the_table_of_releases_fits_what_this_project_pins() -> None:
    embedded = release_named("embedded")
    assert (embedded.core, embedded.triton) == (EMBEDDED_RELEASE, EMBEDDED_VERSION)
    assert set(embedded.backends) == set(served_backends())
    for name, version in (("onnxruntime", embedded.onnxruntime), ("openvino", embedded.openvino)):
        assert f"\n{name}=={version} " in PINS.read_text()
    assert security_floor() == RELEASE
    assert release_named(RELEASE).known
    assert release_of_server(EMBEDDED_VERSION) == release_named(EMBEDDED_RELEASE)
    assert release_of_server("2.0.0") is None
    table = json.loads((ROOT / "client" / "voxtile" / "doctor" / "releases.json").read_text())
    for name in table["releases"]:
        assert release_named(name).opset, name
    assert set(table["sources"]), "figures name where they come from"


def test_the_newest_onnx_of_the_embedded_server_is_what_onnx_runtime_takes(explicit: EmbeddedServer) -> None:
    embedded = release_named("embedded")
    assert embedded.opset is not None
    assert embedded.ir is not None
    model(explicit.repository, "newest")
    doctored.replace_graph(explicit.repository, "newest", network(spec(), opset=embedded.opset, ir=embedded.ir))
    with InferenceServerClient(explicit.grpc_url) as client:
        client.load_model("newest", headers=explicit.key_header)


@pytest.mark.parametrize(
    ("opset", "ir", "release", "expected"),
    [(20, 10, "24.10", True), (21, 10, "24.10", True), (22, 10, "24.10", False), (20, 11, "24.10", False),
     (23, 11, "26.01", True), (24, 11, "26.01", False), (23, 12, "26.01", False), (25, 13, "26.04", True),
     (26, 13, "26.04", False), (26, 13, "26.07", True)],
)  # fmt: skip
def test_each_release_reads_its_own_onnx(opset: int, ir: int, release: str, expected: bool, models: Path) -> None:
    model(models)
    doctored.replace_graph(models, "tiny", network(spec(), opset=opset, ir=ir))
    found = found_in(models, release=release, machine=None)
    assert [one.code for one in found if one.severity == "error"] == ([] if expected else ["onnx-too-new"])


def test_a_release_that_nobody_knows_says_so(models: Path) -> None:
    model(models)
    found = found_in(models, release="31.01", machine=None)
    assert {(finding.severity, finding.code) for finding in found} == {("note", "release-unknown")}
    for name in ("latest", "26.7", "26.13", "26.07-py3", "", "embedded "):
        with pytest.raises(InputError, match="expected embedded or the number of a Triton container"):
            release_named(name)


def test_the_head_of_an_onnx_file_is_what_onnx_itself_reads(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    made = network(spec(input={"intensity": {"rule": "zscore"}}), opset=17, ir=8)
    made.opset_import.add(domain="com.microsoft", version=1)
    made.graph.input.append(made.graph.output[0])
    made.graph.input[-1].name = "factors"  # as older exporters name a weight, which nobody sends
    onnx.save(made, file)
    header = read_header(file)
    assert (header.ir, header.opset) == (8, 17)
    for tensors, values in ((header.inputs, made.graph.input[:2]), (header.outputs, made.graph.output)):
        assert [one.name for one in tensors] == [one.name for one in values]
        for tensor, value in zip(tensors, values, strict=True):
            kind = value.type.tensor_type
            assert tensor.dtype == kind.elem_type
            assert tensor.dims == tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)


def test_no_damaged_file_is_read_as_a_whole_one_or_ends_in_another_error(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    whole = network(spec()).SerializeToString()
    for end in range(0, len(whole), 7):
        file.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="no ONNX model"):
            read_header(file)
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            read_header(file)
        except ValueError as error:
            assert "no ONNX model" in str(error)  # noqa: PT017


# The machine ----------------------------------------------------------------------------------------------------------


def test_a_port_is_taken_by_others_than_triton(server: EmbeddedServer) -> None:
    own = int(server.grpc_url.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0)
        port = other.getsockname()[1]
        assert Machine.here((own, port, 0)).taken_ports == (port,)


def test_this_machine_is_seen() -> None:
    here = Machine.here()
    assert here.cpu == device_name("cpu")
    assert here.memory_bytes > GIB
    assert here.instructions is None or "sse2" in here.instructions


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command_prints_json_that_stays_the_same_and_ends_with_a_code(models: Path) -> None:
    model(models)
    change_config(models / "tiny_onnxruntime", lambda config: queue(config, default_timeout_microseconds=1))
    done = run("doctor", models, "--elsewhere", "--json")
    told = json.loads(done.stdout)
    assert set(told) == {"schema_version", "release", "exit_code", "findings"}
    assert (told["schema_version"], told["release"], told["exit_code"], done.exit_code) == (1, "embedded", 1, 1)
    for finding in told["findings"]:
        assert list(finding) == ["severity", "code", "where", "what", "why", "todo"]
    assert [finding["code"] for finding in told["findings"]] == ["queue-policy", "examined"]
    onnx_of(models, "tiny").unlink()
    done = run("doctor", models, "--elsewhere", "--for", "24.10")
    assert done.exit_code == 2
    assert [line[:4] for line in done.stdout.splitlines()] == ["WARN", "FAIL", "note", "WARN", "ok  "]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--for", "26.07"], "expected a model repository with them, found none"),
        (["--server-options", "'", "{models}"], "expected a command line"),
        (["--for", "newest", "{models}"], "expected embedded or the number of a Triton container"),
        (["--engines", "nowhere", "{models}"], "expected a folder of packages, found nowhere"),
        (["--model", "tiny", "{models}"], "expected --url too, found a repository"),
        (["{models}/double/config.pbtxt"], "expected --model with a scan"),
        (["--port", "70000", "{models}"], "--port"),
    ],
)
def test_what_cannot_be_meant_is_told_in_one_line(words: list[str], told: str, tmp_path: Path) -> None:
    plain(tmp_path)
    done = run("doctor", *(word.format(models=tmp_path) for word in words))
    assert done.exit_code == 2
    assert told in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("there", [True, False])
def test_what_is_no_folder_is_a_finding(there: bool, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    if there:
        folder.touch()
    (found,) = found_in(folder)
    assert (found.code, found.severity) == ("no-repository", "error")


def test_a_repository_and_its_server_are_examined_together(server: EmbeddedServer, repository: Path) -> None:
    done = run("doctor", repository, "--elsewhere", "--url", server.grpc_url)
    assert done.exit_code == 0
    assert "examined for the embedded server" in done.stdout
    assert "a Triton server answers" in done.stdout


def test_a_live_embedded_server_has_no_fault(server: EmbeddedServer) -> None:
    done = run("doctor", "--url", server.grpc_url, "--json")
    assert done.exit_code == 0
    assert {finding["severity"] for finding in json.loads(done.stdout)["findings"]} == {"ok"}


def test_a_server_that_others_reach_is_told_to_be_open(server: EmbeddedServer) -> None:
    """By another address of this machine, as others would call it: old, and unencrypted; control needs a key."""
    done = run("doctor", "--url", f"0.0.0.0:{server.grpc_url.rpartition(':')[2]}", "--json")
    assert done.exit_code == 1
    found = [one["code"] for one in json.loads(done.stdout)["findings"] if one["severity"] == "warning"]
    assert found == ["security-floor", "open-endpoint"]


def test_what_is_no_plain_file_is_never_read(models: Path) -> None:
    """A pipe or a device in the place of a file would keep doctor for ever; one that is not there is named."""
    model(models)
    version = onnx_of(models, "tiny").parent
    for name, code in (("samples.npz", "certified-file-missing"), ("certificate.json", "certificate-missing")):
        kept = (version / name).read_bytes()
        (version / name).unlink()
        os.mkfifo(version / name)
        assert codes(found_in(models)) == [code]
        (version / name).unlink()
        (version / name).write_bytes(kept)
    content = json.loads((version / "certificate.json").read_text())
    content["hashes"]["files"] = {"/dev/zero": "0", "..": "1"}
    (version / "certificate.json").write_text(json.dumps(content))
    doctored.name_certificate(models, "tiny")
    assert codes(found_in(models)) == [*["certified-file-missing"] * 2, "not-in-certificate"]


@pytest.mark.parametrize(
    ("kind", "mode", "owner", "group", "can"),
    [
        (stat.S_IFREG, 0o600, 0, 0, False), (stat.S_IFREG, 0o600, 1000, 0, True), (stat.S_IFREG, 0o040, 0, 1000, True),
        (stat.S_IFREG, 0o004, 0, 0, True), (stat.S_IFREG, 0o044, 1000, 0, False), (stat.S_IFREG, 0o604, 0, 1000, False),
        (stat.S_IFDIR, 0o704, 0, 0, False), (stat.S_IFDIR, 0o705, 0, 0, True), (stat.S_IFDIR, 0o500, 1000, 0, True),
    ],
)  # fmt: skip
def test_the_containers_user_reads_as_owner_as_group_or_as_anybody(
    kind: int, mode: int, owner: int, group: int, can: bool
) -> None:
    assert container_can_read(os.stat_result((kind | mode, 0, 0, 1, owner, group, 1, 0, 0, 0))) is can


# The page -------------------------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "how-to" / "doctor.md").read_text()


def test_the_page_names_every_code() -> None:
    sources = "".join(file.read_text() for file in sorted((ROOT / "client" / "voxtile" / "doctor").rglob("*.py")))
    there = set(re.findall(r'\(\s*"(?:note|warning|error)"[^,()]*,\s*"([a-z0-9-]+)"', sources))
    assert {case.code for case in BROKEN.values()} <= there | {"engine-missing"}
    rows = [
        line.split(" | ")[0] for line in PAGE.partition("## What it finds")[2].splitlines() if line.startswith("| `")
    ]
    named = [code for row in rows for code in re.findall(r"`([a-z0-9-]+)`", row)]
    assert sorted(named) == sorted(there | {"engine-missing"})


def test_the_pages_commands_do_what_it_says(
    server: EmbeddedServer, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model_repository").symlink_to(repository)
    lines = [line for line in PAGE.splitlines() if line.startswith("voxtile doctor ")]
    assert len(lines) >= 5
    for line in lines:
        words = shlex.split(line.replace("localhost:8001", server.grpc_url))[1:]
        local = [] if "--url" in words or "--elsewhere" in words else ["--port", "0"]
        done = run(*words, *local)
        # A machine of the tests may lack shared memory, which is no fault of the page's.
        assert done.exit_code in ((0, 1) if local else (0,)), done.output
        assert "FAIL" not in done.stdout
