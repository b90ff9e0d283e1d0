"""Restoring: planes in any portions and strips, and what it takes. Equality is in the oracle."""

from __future__ import annotations

import tracemalloc
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.support.monai_cards import (
    class_card,
    random_scores,
    restored,
)
from tests.support.monai_grids import model_grid
from tests.support.phantoms import (
    ORIENTATIONS,
    affine_of,
    card_of,
    in_file_order,
    phantom_volume,
    restored_as,
    sampled,
)
from tests.support.strips import fed, stitched
from voxtile.card import Card, Tiling
from voxtile.chains.monai import invert
from voxtile.chains.monai.grid import Grid
from voxtile.chains.monai.invert import Restorer, grid_strips, restore_bytes
from voxtile.chains.monai.preprocess import preprocess
from voxtile.chains.monai.resample import AxisMap
from voxtile.io.orientation import Orientation
from voxtile.io.scan import open_scan
from voxtile.io.writing import mask_image
from voxtile.tiling.plan import plan_tiles
from voxtile.tiling.stitch import Stitcher
from voxtile.tiling.strips import cut_axis, tiles_of

OBLIQUE = (14.0, -27.0, 33.0)

GRIDS = {
    "as it is": None,
    "finer": (0.7, 0.9, 0.8),
    "coarser": (3.0, 4.0, 3.5),
    "mixed": (1.0, 3.0, 1.7),
    "first axis alone": (1.0, 1.5, 1.7),
}


def grid_of(name: str, card: Card, codes: str = "PIR") -> Grid:
    volume = phantom_volume((14, 13, 12), (2.0, 1.5, 1.7), codes)
    return model_grid(volume.affine, volume.shape, card.model_copy(update={"spacing": GRIDS[name]}))


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("slab", [1, 4000, 1 << 22])
def test_portions_threads_and_slabs_do_not_matter(
    name: str, threads: int, slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = class_card(4)
    grid = grid_of(name, card)
    scores = np.random.default_rng(5).normal(0, 1, (4, *grid.shape)).astype(np.float32)
    expected = restored(grid, card, scores, (grid.shape[0],), threads=1).finish()
    monkeypatch.setattr(invert, "SLAB_BYTES", slab)
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
    card = class_card(2, spacing=target)

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
    card = class_card(3)
    grid = grid_of("finer", card)
    labels = restored(grid, card, np.zeros((3, *grid.shape))).finish()
    assert labels.shape == grid.scan
    assert labels.dtype == np.uint8
    assert labels.base is not None


def test_kept_scores_are_probabilities_whatever_the_scale() -> None:
    card = class_card(2, output={"kind": "probabilities", "dtype": "uint8", "scores": 2, "scale": 255.0})
    grid = grid_of("as it is", card)
    stored = np.random.default_rng(8).integers(0, 256, (2, *grid.shape))
    scores = restored(grid, card, stored, keep_scores=True).scores
    assert scores.shape == (2, *grid.scan)
    np.testing.assert_allclose(scores, grid.orientation.undo(stored) / 255, rtol=1e-6)


def test_planes_that_do_not_fit_are_refused() -> None:
    card = class_card(2)
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
    monkeypatch.setattr(invert, "SLAB_BYTES", 1 << 18)
    shape = (60, 70, 80)
    card = class_card(channels, spacing=target, orientation=codes)
    grid = model_grid(affine_of(shape), shape, card)
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
    deeper = model_grid(affine_of(deep), deep, card)
    assert deeper.oriented == (10 * grid.oriented[0], *grid.oriented[1:])
    assert restore_bytes(deeper, card, 4, threads=2) - predicted == 9 * labels.nbytes


axes_mm = st.sampled_from((0.7, 1.0, 1.5, 2.0, 3.0))

kinds = st.sampled_from(
    (
        {"kind": "logits", "scores": 3},
        {"kind": "logits", "scores": 3, "activation": "softmax"},
        {"kind": "logits", "scores": 3, "activation": "sigmoid"},
        {"kind": "labels", "scores": 1},
    )
)


def restoring_card(output: dict[str, Any], **changes: Any) -> Card:
    count = 3 if output["kind"] == "labels" else output["scores"]
    labels = [{"name": str(value), "value": value} for value in range(count)]
    return card_of(output=output, labels=labels, regions=output.get("activation") == "sigmoid", **changes)


@given(
    st.tuples(*[st.integers(2, 14)] * 3), st.tuples(axes_mm, axes_mm, axes_mm), st.sampled_from(ORIENTATIONS),
    st.one_of(st.none(), st.tuples(axes_mm, axes_mm, axes_mm)), kinds, st.sampled_from((1, 2)), st.integers(1, 14),
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_labels_and_scores_of_strips_are_those_of_the_whole_bit_for_bit(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    codes: str,
    target: tuple[float, float, float] | None,
    output: dict[str, Any],
    axis: int,
    count: int,
    portions: list[int],
) -> None:
    volume, card = phantom_volume(shape, spacing, codes), restoring_card(output, spacing=target)
    grid = model_grid(volume.affine, volume.shape, card)
    scores = random_scores(card, grid)
    uncut, cut = (Restorer(grid, card, keep_scores=True, threads=1) for _ in range(2))
    uncut.add_planes(scores)
    strips = grid_strips(grid, card, axis, count)
    fed(cut, scores, strips, portions)
    np.testing.assert_array_equal(cut.finish(), uncut.finish())
    np.testing.assert_array_equal(cut.scores, uncut.scores)


@pytest.mark.parametrize("target", [None, (1.5, 1.5, 1.5), (0.6, 0.6, 0.6), (3.0, 0.6, 0.6), (0.6, 3.0, 1.0)])
@pytest.mark.parametrize("activation", ["none", "softmax"])
@pytest.mark.parametrize("axis", [1, 2])
def test_restoring_a_strip_takes_no_more_than_predicted(
    target: tuple[float, float, float] | None, activation: str, axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invert, "SLAB_BYTES", 1 << 18)
    shape = (60, 90, 80)
    card = restoring_card({"kind": "logits", "scores": 3, "activation": activation}, spacing=target)
    grid = model_grid(affine_of(shape), shape, card)
    strips = grid_strips(grid, card, axis, 4)
    planes = [np.zeros((3, 4, *strip.narrowed(grid.shape)[1:]), np.float32) for strip in strips]
    tracemalloc.start()
    restorer = Restorer(grid, card, threads=2)
    for strip, part in zip(strips, planes, strict=True):
        restorer.start_strip(strip)
        for first in range(0, grid.shape[0], 4):
            restorer.add_planes(part[:, : min(4, grid.shape[0] - first)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < max(restore_bytes(grid, card, 4, threads=2, strip=strip) for strip in strips)


def test_a_strip_is_to_be_finished_before_the_next() -> None:
    card = restoring_card({"kind": "logits", "scores": 3})
    grid = model_grid(phantom_volume().affine, phantom_volume().shape, card)
    first, second = grid_strips(grid, card, 1, 2)
    restorer = Restorer(grid, card)
    restorer.start_strip(first)
    restorer.add_planes(np.zeros((3, 4, first.rows[1] - first.rows[0], grid.shape[2]), np.float32))
    with pytest.raises(ValueError, match="planes of scores, got 4"):
        restorer.start_strip(second)


@pytest.mark.parametrize("target", [None, (1.4, 2.2, 1.1), (2.6, 1.1, 2.9)])
@pytest.mark.parametrize("roi", [(8, 10, 12), (8, 12, 1), (40, 40, 40)])
@pytest.mark.parametrize("activation", ["none", "softmax"])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_tiles_become_the_same_labels_in_strips_as_in_one_piece(
    target: tuple[float, float, float] | None, roi: tuple[int, int, int], activation: str, count: int
) -> None:
    """Stitching and invert in turn, on a grid of the model's own, with slices, and with one tile for all."""
    volume = phantom_volume((15, 18, 16), codes="PIR")
    card = restoring_card({"kind": "logits", "scores": 2, "activation": activation}, spacing=target)
    grid = model_grid(volume.affine, volume.shape, card)
    plan = plan_tiles(grid.shape, roi, Tiling(overlap=0.25))
    found = []
    for strips in (grid_strips(grid, card, 1, 1), grid_strips(grid, card, cut_axis(plan), count)):
        restorer = Restorer(grid, card, keep_scores=True)
        for strip in strips:
            restorer.start_strip(strip)
            restorer.add_planes(stitched(Stitcher(plan, 2, None, strip), tiles_of(plan, strip), plan, np.float32))
        found.append((restorer.finish(), restorer.scores))
    np.testing.assert_array_equal(found[1][0], found[0][0])
    np.testing.assert_array_equal(found[1][1], found[0][1])
    assert len(np.unique(found[0][0])) == 2


def test_class_indices_are_taken_from_the_nearest_voxel_and_never_blended() -> None:
    """Halfway between 0 and 2 lies no 1, and halves go to the even voxel, as in MONAI."""
    card = restoring_card({"kind": "labels", "scores": 1})
    line = AxisMap(7, 4, 2.0, 0.0)
    same = AxisMap(1, 1, 1.0, 0.0)
    grid = Grid((7, 1, 1), Orientation(), (line, same, same), np.eye(4))
    labels = restored(grid, card, np.array([2, 0, 2, 1], np.float32).reshape(1, 4, 1, 1)).finish()
    np.testing.assert_array_equal(labels.ravel(), [2, 2, 0, 2, 2, 2, 1])
