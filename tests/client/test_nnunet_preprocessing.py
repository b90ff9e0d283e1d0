"""nnU-Net's preprocessing: what it refuses, and what it needs. Equality is in test_nnunet_preprocessing_oracle.py."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.nnunet_plans import (
    bordered_scan,
    plan_json,
)
from voxtile.chains.nnunet.plan import NnunetPlan
from voxtile.chains.nnunet.preprocessing import (
    preprocess,
)
from voxtile.errors import InputError, ModelError


def test_scan_of_zeros_is_not_cropped() -> None:
    found = preprocess(np.zeros((1, 5, 6, 7)), (1.5, 1.0, 1.0), NnunetPlan.parse(plan_json()))
    assert found.properties.bbox == ((0, 5), (0, 6), (0, 7))
    assert not found.data.any()


@pytest.mark.parametrize(
    ("data", "spacing", "message"),
    [
        (np.zeros((2, 4, 4, 4)), (1, 1, 1), "expected 1 images of a scan.*got 2"),
        (np.zeros((4, 4, 4)), (1, 1, 1), "shape"),
        (np.zeros((1, 0, 4, 4)), (1, 1, 1), "shape"),
        (np.zeros((1, 4, 4, 4)), (1, 0, 1), "positive spacings"),
        (np.zeros((1, 4, 4, 4)), (1, 1, float("nan")), "positive spacings"),
    ],
)
def test_case_that_does_not_fit_is_refused(data: NDArray[Any], spacing: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        preprocess(data, spacing, NnunetPlan.parse(plan_json()))


@pytest.mark.parametrize("value", [-1, 256])
def test_intensities_that_are_not_rgb_are_refused(value: int) -> None:
    data = bordered_scan()
    data[0, 5, 5, 5] = value
    plan = plan_json(normalization_schemes=["RGBTo01Normalization"])
    with pytest.raises(InputError, match="0 … 255"):
        preprocess(data, (1, 1, 1), NnunetPlan.parse(plan))


def test_previous_stage_of_another_shape_is_refused() -> None:
    plan = NnunetPlan.parse(plan_json(foreground_labels=[1]))
    with pytest.raises(InputError, match="previous stage"):
        preprocess(bordered_scan(), (1, 1, 1), plan, previous_stage_seg=np.zeros((2, 2, 2), np.uint8))


def test_previous_stage_needs_the_labels() -> None:
    with pytest.raises(ModelError, match="foreground_labels"):
        preprocess(
            bordered_scan(),
            (1, 1, 1),
            NnunetPlan.parse(plan_json()),
            previous_stage_seg=np.zeros(bordered_scan().shape[1:], np.uint8),
        )


def test_neither_torch_nor_nnunet_nor_scipy_is_imported() -> None:
    code = (
        "import sys, voxtile.chains.nnunet.prepared_scan; "
        "print({'torch', 'nnunetv2', 'scipy', 'skimage'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
