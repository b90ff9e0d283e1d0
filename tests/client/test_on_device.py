"""A whole volume on the device that its arrays lie on: the client's own scores and labels, whatever the library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.support.in_process import stitched
from tests.support.monai_cards import class_card
from voxtile.card import Card, Tiling
from voxtile.chains.scores import activator, decider
from voxtile.chains.scores_on_device import labels_on_device
from voxtile.tiling.extract import tta_flips
from voxtile.tiling.on_device import VolumePass
from voxtile.tiling.plan import plan_tiles

PADDING = -1e4
GAUSSIAN = Tiling(overlap=0.5, mode="gaussian")
NNUNET = GAUSSIAN.model_copy(update={"semantics": "nnunet"})

To = Callable[[NDArray[Any]], Any]
LIBRARIES: dict[str, tuple[To, To]] = {
    "numpy": (np.asarray, np.asarray),
    "torch": (torch.from_numpy, lambda values: values.numpy()),
}
"""NumPy's arrays to the library's, and back."""


@pytest.fixture(params=list(LIBRARIES))
def library(request: pytest.FixtureRequest) -> tuple[To, To]:
    return LIBRARIES[request.param]


def scores_of(values: NDArray[Any]) -> NDArray[np.float32]:
    """Three scores [pass, 3, *roi] of one channel, which differ along every axis; padding has its own."""
    first = values[:, 0]
    ramps = np.indices(first.shape[1:]).astype(np.float32)
    scores = np.stack([first, first * ramps[0], ramps[-1] * 3 - first], 1)
    return np.where(values < PADDING / 2, np.float32(7), scores)


def network(values: Any) -> Any:
    """The same in the values' own library."""
    return torch.from_numpy(scores_of(values.numpy())) if isinstance(values, torch.Tensor) else scores_of(values)


def phantom(shape: Sequence[int]) -> NDArray[np.float32]:
    return np.random.default_rng(11).normal(0, 2, (1, *shape)).astype(np.float32)


CASES: dict[str, dict[str, Any]] = {
    "one tile": {"shape": (8, 9, 7), "roi": (8, 9, 7), "tiling": Tiling()},
    "overlap": {"shape": (17, 12, 21), "roi": (8, 6, 10), "tiling": GAUSSIAN},
    "smaller than a tile": {"shape": (5, 20, 9), "roi": (8, 8, 12), "tiling": GAUSSIAN},
    "nnU-Net's": {"shape": (17, 12, 21), "roi": (8, 6, 10), "tiling": NNUNET},
    "mirrored": {"shape": (9, 12, 11), "roi": (8, 6, 10), "tiling": GAUSSIAN, "mirror_axes": (0, 2)},
    "slices": {"shape": (11, 5, 13), "roi": (8, 1, 8), "tiling": Tiling(overlap=0.25), "slice_axis": 1},
    "mirrored slices": {
        "shape": (11, 5, 13), "roi": (8, 1, 8), "tiling": Tiling(overlap=0.25), "slice_axis": 1, "mirror_axes": (0, 1),
    },
}  # fmt: skip


def expected(case: dict[str, Any]) -> NDArray[np.float32]:
    """The client's own scores."""
    options = {name: case[name] for name in ("mirror_axes", "slice_axis") if name in case}
    return stitched(phantom(case["shape"]), case["roi"], case["tiling"], network, cval=PADDING, **options)


def on_device(case: dict[str, Any], run: Callable[[Any], Any], to: To, batch: int = 3) -> Any:
    plan = plan_tiles(case["shape"], case["roi"], case["tiling"])
    flips = tta_flips(case.get("mirror_axes", ()))
    volume_pass = VolumePass(plan, run, batch, PADDING, flips, case.get("slice_axis"))
    return volume_pass.scores(to(phantom(case["shape"])))


@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_the_client(name: str, library: tuple[To, To]) -> None:
    to, back = library
    found, wanted = back(on_device(CASES[name], network, to)), expected(CASES[name])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-5)
    assert np.count_nonzero(found.argmax(0) != wanted.argmax(0)) == 0


@pytest.mark.parametrize("batch", [1, 4, 1000])
def test_the_network_gets_no_more_passes_than_asked(batch: int, library: tuple[To, To]) -> None:
    to, _ = library
    sizes: list[int] = []

    def run(values: Any) -> Any:
        sizes.append(len(values))
        return network(values)

    on_device(CASES["mirrored"], run, to, batch)
    assert max(sizes) <= batch
    assert all(size == batch for size in sizes[:-1])


def test_scores_of_sixteen_bits_are_summed_in_thirty_two(library: tuple[To, To]) -> None:
    to, back = library

    def run(values: Any) -> Any:
        return values.half() if isinstance(values, torch.Tensor) else values.astype(np.float16)

    case = {"shape": (12, 8, 8), "roi": (8, 8, 8), "tiling": Tiling(overlap=0.75)}
    found = back(on_device(case, lambda values: run(values * 0 + 2000.5), to))
    np.testing.assert_allclose(found, np.float32(np.float16(2000.5)), rtol=1e-6)


def cards() -> dict[str, Card]:
    three = [{"name": name, "value": value} for name, value in (("a", 0), ("b", 7), ("c", 300))]
    parts = [{"name": name, "value": value} for name, value in (("a", 1), ("b", 2), ("c", 3))]
    sigmoid = {"kind": "logits", "scores": 3, "activation": "sigmoid"}
    one = [{"name": "background", "value": 0}, {"name": "organ", "value": 5}]
    return {
        "classes": class_card(3),
        "values": class_card(3, labels=three),
        "regions": class_card(3, labels=parts, regions=True),
        "regions in an order": class_card(3, labels=parts, regions=True, region_order=["c", "a", "b"]),
        "sigmoid": class_card(3, labels=parts, regions=True, output=sigmoid),
        "shares of all": class_card(3, labels=parts, regions=True, output={**sigmoid, "activation": "softmax"}),
        "foreground": class_card(1, labels=one, output={**sigmoid, "kind": "foreground", "scores": 1}),
        "indices": class_card(5, output={"kind": "labels", "scores": 1}),
    }


@pytest.mark.parametrize("name", cards())
def test_labels_are_those_of_the_client(name: str, library: tuple[To, To]) -> None:
    """Of equal scores the first one wins, and what is exactly at the threshold counts as it does there."""
    to, back = library
    card = cards()[name]
    low = 0 if card.output.kind == "labels" else -3
    scores = np.random.default_rng(5).integers(low, 4, (card.output.scores, 6, 5, 4)).astype(np.float32)
    wanted = decider(card)(activator(card)(scores))
    found = back(labels_on_device(to(scores), card))
    np.testing.assert_array_equal(found, wanted)
    assert len(np.unique(wanted)) > 1
