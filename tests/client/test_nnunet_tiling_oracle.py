"""Tiling of the kind `nnunet` against nnUNetPredictor's own sliding window, in process, over one small network.

The oracle's accumulators are single precision; its Gaussian keeps its own rounding to half.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray
from torch import nn

from tests.support.in_process import stitched
from tests.support.nnunet_folders import Training, configuration, single_precision
from voxtile.card import Tiling

RELATIVE = 1e-5
"""float32: the same products, summed in another order."""
CHANNELS = 2

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """image, patch: voxels, in nnU-Net's order of axes; a patch of two axes goes through the first slice by slice."""

    image: Shape
    patch: Shape
    step: float = 0.5
    mirror: Shape = ()
    gaussian: bool = True

    @property
    def tile(self) -> Shape:
        """The patch as three axes of the volume."""
        return (1,) * (3 - len(self.patch)) + self.patch

    def __str__(self) -> str:
        mirror = f", mirror {self.mirror}" if self.mirror else ""
        sizes = " by ".join("x".join(map(str, shape)) for shape in (self.image, self.patch))
        return f"{sizes}, step {self.step}, {'gaussian' if self.gaussian else 'constant'}{mirror}"


SIZES = [
    ((29, 25, 33), (16, 16, 16)),
    ((31, 20, 37), (8, 20, 12)),
    ((40, 27, 16), (20, 9, 16)),
    ((11, 25, 30), (16, 16, 16)),
    ((9, 7, 5), (16, 12, 8)),
    ((16, 16, 16), (16, 16, 16)),
]
"""Odd sizes, anisotropic patches, smaller than the patch along one axis and along all, and equal to it."""
FLAT = [((5, 33, 29), (16, 16)), ((3, 40, 11), (12, 20)), ((4, 7, 9), (16, 8))]
STEPS = (0.5, 0.25, 0.33, 0.8, 1.0)

CASES = [
    *(Case(image, patch, step) for image, patch in SIZES for step in STEPS),
    *(Case(image, patch, 0.5, mirror) for image, patch in SIZES for mirror in ((2,), (0, 1), (0, 1, 2))),
    *(Case(image, patch, 0.5, (), gaussian=False) for image, patch in SIZES),
    *(Case(image, patch, step) for image, patch in FLAT for step in STEPS),
    *(Case(image, patch, 0.5, mirror) for image, patch in FLAT for mirror in ((1,), (0, 1))),
    *(Case(image, patch, 0.7, (0, 1), gaussian=False) for image, patch in FLAT),
]


pytestmark = pytest.mark.usefixtures("one_thread")


def network(axes: int) -> nn.Module:
    """Three scores of two channels; not symmetric, so that a mirrored pass that stays mirrored shows."""
    torch.manual_seed(axes)
    convolution = nn.Conv3d if axes == 3 else nn.Conv2d
    return nn.Sequential(convolution(CHANNELS, 4, 3, padding=1), nn.LeakyReLU(0.01), convolution(4, 3, 3, padding=1))


def by_nnunet(scan: NDArray[np.float32], case: Case) -> NDArray[np.float32]:
    """Logits [score, *image] by nnUNetPredictor."""
    name = "3d_fullres" if len(case.patch) == 3 else "2d"
    training = Training(
        name, {name: configuration(case.patch, (1.0,) * len(case.patch))}, channels=("a", "b"), mirror_axes=case.mirror
    )
    plans = PlansManager(training.plans)
    predictor = nnUNetPredictor(
        tile_step_size=case.step,
        use_gaussian=case.gaussian,
        use_mirroring=bool(case.mirror),
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.manual_initialization(
        *(network(len(case.patch)), plans, plans.get_configuration(name), None, training.dataset),
        *("nnUNetTrainer", case.mirror or None),
    )
    with single_precision():
        return np.asarray(predictor.predict_sliding_window_return_logits(torch.from_numpy(scan)))


def by_client(scan: NDArray[np.float32], case: Case) -> NDArray[np.float32]:
    """The same by the client."""
    used, flat = network(len(case.patch)), len(case.patch) == 2
    tiling = Tiling(semantics="nnunet", overlap=1 - case.step, mode="gaussian" if case.gaussian else "constant")

    def called(rois: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            return used(torch.from_numpy(rois)).numpy()

    slice_axis = 0 if flat else None
    return stitched(scan, case.tile, tiling, called, mirror_axes=case.mirror, slice_axis=slice_axis)


def values(case: Case) -> NDArray[np.float32]:
    return np.random.default_rng(sum(case.image)).normal(0, 1, (CHANNELS, *case.image)).astype(np.float32)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_and_labels_are_nnunets(case: Case) -> None:
    scan = values(case)
    found, expected = by_client(scan, case), by_nnunet(scan, case)
    assert found.shape == expected.shape == (3, *case.image)
    assert found.dtype == expected.dtype == np.float32
    assert np.abs(found - expected).max() <= RELATIVE * np.abs(expected).max()
    np.testing.assert_array_equal(found.argmax(0), expected.argmax(0))


def test_mirroring_and_weights_matter_to_these_cases() -> None:
    """Else equality would prove nothing."""
    plain = Case((29, 25, 33), (16, 16, 16))
    for other in (Case(plain.image, plain.patch, mirror=(1,)), Case(plain.image, plain.patch, gaussian=False)):
        difference = np.abs(by_nnunet(values(plain), plain) - by_nnunet(values(plain), other)).max()
        assert difference > 1e3 * RELATIVE
