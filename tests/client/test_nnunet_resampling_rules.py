"""The resampling functions that a plan names: what is reproduced, and what is refused by its name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from voxtile.chains.nnunet.resampling_rules import ResamplingRule
from voxtile.errors import ModelError

SHAPES = [
    ((11, 20, 17), (19, 26, 30)),
    ((20, 26, 30), (9, 11, 21)),
    ((5, 20, 17), (5, 31, 25)),
    ((6, 14, 13), (15, 14, 13)),
    ((4, 1, 8), (7, 1, 20)),
]


def noisy_ramp(shape: tuple[int, ...], channels: int = 2, seed: int = 0) -> NDArray[np.float32]:
    """Channels [channel, z, y, x] of noise on an asymmetric ramp, of quite different ranges."""
    noise = np.random.default_rng(seed).standard_normal((channels, *shape))
    ramp = np.arange(shape[0])[:, None, None] + 0.5 * np.arange(shape[2])
    ranges = np.array([1, 300])[:channels, None, None, None]
    return np.asarray((noise + ramp) * ranges, np.float32)


def test_no_resampling_leaves_the_data() -> None:
    data = noisy_ramp((4, 5, 6))
    rule = ResamplingRule.from_plan("no_resampling_hack", {}, "fn")
    assert rule.apply(data, (8, 9, 9), (1, 1, 1), (2, 2, 2)) is data


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("my_own_function", {}, "my_own_function"),
        ("resample_torch_simple", {}, "resample_torch_simple"),
        ("resample_data_or_seg_to_shape", {"order": 2}, r"resampling_fn_data_kwargs\.order: .*0, 1 or 3, found 2"),
        ("resample_data_or_seg_to_shape", {"sigma_scale": 2}, "takes no argument named 'sigma_scale'"),
        ("resample_data_or_seg_to_shape", {"is_seg": True}, "is_seg"),
        ("resample_torch_fornnunet", {"mode": "area"}, "area"),
    ],
)
def test_unknown_functions_and_arguments_are_refused_by_name(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ResamplingRule.from_plan(name, kwargs, "resampling_fn_data")
