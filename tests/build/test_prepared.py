"""Models of one build that take the same network share its export and its reference, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

from tests.support.build_specs import spec, tiny_unet
from voxtile_build.build import BUILD_FACTS, build_models
from voxtile_build.errors import ScanError
from voxtile_build.prepared import Preparer
from voxtile_build.repository.folds import Fold, Model
from voxtile_build.spec.spec import Spec

OPEN = {"max_abs_error": 1e9, "max_logit_error": 1e9, "min_dice": 0.0, "max_changed": 1.0}
LEVELS = {
    "exact": {"openvino": "fp32", "onnxruntime": "fp32"},
    "half": {"openvino": "bf16", "onnxruntime": "fp16"},
    "least": {"openvino": "int8", "onnxruntime": "int8"},
}


def deep() -> nn.Module:
    """Convolutions between the first and the last, and one upsampling to compose: something for every precision."""
    torch.manual_seed(8)
    network: nn.Module = UNet(3, 1, 3, channels=(4, 8, 8), strides=(2, 2), num_res_units=1)
    return network.eval()


def model(name: str, load: Any = deep, engines: tuple[str, ...] = ("onnxruntime", "openvino"), **changes: Any) -> Model:
    parts: dict[str, Any] = {"acceptance": OPEN, "precision": LEVELS.get(name, {}), **changes}
    chosen = spec(
        name=name, serving={"engines": list(engines)}, tiling={"roi_size": [16, 16, 16], "overlap": 0.25}, **parts
    )
    return Model(chosen, (Fold(name, load),))


class Steps:
    """Tells what was done, in order."""

    def __init__(self) -> None:
        self.done: list[str] = []

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        self.done.append(what)
        yield


def files(folder: Path) -> dict[str, bytes]:
    """All but what changes from build to build."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if path.name not in (BUILD_FACTS, ".lock")}


def prepared(first: Model, second: Model, folder: Path) -> list[str]:
    """What is done to prepare one model after the other."""
    steps = Steps()
    prepare = Preparer(folder, steps)
    for one in (first, second):
        fold = one.folds[0]
        assert prepare(fold, one.spec_of(fold)).graphs.spec.name == fold.name
    return steps.done


def test_precisions_built_together_are_exported_once_and_are_the_same_as_alone(tmp_path: Path) -> None:
    steps = Steps()
    # The engine that composes comes last for the first model and first for the others.
    models = [model(name, engines=("onnxruntime", "openvino")[:: 1 if name == "exact" else -1]) for name in LEVELS]
    published = build_models(models, tmp_path / "together", step=steps)
    assert steps.done.count("export to ONNX") == steps.done.count("run the reference in PyTorch") == 1
    assert [one.card["certificates"]["openvino"]["precision"] for one in published] == ["fp32", "bf16", "int8"]
    for one in models:
        build_models([one], tmp_path / "alone")
    together, alone = files(tmp_path / "together"), files(tmp_path / "alone")
    assert together.keys() == alone.keys()
    assert [name for name in together if together[name] != alone[name]] == []


def test_what_the_facts_tell_of_graphs_does_not_depend_on_who_was_built_before(tmp_path: Path) -> None:
    models = [model("exact"), model("half")]
    together = build_models(models, tmp_path / "together")
    alone = build_models(models[1:], tmp_path / "alone")
    assert together[1].notes == alone[0].notes
    assert set(together[1].graphs) == set(alone[0].graphs)


@pytest.mark.parametrize(
    "changes",
    [
        {"output": {"scores": "labels", "dtype": "uint8"}},
        {"input": {"dtype": "int16"}},
        {"input": {"intensity": {"rule": "range", "a_min": 0, "a_max": 9}}},
        {"tiling": {"roi_size": [16, 16, 32], "overlap": 0.25}},
        {"serving": {"max_batch_size": 3}},
    ],
    ids=str,
)
def test_a_network_that_is_served_otherwise_is_prepared_anew(tmp_path: Path, changes: dict[str, Any]) -> None:
    fields = {"name": "other", "acceptance": OPEN, **changes}
    other = Model(spec(**{"tiling": {"roi_size": [16, 16, 16], "overlap": 0.25}, **fields}), (Fold("other", deep),))
    assert prepared(model("exact"), other, tmp_path).count("export to ONNX") == 2


def test_another_network_under_the_same_spec_is_prepared_anew(tmp_path: Path) -> None:
    first, second = model("exact", deep), model("other", tiny_unet)
    assert prepared(first, second, tmp_path).count("export to ONNX") == 2


def test_scans_that_figures_are_taken_on_belong_to_the_reference(tmp_path: Path) -> None:
    plain = model("exact")
    scans = plain.spec.acceptance.model_copy(update={"scans": ((Path("brain.nii.gz"),),)})
    other = plain.spec.model_copy(update={"name": "other", "acceptance": scans})
    with pytest.raises(ScanError, match=r"brain\.nii\.gz"):
        prepared(plain, Model(other, (Fold("other", deep),)), tmp_path)


def test_only_the_last_network_is_held(tmp_path: Path) -> None:
    first, second = model("exact", deep), model("other", tiny_unet)
    prepare = Preparer(tmp_path)
    for one in (first, second):
        prepare(one.folds[0], one.spec)
    again: Spec = first.spec.model_copy(update={"name": "again"})
    steps = Steps()
    prepare._step = steps
    prepare(first.folds[0], again)
    assert steps.done.count("export to ONNX") == 1
