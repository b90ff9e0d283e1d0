"""From a spec to published entries and back out: what appears, what never does, and what the command prints."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import typer
from rich.console import Console
from safetensors.torch import save_file

import voxtile_build
from tests.support import build_specs as specs
from tests.support.build_specs import ROI, built_card, tiny_unet
from voxtile.card import Card
from voxtile_build.build import Published, Speed
from voxtile_build.cli import commands as cli
from voxtile_build.cli.console import Steps, announce
from voxtile_build.engines.openvino.core import core as the_core
from voxtile_build.progress import teller
from voxtile_build.repository.card import get_card
from voxtile_build.repository.config import public_config, read_config, write_config
from voxtile_build.repository.entries import CERTIFICATE

# Each build appears with these, and only build.json may differ between two of them.
ENTRY_FILES = {
    "tiny": {"config.pbtxt", "1/README"},
    "tiny_onnxruntime": {"config.pbtxt", "1/model.onnx", "1/certificate.json", "1/build.json"},
    "tiny_openvino": {"config.pbtxt", "1/model.xml", "1/model.bin", "1/certificate.json", "1/build.json"},
}

# The certificate for people, with its pictures, and what it takes to repeat it.
PAGE = ("1/certificate.md", "1/samples.npz", "1/changed_")

SPEC = """
name = "tiny"
title = "nothing in particular"
[network]
name = "UNet"
args = {{ spatial_dims = 3, in_channels = 1, out_channels = 3, channels = [4, 8], strides = [2] }}
[weights]
file = "tiny.safetensors"
sha256 = "{sha256}"
source = "made up"
licence = "none needed"
[input]
channels = ["T1"]
dtype = "int16"
intensity = {{ rule = "zscore", mask = "nonzero" }}
[output]
labels = ["background", "one", "two"]
[tiling]
roi_size = [16, 8, 12]
[serving]
max_batch_size = 2
default_engine = "openvino"
threads = 1
"""


def write_spec(folder: Path, extra: str = "") -> Path:
    weights = folder / "tiny.safetensors"
    save_file(tiny_unet().state_dict(), weights)
    path = folder / "tiny.toml"
    path.write_text(SPEC.format(sha256=hashlib.sha256(weights.read_bytes()).hexdigest()) + extra)
    return path


def run(*arguments: str | Path) -> int:
    return cli.main([str(argument) for argument in arguments])


def files(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(".")}


def card(repository: Path) -> Card:
    return get_card(read_config(repository / "tiny"), repository / "tiny")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the tiny model, built once; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("built")
    assert run("spec", write_spec(folder), "--repository", folder / "models") == 0
    return folder / "models"


@pytest.fixture
def copy_of_built(built: Path, tmp_path: Path) -> Path:
    for name, content in files(built).items():
        path = tmp_path / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "models"


# What appears


def test_every_entry_has_its_files_and_no_other(built: Path) -> None:
    for entry, expected in ENTRY_FILES.items():
        more = set(files(built / entry)) - expected
        assert set(files(built / entry)) - more == expected
        assert all(name.startswith(PAGE) for name in more)
    assert {path.name for path in built.iterdir() if path.is_dir()} == set(ENTRY_FILES)
    assert [path.name for path in built.parent.iterdir() if path.name.startswith(".")] == []


def test_the_card_can_be_read_by_the_client_and_its_digests_are_those_of_the_files(built: Path) -> None:
    found = card(built)
    assert found.engine == "openvino"
    assert found.roi_size == ROI
    assert set(found.certificates) == {"onnxruntime", "openvino"}
    for engine, short in found.certificates.items():
        text = (built / f"tiny_{engine}/1" / CERTIFICATE).read_bytes()
        assert short.sha256 == hashlib.sha256(text).hexdigest()
        assert short.accepted
        assert short.precision == "fp32"
    assert found.provenance.source == "made up"
    weights = built.parent / "tiny.safetensors"
    assert found.provenance.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    onnx = built / "tiny_onnxruntime/1/model.onnx"
    assert found.provenance.onnx_sha256 == hashlib.sha256(onnx.read_bytes()).hexdigest()


def test_a_certificates_hashes_are_those_of_the_files_beside_it(built: Path) -> None:
    for engine in ("onnxruntime", "openvino"):
        version = built / f"tiny_{engine}/1"
        hashes = json.loads((version / CERTIFICATE).read_text())["hashes"]["files"]
        assert hashes == {name: hashlib.sha256((version / name).read_bytes()).hexdigest() for name in hashes}
        rest = {path.name for path in version.iterdir() if not f"1/{path.name}".startswith(PAGE)}
        assert set(hashes) == rest - {CERTIFICATE, "build.json"}


def test_what_is_published_is_what_pytorch_computes(built: Path) -> None:
    rng = np.random.default_rng(8)
    roi = rng.integers(0, 900, (2, 1, *ROI)).astype(np.int16)
    statistics = np.array([[[410.0, 120.0]], [[380.0, 150.0]]], np.float32)
    inputs = {"roi": roi, "intensity": statistics}
    with torch.inference_mode():
        normal = (torch.from_numpy(roi).float() - torch.tensor([410.0, 380.0]).reshape(2, 1, 1, 1, 1)) / torch.tensor(
            [120.0, 150.0]
        ).reshape(2, 1, 1, 1, 1)
        expected = tiny_unet()(normal).numpy()
    session = ort.InferenceSession(built / "tiny_onnxruntime/1/model.onnx", providers=["CPUExecutionProvider"])
    compiled = the_core().compile_model(
        str(built / "tiny_openvino/1/model.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    np.testing.assert_allclose(session.run(None, inputs)[0], expected, atol=1e-4)
    np.testing.assert_allclose(compiled(inputs)["scores"], expected, atol=1e-4)


def test_dates_and_times_stand_in_a_file_of_their_own(built: Path) -> None:
    facts = json.loads((built / "tiny_openvino/1/build.json").read_text())
    assert set(facts["seconds"]) == {"compile", "batch 1", "batch 2"}
    assert all(value >= 0 for value in facts["seconds"].values())
    assert facts["built"].startswith("20")


def test_nothing_of_this_machines_folders_is_published(built: Path) -> None:
    for name, content in files(built).items():
        assert str(built.parent).encode() not in content, name
        assert str(Path.home()).encode() + b"/" not in content, name


def test_the_same_inputs_give_the_same_bytes(built: Path, tmp_path: Path) -> None:
    assert run("spec", write_spec(tmp_path), "--repository", tmp_path / "elsewhere") == 0
    again, before = files(tmp_path / "elsewhere"), files(built)
    assert set(again) == set(before)
    assert {name for name in again if again[name] != before[name]} <= {name for name in again if "build.json" in name}


# Choosing engines


def test_engines_that_are_not_asked_for_any_more_go_and_what_is_others_stays(copy_of_built: Path) -> None:
    for name in ("foreign", "neighbour"):
        (copy_of_built / name).mkdir()
    (copy_of_built / "foreign" / "config.pbtxt").write_text("no config at all {")
    write_config(
        public_config(specs.spec(name="neighbour"), specs.built_card(), ["tinier"]), copy_of_built / "neighbour"
    )
    spec = write_spec(copy_of_built.parent)
    assert run("spec", spec, "--repository", copy_of_built, "--engines", "onnxruntime") == 0
    assert {path.name for path in copy_of_built.iterdir() if path.is_dir()} == {
        "foreign", "neighbour", "tiny", "tiny_onnxruntime",
    }  # fmt: skip
    # The spec points to openvino, which was not built this time.
    assert card(copy_of_built).engine == "onnxruntime"


def test_a_version_that_the_spec_asks_for_stands_beside_the_old_one(copy_of_built: Path) -> None:
    before = files(copy_of_built)
    spec = write_spec(copy_of_built.parent)
    spec.write_text(spec.read_text().replace('name = "tiny"', 'name = "tiny"\nversion = 3', 1))
    assert run("spec", spec, "--repository", copy_of_built, "--engines", "onnxruntime") == 0
    added = {name.partition("/")[0] for name in set(files(copy_of_built)) - set(before)}
    assert added == {"tiny.v1", "tiny.v3", "tiny.v3_onnxruntime"}
    assert {name: files(copy_of_built)[name] for name in before} == before
    entry = copy_of_built / "tiny.v3_onnxruntime"
    assert [path.name for path in sorted(entry.iterdir())] == ["3", "config.pbtxt"]
    assert list(read_config(copy_of_built / "tiny.v3").version_policy.specific.versions) == [3]


def test_point_moves_the_public_name_and_nothing_else(copy_of_built: Path) -> None:
    before = files(copy_of_built)
    assert run("point", "tiny", "onnxruntime", "--repository", copy_of_built) == 0
    after = files(copy_of_built)
    assert {name for name in after if after[name] != before[name]} == {"tiny/config.pbtxt"}
    assert card(copy_of_built).engine == "onnxruntime"
    assert read_config(copy_of_built / "tiny").ensemble_scheduling.step[0].model_name == "tiny_onnxruntime"
    assert run("point", "tiny", "openvino", "--repository", copy_of_built) == 0
    assert files(copy_of_built) == before


# What is refused


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


@pytest.mark.parametrize(
    ("name", "engine", "message"),
    [
        ("tiny", "tensorrt", "expected one of its engines onnxruntime, openvino, found 'tensorrt'"),
        ("none", "openvino", "cannot be read"),
        ("tiny_openvino", "openvino", "expected a public entry with the parameter card"),
    ],
)
def test_pointing_to_what_is_not_there_is_refused(
    copy_of_built: Path, capsys: pytest.CaptureFixture[str], name: str, engine: str, message: str
) -> None:
    before = files(copy_of_built)
    assert run("point", name, engine, "--repository", copy_of_built) == 2
    assert message in error_of(capsys)
    assert files(copy_of_built) == before


def test_pointing_to_an_engine_with_another_certificate_is_refused(
    copy_of_built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy_of_built / "tiny_onnxruntime/1" / CERTIFICATE
    path.write_text(path.read_text().replace('"accepted": true', '"accepted": false'))
    assert run("point", "tiny", "onnxruntime", "--repository", copy_of_built) == 2
    assert "that the card was made with" in error_of(capsys)


def change(text: str, replacement: str) -> Any:
    return lambda path: path.write_text(path.read_text().replace(text, replacement, 1))


def truncate_weights(path: Path) -> None:
    weights = path.with_name("tiny.safetensors")
    weights.write_bytes(weights.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("spoil", "code", "message"),
    [
        (change("roi_size = [16, 8, 12]", "roi_size = [16, 8]"), 2, "slice_axis go together"),
        (
            change("roi_size = [16, 8, 12]", "roi_size = [16, 7, 12]"),
            2,
            "inferer.roi_size: expected scores on the grid of the ROI [16, 7, 12]",
        ),
        (change('"two"]', '"two", "three"]'), 2, "network.args.out_channels of UNet is 3, but output.labels has 4"),
        (
            change("max_batch_size", "max_batches"),
            2,
            "serving.max_batches: unknown key (did you mean 'max_batch_size'?)",
        ),
        (change('name = "UNet"', 'name = "Unet"'), 2, "network.name: expected one of"),
        (change("channels = [4, 8]", "channels = [4, 16]"), 2, "the weights do not fit the network"),
        (truncate_weights, 2, "expected sha256"),
        (change("[weights]", "[ weights"), 2, "not TOML"),
        (change("[serving]", "[acceptance]\nmax_abs_error = 1e-12\n[serving]"), 4, "max_abs_error: expected at most"),
        (change("[serving]", '[acceptance]\nscans = ["none.nii"]\n[serving]'), 2, "none.nii: no such file"),
    ],
)
def test_a_failed_build_tells_why_and_leaves_the_old_entries_serving(
    copy_of_built: Path, capsys: pytest.CaptureFixture[str], spoil: Any, code: int, message: str
) -> None:
    before, spec = files(copy_of_built), write_spec(copy_of_built.parent)
    spoil(spec)
    assert run("spec", spec, "--repository", copy_of_built) == code
    lines = [line for line in error_of(capsys).splitlines() if not line.startswith("tiny: ")]  # a slow machine's steps
    assert len(lines) == 1
    assert lines[0].startswith("voxtile-build: ")
    assert message in lines[0]
    assert files(copy_of_built) == before
    assert sorted(path.name for path in copy_of_built.parent.iterdir()) == ["models", "tiny.safetensors", "tiny.toml"]


@pytest.mark.parametrize("engines", ["tvm", "openvino,tvm"])
def test_an_unknown_engine_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], engines: str) -> None:
    assert run("spec", write_spec(tmp_path), "--repository", tmp_path / "models", "--engines", engines) != 0
    assert "'tvm'" in error_of(capsys)
    assert files(tmp_path / "models") == {}


def test_a_network_with_weights_needs_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = write_spec(tmp_path)
    text = spec.read_text()
    start, end = text.index("[weights]"), text.index("[input]")
    spec.write_text(text[:start] + text[end:])
    assert run("spec", spec, "--repository", tmp_path / "models") == 2
    assert "weights: missing; UNet needs [weights]" in error_of(capsys)


def test_a_full_disk_is_one_line_about_the_disk_and_not_the_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere/model.onnx")

    monkeypatch.setattr("voxtile_build.repository.default_engine.read_config", full)
    assert run("point", "tiny", "openvino", "--repository", tmp_path) == 2
    assert capsys.readouterr().err == "voxtile-build: /somewhere/model.onnx: No space left on device\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["spec"], "Missing"), (["spec", "a.toml"], "--repository"), (["serve"], "serve"), (["spec", "--x"], "--x")],
)
def test_a_wrong_command_line_is_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(*arguments) == 2
    text = error_of(capsys)
    assert message in text
    assert len(text.splitlines()) == 1


def test_networks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("networks") == 0
    assert "SwinUNETR" in capsys.readouterr().out


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"voxtile-build {voxtile_build.__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("spec", "point", "networks"))


def test_help_shows_the_names_of_tables(capsys: pytest.CaptureFixture[str]) -> None:
    """The help is marked up; a name in square brackets would be taken for a colour and vanish."""
    assert run("nnunet", "--help") == 0
    text = capsys.readouterr().out
    assert all(table in text for table in ("[serving]", "[precision]", "[acceptance]"))
    assert "\\" not in text


@pytest.mark.parametrize(
    ("terminal", "seconds", "quiet", "shown"),
    [
        (True, 0.0, False, True),
        (False, 0.0, False, False),  # where it fails now, the error is the only line
        (False, 60.0, False, True),
        (False, 60.0, True, False),
        (True, 60.0, True, False),
    ],
)
def test_steps_are_shown_on_a_terminal_and_in_the_pipe_of_a_slow_build(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    seconds: float,
    quiet: bool,
    shown: bool,
) -> None:
    steps = Steps("tiny", quiet=quiet)
    steps.started -= seconds
    if terminal:
        monkeypatch.setattr(steps, "console", Console(file=sys.stderr, force_terminal=True, width=100))
    with steps("export to ONNX"):
        teller()(0.5)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("tiny: export to ONNX" in captured.err) == shown
    assert terminal or not shown or re.search(r" 0\.\d s, 1 min in all\n", captured.err)


def test_a_build_that_is_slow_from_the_start_tells_what_it_does_while_it_does_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told, steps = threading.Event(), Steps("tiny")
    steps.started -= 60
    echo = typer.echo
    monkeypatch.setattr("voxtile_build.cli.console.typer.echo", lambda *a, **k: (echo(*a, **k), told.set()))
    with steps("certify openvino"):
        assert told.wait(60)
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == "tiny: certify openvino: 0 s so far"
    assert len(rest) == 1


def test_a_step_that_fails_has_no_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), Steps("tiny")("export to ONNX"):
        raise RuntimeError
    assert capsys.readouterr().err == ""


def test_success_tells_where_what_was_published_and_what_each_engine_is_worth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "models"
    assert run("spec", write_spec(tmp_path), "--repository", repository, "--quiet") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    first, *engines = captured.out.splitlines()
    entries = "tiny_onnxruntime, tiny_openvino, tiny"
    assert first == f"tiny: published {entries}; tiny is openvino; in {repository}"
    for line, engine in zip(engines[:2], ("onnxruntime", "openvino"), strict=True):
        known = json.loads((repository / f"tiny_{engine}/1" / CERTIFICATE).read_text())["metrics"]
        facts = json.loads((repository / f"tiny_{engine}/1/build.json").read_text())
        mine, pytorch = min(facts["seconds"]["batch 1"], facts["seconds"]["batch 2"]), facts["pytorch_seconds"]
        assert f"tiny: {engine} fp32: Dice ≥ {known['dice_min']:.4f}, {known['changed_fraction']:.4%} of voxels" in line
        told = re.search(r"a tile takes (\S+) s, in fp32 PyTorch (\S+) s \((\S+)×\)$", line)
        assert told, line
        assert float(told[1]) == pytest.approx(mine, abs=1e-4)  # build.json rounds
        assert float(told[2]) == pytest.approx(pytorch, abs=1e-4)
        assert float(told[3]) == pytest.approx(float(told[2]) / float(told[1]), abs=0.1)
    assert len(engines[2:]) <= 1  # where the other engine was faster; see below


@pytest.mark.parametrize(
    ("onnxruntime", "openvino", "elsewhere", "said"),
    [
        (1.0, 2.5, False, "tiny: onnxruntime was 2.5 times as fast for a tile as openvino; to let tiny stand for it: "),
        (1.0, 1.05, False, ""),  # no more than a clock's error
        (2.5, 1.0, False, ""),
        (1.0, 2.5, True, ""),  # what is measured elsewhere says nothing of what will serve
    ],
)
def test_a_faster_engine_than_the_public_name_stands_for_is_told_with_the_command(
    onnxruntime: float, openvino: float, elsewhere: bool, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"device": "cpu", "serves_on": "gpu"} if elsewhere else {}
    card = built_card()
    certificates = {"openvino": card.certificates["openvino"]}
    certificates["onnxruntime"] = certificates["openvino"].model_copy(update=other)
    card = card.model_copy(update={"engine": "openvino", "certificates": certificates})
    speeds = {"onnxruntime": Speed(onnxruntime, 4.0), "openvino": Speed(openvino, 4.0)}
    announce(Published(("tiny_onnxruntime", "tiny_openvino", "tiny"), card, speeds), Path("/models"))
    first, *engines = capsys.readouterr().out.splitlines()
    told = engines[2:]
    assert "tiny is openvino" in first
    assert told == ([f"{said}voxtile-build point tiny fastest --repository /models"] if said else [])


def set_seconds(entry: Path, **seconds: float) -> None:
    path = entry / "1/build.json"
    facts = json.loads(path.read_text())
    facts["seconds"] = {"compile": 0.0, **{name.replace("_", " "): value for name, value in seconds.items()}}
    path.write_text(json.dumps(facts))


def test_point_takes_the_engine_that_was_fastest_at_any_batch(
    copy_of_built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for onnxruntime, openvino, fastest in (
        ({"batch_1": 0.5, "batch_2": 0.2}, {"batch_1": 0.3, "batch_2": 0.4}, "onnxruntime"),
        ({"batch_1": 0.5, "batch_2": 0.4}, {"batch_1": 0.3, "batch_2": 0.6}, "openvino"),
    ):
        set_seconds(copy_of_built / "tiny_onnxruntime", **onnxruntime)
        set_seconds(copy_of_built / "tiny_openvino", **openvino)
        assert run("point", "tiny", "fastest", "--repository", copy_of_built) == 0
        assert card(copy_of_built).engine == fastest
        assert capsys.readouterr().out == f"tiny is {fastest}\n"


@pytest.mark.parametrize(
    "text", [None, "{", "[]", "{}", '{"seconds": {"compile": 1}}', '{"seconds": {"batch 1": null}}']
)
def test_point_does_not_guess_which_engine_was_fastest(
    copy_of_built: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    facts = copy_of_built / "tiny_openvino/1/build.json"
    facts.unlink() if text is None else facts.write_text(text)
    before = files(copy_of_built)
    assert run("point", "tiny", "fastest", "--repository", copy_of_built) == 2
    assert "tiny_openvino: expected build.json with the seconds of a tile" in error_of(capsys)
    assert files(copy_of_built) == before


# A network given by hand, without weights file


def test_the_identity_network_gives_every_voxel_back_exactly(tmp_path: Path) -> None:
    spec = tmp_path / "same.toml"
    spec.write_text(
        'name = "same"\n[network]\nname = "Identity"\n[input]\nchannels = ["any"]\ndtype = "int16"\n'
        '[output]\nlabels = ["value"]\n[tiling]\nroi_size = [5, 4, 3]\n'
    )
    assert run("spec", spec, "--repository", tmp_path / "models") == 0
    certificate = json.loads((tmp_path / "models/same_openvino/1" / CERTIFICATE).read_text())
    assert certificate["metrics"]["max_abs_error"] == 0.0
    roi = np.arange(60, dtype=np.int16).reshape(1, 1, 5, 4, 3) * 7 - 200
    session = ort.InferenceSession(tmp_path / "models/same_onnxruntime/1/model.onnx")
    np.testing.assert_array_equal(session.run(None, {"roi": roi})[0], roi)
