"""Restoring against MONAI's inverse; planes in any portions; what is decided; what it takes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientationd, Spacingd
from numpy.typing import NDArray

from tests.support.phantoms import ORIENTATIONS, affine_of, card_of, in_file_order, phantom_volume, restored_as, sampled
from voxtile.card import Card
from voxtile.chains.monai import invert as restoring
from voxtile.chains.monai.grid import Grid, plan_grid
from voxtile.chains.monai.invert import Restorer, restore_bytes
from voxtile.chains.monai.preprocess import preprocess
from voxtile.chains.scores import decider, label_type
from voxtile.errors import ModelError
from voxtile.io.scan import open_scan
from voxtile.io.volume import Volume
from voxtile.io.writing import mask_image

OBLIQUE = (14.0, -27.0, 33.0)
FLOAT32_ROUNDING = 3e-6
"""Relative to scores of about 1: MONAI blends in float64, the client in float32, three times."""


def classes(count: int, **changes: Any) -> Card:
    """A card of `count` classes with values 0, 1, 2, …"""
    fields: dict[str, Any] = {
        "output": {"kind": "logits", "scores": count},
        "labels": [{"name": str(value), "value": value} for value in range(count)],
    }
    return card_of(**(fields | changes))


def restored(grid: Grid, card: Card, scores: NDArray[Any], portions: Sequence[int] = (3,), **options: Any) -> Restorer:
    """A Restorer that was fed all of `scores`, in portions of so many planes, from a buffer that is overwritten."""
    restorer, first, turn = Restorer(grid, card, **options), 0, 0
    while first < scores.shape[1]:
        last = min(first + portions[turn % len(portions)], scores.shape[1])
        buffer = scores[:, first:last].astype(np.float32)
        restorer.add_planes(buffer)
        buffer.fill(np.nan)
        first, turn = last, turn + 1
    return restorer


def monai_restored(volume: Volume, card: Card, seed: int, nearest: bool = False) -> tuple[NDArray[Any], NDArray[Any]]:
    """Random scores on the prepared grid, and what MONAI's inverse makes of them on the scan's own."""
    steps: list[Any] = [Orientationd("image", card.orientation, labels=(("L", "R"), ("P", "A"), ("I", "S")))]
    if card.spacing:
        steps.append(Spacingd("image", card.spacing, mode="bilinear", padding_mode="border", dtype=np.float64))
    chain = Compose(steps)
    data = chain({"image": MetaTensor(torch.as_tensor(volume.data.astype(np.float32)), torch.as_tensor(volume.affine))})
    image, rng = data["image"], np.random.default_rng(seed)
    shape = (card.output.scores, *image.shape[1:])
    scores = rng.integers(0, 5, shape).astype(np.float32) if nearest else rng.normal(0, 1, shape).astype(np.float32)
    data["scores"] = MetaTensor(torch.as_tensor(scores), meta=image.meta, applied_operations=image.applied_operations)
    inverse = Invertd("scores", chain, orig_keys="image", nearest_interp=nearest, to_tensor=True)
    return scores, inverse(data)["scores"].numpy()


# Against MONAI ---------------------------------------------------------------------------------------------


sizes, steps = st.integers(2, 12), st.sampled_from((0.5, 0.7, 0.9766, 1.0, 1.5, 2.0, 3.0, 5.0))
degrees = st.one_of(st.just(0.0), st.floats(-40, 40))


@given(
    st.tuples(sizes, sizes, sizes), st.tuples(steps, steps, steps), st.sampled_from(ORIENTATIONS),
    st.tuples(degrees, degrees, degrees), st.sampled_from(("RAS", "LPS", "SAR")),
    st.one_of(st.none(), st.tuples(steps, steps, steps)), st.lists(st.integers(1, 5), min_size=1, max_size=4),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_scores_and_labels_are_monais(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    codes: str,
    angles: tuple[float, float, float],
    wanted: str,
    target: tuple[float, float, float] | None,
    portions: list[int],
) -> None:
    volume = phantom_volume(shape, spacing, codes, angles)
    card = classes(3, orientation=wanted, spacing=target)
    scores, expected = monai_restored(volume, card, seed=sum(shape))
    restorer = restored(preprocess(volume, card).grid, card, scores, portions, keep_scores=True)
    np.testing.assert_allclose(restorer.scores, expected, atol=10 * FLOAT32_ROUNDING)
    labels = restorer.finish()
    runner_up = np.sort(expected, axis=0)[-2]
    clear = expected.max(0) - runner_up > 20 * FLOAT32_ROUNDING
    np.testing.assert_array_equal(labels[clear], expected.argmax(0)[clear])
    assert clear.mean() > 0.99


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SAR"])
@pytest.mark.parametrize("target", [(1.03, 2.07, 0.83), (3.11, 1.57, 1.46)])
def test_class_indices_take_the_nearest_voxel_as_monai_does(codes: str, target: tuple[float, float, float]) -> None:
    """Spacings without a common measure: halfway between two voxels, MONAI's choice is that of its rounding errors."""
    volume = phantom_volume((9, 10, 11), (2.0, 1.5, 1.7), codes)
    card = classes(5, output={"kind": "labels", "scores": 1}, spacing=target)
    scores, expected = monai_restored(volume, card, seed=4, nearest=True)
    labels = restored(preprocess(volume, card).grid, card, scores).finish()
    np.testing.assert_array_equal(labels, expected[0])


# Properties ------------------------------------------------------------------------------------------------


GRIDS = {
    "as it is": None,
    "finer": (0.7, 0.9, 0.8),
    "coarser": (3.0, 4.0, 3.5),
    "mixed": (1.0, 3.0, 1.7),
    "first axis alone": (1.0, 1.5, 1.7),
}


def grid_of(name: str, card: Card, codes: str = "PIR") -> Grid:
    volume = phantom_volume((14, 13, 12), (2.0, 1.5, 1.7), codes)
    return plan_grid(volume.affine, volume.shape, card.model_copy(update={"spacing": GRIDS[name]}))


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("slab", [1, 4000, 1 << 22])
def test_portions_threads_and_slabs_do_not_matter(
    name: str, threads: int, slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = classes(4)
    grid = grid_of(name, card)
    scores = np.random.default_rng(5).normal(0, 1, (4, *grid.shape)).astype(np.float32)
    expected = restored(grid, card, scores, (grid.shape[0],), threads=1).finish()
    monkeypatch.setattr(restoring, "SLAB_BYTES", slab)
    for portions in ((1,), (5, 1, 2), (grid.shape[0],)):
        np.testing.assert_array_equal(restored(grid, card, scores, portions, threads=threads).finish(), expected)


@pytest.mark.parametrize("codes", ["LPS", "LAS", "SAR", "IPL"])
@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), OBLIQUE])
@pytest.mark.parametrize("target", [None, (1.4, 1.4, 1.4)])
def test_the_same_anatomy_gets_the_same_mask_however_it_is_stored(
    codes: str, angles: tuple[float, float, float], target: tuple[float, float, float] | None
) -> None:
    """A threshold as the network: the mask of each stored form, turned back, is that of the first; and it is right."""
    shape = (13, 16, 12)
    affine = affine_of(shape, (2.0, 1.5, 1.7), "RAS", angles)
    data = np.rint(sampled(shape, affine)).astype(np.int16)
    card = classes(2, spacing=target)

    def segmented(stored: NDArray[Any], place: NDArray[np.float64]) -> Any:
        volume = open_scan(nib.Nifti1Image(stored, place), ["any"])
        prepared = preprocess(volume, card)
        scores = np.stack([np.full(prepared.grid.shape, 300.0), prepared.data[0]])
        return mask_image(restored(prepared.grid, card, scores).finish(), volume)

    first = segmented(data, affine)
    moved, place = restored_as(data, affine, codes)
    second = segmented(np.asarray(in_file_order(moved[None])[0]), place)
    np.testing.assert_allclose(second.affine, place, atol=1e-4)
    back, _ = restored_as(np.asarray(second.dataobj), place, "".join(nib.aff2axcodes(affine)))
    agreement = (back == np.asarray(first.dataobj)).mean()
    assert agreement == 1.0 if target is None else agreement > 0.999
    truth = data > 300
    mask = np.asarray(first.dataobj) == 1
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > (0.999 if target is None else 0.9)


def test_the_result_is_a_view_of_one_byte_a_voxel() -> None:
    card = classes(3)
    grid = grid_of("finer", card)
    labels = restored(grid, card, np.zeros((3, *grid.shape))).finish()
    assert labels.shape == grid.scan
    assert labels.dtype == np.uint8
    assert labels.base is not None


# Decisions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 14, 300])
def test_the_largest_score_wins_and_the_first_of_equal_ones(count: int) -> None:
    scores = np.random.default_rng(6).integers(-3, 4, (count, 5, 6, 7)).astype(np.float32)
    decided = decider(classes(count))(scores)
    np.testing.assert_array_equal(decided, scores.argmax(0))
    assert decided.dtype == (np.uint16 if count > 256 else np.uint8)


def test_labels_have_the_cards_values() -> None:
    labels = [{"name": "a", "value": 7}, {"name": "b", "value": 0}, {"name": "c", "value": 500}]
    card = classes(3, labels=labels)
    scores = np.random.default_rng(7).normal(0, 1, (3, 5, 6, 7)).astype(np.float32)
    np.testing.assert_array_equal(decider(card)(scores), np.array([7, 0, 500])[scores.argmax(0)])
    assert label_type(card) == np.uint16


@pytest.mark.parametrize(
    ("kind", "scale", "threshold"), [("logits", 1.0, 0.0), ("probabilities", 1.0, 0.5), ("probabilities", 255.0, 127.5)]
)
def test_later_regions_lie_over_earlier_ones(kind: str, scale: float, threshold: float) -> None:
    labels = [{"name": "whole", "value": 2}, {"name": "core", "value": 1}, {"name": "active", "value": 3}]
    card = card_of(output={"kind": kind, "scores": 3, "scale": scale}, labels=labels, regions=True)
    below, above = np.nextafter(np.float32(threshold), np.array([-1e9, 1e9], np.float32))
    on = np.array(list(np.ndindex(2, 2, 2)), bool).T
    scores = np.where(on, above, below).astype(np.float32)[..., None, None]
    expected = [3 if active else 1 if core else 2 if whole else 0 for whole, core, active in on.T]
    np.testing.assert_array_equal(decider(card)(scores).ravel(), expected)
    np.testing.assert_array_equal(decider(card)(np.full_like(scores, threshold)), 0)


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_foreground_is_more_than_one_half(scale: float) -> None:
    output = {"kind": "foreground", "scores": 1, "scale": scale}
    two = [{"name": "background", "value": 4}, {"name": "lesion", "value": 9}]
    scores = (np.array([0.0, 0.25, 0.5, 0.502, 1.0], np.float32) * np.float32(scale)).reshape(1, 5, 1, 1)
    np.testing.assert_array_equal(decider(card_of(output=output, labels=two))(scores).ravel(), [4, 4, 4, 9, 9])
    np.testing.assert_array_equal(decider(card_of(output=output, labels=two[1:]))(scores).ravel(), [0, 0, 0, 9, 9])


def test_kept_scores_are_probabilities_whatever_the_scale() -> None:
    card = classes(2, output={"kind": "probabilities", "dtype": "uint8", "scores": 2, "scale": 255.0})
    grid = grid_of("as it is", card)
    stored = np.random.default_rng(8).integers(0, 256, (2, *grid.shape))
    scores = restored(grid, card, stored, keep_scores=True).scores
    assert scores.shape == (2, *grid.scan)
    np.testing.assert_allclose(scores, grid.orientation.undo(stored) / 255, rtol=1e-6)


def test_class_indices_beyond_the_card_are_the_models_fault() -> None:
    card = classes(3, output={"kind": "labels", "scores": 1})
    with pytest.raises(ModelError, match="labels 0 to 2 from the model, found 0 to 3"):
        decider(card)(np.array([0, 3, 1], np.float32).reshape(1, 3, 1, 1))


# Use and cost ----------------------------------------------------------------------------------------------


def test_planes_that_do_not_fit_are_refused() -> None:
    card = classes(2)
    grid = grid_of("finer", card)
    restorer = Restorer(grid, card)
    with pytest.raises(ValueError, match="planes"):
        restorer.add_planes(np.zeros((3, 1, *grid.shape[1:]), np.float32))
    with pytest.raises(ValueError, match="planes"):
        restorer.add_planes(np.zeros((2, grid.shape[0] + 1, *grid.shape[1:]), np.float32))
    restorer.add_planes(np.zeros((2, 1, *grid.shape[1:]), np.float32))
    with pytest.raises(ValueError, match="planes of scores, got 1"):
        restorer.finish()
    with pytest.raises(ValueError, match="keep_scores"):
        _ = restorer.scores


@pytest.mark.parametrize("channels", [2, 9])
@pytest.mark.parametrize("target", [None, (1.5, 1.5, 1.5), (0.6, 0.6, 0.6), (0.6, 0.6, 3.0)])
@pytest.mark.parametrize("codes", ["RAS", "ASR"])
def test_memory_is_as_predicted_and_does_not_grow_with_depth(
    channels: int, target: tuple[float, float, float] | None, codes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoring, "SLAB_BYTES", 1 << 18)
    shape = (60, 70, 80)
    card = classes(channels, spacing=target, orientation=codes)
    grid = plan_grid(affine_of(shape), shape, card)
    planes = np.zeros((channels, 4, *grid.shape[1:]), np.float32)
    tracemalloc.start()
    restorer = Restorer(grid, card, threads=2)
    for first in range(0, grid.shape[0], 4):
        restorer.add_planes(planes[:, : min(4, grid.shape[0] - first)])
    labels = restorer.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    predicted = restore_bytes(grid, card, 4, threads=2)
    assert labels.nbytes < peak < predicted
    assert predicted < 4 * peak
    deep = (600, 70, 80) if codes == "RAS" else (60, 700, 80)  # ten times as many planes to feed
    deeper = plan_grid(affine_of(deep), deep, card)
    assert deeper.oriented == (10 * grid.oriented[0], *grid.oriented[1:])
    assert restore_bytes(deeper, card, 4, threads=2) - predicted == 9 * labels.nbytes
