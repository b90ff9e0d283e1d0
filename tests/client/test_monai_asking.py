"""The numbers that later steps of a chain compare a resampled value with."""

from __future__ import annotations

from typing import Any

import pytest

from voxtile.chains.monai.asking import asked_numbers
from voxtile.transforms.base import Transform
from voxtile.transforms.preprocessing import (
    CropForeground,
    MaskIntensity,
    NormalizeIntensity,
    Orientation,
    ScaleIntensity,
    ScaleIntensityRange,
    SpatialPad,
    ThresholdIntensity,
)

CROP = CropForeground(select_fn="x > 0.5")
WINDOW = ScaleIntensityRange(a_min=-100, a_max=300, b_min=0, b_max=2, clip=True)
UNCLIPPED = ScaleIntensityRange(a_min=10, a_max=30)
ZEROS = NormalizeIntensity(nonzero=True)
SCALED = ScaleIntensity()


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        ([], (0,)),
        ([Orientation(axcodes="RAS"), SpatialPad(spatial_size=3)], (0,)),
        ([CROP], (0, 0.5)),
        ([MaskIntensity(select_fn="x >= -3"), ThresholdIntensity(threshold=7.0)], (0, -3, 7)),
        ([WINDOW, CROP], (0, 0)),  # half of 0..2 is at a quarter of -100..300
        ([UNCLIPPED, CROP], (0, 20)),
        ([UNCLIPPED, WINDOW, CROP], (0, 10)),  # 0.5 was 0, which was 10
        ([ZEROS], (0,)),
        ([WINDOW, ZEROS], (0, -100)),
        ([SCALED], (0,)),
        ([ZEROS, SCALED], (0,)),
        ([SCALED, CROP], None),
        ([ZEROS, CROP], None),
        ([ScaleIntensityRange(a_min=0, a_max=1, b_min=1, b_max=1), CROP], None),
    ],
    ids=str,
)
def test_numbers_are_those_of_the_value_before_the_steps(later: list[Transform], expected: Any) -> None:
    found = asked_numbers(later)
    assert found == (expected and tuple(dict.fromkeys(map(float, expected))))


def test_what_follows_the_chain_may_ask_for_zeros_too() -> None:
    assert asked_numbers([], ends_with_zeros=True) == (0,)
    assert asked_numbers([UNCLIPPED], ends_with_zeros=True) == (0, 10)
    assert asked_numbers([SCALED], ends_with_zeros=True) is None
