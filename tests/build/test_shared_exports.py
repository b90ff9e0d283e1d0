"""Exports that tests share are told apart by all that they depend on, and are those that the exporter gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.build_specs import spec, tiny_unet
from tests.support.exporting import content_of, exported_afresh
from voxtile_build.graph.composing import to_onnx
from voxtile_build.graph.wrapper import Wrapper

TILE = torch.zeros(2, 1, 16, 8, 12)


def key(network: nn.Module, *asked: object, **changes: Any) -> str | None:
    return content_of(Wrapper(network, spec(**changes)).eval(), asked or (TILE, 20))


def turned(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(network.parameters()).neg_()
    return network


def test_the_same_network_has_the_same_key_whatever_its_model_is_called() -> None:
    assert key(tiny_unet()) == key(tiny_unet(), name="other", title="another", acceptance={"min_dice": 0.5}) is not None


@pytest.mark.parametrize(
    "other",
    [
        lambda: key(turned(tiny_unet())),
        lambda: key(tiny_unet().double()),
        lambda: key(tiny_unet(), TILE.half(), 20),
        lambda: key(tiny_unet(), TILE[:, :, 1:], 20),
        lambda: key(tiny_unet(), TILE, 21),
        lambda: key(nn.Sequential(tiny_unet())),
        lambda: key(tiny_unet(), tiling={"cval": -1.0}),
        lambda: key(tiny_unet(), input={"intensity": {"rule": "range", "a_min": 0.0, "a_max": 9.0}}),
        lambda: key(tiny_unet(), output={"scores": "labels", "dtype": "uint8"}),
        lambda: content_of(Wrapper(tiny_unet(), spec()), (TILE, 20)),  # not eval()
    ],
)
def test_what_an_export_depends_on_is_in_the_key(other: Callable[[], str | None]) -> None:
    assert key(tiny_unet()) != other() is not None


def test_settings_of_a_layer_are_in_the_key() -> None:
    layers = nn.LeakyReLU(0.1), nn.LeakyReLU(0.2), nn.ELU(0.1), nn.Conv3d(1, 1, 1), nn.Conv3d(1, 1, 1, padding=1)
    for layer in layers[3:]:
        nn.init.ones_(layer.weight), nn.init.ones_(layer.bias)
    assert len({content_of(layer, ()) for layer in layers}) == len(layers)


def test_weights_in_two_places_are_told_from_equal_ones() -> None:
    one, two = (nn.Sequential(*(nn.Linear(2, 2) for _ in range(2))) for _ in range(2))
    for layer in (*one, *two):
        nn.init.ones_(layer.weight), nn.init.ones_(layer.bias)
    two[1].weight = two[0].weight
    assert content_of(one, ()) != content_of(two, ())


def test_a_class_that_no_name_leads_to_has_no_key() -> None:
    class Own(nn.Identity):
        """Another class of this name may compute something else."""

    assert content_of(Own(), ()) is None
    assert content_of(nn.Sequential(Own()), ()) is None


def test_a_shared_export_is_the_one_that_the_exporter_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = spec(input={"dtype": "int16", "intensity": {"rule": "zscore"}})
    wrapper = Wrapper(tiny_unet(), chosen).eval()
    with exported_afresh():
        expected = to_onnx(wrapper, chosen)
    made = to_onnx(wrapper, chosen)  # now it is in the folder, whoever made it
    monkeypatch.setattr(torch.onnx, "export", None)
    for found in (made, to_onnx(wrapper, chosen)):
        assert found.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)
