"""A certificate needs evidence: labels that the scans show, scores that vary, the device that will serve."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from tests.support.build_specs import Linear, built_card, fields, spec, tiny_unet
from voxtile.card import Certificate
from voxtile.triton.catalogue import ModelListing
from voxtile_build.arrays import Runner
from voxtile_build.build import build
from voxtile_build.certificate.certificate import certify, make_reference, require_accepted
from voxtile_build.certificate.device import device_name
from voxtile_build.certificate.limits import MAX_SCORE_ERROR
from voxtile_build.certificate.verdict import Verdict
from voxtile_build.certificate.verified_devices import record_devices
from voxtile_build.certificate.verify import verify
from voxtile_build.cli.commands import main
from voxtile_build.engines import find_engine
from voxtile_build.engines.base import Compiled
from voxtile_build.engines.select import calibration_metrics
from voxtile_build.errors import AcceptanceError
from voxtile_build.evaluation.whole_scan import torch_runner
from voxtile_build.graph.graphs import Graphs
from voxtile_build.graph.wrapper import Wrapper, wrap
from voxtile_build.hashing import file_sha256
from voxtile_build.repository.card import get_card, set_card
from voxtile_build.repository.config import read_config, write_config
from voxtile_build.repository.folds import aggregate
from voxtile_build.spec.spec import Spec, parse_spec
from voxtile_server.embedded import EmbeddedServer

Array = NDArray[Any]
ONE_THREAD = {"warm_up": False, "threads": 1, "max_batch_size": 1}


def certificate(
    chosen: Spec, network: nn.Module, folder: Path, precision: str = "int8", run: Runner | None = None
) -> dict[str, Any]:
    """The certificate of `run` (by default the reference itself) as an engine of this precision."""
    wrapper = Wrapper(network, chosen).eval()
    file = folder / "model.onnx"
    file.write_bytes(b"engine")
    compiled = Compiled((file,), precision, run or torch_runner(wrapper))
    return certify(chosen, find_engine("onnxruntime"), compiled, make_reference(wrapper, chosen), {}).content


def always(value: float | tuple[float, ...], dtype: type = np.float32) -> Runner:
    """An engine that gives these scores in every voxel, whatever it is asked."""

    def run(inputs: Mapping[str, Array]) -> Array:
        roi = inputs["roi"]
        scores = np.reshape(np.array(value, dtype), (1, -1, *(1,) * (roi.ndim - 2)))
        return np.broadcast_to(scores, (len(roi), scores.shape[1], *roi.shape[2:])).copy()

    return run


BACKGROUND_ALONE = Linear((2.0, 1.0, -9.0))
"""In the phantom, where no value is below 0, the first label is the largest everywhere."""


# Labels that no scan shows


def test_a_label_that_no_scan_shows_stops_a_precision_without_a_limit_on_voxels(tmp_path: Path) -> None:
    found = certificate(spec(input={"intensity": {"rule": "none"}}), BACKGROUND_ALONE, tmp_path)
    assert set(found["unseen_labels"]) == {"one", "two"}
    assert not found["accepted"]
    with pytest.raises(AcceptanceError, match=r"one in 0, two in 0; name scans .*allow_unseen_labels = true"):
        require_accepted(found)


@pytest.mark.parametrize("acceptance", [{"allow_unseen_labels": True}, {"max_abs_error": 0.1}], ids=str)
def test_the_spec_can_say_that_it_knows(tmp_path: Path, acceptance: dict[str, Any]) -> None:
    chosen = spec(input={"intensity": {"rule": "none"}}, acceptance=acceptance)
    found = certificate(chosen, BACKGROUND_ALONE, tmp_path)
    assert found["accepted"]
    assert any("one in 0, two in 0" in warning for warning in found["warnings"])
    require_accepted(found)


def test_a_limit_that_excuses_any_error_is_no_evidence(tmp_path: Path) -> None:
    chosen = spec(input={"intensity": {"rule": "none"}}, acceptance={"max_abs_error": 0.5})
    assert not certificate(chosen, BACKGROUND_ALONE, tmp_path)["accepted"]


def test_in_fp32_the_limit_on_every_voxel_covers_unseen_labels_and_they_are_named(tmp_path: Path) -> None:
    found = certificate(spec(input={"intensity": {"rule": "none"}}), BACKGROUND_ALONE, tmp_path, "fp32")
    assert found["accepted"]
    assert any("labels that the scans hardly show" in warning for warning in found["warnings"])


def test_labels_as_scores_have_no_such_limit_in_fp32_either(tmp_path: Path) -> None:
    chosen = spec(input={"intensity": {"rule": "none"}}, output={"scores": "labels", "dtype": "uint8"})
    assert not certificate(chosen, BACKGROUND_ALONE, tmp_path, "fp32")["accepted"]


# Where PyTorch itself is off


class OffItself(nn.Module):
    """A norm far from zero: fp32 keeps a few digits of what it subtracts, float64 keeps all."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = level
        self.mix = nn.Conv3d(1, 3, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.instance_norm(self.mix(image) + self.level) * 4


def other_rounding(right: Runner, network: OffItself, chosen: Spec) -> Runner:
    """The same network, its sum rounded another way: as far from float64 as PyTorch."""
    other = OffItself(network.level * (1 + 2**-10))
    other.load_state_dict(network.state_dict())
    return torch_runner(Wrapper(other, chosen).eval())


@pytest.mark.parametrize("wrong", [False, True])
def test_an_engine_may_be_as_far_from_float64_as_pytorch_and_no_further(tmp_path: Path, wrong: bool) -> None:
    torch.manual_seed(4)
    chosen, network = spec(acceptance={"max_changed": 1.0, "min_dice": 0.0}), OffItself(1.0e5)
    run = other_rounding(torch_runner(Wrapper(network, chosen)), network, chosen)
    found = certificate(chosen, network, tmp_path, "fp32", (lambda inputs: 1.5 * run(inputs)) if wrong else run)
    assert found["metrics"]["score_error"] > 2 * MAX_SCORE_ERROR["fp32"]
    assert found["reference_error"]["score_error"] > MAX_SCORE_ERROR["fp32"]
    assert found["accepted"] is not wrong
    strict = spec(acceptance={"max_changed": 1.0, "min_dice": 0.0, "max_score_error": MAX_SCORE_ERROR["fp32"]})
    assert not certificate(strict, network, tmp_path, "fp32", run)["accepted"]


def test_float64_is_asked_only_where_it_can_decide(tmp_path: Path) -> None:
    assert "reference_error" not in certificate(spec(), tiny_unet(), tmp_path, "fp32")
    wrong = torch_runner(Wrapper(tiny_unet(seed=6), spec()).eval())
    assert "reference_error" in certificate(spec(), tiny_unet(), tmp_path, "fp32", wrong)
    assert "reference_error" not in certificate(spec(), tiny_unet(), tmp_path, "int8", wrong)


# Scores that never vary


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    ("output", "constant"),
    [
        ({}, (9.0, 0.0, -9.0)),
        ({"scores": "probabilities"}, (1.0, 0.0, 0.0)),
        ({"scores": "probabilities", "dtype": "uint8"}, (255, 0, 0)),
        ({"scores": "foreground", "foreground": "one", "dtype": "uint8"}, 0),
        ({"regions": True}, (9.0, 9.0, -9.0)),
    ],
    ids=str,
)
def test_an_engine_of_constant_scores_is_refused_whatever_the_spec_allows(
    tmp_path: Path, output: dict[str, Any], constant: Any, precision: str
) -> None:
    """The labels are right: the reference gives one label everywhere, with scores that vary."""
    allowed = {"allow_unseen_labels": True, "max_abs_error": 2.0, "max_logit_error": 1e3, "max_score_error": 0.99}
    chosen = spec(input={"intensity": {"rule": "none"}}, output=output, acceptance=allowed)
    dtype = np.uint8 if output.get("dtype") == "uint8" else np.float32
    found = certificate(chosen, BACKGROUND_ALONE, tmp_path, precision, always(constant, dtype))
    assert found["metrics"]["score_error"] >= 1.0 - 1e-3
    with pytest.raises(AcceptanceError, match=r"score_error: expected at most 0\.99"):
        require_accepted(found)


def test_the_mean_of_the_scores_is_no_better_than_any_other_constant(tmp_path: Path) -> None:
    chosen = spec(acceptance={"allow_unseen_labels": True})
    wrapper = Wrapper(tiny_unet(), chosen).eval()
    means = make_reference(wrapper, chosen).scans[0][1].mean(axis=(1, 2, 3))
    found = certificate(chosen, tiny_unet(), tmp_path, run=always(tuple(means)))
    assert found["metrics"]["score_error"] >= 1.0 - 1e-3
    assert not found["accepted"]


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "uint8"])
def test_rounding_to_the_scores_type_is_no_error(tmp_path: Path, dtype: str) -> None:
    """One step of the type here and there, where all scores are alike: rounding alone does that."""
    chosen = spec(output={"scores": "probabilities", "dtype": dtype}, input={"intensity": {"rule": "none"}})
    wrapper = Wrapper(Linear((0.01, 0.0, -0.01)), chosen).eval()
    right, rng = torch_runner(wrapper), np.random.default_rng(2)

    def rounded_otherwise(inputs: Mapping[str, Array]) -> Array:
        scores = right(inputs)
        step = 1 if dtype == "uint8" else np.spacing(scores)
        return np.where(rng.random(scores.shape) < 0.1, scores + step, scores).astype(scores.dtype)

    found = certificate(chosen, Linear((0.01, 0.0, -0.01)), tmp_path, "fp32", rounded_otherwise)
    assert found["metrics"]["score_error"] < 1e-3


# Two scans


def two_scans(folder: Path) -> list[str]:
    """A bright and a dark scan, of different sizes, neither symmetric."""
    rng = np.random.default_rng(0)
    for name, shape, level in (("bright.nii", (19, 11, 13), 400), ("dark.nii", (17, 9, 12), -400)):
        values = (level + 200 * rng.standard_normal(shape)).astype(np.int16)
        values[:4, 1:3] += 300
        nib.save(nib.Nifti1Image(values, np.diag([1.0, 2.0, 1.5, 1.0])), folder / name)
    return ["bright.nii", "dark.nii"]


def wrong_where_dark(right: Runner) -> Runner:
    """An engine that loses everything in tiles that are dark on the whole."""

    def run(inputs: Mapping[str, Array]) -> Array:
        scores, roi = right(inputs), inputs["roi"]
        dark = np.where(roi > -1e30, roi, 0).mean(axis=(1, 2, 3, 4)) < 0
        return np.where(dark.reshape(-1, 1, 1, 1, 1), scores[:, ::-1], scores)

    return run


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_acceptance_scans_the_worse_one_decides(tmp_path: Path, order: tuple[int, int]) -> None:
    names = two_scans(tmp_path)
    acceptance = {"scans": [names[index] for index in order], "max_abs_error": 1.0, "max_score_error": 0.99}
    chosen = parse_spec(fields(acceptance=acceptance), "x.toml", tmp_path)
    wrong = wrong_where_dark(torch_runner(Wrapper(tiny_unet(), chosen).eval()))
    found = certificate(chosen, tiny_unet(), tmp_path, run=wrong)
    by_name = {scan["name"]: scan for scan in found["scans"]}
    assert by_name["bright.nii"]["changed_fraction"] == 0 < by_name["dark.nii"]["changed_fraction"]
    assert found["metrics"]["changed_fraction"] == by_name["dark.nii"]["changed_fraction"]
    assert found["metrics"]["dice_min"] == min(by_name["dark.nii"]["dice"].values()) < 0.9
    assert not found["accepted"]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_all_calibration_scans_count(tmp_path: Path, order: tuple[int, int]) -> None:
    names = two_scans(tmp_path)
    precision = {"calibration": [names[index] for index in order]}
    chosen = parse_spec(fields(precision=precision), "x.toml", tmp_path)
    graphs = Graphs(wrap(tiny_unet(), chosen), chosen, tmp_path)
    assert [scan.name for scan in graphs.calibration.scans] == precision["calibration"]
    metrics = calibration_metrics(graphs, wrong_where_dark(torch_runner(graphs.wrapper)))
    assert metrics.changed > 0.1
    assert min(metrics.dice.values()) < 0.9
    right = calibration_metrics(graphs, torch_runner(graphs.wrapper))
    assert (right.changed, set(right.dice.values())) == (0, {1.0})


# The device


def test_an_entry_that_will_run_on_a_gpu_is_not_certified_there(tmp_path: Path) -> None:
    chosen = spec(serving={"gpus": "all"})
    found = certificate(chosen, tiny_unet(), tmp_path, "fp32")
    assert (found["device"]["kind"], found["serves_on"]) == ("cpu", "gpu")
    assert any("not certified on this device" in warning for warning in found["warnings"])
    assert not any("this device" in warning for warning in certificate(spec(), tiny_unet(), tmp_path)["warnings"])


def row(**changes: Any) -> str:
    card = built_card()
    known = card.certificates["openvino"].model_copy(update=changes)
    return ModelListing("url", "tiny", "1", card.model_copy(update={"certificates": {"openvino": known}})).row()[-1]


def test_the_table_of_models_says_what_is_not_proven() -> None:
    assert row() == "Dice ≥ 1.0000"
    assert row(device="cpu", serves_on="gpu").endswith("; not certified on this device")
    assert row(device="cpu", serves_on="gpu", verified_on=("NVIDIA H200",)) == "Dice ≥ 1.0000"
    assert row(unseen_labels=("one", "two")).endswith("; not seen: one, two")
    assert row(unseen_labels=tuple("abcdefgh")).endswith("; not seen: a, b, c, d, e and 3 more")


def test_of_folds_a_label_that_one_has_not_seen_is_not_seen_and_a_device_needs_all() -> None:
    base = {"sha256": "a", "accepted": True, "precision": "int8", "dice_min": 1.0}
    base |= {"changed_fraction": 0.0, "max_abs_error": 0.0, "device": "cpu", "serves_on": "gpu"}
    first = Certificate(**base, unseen_labels=("one",), verified_on=("GPU",))  # type: ignore[arg-type]
    second = Certificate(**base, unseen_labels=("two", "one"))  # type: ignore[arg-type]
    together = aggregate([first, second])
    assert together.unseen_labels == ("one", "two")
    assert together.verified_on == ()
    assert not together.certified_where_served


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model tiny, whose card says that it was measured on a GPU: as if it came from another machine."""
    repository = tmp_path_factory.mktemp("evidence") / "repository"
    build(spec(serving=ONE_THREAD | {"engines": ["onnxruntime"]}), repository, network=tiny_unet())
    change_card(repository, lambda known: {"device": "gpu", "device_name": "a GPU"})
    return repository


def change_card(repository: Path, change: Callable[[Certificate], dict[str, Any]]) -> None:
    config = read_config(repository / "tiny")
    card = get_card(config, repository / "tiny")
    certificates = {name: known.model_copy(update=change(known)) for name, known in card.certificates.items()}
    set_card(config, card.model_copy(update={"certificates": certificates}))
    write_config(config, repository / "tiny")


def known(repository: Path) -> Certificate:
    return get_card(read_config(repository / "tiny"), repository / "tiny").certificates["onnxruntime"]


@pytest.fixture(scope="module")
def running(built: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(built) as server:
        yield server
        server.kill()


def test_verify_records_the_device_that_serves_once(
    built: Path, running: EmbeddedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = Path(shutil.copytree(built, tmp_path / "repository"))
    assert not known(copied).certified_where_served
    digest = known(copied).sha256
    command = ["verify", "tiny", "--repository", str(copied), "--tiles-only", "--url", running.grpc_url]
    assert main(command) == 0
    assert known(copied).certified_where_served
    assert known(copied).verified_on == (device_name("cpu"),)
    assert known(copied).sha256 == digest
    assert f"verified on {device_name('cpu')}" in capsys.readouterr().out
    assert main(command) == 0
    assert known(copied).verified_on == (device_name("cpu"),)


@pytest.mark.parametrize(
    "verdict",
    [
        Verdict("tiny_onnxruntime", ("wrong",), device_kind="cpu", device="CPU"),
        Verdict("tiny_onnxruntime", (), device_kind="gpu", device="GPU"),
        Verdict("tiny_onnxruntime", ()),
        Verdict("tiny", (), device_kind="cpu", device="CPU"),
    ],
    ids=["does not hold", "another kind of device", "no server", "another entry"],
)
def test_what_proves_nothing_is_not_recorded(built: Path, verdict: Verdict) -> None:
    before = (built / "tiny" / "config.pbtxt").read_bytes()
    assert record_devices("tiny", built, [verdict]) == ()
    assert (built / "tiny" / "config.pbtxt").read_bytes() == before


def test_verify_names_labels_that_were_not_seen(built: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(built, tmp_path / "repository"))
    path = copied / "tiny_onnxruntime" / "1" / "certificate.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "unseen_labels": {"two": 3}}))
    change_card(copied, lambda _: {"sha256": file_sha256(path)})
    (verdict,) = verify("tiny", copied, scans=False)
    assert verdict.holds
    assert "labels hardly seen: two" in verdict.as_line()
    assert verdict.unseen_labels == ("two",)


# Engines that pass are published


def test_an_engine_that_fails_does_not_cost_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "openvino")
    chosen = spec(serving=ONE_THREAD | {"engines": ["openvino", "onnxruntime"], "default_engine": "openvino"})
    published = build(chosen, tmp_path / "repository", network=tiny_unet())
    assert published.entries == ("tiny_onnxruntime", "tiny")
    assert set(published.refused) == {"openvino"}
    assert published.card.engine == "onnxruntime"
    assert set(published.card.certificates) == {"onnxruntime"}
    assert not (tmp_path / "repository" / "tiny_openvino").exists()
    assert "serving.engines" in str(published.refused["openvino"])


def test_the_command_names_what_is_missing_and_says_so_with_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, "openvino")
    save_file(tiny_unet().state_dict(), tmp_path / "w.safetensors")
    weights = {"file": "w.safetensors", "sha256": file_sha256(tmp_path / "w.safetensors")}
    chosen = parse_spec(fields(serving=ONE_THREAD, weights=weights), "x.toml", tmp_path)
    monkeypatch.setattr("voxtile_build.spec.spec.load_spec", lambda _: chosen)
    assert main(["spec", "x.toml", "--repository", str(tmp_path / "models")]) == 4
    printed = capsys.readouterr()
    assert "tiny: published tiny_onnxruntime, tiny; tiny is onnxruntime" in printed.out
    assert "tiny was published without openvino: tiny: the openvino engine (fp32) is not accepted" in printed.err
    assert "Traceback" not in printed.err


def test_an_engine_that_fails_now_is_not_left_from_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = spec(serving=ONE_THREAD | {"engines": ["openvino", "onnxruntime"]})
    build(chosen, tmp_path, network=tiny_unet())
    assert (tmp_path / "tiny_openvino").exists()
    spoil(monkeypatch, "openvino")
    build(chosen, tmp_path, network=tiny_unet())
    assert not (tmp_path / "tiny_openvino").exists()


def test_where_every_engine_fails_nothing_is_published_and_all_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, "openvino", "onnxruntime")
    chosen = spec(serving=ONE_THREAD | {"engines": ["openvino", "onnxruntime"]})
    with pytest.raises(AcceptanceError, match=r"openvino engine.*onnxruntime engine.*; nothing was published"):
        build(chosen, tmp_path / "repository", network=tiny_unet())
    assert list((tmp_path / "repository").glob("tiny*")) == []


def spoil(monkeypatch: pytest.MonkeyPatch, *engines: str) -> None:
    """Engines of these names give the scores of the labels the wrong way round."""
    from voxtile_build import build as module

    right = module.compile_at

    def compile_at(engine: Any, *arguments: Any) -> Compiled:
        compiled = right(engine, *arguments)
        if engine.name not in engines:
            return compiled
        return Compiled(compiled.files, compiled.precision, lambda inputs: compiled.run(inputs)[:, ::-1])

    monkeypatch.setattr(module, "compile_at", compile_at)
