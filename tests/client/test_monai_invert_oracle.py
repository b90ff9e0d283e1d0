"""Restoring against MONAI's inverse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientationd, Spacingd
from numpy.typing import NDArray

from tests.support.monai_cards import (
    class_card,
    restored,
)
from tests.support.phantoms import (
    ORIENTATIONS,
    phantom_volume,
)
from voxtile.card import Card
from voxtile.chains.monai.preprocess import preprocess
from voxtile.io.volume import Volume

FLOAT32_ROUNDING = 3e-6
"""Relative to scores of about 1: MONAI blends in float64, the client in float32, three times."""


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
    card = class_card(3, orientation=wanted, spacing=target)
    scores, expected = monai_restored(volume, card, seed=sum(shape))
    restorer = restored(preprocess(volume, card).grid, card, scores, portions, keep_scores=True)
    np.testing.assert_allclose(restorer.scores, expected, atol=10 * FLOAT32_ROUNDING)
    labels = restorer.finish()
    runner_up = np.sort(expected, axis=0)[-2]
    clear = expected.max(0) - runner_up > 20 * FLOAT32_ROUNDING
    np.testing.assert_array_equal(labels[clear], expected.argmax(0)[clear])
    assert (~clear).sum() <= max(3, 0.01 * clear.size)  # of few voxels, a tie is a large share


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SAR"])
@pytest.mark.parametrize("target", [(1.03, 2.07, 0.83), (3.11, 1.57, 1.46)])
def test_class_indices_take_the_nearest_voxel_as_monai_does(codes: str, target: tuple[float, float, float]) -> None:
    """Spacings without a common measure: halfway between two voxels, MONAI's choice is that of its rounding errors."""
    volume = phantom_volume((9, 10, 11), (2.0, 1.5, 1.7), codes)
    card = class_card(5, output={"kind": "labels", "scores": 1}, spacing=target)
    scores, expected = monai_restored(volume, card, seed=4, nearest=True)
    labels = restored(preprocess(volume, card).grid, card, scores).finish()
    np.testing.assert_array_equal(labels, expected[0])
