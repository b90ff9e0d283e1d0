"""Faults that the real server refuses, or ends at, and that `voxtile doctor` names before: values, graphs, files.

The corpus of `test_doctor` has one fault of each kind. These were found by breaking further repositories.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException

from tests.support import doctored
from tests.support import tiny_entries as tiny
from tests.support.commands import run
from tests.support.doctored import change_config, model, plain
from tests.support.judges import judge
from tests.support.umask import usual_umask
from voxtile.doctor.checks.named_files import HERE
from voxtile.doctor.finding import Finding
from voxtile.doctor.lint import Server, lint
from voxtile.doctor.machine import Machine
from voxtile.doctor.releases import EMBEDDED, release_named
from voxtile_build.certificate.device import device_name
from voxtile_build.engines.release import RELEASE
from voxtile_server.embedded import EmbeddedServer

Make = Callable[[Path, str], object]
SAMPLE = {"data_type": pb.TYPE_INT16, "dims": [1, 4, 5, 6]}


def faults_in(folder: Path, release: str = EMBEDDED, **server: Any) -> list[Finding]:
    """What is found for another machine, without what is well."""
    made = Server(release_named(release), **server)
    return [finding for finding in lint([folder], made) if finding.severity not in ("ok", "note")]


@pytest.fixture
def models(tmp_path: Path) -> Iterator[Path]:
    """An empty repository that a container's user may read."""
    with usual_umask():
        (tmp_path / "models").mkdir()
        yield tmp_path / "models"


# Ways to break -------------------------------------------------------------------------------------------------------


def configured(change: Callable[[pb.ModelConfig], object], backend: str = "onnxruntime") -> Make:
    """A plain entry whose configuration is changed."""
    return lambda root, name: change_config(plain(root, name, backend=backend), lambda config: _done(change(config)))


def ensemble(change: Callable[[pb.ModelConfig], object]) -> Make:
    """An ensemble before a plain entry, changed."""

    def make(root: Path, name: str) -> None:
        plain(root, f"{name}_behind")
        change_config(tiny.write_ensemble(root, name, f"{name}_behind"), lambda config: _done(change(config)))

    return make


def filed(change: Callable[[Path], object], backend: str = "onnxruntime") -> Make:
    """A plain entry, with something done to its version folder."""
    return lambda root, name: change(plain(root, name, backend=backend) / "1")


def graphed(change: Callable[[onnx.ModelProto], object]) -> Make:
    """A plain entry whose graph is changed."""

    def changed(version: Path) -> None:
        graph = onnx.load(version / "model.onnx")
        change(graph)
        onnx.save(graph, version / "model.onnx")

    return filed(changed)


def _done(_: object) -> None:
    """Nothing: lambdas that change something give something back."""


def roi(config: pb.ModelConfig, *dims: int) -> None:
    config.input[0].ClearField("dims")
    config.input[0].dims.extend(dims)


def warm_up(config: pb.ModelConfig, batch: int, **sample: object) -> None:
    config.model_warmup.add(name="w", batch_size=batch).inputs["roi"].CopyFrom(pb.ModelWarmup.Input(**SAMPLE, **sample))


def prioritised(config: pb.ModelConfig) -> None:
    config.dynamic_batching.priority_levels = 2


def instances(config: pb.ModelConfig) -> None:
    config.instance_group[0].kind = pb.ModelInstanceGroup.KIND_MODEL
    config.instance_group[0].gpus.append(0)


def another_writer(config: pb.ModelConfig) -> None:
    config.ensemble_scheduling.step.add().CopyFrom(config.ensemble_scheduling.step[0])


def unused(config: pb.ModelConfig) -> None:
    config.input.add(name="more", data_type=pb.TYPE_FP32, dims=[1])


def circle_aside(config: pb.ModelConfig) -> None:
    """Two further steps, each of which waits for the other's tensor."""
    steps = config.ensemble_scheduling.step
    config.input[0].data_type = pb.TYPE_FP32
    for taken, given in (("one", "other"), ("other", "one")):
        step = steps.add()
        step.CopyFrom(steps[0])
        step.input_map["roi"], step.output_map["scores"] = taken, given


def circle(root: Path, name: str) -> None:
    plain(root, f"{name}_behind", taken="TYPE_FP32")
    change_config(tiny.write_ensemble(root, name, f"{name}_behind"), circle_aside)


def foreign_operator(graph: onnx.ModelProto) -> None:
    graph.opset_import.add(domain="my.ops", version=1)
    graph.graph.node[1].domain = "my.ops"


def other_dims(root: Path, name: str) -> None:
    plain(root, name, backend="openvino")
    change_config(root / name, lambda config: roi(config, 1, 4, 5, 7))


def cut(file: str, share: float) -> Callable[[Path], object]:
    """Leaves the first bytes of a file."""
    return lambda version: os.truncate(version / file, int((version / file).stat().st_size * share))


def no_plain_file(version: Path) -> None:
    (version / "model.onnx").unlink()
    os.mkfifo(version / "model.onnx")


def weights_beside(version: Path) -> Path:
    """Moves the weights of a graph into a file of their own."""
    graph = onnx.load(version / "model.onnx")
    onnx.save(graph, version / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    return version / "weights"


REFUSED: dict[str, tuple[str, Make]] = {
    "a platform of another backend": (
        "backend-differs", configured(lambda c: setattr(c, "platform", "tensorrt_plan")),
    ),
    "an extent of -2": ("odd-tensor", configured(lambda c: roi(c, 1, -2, 5, 6))),
    "no outputs": ("no-tensors", configured(lambda c: c.ClearField("output"))),
    "a policy for no version": ("version-missing", configured(lambda c: c.version_policy.specific.SetInParent())),
    "a policy for the newest 0": ("version-missing", configured(lambda c: c.version_policy.latest.SetInParent())),
    "a preferred size of 0": (
        "preferred-size", configured(lambda c: c.dynamic_batching.preferred_batch_size.append(0)),
    ),
    "no usual priority": ("priority-level", configured(prioritised)),
    "GPUs that the model chooses": ("device-not-served", configured(instances)),
    "labels that are not there": (
        "file-missing", configured(lambda c: setattr(c.output[0], "label_filename", "labels.txt")),
    ),
    "a warm-up without its data": ("file-missing", configured(lambda c: warm_up(c, 1, input_data_file="gone"))),
    "a warm-up of too many": ("batch-size", configured(lambda c: warm_up(c, 9, zero_data=True))),
    "a pipe for a graph": ("file-missing", filed(no_plain_file)),
    "an environment that is gone": (
        "file-missing",
        configured(lambda c: setattr(c.parameters["EXECUTION_ENV_PATH"], "string_value", f"{HERE}/env.tar.gz")),
    ),
    "an input that no step takes": ("tensor-mismatch", ensemble(unused)),
    "a tensor of two steps": ("tensor-mismatch", ensemble(another_writer)),
    "version 0 of a step": (
        "step-version", ensemble(lambda c: setattr(c.ensemble_scheduling.step[0], "model_version", 0)),
    ),
    "steps that wait for each other": ("ensemble-circle", circle),
    "operators of nobody": ("operator-unknown", graphed(foreign_operator)),
    "a graph without an opset": ("engine-unreadable", graphed(lambda graph: graph.ClearField("opset_import"))),
    "a graph of opset 0": ("engine-unreadable", graphed(lambda graph: setattr(graph.opset_import[0], "version", 0))),
    "weights that were left behind": ("file-missing", filed(lambda version: weights_beside(version).unlink())),
    "weights that are cut off": (
        "engine-unreadable", filed(lambda version: os.truncate(weights_beside(version), 1)),
    ),
    "half an IR": ("engine-unreadable", filed(cut("model.xml", 0.5), "openvino")),
    "weights of an IR that are cut off": ("engine-unreadable", filed(cut("model.bin", 0.9), "openvino")),
    "an IR of another shape": ("graph-differs", other_dims),
    "an IR of another type": (
        "graph-differs", configured(lambda c: setattr(c.input[0], "data_type", pb.TYPE_FP32), "openvino"),
    ),
    "an IR with another output": (
        "graph-differs", configured(lambda c: setattr(c.output[0], "name", "more"), "openvino"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("code", "make"), REFUSED.values(), ids=REFUSED)
def test_what_the_server_refuses_has_its_finding(code: str, make: Make, tmp_path: Path) -> None:
    make(tmp_path, "tiny")
    found = faults_in(tmp_path)
    assert {one.code for one in found if one.severity == "error"} == {code}
    for one in found:
        assert all((one.where, one.what, one.why, one.todo))


@pytest.fixture(scope="module")
def explicit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with judge(tmp_path_factory.mktemp("judged") / "models") as running:
        yield running


def loads(server: EmbeddedServer, name: str) -> bool:
    """Whether the real server loads a model."""
    with InferenceServerClient(server.grpc_url) as client:
        try:
            client.load_model(name, headers=server.key_header)
        except InferenceServerException:
            return False
    return True


def test_the_real_server_refuses_each(explicit: EmbeddedServer) -> None:
    taken = {}
    for number, (title, (_, make)) in enumerate(REFUSED.items()):
        make(explicit.repository, f"m{number}")
        taken[title] = loads(explicit, f"m{number}")
    assert not [title for title, loaded in taken.items() if loaded]


# Good ones ----------------------------------------------------------------------------------------------------------


GOOD: dict[str, Make] = {
    "weights beside a graph": filed(weights_beside),
    "a function of the graph's own": graphed(
        lambda graph: (
            graph.opset_import.add(domain="own", version=1),
            graph.functions.append(
                onnx.helper.make_function(
                    "own", "Twice", ["a"], ["b"], [onnx.helper.make_node("Add", ["a", "a"], ["b"])],
                    [onnx.helper.make_opsetid("", 20)],
                )
            ),
            graph.graph.node[1].CopyFrom(onnx.helper.make_node("Twice", ["x"], ["doubled"], domain="own")),
        )
    ),
    "instances without number": configured(lambda c: setattr(c.instance_group[0], "count", 0)),
    "other folders beside the version": filed(
        lambda version: [shutil.copytree(version, version.with_name(name)) for name in ("0", "002")]
    ),
    "lines of Windows": lambda root, name: (
        (file := plain(root, name) / "config.pbtxt").write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    ),
    "a link to the folder above": filed(lambda version: (version.parent / "up").symlink_to("..")),
    "an IR of its own names": filed(lambda version: None, "openvino"),
    "an output that is left out": graphed(
        lambda graph: (
            graph.graph.node.append(onnx.helper.make_node("Identity", ["sum"], ["more"])),
            graph.graph.output.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, None)),
        )
    ),
    "a warm-up as large as can be": configured(lambda c: warm_up(c, 4, zero_data=True)),
    "version 1 of a step": ensemble(lambda c: setattr(c.ensemble_scheduling.step[0], "model_version", 1)),
}  # fmt: skip


@pytest.mark.parametrize("make", GOOD.values(), ids=GOOD)
def test_nothing_is_said_of_what_is_unusual_and_right(make: Make, tmp_path: Path) -> None:
    make(tmp_path, "tiny")
    assert faults_in(tmp_path) == []


def test_the_real_server_loads_each(explicit: EmbeddedServer) -> None:
    taken = {}
    for number, (title, make) in enumerate(GOOD.items()):
        make(explicit.repository, f"g{number}")
        taken[title] = loads(explicit, f"g{number}")
    assert not [title for title, loaded in taken.items() if not loaded]


def test_a_container_takes_a_folder_for_a_graph_and_the_embedded_server_takes_none(models: Path) -> None:
    graph = plain(models, "tiny") / "1" / "model.onnx"
    content = graph.read_bytes()
    graph.unlink()
    graph.mkdir()
    assert [one.code for one in faults_in(models, RELEASE)] == ["file-missing"], "nothing lies in it"
    (graph / "model.onnx").write_bytes(content)
    assert faults_in(models, RELEASE) == []
    assert [one.code for one in faults_in(models)] == ["file-missing"]


# Faults that no server refuses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [False, True])
def test_a_version_that_triton_cannot_count_ends_the_server(beside: bool, tmp_path: Path) -> None:
    """Not tried on the server of the other tests, which ends at once when it reads the name."""
    version = plain(tmp_path, "tiny") / "1"
    (shutil.copytree if beside else os.rename)(version, version.with_name(str(2**63)))
    assert [one.code for one in faults_in(tmp_path)] == ["odd-version"]
    version.with_name(str(2**63)).rename(version.with_name(str(2**63 - 1)))
    assert faults_in(tmp_path) == []


@pytest.mark.parametrize("named", [{}, {"README": "0"}])
def test_a_certificate_of_other_files_proves_nothing(named: dict[str, str], tmp_path: Path) -> None:
    model(tmp_path)
    file = tmp_path / "tiny_onnxruntime" / "1" / "certificate.json"
    content = json.loads(file.read_text())
    content["hashes"]["files"] = named
    file.write_text(json.dumps(content))
    doctored.name_certificate(tmp_path, "tiny")
    (found,) = [one for one in faults_in(tmp_path) if one.code != "certified-file-missing"]
    assert (found.severity, found.code) == ("error", "not-in-certificate")
    assert found.where.endswith("model.onnx")


def test_weights_beside_a_graph_are_certified_and_counted_too(tmp_path: Path) -> None:
    """As voxtile-build writes those of a large graph."""
    model(tmp_path)
    weights = tmp_path / "tiny_onnxruntime" / "1" / "model.onnx.data"
    weights.write_bytes(bytes(1000))
    assert [one.code for one in faults_in(tmp_path)] == ["not-in-certificate"]
    doctored.recertify(tmp_path, "tiny")
    machine = Machine((), weights.stat().st_size, 1 << 30, device_name("cpu"), frozenset())
    server = Server(release_named(EMBEDDED), machine)
    assert [one.code for one in lint([tmp_path], server) if one.severity != "ok"] == ["memory"]


def test_an_engine_that_no_name_leads_to_is_named(tmp_path: Path) -> None:
    model(tmp_path, engines=("onnxruntime", "openvino"), folds=2)
    assert faults_in(tmp_path) == [], "the engine that the public name does not run now"
    shutil.rmtree(tmp_path / "tiny")
    found = faults_in(tmp_path)
    assert {(one.severity, one.code) for one in found} == {("warning", "not-reached")}
    assert {Path(one.where).name for one in found} == {path.name for path in tmp_path.iterdir()}


def test_a_card_on_an_entry_without_steps_has_no_certificates_to_compare(tmp_path: Path) -> None:
    model(tmp_path)
    shown: list[str] = []
    change_config(tmp_path / "tiny", lambda c: shown.append(c.parameters["card"].string_value))
    plain(tmp_path, "alone")
    change_config(tmp_path / "alone", lambda c: setattr(c.parameters["card"], "string_value", shown[0]))
    assert "certificate-differs" not in {one.code for one in faults_in(tmp_path)}


def test_the_folder_of_one_model_is_no_repository(tmp_path: Path) -> None:
    entry = plain(tmp_path, "tiny")
    (found,) = faults_in(entry)
    assert (found.severity, found.code) == ("error", "no-repository")
    assert str(tmp_path) in found.todo
    done = run("doctor", entry, "--elsewhere", "--json")
    assert done.exit_code == json.loads(done.stdout)["exit_code"] == 2


def test_a_wrong_folder_is_not_searched_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a home folder, with millions of files below it; what is in a model is looked at."""
    (tmp_path / "documents" / "old" / "older").mkdir(parents=True)
    (tmp_path / "documents" / "link").symlink_to("gone")
    (tmp_path / "documents" / "old" / "link").symlink_to("gone")
    (plain(tmp_path, "tiny") / "1" / "link").symlink_to("gone")
    looked: list[str] = []
    real = os.walk
    monkeypatch.setattr(os, "walk", lambda top: looked.append(Path(top).name) or real(top))
    found = faults_in(tmp_path)
    assert set(looked) == {"tiny"}
    links = [str(Path(one.where).relative_to(tmp_path)) for one in found if one.code == "link-broken"]
    assert links == ["documents/link", "tiny/1/link"]
    assert {one.code for one in found} == {"link-broken", "no-config"}


@pytest.mark.parametrize(("off", "on"), [("false", "true"), ("0", "1"), ("False", "TRUE")])
def test_options_are_off_in_every_way_that_triton_writes_it(off: str, on: str, models: Path) -> None:
    plain(models, "tiny")
    shut = "--grpc-restricted-protocol=model-repository,trace,logging:a=b --allow-http={}"
    assert faults_in(models, RELEASE, options=shut.format(off)) == []
    assert {one.code for one in faults_in(models, RELEASE, options=shut.format(on))} == {"open-control"}
    shared = f"{shut.format(off)} --allow-client-shm={on}"
    assert {one.code for one in faults_in(models, RELEASE, options=shared)} == {"open-control"}
