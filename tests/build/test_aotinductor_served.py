"""AOTInductor's packages: compiled here for the CPU, certified, and served by the embedded server as PyTorch has it.

Two networks are compiled, once for all tests: one in fp32 with all that is unusual at the border, and one in bf16 for
slices of any size.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import json_format
from torch import nn
from tritonclient.grpc import model_config_pb2 as pb

from tests.support.build_specs import ROI, spec, tiny_unet
from voxtile.card import Card
from voxtile_build.arrays import Feed
from voxtile_build.build import build
from voxtile_build.certificate.served import ServedRunner
from voxtile_build.certificate.verify import verify
from voxtile_build.engines import find_engine
from voxtile_build.engines.aotinductor import cpu
from voxtile_build.errors import EngineError
from voxtile_build.evaluation.whole_scan import torch_runner
from voxtile_build.graph.wrapper import wrap
from voxtile_build.networks import make_network
from voxtile_build.profile.profile import profile
from voxtile_build.repository.card import get_card
from voxtile_build.repository.config import read_config
from voxtile_build.repository.default_engine import set_default_engine
from voxtile_build.spec.spec import Spec
from voxtile_server.backends.contract import ConfigError, check_against_graph, parse_contract
from voxtile_server.backends.entry import Entry
from voxtile_server.backends.pytorch import package
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.install import pytorch

ENGINE = find_engine("aotinductor")
# Random weights give scores so close to each other that rounding changes more voxels than in a trained network.
LENIENT = {"min_dice": 0.9, "max_changed": 0.05, "allow_unseen_labels": True}
BF16 = 0.1
"""bf16 keeps 8 bits, of logits around 1."""
A_STEP = 1
"""Of uint8: fp32 sums in another order may round to the neighbour."""

SPECS = {
    "volume": spec(
        name="volume",
        input={"dtype": "int16", "intensity": {"rule": "zscore"}},
        output={"scores": "probabilities", "dtype": "uint8"},
        serving={"engines": ["aotinductor", "onnxruntime"], "max_batch_size": 3, "threads": 1},
        acceptance={"allow_unseen_labels": True},
    ),
    "slices": spec(
        name="slices",
        network={"args": {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2]}},
        tiling={"roi_size": [16, 24], "slice_axis": 2, "multiple": 8, "overlap": 0.0, "mode": "constant"},
        precision={"aotinductor": "bf16"},
        serving={"engines": ["aotinductor"], "max_batch_size": 2, "threads": 1},
        acceptance=LENIENT,
    ),
}
SIZES = {"volume": [ROI], "slices": [(16, 24), (8, 40)]}

pytestmark = pytest.mark.usefixtures("one_thread")


def network_of(name: str) -> nn.Module:
    if name == "volume":
        return tiny_unet()
    torch.manual_seed(2)
    return make_network("UNet", SPECS[name].network.args, 1, 3)


@dataclass(frozen=True)
class Published:
    """The repository, and the address of the server on it."""

    repository: Path
    url: str

    def card(self, name: str) -> Card:
        folder = self.repository / name
        return get_card(read_config(folder), folder)

    def certificate(self, name: str) -> dict[str, Any]:
        text = (self.repository / f"{name}_aotinductor/1/certificate.json").read_text()
        content: dict[str, Any] = json.loads(text)
        return content


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Iterator[Published]:
    repository = tmp_path_factory.mktemp("aotinductor") / "models"
    for name, made in SPECS.items():
        build(made, repository, network=network_of(name))
    with EmbeddedServer(repository) as server:
        yield Published(repository, server.grpc_url)
        server.kill()


def feed(made: Spec, batch: int, size: tuple[int, ...]) -> Feed:
    """Tiles as a client sends them; a part of each lies outside the scan."""
    rng = np.random.default_rng(batch)
    roi = rng.normal(300, 100, (batch, 1, *size)).astype(np.int16 if made.input.dtype == "int16" else np.float32)
    roi[:, :, :3] = -32768 if made.input.dtype == "int16" else np.finfo(np.float32).min
    if not made.whole_scan_intensity:
        return {"roi": roi / np.float32(300)}
    return {"roi": roi, "intensity": np.tile(np.array([[[300, 100]]], np.float32), (batch, 1, 1))}


@pytest.mark.parametrize("name", SPECS)
def test_the_certificate_is_accepted_and_says_what_computes_where(published: Published, name: str) -> None:
    certificate = published.certificate(name)
    precision = SPECS[name].precision.of("aotinductor")
    assert certificate["accepted"] is True
    assert (certificate["engine"], certificate["precision"]) == ("aotinductor", precision)
    assert (certificate["device"]["kind"], certificate["serves_on"]) == ("cpu", "cpu")
    facts = certificate["precision_facts"]
    assert facts["layers"] == {precision: 3}
    page = published.repository / f"{name}_aotinductor/1/certificate.md"
    assert f"Layers by type: 3 in {precision}." in page.read_text(encoding="utf-8")
    assert not cpu.missing(facts["instructions"], cpu.features())
    assert certificate["versions"]["aotinductor"] == torch.__version__
    assert set(certificate["hashes"]["files"]) == {"model.pt2"}


def test_reduced_precision_is_reduced_and_fp32_is_not(published: Published) -> None:
    """A package that says bf16 and computes in fp32 would pass every other test."""
    assert published.certificate("volume")["metrics"]["max_abs_error"] <= A_STEP / 255
    assert published.certificate("slices")["metrics"]["max_abs_error"] > 1e-4


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("suffix", ["", "_aotinductor"])
def test_what_is_served_is_what_pytorch_gives_whatever_the_batch(published: Published, name: str, suffix: str) -> None:
    made = SPECS[name]
    oracle = torch_runner(wrap(network_of(name), made))
    names = ENGINE.tensor_name if suffix else str
    with ServedRunner(published.url, published.card(name), name + suffix, names) as served:
        for size in SIZES[name]:
            given = feed(made, made.serving.max_batch_size, size)
            found, expected = served(given), oracle(given)
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            assert expected.std() > 0.05
            limit = A_STEP if found.dtype == np.uint8 else BF16
            np.testing.assert_allclose(found.astype(float), expected.astype(float), rtol=0, atol=limit)
            for index in range(len(found)):
                alone = served({key: value[index : index + 1] for key, value in given.items()})
                np.testing.assert_array_equal(alone[0], found[index])


@pytest.mark.parametrize("name", SPECS)
def test_the_entry_holds_in_this_process_and_as_served(published: Published, name: str) -> None:
    here = verify(name, published.repository)
    served = verify(name, published.repository, published.url)
    assert (served[0].entry, served[-1].entry) == (f"{name}_aotinductor", name)
    for verdict in (*here, *served):
        assert verdict.holds, verdict.as_line()


def test_the_public_name_can_stand_for_engines_with_other_names(published: Published) -> None:
    folder = published.repository / "volume"
    before = read_config(folder)
    set_default_engine("volume", "onnxruntime", published.repository)
    (step,) = read_config(folder).ensemble_scheduling.step
    assert dict(step.input_map) == {"roi": "roi", "intensity": "intensity"}
    assert dict(step.output_map) == {"scores": "scores"}
    set_default_engine("volume", "aotinductor", published.repository)
    assert read_config(folder) == before


def test_a_tile_of_another_size_or_type_is_an_error_and_no_wrong_score(published: Published) -> None:
    run = ENGINE.open(published.repository / "volume_aotinductor" / "1", {})
    given = feed(SPECS["volume"], 2, ROI)
    assert run(given).shape == (2, 3, *ROI)
    for wrong in (given["roi"][..., :-2], given["roi"].astype(np.float32), given["roi"][0]):
        with pytest.raises(EngineError, match=r"INPUT__0: expected TYPE_INT16 \[-1, 1, 16, 8, 12\] .* found"):
            run({**given, "roi": wrong})


def test_a_file_that_is_no_package_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"PK nothing")
    with pytest.raises(EngineError, match=r"model\.pt2: not a package of AOTInductor") as caught:
        ENGINE.open(tmp_path, {})
    assert "\n" not in str(caught.value)


def test_a_package_names_no_folder_of_this_machine(published: Published) -> None:
    for name in SPECS:
        content = (published.repository / f"{name}_aotinductor/1/model.pt2").read_bytes()
        for folder in (str(Path(torch.__file__).parents[1]), str(Path.home()), "/torchinductor_"):
            assert folder.encode() not in content, folder


def test_a_package_is_profiled_elsewhere(published: Published) -> None:
    skipped = profile("slices", published.repository).skipped
    assert "torch.profiler" in skipped["aotinductor"]


# The backend, in this process


def entry_of(published: Published, change: Any = None) -> Entry:
    folder = published.repository / "volume_aotinductor"
    config = read_config(folder)
    if change is not None:
        change(config)
    described = json_format.MessageToDict(config, preserving_proto_field_name=True)
    return Entry(described, folder / "1")


def swap_names(config: pb.ModelConfig) -> None:
    config.input[0].name, config.input[1].name = config.input[1].name, config.input[0].name


def other_type(config: pb.ModelConfig) -> None:
    config.input[0].data_type = pb.TYPE_FP32


def other_size(config: pb.ModelConfig) -> None:
    config.output[0].dims[3] = 14


def own_names(config: pb.ModelConfig) -> None:
    config.output[0].name = "scores"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_names, r"input 'INPUT__1': config.pbtxt says TYPE_INT16, the graph has TYPE_FP32"),
        (other_type, r"input 'INPUT__0': config.pbtxt says TYPE_FP32, the graph has TYPE_INT16"),
        (other_size, r"output 'OUTPUT__0': config.pbtxt says dims \[3, 16, 8, 14\]"),
        (own_names, r"output 'scores', which the graph does not have; its outputs are 'OUTPUT__0'"),
    ],
)
def test_a_config_that_is_not_the_packages_is_refused(published: Published, change: Any, message: str) -> None:
    entry = entry_of(published, change)
    loaded = package.load(entry)
    with pytest.raises(ConfigError, match=message):
        check_against_graph(parse_contract(entry.config), loaded.inputs, loaded.outputs)
    unchanged = entry_of(published)
    check_against_graph(parse_contract(unchanged.config), loaded.inputs, loaded.outputs)


def test_a_package_for_another_machine_is_refused_before_it_is_loaded(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "cpu_features", lambda: frozenset({"fpu"}))
    with pytest.raises(
        ConfigError, match=r"compiled for a CPU with .*avx.* which this one lacks; build the entry again"
    ):
        package.load(entry_of(published))
    monkeypatch.setattr(cpu, "features", lambda: frozenset({"fpu"}))
    with pytest.raises(
        EngineError, match=r"compiled for a CPU with .*avx.* which this one lacks; build the entry again"
    ):
        ENGINE.open(published.repository / "volume_aotinductor" / "1", {})
    with pytest.raises(ConfigError, match="compiled for cuda, and the embedded server uses the CPU"):
        package.check_machine(Path("model.pt2"), "cuda", (), frozenset())
    package.check_machine(Path("model.pt2"), "cpu", ("avx2",), frozenset())  # nothing is known of the CPU


def test_both_sides_read_the_cpu_alike() -> None:
    assert package.cpu_features() == cpu.features()


def test_a_server_without_pytorch_says_how_to_get_it(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"is run by PyTorch, which is missing .*voxtile-server\[aotinductor\]"):
        package.load(entry_of(published))


def test_the_server_tells_its_stubs_where_pytorch_lies() -> None:
    folder = pytorch.folder()
    assert folder is not None
    assert (folder / "torch" / "__init__.py").is_file()
    assert pytorch.VARIABLE == package.TORCH_FOLDER
