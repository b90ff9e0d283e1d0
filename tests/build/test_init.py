"""`init` writes the spec of whatever holds a network, says what is still to be said, and names what holds none."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import DynUNet, HighResNet, SegResNet, UNet
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from tests.support.bundles import write_bundle
from tests.support.nnunet_folders import Training, configuration, write_folder
from voxtile_build.cli.commands import main
from voxtile_build.importers.bundle.bundle import spec_of
from voxtile_build.importers.initial import from_file
from voxtile_build.importers.network import load_network
from voxtile_build.spec.serving import Serving
from voxtile_build.spec.spec import Spec, load_spec

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet": lambda: UNet(3, 2, 4, (4, 8, 16), (2, 2), num_res_units=1),
    "segresnet": lambda: SegResNet(3, 8, 1, 3, blocks_down=(1, 2), blocks_up=(1,)),
    "dynunet": lambda: DynUNet(3, 1, 1, [3, 3, 3], [1, 2, [2, 2, 1]], [2, [2, 2, 1]], filters=(4, 8, 16)),
    "flat": lambda: UNet(2, 1, 2, (4, 8), (2,)),
}
LIGHTNING = "pytorch-lightning_version"


def network(name: str) -> nn.Module:
    torch.manual_seed(3)
    return NETWORKS[name]().eval()


def save_lightning(state: dict[str, Any], path: Path) -> None:
    inner = {f"model.net.{key}": value for key, value in state.items()}
    torch.save({"epoch": 3, LIGHTNING: "2.0", "state_dict": inner, "hyper_parameters": {"lr": 1e-3}}, path)


SAVERS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "w.safetensors": save_file,
    "w.pth": torch.save,
    "w.ckpt": save_lightning,
    "checkpoint.pt": lambda state, path: torch.save({"model_state_dict": state, "best": np.float64(1)}, path),
    "parallel.bin": lambda state, path: torch.save({f"module.{key}": value for key, value in state.items()}, path),
}


def init(source: Path, file: Path) -> int:
    return main(["init", str(source), "-o", str(file)])


def written(source: Path, file: Path) -> Spec:
    assert init(source, file) == 0
    return load_spec(file)


def same_scores(found: nn.Module, expected: nn.Module, spec: Spec) -> bool:
    image = torch.randn(1, len(spec.input.channels), *spec.tiling.roi_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return torch.equal(found(image), expected(image))


@pytest.mark.parametrize(("file", "save"), SAVERS.items())
def test_weights_in_any_file_become_a_spec_whose_network_is_that_of_training(
    file: str, save: Callable[[dict[str, Any], Path], None], tmp_path: Path
) -> None:
    expected = network("segresnet")
    save(expected.state_dict(), tmp_path / file)
    spec = written(tmp_path / file, tmp_path / "organ.toml")
    assert spec.name == "organ"
    assert spec.weights is not None
    assert spec.weights.file == tmp_path / file
    assert [label.name for label in spec.output.labels] == ["background", "label-1", "label-2"]
    assert same_scores(load_network(spec), expected, spec)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_becomes_a_spec_that_opens_it(name: str, tmp_path: Path) -> None:
    expected = network(name)
    torch.save(expected.state_dict(), tmp_path / "w.pt")
    spec = written(tmp_path, tmp_path / "organ.toml")  # a folder with one file of weights
    assert same_scores(load_network(spec), expected, spec)
    assert len(spec.tiling.roi_size) == (2 if name == "flat" else 3)
    assert spec.output.regions == (len(spec.output.labels) == 1)


def test_tensors_that_safetensors_keeps_under_one_of_their_names_are_found(tmp_path: Path) -> None:
    expected = network("dynunet")
    save_model(expected, str(tmp_path / "w.safetensors"))
    assert len(load_file(tmp_path / "w.safetensors")) < len(expected.state_dict())
    spec = written(tmp_path / "w.safetensors", tmp_path / "organ.toml")
    assert same_scores(load_network(spec), expected, spec)


class Softmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network("unet")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.inner(image), 1)


def save_script(path: Path) -> None:
    torch.jit.save(torch.jit.trace(network("unet"), torch.zeros(2, 2, 32, 32, 32)), path)


def save_softmax(path: Path) -> None:
    torch.jit.save(torch.jit.trace(Softmax().eval(), torch.zeros(2, 2, 32, 32, 32)), path)


def save_exported(path: Path) -> None:
    torch.export.save(torch.export.export(network("unet"), (torch.zeros(1, 2, 32, 40, 48),)), path)


def save_onnx(path: Path) -> None:
    image = torch.zeros(1, 2, 32, 40, 48)
    torch.onnx.export(network("unet"), (image,), path, dynamo=False, opset_version=17)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 1.0, True), (-0.01, 1.0, False), (-8.9, 0.9, False), (0.1, 1.01, False), (0.5, 0.5, False)],
)
def test_probabilities_are_told_by_their_range(low: float, high: float, expected: bool) -> None:
    """Logits of a mild network lie between -9 and 1, too: a softmax that is not there would be left out."""
    scores = torch.linspace(low, high, 24).reshape(1, 3, 2, 2, 2)
    assert from_file._are_probabilities(scores) is expected


def test_the_table_serving_is_shown_with_its_defaults(tmp_path: Path) -> None:
    save_file(network("segresnet").state_dict(), tmp_path / "w.safetensors")
    spec, text = written(tmp_path / "w.safetensors", tmp_path / "organ.toml"), (tmp_path / "organ.toml").read_text()
    assert spec.serving == Serving()
    shown = text.partition("\n[serving]\n")[2]
    for key in ("engines", "default_engine", "max_batch_size", "gpus", "count"):
        assert f"\n#{key} =" in shown


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning", "ignore:.*:UserWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    ("file", "save", "roi_size"),
    [
        ("n.pt", save_script, (96, 96, 96)),
        ("s.ts", save_softmax, (96, 96, 96)),
        ("n.pt2", save_exported, (32, 40, 48)),
        ("n.onnx", save_onnx, (32, 40, 48)),
    ],
)
def test_a_network_in_a_file_becomes_a_spec_that_opens_it(
    file: str, save: Callable[[Path], None], roi_size: tuple[int, ...], tmp_path: Path
) -> None:
    save(tmp_path / file)
    spec = written(tmp_path / file, tmp_path / "organ.toml")
    assert spec.tiling.roi_size == roi_size
    assert (len(spec.input.channels), len(spec.output.labels)) == (2, 4)
    assert spec.network.output == ("probabilities" if save is save_softmax else "logits")
    small = spec.model_copy(update={"tiling": spec.tiling.model_copy(update={"roi_size": (32, 40, 48)})})
    expected, image = load_network(spec), torch.randn(1, 2, *small.tiling.roi_size)
    reference = Softmax() if save is save_softmax else network("unet")
    with torch.no_grad():
        assert torch.allclose(expected(image), reference.eval()(image), atol=1e-5)


def test_a_bundle_becomes_the_spec_that_its_import_has(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    assert written(bundle, tmp_path / "organ.toml") == spec_of(bundle, "organ")


def test_nothing_is_built_while_a_line_of_todo_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(network("segresnet").state_dict(), tmp_path / "w.safetensors")
    spec = written(tmp_path / "w.safetensors", tmp_path / "organ.toml")
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith("those of SegResNet (3D, 1 channel in, 3 out)")
    assert f"todo says the {len(spec.todo)} things" in out[1]
    assert out[2].startswith("next:  voxtile-build explain")
    assert main(["spec", str(tmp_path / "organ.toml"), "--repository", str(tmp_path / "models")]) == 2
    error = capsys.readouterr().err
    assert all(f"\n  - {line}" in error for line in spec.todo)
    assert not (tmp_path / "models").exists()


def test_todo_names_every_table_that_weights_say_nothing_of(tmp_path: Path) -> None:
    save_file(network("unet").state_dict(), tmp_path / "w.safetensors")
    todo = written(tmp_path / "w.safetensors", tmp_path / "organ.toml").todo
    keys = {line.partition(":")[0] for line in todo}
    assert keys == {"network.args", "inferer.roi_size", "input.channels", "output.labels", "preprocessing"}


def test_the_steps_that_are_switched_off_are_valid_once_they_are_switched_on(tmp_path: Path) -> None:
    save_file(network("segresnet").state_dict(), tmp_path / "w.safetensors")
    file = tmp_path / "organ.toml"
    assert init(tmp_path / "w.safetensors", file) == 0
    text, count = re.subn(r"^#(?=[\w[])(?!\w+ =$)", "", file.read_text(), flags=re.MULTILINE)
    assert count > 20
    file.write_text(text)
    steps = [step.transform for step in load_spec(file).preprocessing or ()]
    assert steps == ["Orientation", "Spacing", "ScaleIntensityRange", "NormalizeIntensity"]


def test_an_existing_file_and_a_missing_folder_are_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "organ.toml").write_text("mine")
    assert init(tmp_path / "w.safetensors", tmp_path / "organ.toml") == 2
    assert "expected the name of a new file" in capsys.readouterr().err
    assert (tmp_path / "organ.toml").read_text() == "mine"
    assert init(tmp_path, tmp_path / "none" / "x.toml") == 2
    assert "expected a folder" in capsys.readouterr().err


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def folder_of_two(folder: Path) -> Path:
    for name in ("a.pt", "b.pth"):
        torch.save(network("flat").state_dict(), folder / name)
    return folder


def beside_a_loss(folder: Path) -> Path:
    state = {f"model.{key}": value for key, value in network("flat").state_dict().items()}
    torch.save({**state, "loss.weight": torch.ones(2)}, folder / "w.pt")
    return folder / "w.pt"


def with_another_layer(folder: Path) -> Path:
    torch.save({**network("segresnet").state_dict(), "extra.weight": torch.ones(2)}, folder / "w.pt")
    return folder / "w.pt"


def saved(folder: Path, value: Any) -> Path:
    torch.save(value, folder / "w.pt")
    return folder / "w.pt"


def bundle_in_zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "b.zip", "w") as archive:
        archive.writestr("spleen/configs/metadata.json", "{}")
    return folder / "b.zip"


def script_with_another_ending(folder: Path) -> Path:
    torch.jit.save(torch.jit.trace(nn.ReLU(), torch.zeros(1)), folder / "w.pth")
    return folder / "w.pth"


def nnunet_folder(folder: Path) -> Path:
    return write_folder(folder, Training("3d_fullres", {"3d_fullres": configuration((8, 8, 8), (1.0, 1.0, 1.0))}))


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (lambda folder: folder / "none.pt", "expected a file of weights, a bundle or a folder, found none"),
        (lambda folder: folder, "found none of these"),
        (folder_of_two, "found 2 such files; give one of a.pt, b.pth"),
        (lambda folder: write_bundle(folder / "b").parent, "a folder that holds the bundle b: give"),
        (nnunet_folder, "no spec is needed: voxtile-build nnunet"),
        (lambda folder: nnunet_folder(folder) / "fold_0" / "checkpoint_final.pth", "a checkpoint of nnU-Net"),
        (lambda folder: write(folder / "w.pt", b""), "found an empty file"),
        (lambda folder: write(folder / "w.pt", b"version https://git-lfs.github.com/spec/v1\noid"), "run git lfs pull"),
        (lambda folder: write(folder / "w.pt", b"\n<!DOCTYPE html><html>"), "a web page"),
        (lambda folder: write(folder / "w.toml", b'name = "x"'), "a spec already"),
        (lambda folder: write(folder / "scan.nii.gz", b"\x1f\x8b123"), "found a scan"),
        (lambda folder: write(folder / "w.h5", b"\x89HDF1234"), "another framework"),
        (lambda folder: write(folder / "w.pt", b"nonsense"), "expected tensors only"),
        (lambda folder: write(folder / "w.safetensors", b"nonsense"), "not a whole safetensors file"),
        (lambda folder: write(folder / "w.onnx", b"nonsense"), "expected a whole ONNX file"),
        (bundle_in_zip, "a bundle in a zip; unpack it first"),
        (script_with_another_ending, "rename it"),
        (beside_a_loss, "found one under 'model.' beside 1 other tensors (loss.weight)"),
        (with_another_layer, "looks like SegResNet and is not"),
        (lambda folder: saved(folder, HighResNet(2, 1, 2).state_dict()), "tensors of another network (blocks.0"),
        (lambda folder: saved(folder, {"a": 3}), "expected a state dict"),
        (lambda folder: saved(folder, {}), "found 0 tensors"),
        (lambda folder: saved(folder, [1, 2]), "expected a state dict"),
    ],
)
def test_what_is_no_source_is_named_in_one_line_and_nothing_is_written(
    source: Callable[[Path], Path], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = source(tmp_path)
    assert init(found, tmp_path / "spec-of.toml") == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not (tmp_path / "spec-of.toml").exists()


def test_what_a_network_fits_besides_is_said(tmp_path: Path) -> None:
    from monai.networks.nets import UNETR

    save_file(UNETR(1, 2, (32, 64, 32), 4, 24, 48).state_dict(), tmp_path / "w.safetensors")
    spec = written(tmp_path / "w.safetensors", tmp_path / "organ.toml")
    assert any("the weights also fit UNETR with img_size" in line for line in spec.todo)
    assert json.dumps(spec.network.args["img_size"]) in "".join(spec.todo)
