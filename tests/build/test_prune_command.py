"""`voxtile-build prune` writes a spec and weights that can be built at once, and says what they are."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.prunable_networks import CLASSES, NORMALISED, classes_of
from voxtile_build.cli import commands as cli
from voxtile_build.importers.network import load_network, untrained_network
from voxtile_build.networks import make_network
from voxtile_build.spec.spec import Spec, load_spec, parse_spec
from voxtile_build.spec.spec_to_toml import write_spec


def run(*arguments: str | Path) -> int:
    return cli.main(["prune", *(str(argument) for argument in arguments)])


def teacher(folder: Path, case: str = "unet", **changes: Any) -> Path:
    """The spec of a network with weights, in a folder of its own."""
    name, args = NORMALISED[case]
    torch.manual_seed(4)
    network = make_network(name, args, 2, classes_of(args))
    weights = folder / "weights.safetensors"
    save_file({key: tensor.clone() for key, tensor in network.state_dict().items()}, weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    fields = {
        "name": "teacher",
        "title": "something",
        "remarks": ["its labels were guessed"],
        "network": {"name": name, "args": args},
        "weights": {"file": "weights.safetensors", "sha256": digest, "source": "made up", "licence": "CC0"},
        "input": {"channels": ["T1", "T2"], "spacing": [1.0, 1.5, 2.0]},
        "output": {"labels": [f"label {index}" for index in range(CLASSES)]},
        "tiling": {"roi_size": [8, 12, 16], "mirror_axes": [1]},
        "serving": {"engines": ["onnxruntime"], "warm_up": False, "threads": 1},
        **changes,
    }
    path = folder / "teacher.toml"
    write_spec(parse_spec({key: value for key, value in fields.items() if value is not None}, "t", folder), path)
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("case", ["unet", "dynunet-supervised", "plain", "residual-equal-widths"])
def test_what_is_written_loads_and_is_a_quarter_of_the_teacher(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = teacher(tmp_path, case)
    before = content(tmp_path)
    (tmp_path / "students").mkdir()
    assert run(given, "--width", "0.5", "--output", tmp_path / "students" / "Half Size.toml") == 0
    assert content(tmp_path) == before
    assert sorted(content(tmp_path / "students")) == ["Half Size.safetensors", "Half Size.toml"]
    said = capsys.readouterr().out
    assert "pruned and not trained: its masks are wrong until it is trained" in said
    wide, narrow = load_spec(given), load_spec(tmp_path / "students" / "Half Size.toml")
    parameters = [sum(one.numel() for one in load_network(one).parameters()) for one in (wide, narrow)]
    assert 0.2 < parameters[1] / parameters[0] < 0.35
    assert f"parameters: {parameters[0]:,} -> {parameters[1]:,}" in said


def test_the_spec_says_what_it_is_and_is_otherwise_the_teachers(tmp_path: Path) -> None:
    given = teacher(tmp_path)
    assert run(given, "--width", "0.5", "--output", tmp_path / "half.toml") == 0
    wide, narrow = load_spec(given), load_spec(tmp_path / "half.toml")
    assert narrow.name == "half"
    assert narrow.title == "something (pruned, not trained)"
    assert narrow.remarks[0] == "its labels were guessed"
    assert narrow.remarks[1].startswith("pruned from teacher (weights ")
    assert wide.weights is not None
    assert narrow.weights is not None
    assert wide.weights.sha256[:12] in narrow.remarks[1]
    assert (narrow.weights.source, narrow.weights.licence) == ("pruned from teacher and not trained; made up", "CC0")
    own = ("name", "title", "remarks", "network", "weights")
    assert _rest(wide, own) == _rest(narrow, own)
    assert "not trained" in (tmp_path / "half.toml").read_text().splitlines()[0]


def _rest(spec: Spec, own: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in spec if key not in own}


def test_it_can_be_built_and_served_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(teacher(tmp_path, "plain"), "--width", "0.5", "--output", tmp_path / "half.toml") == 0
    capsys.readouterr()
    assert cli.main(["spec", str(tmp_path / "half.toml"), "--repository", str(tmp_path / "repository")]) == 0
    card = (tmp_path / "repository" / "half" / "config.pbtxt").read_text()
    assert "not trained" in card


def test_the_weights_are_slices_of_the_teachers(tmp_path: Path) -> None:
    given = teacher(tmp_path)
    assert run(given, "--width", "0.5", "--output", tmp_path / "half.toml") == 0
    wide, narrow = load_file(tmp_path / "weights.safetensors"), load_file(tmp_path / "half.safetensors")
    assert wide.keys() == narrow.keys()
    for key, tensor in narrow.items():
        assert torch.isin(tensor, wide[key]).all()
    untrained_network(load_spec(tmp_path / "half.toml")).load_state_dict(narrow, strict=True)


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = teacher(tmp_path)
    for taken in ("half.toml", "half.safetensors"):
        (tmp_path / taken).write_text("mine")
        before = content(tmp_path)
        assert run(given, "--width", "0.5", "--output", tmp_path / "half.toml") == 2
        assert f"{taken}: expected the name of a new file, found one that exists" in capsys.readouterr().err
        assert content(tmp_path) == before
        (tmp_path / taken).unlink()
    assert run(given, "--width", "0.5", "--output", given) == 2


def test_a_folder_is_made_where_it_is_missing_and_only_for_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, new = teacher(tmp_path), tmp_path / "new" / "deeper" / "half.toml"
    before = content(tmp_path)
    assert run(given, "--width", "0.001", "--output", new) == 2
    with monkeypatch.context() as patch:
        patch.setattr("voxtile_build.slimming.pruned.sync", lambda _: (_ for _ in ()).throw(OSError(28, "no space")))
        assert run(given, "--width", "0.5", "--output", new) == 2
    assert content(tmp_path) == before
    assert not (tmp_path / "new").exists()
    assert run(given, "--width", "0.5", "--output", new) == 0
    assert sorted(path.name for path in new.parent.iterdir()) == ["half.safetensors", "half.toml"]
    monkeypatch.chdir(tmp_path)
    assert run(given, "--width", "0.5", "--output", "other/half.toml") == 0
    assert load_spec(tmp_path / "other" / "half.toml").weights == load_spec(new).weights.model_copy(  # type: ignore[union-attr]
        update={"file": tmp_path / "other" / "half.safetensors"}
    )


@pytest.mark.parametrize("place", ["/proc/half.toml", "/proc/new/half.toml", "{given}/half.toml", "{long}/half.toml"])
def test_a_folder_that_cannot_be_written_is_refused_by_its_name(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = teacher(tmp_path)
    before = content(tmp_path)
    output = place.format(given=given, long=tmp_path / ("o" * 300))
    assert run(given, "--width", "0.5", "--output", output) == 2
    error = capsys.readouterr().err
    assert f"--output: {Path(output).parent}: expected a folder" in error
    assert len(error.strip().splitlines()) == 1
    assert content(tmp_path) == before


def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = teacher(tmp_path)
    before = content(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    for target in ("voxtile_build.slimming.pruned.sync", "voxtile_build.slimming.pruned.write_spec"):
        with monkeypatch.context() as patch:
            patch.setattr(target, full)
            assert run(given, "--width", "0.5", "--output", tmp_path / "half.toml") == 2
        assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "arguments", "expected"),
    [
        ({}, ("--width", "1"), "width: expected a share of the channels above 0 and below 1, found 1.0"),
        ({}, ("--width", "nan"), "width: expected a share of the channels above 0 and below 1, found nan"),
        ({}, ("--width", "-0.5"), "width: expected a share of the channels above 0 and below 1, found -0.5"),
        ({}, ("--width", "0.001"), "width: 0.001 leaves no channel of a layer that has 8"),
        ({}, ("--width", "0.999"), "width: 0.999 changes none of the UNet's widths"),
        ({}, ("--width", "half"), "'--width': expected a number"),
        ({"weights": None}, ("--width", "0.5"), "weights: missing"),
        ({"network": {"name": "Identity"}, "weights": None}, ("--width", "0.5"), "found Identity; choose a smaller"),
        (
            {"network": {"name": "SegResNet", "args": {"init_filters": 8, "in_channels": 2, "out_channels": 3}}},
            ("--width", "0.5"),
            "network: expected one whose channels can be cut (UNet, DynUNet, PlainConvUNet, ResidualEncoderUNet), "
            "found SegResNet; choose a smaller network yourself: voxtile-build distil --student STUDENT.toml",
        ),
        (
            {"network": {"file": "net.onnx", "sha256": "0" * 64}, "weights": None},
            ("--width", "0.5"),
            "found one in a file; choose a smaller network yourself",
        ),
        ({"network": {"name": "UNet", "args": {"channels": [8]}}}, ("--width", "0.5"), "network.args: UNet needs "),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    changes: dict[str, Any],
    arguments: tuple[str, ...],
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = teacher(tmp_path, **changes)
    before = content(tmp_path)
    assert run(given, *arguments, "--output", tmp_path / "half.toml") == 2
    said = capsys.readouterr().err
    assert expected in said
    assert "Traceback" not in said
    assert content(tmp_path) == before


def test_files_that_are_not_what_they_should_be_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = teacher(tmp_path)
    for source, output, expected in (
        (tmp_path, "half.toml", "expected a plain file, found a folder"),
        (tmp_path / "none.toml", "half.toml", "cannot be read"),
        (tmp_path / "weights.safetensors", "half.toml", "not TOML"),
        (given, "half.safetensors", "expected the name of a new .toml file"),
        (given, "weights.safetensors/half.toml", "expected a folder"),
    ):
        assert run(source, "--width", "0.5", "--output", tmp_path / output) == 2
        assert expected in capsys.readouterr().err
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    assert run(given, "--width", "0.5", "--output", tmp_path / "half.toml") == 2
    assert "expected sha256" in capsys.readouterr().err
    shutil.move(weights, tmp_path / "moved")
    assert run(given, "--width", "0.5", "--output", tmp_path / "half.toml") == 2
    assert "cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "half.toml").exists()
