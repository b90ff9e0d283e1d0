"""Models of one build share export and reference exactly where their cache keys are equal, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

from tests.support.build_specs import spec, tiny_unet
from voxtile_build.build import build_models
from voxtile_build.prepared import Prepared, Preparer, cache_key, weights_sha256
from voxtile_build.progress import listening
from voxtile_build.repository.entries import BUILD_FACTS
from voxtile_build.repository.folds import Fold, Model
from voxtile_build.spec.spec import Spec

OPEN = {
    **{"max_abs_error": 1e9, "max_logit_error": 1e9, "max_score_error": 0.9, "min_dice": 0.0, "max_changed": 1.0},
    "allow_unseen_labels": True,
}
LEVELS = {
    "exact": {"openvino": "fp32", "onnxruntime": "fp32"},
    "least": {"openvino": "int8", "onnxruntime": "int8"},
}


def deep() -> nn.Module:
    """Convolutions between the first and the last, and one upsampling to compose: something for every precision."""
    torch.manual_seed(8)
    network: nn.Module = UNet(3, 1, 3, channels=(4, 8, 8), strides=(2, 2), num_res_units=1)
    return network.eval()


def key_of(load: Any = deep, **changes: Any) -> Any:
    return cache_key(Fold("one", load), spec(**changes))


# The key


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other", "title": "another title"},
        {"precision": {"openvino": "int8", "onnxruntime": "fp16", "tensorrt": "auto"}},
        {"serving": {"engines": ["openvino"], "default_engine": "openvino"}},
        {"acceptance": OPEN},
    ],
    ids=str,
)
def test_what_comes_after_the_reference_is_not_in_the_key(changes: dict[str, Any]) -> None:
    assert key_of(**changes) == key_of()


@pytest.mark.parametrize(
    "changes",
    [
        {"network": {"args": {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [8], "strides": []}}},
        {"input": {"dtype": "int16"}},
        {"input": {"intensity": {"rule": "range", "a_min": 0, "a_max": 9}}},
        {"output": {"scores": "labels", "dtype": "uint8"}},
        {"output": {"regions": True}},
        {"tiling": {"roi_size": [16, 16, 32]}},
        {"tiling": {"overlap": 0.5}},
        {"tiling": {"cval": -1.0}},
        {"serving": {"max_batch_size": 3}},
        {"acceptance": {"scans": ["brain.nii.gz"]}},
        {"precision": {"calibration": ["brain.nii.gz"]}},
        {"nnunet": {"preparation": "0"}},
    ],
    ids=str,
)
def test_what_graphs_and_reference_depend_on_is_in_the_key(changes: dict[str, Any]) -> None:
    assert key_of(**changes) != key_of()


def test_another_network_under_the_same_spec_has_another_key() -> None:
    assert key_of(deep) != key_of(tiny_unet)


# What is done with it


class Counting(Preparer):
    """Prepares nothing and notes the names of what it is asked to prepare."""

    def __init__(self) -> None:
        super().__init__(Path())
        self.made: list[str] = []

    def _prepare(self, fold: Fold, spec: Spec) -> Prepared:
        self.made.append(spec.name)
        graphs: Any = SimpleNamespace(spec=spec)
        return Prepared(spec, graphs, None, {})  # type: ignore[arg-type]


def test_the_last_network_is_used_again_under_another_spec() -> None:
    prepare = Counting()
    prepare(Fold("exact", deep), spec(name="exact"))
    again = prepare(Fold("least", deep), spec(name="least", precision=LEVELS["least"]))
    assert prepare.made == ["exact"]
    assert (again.graphs.spec.name, again.spec.name) == ("exact", "least")


def test_only_the_last_network_is_kept() -> None:
    prepare = Counting()
    for name, load in (("first", deep), ("second", tiny_unet), ("third", deep)):
        prepare(Fold(name, load), spec(name=name))
    assert prepare.made == ["first", "second", "third"]


# Whole builds


class Steps:
    """Notes what is done, in order."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.told: dict[str, list[float]] = {}

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        self.done.append(what)
        with listening(self.told.setdefault(what, []).append):
            yield


def model(name: str, engines: tuple[str, ...]) -> Model:
    chosen = spec(
        name=name,
        acceptance=OPEN,
        precision=LEVELS[name],
        serving={"engines": list(engines)},
        tiling={"roi_size": [16, 16, 16]},
    )
    return Model(chosen, (Fold(name, deep),))


def files(folder: Path) -> dict[str, bytes]:
    """All but what changes from build to build."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if path.name not in (BUILD_FACTS, ".lock")}


def test_precisions_built_together_are_exported_once_and_are_the_same_as_alone(tmp_path: Path) -> None:
    steps = Steps()
    # The engine that composes comes last for the first model and first for the other.
    models = [model("exact", ("onnxruntime", "openvino")), model("least", ("openvino", "onnxruntime"))]
    together = build_models(models, tmp_path / "together", step=steps)
    assert steps.done.count("export to ONNX") == steps.done.count("run the reference in PyTorch") == 1
    for what in ("run the reference in PyTorch", "certify onnxruntime", "certify openvino"):
        told = steps.told[what]
        assert len(told) > 2
        assert told[-1] == max(told) == 1.0, f"{what} is counted to its end"
    assert [one.card.certificates["openvino"].precision for one in together] == ["fp32", "int8"]
    alone = [build_models([one], tmp_path / "alone")[0] for one in models]
    assert together[1].warnings == alone[1].warnings
    assert set(together[1].graph_lines) == set(alone[1].graph_lines)
    one, other = files(tmp_path / "together"), files(tmp_path / "alone")
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


class Scaled(nn.Module):
    """A number without axes, a number that is not saved, and an empty tensor."""

    def __init__(self, factor: float = 2.0, offset: float = 1.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=dtype))
        self.register_buffer("offset", torch.tensor(offset), persistent=False)
        self.register_buffer("none", torch.zeros(0, 3))


def test_the_hash_of_the_weights_covers_every_tensor() -> None:
    """Also those without axes and those that are not saved, and their types."""
    networks = [
        Scaled(),
        Scaled(factor=3.0),
        Scaled(offset=3.0),
        Scaled(dtype=torch.float16),
        Scaled(dtype=torch.float64),
    ]
    assert len({weights_sha256(spec(), network) for network in networks}) == len(networks)
    assert weights_sha256(spec(), Scaled()) == weights_sha256(spec(), Scaled())


def test_the_same_bytes_in_another_shape_or_under_another_name_are_another_hash() -> None:
    networks = [
        nn.Conv3d(2, 3, 1, bias=False),
        nn.Conv3d(3, 2, 1, bias=False),
        nn.Sequential(nn.Conv3d(2, 3, 1, bias=False)),
    ]
    for network in networks:
        nn.init.ones_(next(network.parameters()))
    assert len({weights_sha256(spec(), network) for network in networks}) == 3
