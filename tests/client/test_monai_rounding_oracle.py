"""What MONAI's float64 rounding decides: which values are 0 after Spacing, and which voxel is nearest on the way back.

Grids of all orientations, straight and oblique, with spacings in the ratio of whole numbers, where most coordinates are
whole or halves but for rounding. Scans hold few values, many of them 0.
"""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.layers import AffineTransform
from numpy.typing import NDArray

from tests.support.monai_chains import monai_image, monai_labels
from tests.support.phantoms import ORIENTATIONS, affine_of, card_of, header_of, in_file_order
from voxtile.chains.monai.grid import respaced
from voxtile.chains.monai.placing import Placement, voxel_places
from voxtile.chains.monai.prepared_scan import MonaiPreparedScan
from voxtile.chains.monai.resample import resample
from voxtile.io.volume import Volume

CLOSE = 2e-5
"""Of the largest value: float32 headers turn axes by 1e-7, which adds up over a scan."""

TURN = {"transform": "Orientation", "axcodes": "LPS"}
OTHER = {"transform": "Orientation", "axcodes": "ASR"}
CROP = {"transform": "CropForeground", "select_fn": "x > 0", "margin": (1, 0, 2)}
CENTRE = {"transform": "CenterSpatialCrop", "roi_size": (3, -1, 4)}
PAD = {"transform": "SpatialPad", "spatial_size": (12, 33, -1)}
WINDOW = {"transform": "ScaleIntensityRange", "a_min": -1, "a_max": 3, "b_min": 0, "b_max": 1, "clip": True}
ZSCORE = {"transform": "NormalizeIntensity", "nonzero": True}
THRESHOLD = {"transform": "ThresholdIntensity", "threshold": 1.0, "cval": 7.0}
MASK = {"transform": "MaskIntensity", "select_fn": "x >= 1"}
MINMAX = {"transform": "ScaleIntensity", "minv": -1, "maxv": 1}
ARGMAX = {"transform": "AsDiscrete", "argmax": True}
NEAREST = {"transform": "Invert", "nearest_interp": True}
LINEAR = {"transform": "Invert", "nearest_interp": False}
SOFTMAX = {"transform": "Activations", "softmax": True}
SIGMOID = {"transform": "Activations", "sigmoid": True}
HALF = {"transform": "AsDiscrete", "threshold": 0.5}


def random_volume(rng: np.random.Generator, oblique: bool, stored: bool, shear: float = 0.0) -> Volume:
    """A scan on a random grid; `stored`: with the affine that a float32 header keeps."""
    shape = tuple(int(size) for size in rng.integers(1, 26, 3))
    spacing = tuple(float(step) for step in rng.choice([0.5, 0.75, 0.8, 1, 1.5, 2, 3, 0.7324219, 5], 3))
    codes = ORIENTATIONS[rng.integers(len(ORIENTATIONS))]
    angles = tuple(rng.uniform(-30, 30, 3)) if oblique else (0.0, 0.0, 0.0)
    affine = affine_of(shape, spacing, codes, angles, shear)  # type: ignore[arg-type]
    affine = affine.astype(np.float32).astype(np.float64) if stored else affine
    values = rng.integers(-3, 5, (1, *shape)) * (rng.random((1, *shape)) < 0.6)
    return Volume(in_file_order(values.astype(np.int16)), affine, header_of(shape, affine), ("scan",))


def spacing_step(rng: np.random.Generator) -> dict[str, Any]:
    return {"transform": "Spacing", "pixdim": tuple(float(step) for step in rng.choice([0.8, 1, 1.5, 2, 3], 3))}


def chain_card(steps: list[dict[str, Any]], after: list[dict[str, Any]], regions: bool = False) -> Any:
    """A card of two classes or regions."""
    labels = [{"name": name, "value": number + regions} for number, name in enumerate("ab")]
    activation = {"softmax": "softmax", "sigmoid": "sigmoid"}.get([*after[0]][-1], "none")
    output = {"kind": "logits", "scores": 2, "activation": activation}
    fields: dict[str, Any] = {"labels": labels, "output": output, "regions": regions}
    return card_of(orientation=None, preprocessing=steps, postprocessing=after, **fields)


def there_and_back(
    volume: Volume, steps: list[dict[str, Any]], after: list[dict[str, Any]], rng: np.random.Generator
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The image here and in MONAI, and the labels here and in MONAI, of random scores."""
    prepared = MonaiPreparedScan(volume, chain_card(steps, after, HALF in after))
    data, chain = monai_image(volume, steps)
    image = data["image"].numpy()
    scores = rng.normal(0, 1, (2, *prepared.data.shape[1:])).astype(np.float32)
    expected = monai_labels(scores, data, chain, after)
    if HALF in after:
        expected = np.max([[(number + 1) * (one > 0) for number, one in enumerate(expected)]], 1)
    sink = prepared.restorer(False)
    sink.start_strip(prepared.strips(1, 1)[0])
    for first in range(0, scores.shape[1], 3):
        sink.add_planes(scores[:, first : first + 3].copy())
    return np.asarray(prepared.data), image, sink.finish(), expected[0]


@pytest.mark.parametrize("stored", [False, True], ids=["float64", "float32"])
@pytest.mark.parametrize("oblique", [False, True], ids=["straight", "oblique"])
def test_the_same_values_are_zero_as_in_monai(oblique: bool, stored: bool) -> None:
    rng, near_zero = np.random.default_rng(5), 0
    for turn in ([], [TURN]) * 8:
        volume = random_volume(rng, oblique, stored)
        steps = [*turn, spacing_step(rng)]
        found = np.asarray(MonaiPreparedScan(volume, chain_card(steps, [ARGMAX])).data)
        expected = monai_image(volume, steps)[0]["image"].numpy()
        np.testing.assert_array_equal(found == 0, expected == 0)
        np.testing.assert_allclose(found, expected, rtol=0, atol=5 * CLOSE)
        near_zero += int(((expected != 0) & (np.abs(expected) < CLOSE)).sum())
    assert near_zero > 100, "rounding must make something of zeros, else this proves nothing"


@pytest.mark.parametrize(
    "later",
    [
        [CROP], [PAD, CROP], [ZSCORE], [ZSCORE, MINMAX], [WINDOW, ZSCORE], [WINDOW, CROP], [THRESHOLD], [MASK, MINMAX],
        [MINMAX, {**CROP, "select_fn": "x > -0.25"}], [OTHER, WINDOW, {**MASK, "select_fn": "x > 0.5"}],
    ],
    ids=lambda later: "-".join(step["transform"][:6] for step in later),
)  # fmt: skip
@pytest.mark.parametrize("oblique", [False, True], ids=["straight", "oblique"])
def test_a_later_step_goes_the_same_way_for_every_voxel(later: list[dict[str, Any]], oblique: bool) -> None:
    rng = np.random.default_rng(6)
    for _ in range(5):
        volume = random_volume(rng, oblique, stored=False)
        steps = [TURN, spacing_step(rng), *later]
        found = np.asarray(MonaiPreparedScan(volume, chain_card(steps, [ARGMAX])).data)
        expected = monai_image(volume, steps)[0]["image"].numpy()
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=5 * CLOSE)


@pytest.mark.parametrize(
    ("later", "after"),
    [
        ([], [ARGMAX, NEAREST]),
        ([OTHER], [ARGMAX, NEAREST]),
        ([CROP], [SOFTMAX, ARGMAX, NEAREST]),
        ([OTHER, PAD, CROP], [ARGMAX, NEAREST]),
        ([OTHER], [SOFTMAX, NEAREST, ARGMAX]),
        ([PAD], [SIGMOID, HALF, NEAREST]),
        ([CROP], [SIGMOID, NEAREST, HALF]),
        ([CROP], [NEAREST, SIGMOID, HALF]),
        ([CENTRE], [NEAREST, SIGMOID, HALF]),  # what was cut away comes back as scores of 0, a probability of one half
    ],
    ids=str,
)
@pytest.mark.parametrize("stored", [False, True], ids=["float64", "float32"])
@pytest.mark.parametrize("oblique", [False, True], ids=["straight", "oblique"])
def test_every_label_comes_back_to_the_voxel_of_monai(
    later: list[dict[str, Any]], after: list[dict[str, Any]], oblique: bool, stored: bool
) -> None:
    """Not one voxel differs, also where two neighbours are equally near but for rounding."""
    rng = np.random.default_rng(7)
    for _ in range(4):
        volume = random_volume(rng, oblique, stored)
        *_, found, expected = there_and_back(volume, [TURN, spacing_step(rng), *later], after, rng)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("pixdim", "resampled"), [(5.0045, False), (5.0055, True), (4.9955, False), (4.9945, True)])
def test_a_grid_that_is_nearly_the_wanted_one_stays_as_it_is(pixdim: float, resampled: bool) -> None:
    """MONAI compares the steps too, by a thousandth."""
    shape = (12, 11, 10)
    affine = affine_of(shape, (5.0, 5.0, 5.0))
    data = np.random.default_rng(11).integers(0, 99, (1, *shape)).astype(np.int16)
    volume, steps = Volume(in_file_order(data), affine, header_of(shape, affine), ("scan",)), [TURN]
    steps.append({"transform": "Spacing", "pixdim": pixdim})
    found = np.asarray(MonaiPreparedScan(volume, chain_card(steps, [ARGMAX])).data)
    expected = monai_image(volume, steps)[0]["image"].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert (not np.array_equal(found, data[:, ::-1, ::-1])) == resampled


SKEWED_ENDS = [
    ([], [SOFTMAX, LINEAR, ARGMAX]),
    ([OTHER, PAD], [LINEAR, ARGMAX]),
    ([CROP], [SIGMOID, LINEAR, HALF]),
    ([OTHER, CROP], [ARGMAX, NEAREST]),
    ([PAD], [SOFTMAX, NEAREST, ARGMAX]),
]


@pytest.mark.parametrize(("later", "after"), SKEWED_ENDS, ids=str)
@pytest.mark.parametrize("shear", [-0.3, 0.05])
def test_a_skewed_scan_is_straightened_and_its_labels_come_back(
    later: list[dict[str, Any]], after: list[dict[str, Any]], shear: float
) -> None:
    """As from a tilted gantry. Every value of the image and every label are MONAI's."""
    rng = np.random.default_rng(9)
    for oblique in (False, True, False, True):
        volume = random_volume(rng, oblique, stored=oblique, shear=shear)
        image, wanted, found, expected = there_and_back(volume, [TURN, spacing_step(rng), *later], after, rng)
        np.testing.assert_array_equal(image, wanted)
        np.testing.assert_array_equal(found, expected)


def test_scores_of_a_skewed_scan_are_kept_and_take_no_more_memory_than_is_said() -> None:
    rng, steps = np.random.default_rng(10), [TURN, {"transform": "Spacing", "pixdim": 1.5}, OTHER, PAD]
    shape = (60, 50, 40)
    affine = affine_of(shape, (1.0, 1.0, 2.0), "PIL", shear=0.2)
    data = in_file_order(rng.integers(0, 9, (1, *shape)).astype(np.int16))
    volume = Volume(data, affine, header_of(shape, affine), ("scan",))
    prepared = MonaiPreparedScan(volume, chain_card(steps, [LINEAR, ARGMAX]))
    image, chain = monai_image(volume, steps)
    scores = rng.normal(0, 1, (2, *prepared.data.shape[1:])).astype(np.float32)
    expected = monai_labels(scores, image, chain, [LINEAR])
    strip = prepared.strips(1, 3)[0]
    assert len(prepared.strips(1, 3)) == 1
    tracemalloc.start()
    sink = prepared.restorer(True)
    sink.start_strip(strip)
    for first in range(0, scores.shape[1], 5):
        sink.add_planes(scores[:, first : first + 5])
    labels = sink.finish()
    np.testing.assert_array_equal(sink.scores, expected)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= prepared.restore_bytes(5, strip, True)
    np.testing.assert_array_equal(labels, expected.argmax(0))


@pytest.mark.parametrize("oblique", [False, True], ids=["straight", "oblique"])
def test_all_values_are_monais_bit_by_bit_where_that_is_asked_for(oblique: bool) -> None:
    rng, compared = np.random.default_rng(8), 0
    for _ in range(12):
        volume, step = random_volume(rng, oblique, stored=False), spacing_step(rng)
        spaced = respaced(volume.affine, volume.shape, step["pixdim"])
        if spaced is not None:
            turned = volume.data[:, ::-1].transpose(0, 3, 1, 2).copy().transpose(0, 2, 3, 1)[:, ::-1]  # other strides
            found = resample(turned, spaced.maps(spaced.spaced), placement=spaced.there, asked=None)
            np.testing.assert_array_equal(found, monai_image(volume, [step])[0]["image"].numpy())
            compared += found.size
    assert compared > 10_000


def placed_by_torch(onto: NDArray[np.float64], source: Any, target: Any) -> list[NDArray[np.float64]]:
    """The voxels' coordinates along each axis, as MONAI's layer hands them to grid_sample, which samples ramps."""
    ramps = np.stack(np.meshgrid(*map(np.arange, source), indexing="ij")).astype(np.float64)
    layer = AffineTransform(
        normalized=False, mode="bilinear", padding_mode="border", align_corners=False, reverse_indexing=True
    )
    return list(layer(torch.as_tensor(ramps)[None], torch.as_tensor(onto), spatial_size=target)[0].numpy())


def test_coordinates_are_those_of_monais_layer_also_for_one_voxel() -> None:
    onto = np.array([[0.5, 0, 0, 0.25], [0, 1.5, 0.001, 0], [0, 0, 3.0, 1], [0, 0, 0, 1]])
    for source, target in [((9, 11, 8), (14, 7, 3)), ((1, 2, 8), (3, 1, 1))]:
        placement = Placement.of(onto, source, target)
        voxels = np.ogrid[: target[0], : target[1], : target[2]]
        for axis, expected in enumerate(placed_by_torch(onto, source, target)):
            found = np.broadcast_to(placement.coordinate(axis, voxels), target)
            np.testing.assert_allclose(found, expected, atol=1e-13)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 40, 41, 187, 512, 513])
def test_voxels_lie_where_affine_grid_puts_them(size: int) -> None:
    grid = torch.nn.functional.affine_grid(torch.eye(3, 4, dtype=torch.float64)[None], [1, 1, 1, 1, size], False)
    np.testing.assert_array_equal(voxel_places(size), grid[0, 0, 0, :, 0].numpy())


def test_the_tilt_is_what_the_other_axes_add_at_most() -> None:
    onto = np.array([[0.5, 0.01, -0.02, 0.25], [0, 1.5, 0, 0], [0, 0, 3.0, 1], [0, 0, 0, 1]])
    placement = Placement.of(onto, (9, 11, 8), (5, 6, 7))
    corners = [placement.coordinate(0, [np.array(2), np.array(j), np.array(k)]) for j in (0, 5) for k in (0, 6)]
    assert placement.tilt[1:].tolist() == [0, 0]
    assert np.ptp(corners) / 2 <= placement.tilt[0] <= np.ptp(corners)  # from the outer faces, not the middles
