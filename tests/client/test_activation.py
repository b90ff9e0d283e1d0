"""Stitched logits become probabilities before they are put back on the scan's grid, where a card says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, softmax

from tests.support.build_specs import spec
from tests.support.phantoms import card_of, phantom_volume
from voxtile.chains.monai.invert import Restorer, restore_bytes
from voxtile.chains.monai.preprocess import preprocess
from voxtile.chains.scores import activator
from voxtile_build.errors import SpecError

ROUNDING = 1e-6


def card(activation: str, **changes: Any) -> Any:
    output = {"kind": "logits", "dtype": "fp32", "scores": 2, "activation": activation}
    return card_of(spacing=(1.0, 1.0, 1.0), output=output, **changes)


def logits(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 4, (2, *shape)).astype(np.float32)


def restored(given: Any, scores: NDArray[np.float32], grid: Any, step: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
    restorer = Restorer(grid, given, keep_scores=True)
    for first in range(0, scores.shape[1], step):
        restorer.add_planes(scores[:, first : first + step])
    return restorer.finish(), restorer.scores


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize(("activation", "oracle"), [("softmax", lambda x: softmax(x, axis=0)), ("sigmoid", expit)])
def test_activation_comes_before_the_grid_of_the_scan(activation: str, oracle: Any, step: int) -> None:
    regions = activation == "sigmoid"
    grid = preprocess(phantom_volume(), card(activation)).grid
    scores = logits(grid.shape)
    before = scores.copy()
    labels, found = restored(card(activation, regions=regions), scores, grid, step)
    plain = card_of(
        spacing=(1.0, 1.0, 1.0), output={"kind": "probabilities", "dtype": "fp32", "scores": 2}, regions=regions
    )
    expected, probabilities = restored(plain, oracle(scores.astype(np.float64)).astype(np.float32), grid, step)
    np.testing.assert_allclose(found, probabilities, rtol=0, atol=ROUNDING)
    assert (labels != expected).mean() <= 1e-4
    assert (scores == before).all(), "what is fed belongs to the caller"


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_no_logit_is_too_large(activation: str) -> None:
    extreme = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        found = activator(card(activation))(extreme)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[1, 0, 0.5], [0, 1, 0.5]])


def test_the_bytes_for_the_activation_are_counted() -> None:
    grid = preprocess(phantom_volume(), card("none")).grid
    plain, more = (restore_bytes(grid, card(activation), 4) for activation in ("none", "softmax"))
    assert more - plain == 2 * 4 * 2 * 4 * grid.shape[1] * grid.shape[2]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ({"activation": "softmax", "scores": "probabilities"}, "is for logits, found scores = 'probabilities'"),
        ({"activation": "sigmoid"}, "labels that exclude one another take softmax"),
        ({"activation": "softmax", "regions": True}, "regions overlap and take sigmoid"),
    ],
)
def test_an_activation_that_does_not_fit_is_refused(output: dict[str, Any], expected: str) -> None:
    with pytest.raises(SpecError, match=expected):
        spec(output=output)
