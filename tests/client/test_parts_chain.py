"""What the networks of a set share: the common grid, painting, cleaning and cropping, against nibabel and scipy."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from tests.support.cards import card
from tests.support.totalsegmentator import resampled
from voxtile import InputError, MemoryLimitError
from voxtile.card import Card, CleaningStep, Label, PartModel, Parts
from voxtile.chains.parts.cleaning import clean
from voxtile.chains.parts.common_grid import common_grid
from voxtile.chains.parts.cropping import box_around, cut, put_back
from voxtile.chains.parts.painting import empty_mask, paint
from voxtile.io.volume import Volume

OBLIQUE = np.array([[-0.9, 0.1, 0.2, 10], [0.15, -1.1, 0.1, -20], [0.1, 0.2, 2.0, 5], [0, 0, 0, 1]])
TURNED = np.array([[0, 0, 1.25, -3], [-0.7, 0, 0, 4], [0, -1.9, 0, 8], [0, 0, 0, 1]])


def set_card(spacing: tuple[float, float, float] | None, order: int = 1) -> Card:
    parts = Parts(models=(PartModel(model="m", weights_sha256="0", labels={1: 1}),), order=order)
    output = {"kind": "labels", "scores": 1}
    labels = (Label(name="background", value=0), Label(name="one", value=1))
    plain = card() | {"output": output, "labels": labels, "orientation": "RAS", "spacing": spacing}
    return Card.model_validate({**plain, "parts": parts})


def scan(shape: tuple[int, int, int], affine: NDArray[np.float64], dtype: Any = np.int16) -> Volume:
    values = np.random.default_rng(1).normal(0, 400, shape).astype(dtype)
    return Volume(values[None], affine, nib.Nifti1Image(values, affine).header, ("scan",))


def image_of(volume: Volume) -> Any:
    return nib.as_closest_canonical(nib.Nifti1Image(volume.data[0].astype(np.float64), volume.affine))


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize(
    ("shape", "affine"),
    [((11, 14, 9), OBLIQUE), ((13, 6, 8), TURNED), ((1, 5, 7), np.diag([1.5, 3.1, 0.6, 1])), ((9, 8, 7), np.eye(4))],
)
def test_a_scan_comes_to_the_grid_as_in_totalsegmentator(
    shape: tuple[int, int, int], affine: NDArray[np.float64], dtype: Any, order: int
) -> None:
    volume, spacing = scan(shape, affine, dtype), (1.5, 1.5, 1.25)
    found = common_grid(volume, set_card(spacing, order))
    wanted = resampled(image_of(volume), spacing, order)
    np.testing.assert_array_equal(found.volume.data[0], np.asarray(wanted.dataobj))
    np.testing.assert_allclose(found.volume.affine, wanted.affine, atol=1e-5)
    assert found.volume.header_spacing == tuple(map(float, wanted.header.get_zooms()))
    labels = np.random.default_rng(2).integers(0, 200, wanted.shape).astype(np.uint8)
    turned = image_of(volume)
    factors = np.array(turned.shape) / np.array(labels.shape)
    back = ndimage.zoom(labels.astype(float), factors, order=0, mode="nearest")
    expected = nib.Nifti1Image(back, turned.affine).as_reoriented(_back(volume))
    np.testing.assert_array_equal(found.undo(labels), np.asarray(expected.dataobj))


def _back(volume: Volume) -> Any:
    codes = nib.orientations.axcodes2ornt("RAS")
    return nib.orientations.ornt_transform(codes, nib.io_orientation(volume.affine))


@pytest.mark.parametrize("spacing", [None, (0.7, 1.9, 1.25)])
def test_a_scan_of_the_grids_spacing_keeps_its_values(spacing: tuple[float, float, float] | None) -> None:
    affine = np.eye(4)
    # nibabel compares the header's float32 with the spacing: these numbers are float32's own.
    affine[:3, :3] = np.diag(np.array(spacing or (0.7, 1.9, 1.25), np.float32).astype(float))
    chosen = None if spacing is None else tuple(float(np.float32(size)) for size in spacing)
    volume = scan((5, 6, 7), affine, np.float32)
    found = common_grid(volume, set_card(chosen))  # type: ignore[arg-type]
    assert found.volume.data.dtype == np.float32
    np.testing.assert_array_equal(found.volume.data, volume.data)
    labels = np.arange(210, dtype=np.uint8).reshape(5, 6, 7)
    np.testing.assert_array_equal(found.undo(labels), labels)


def test_a_spacing_that_float32_cannot_hold_is_never_the_scans_own() -> None:
    volume = scan((5, 6, 7), np.diag([0.7, 1.9, 1.25, 1]), np.float32)
    found = common_grid(volume, set_card((0.7, 1.9, 1.25)))
    wanted = resampled(image_of(volume), (0.7, 1.9, 1.25), 1)
    assert found.volume.data.dtype == np.int32
    np.testing.assert_array_equal(found.volume.data[0], np.asarray(wanted.dataobj))


def test_a_grid_that_cannot_be_is_refused() -> None:
    volume = scan((8, 8, 8), np.eye(4))
    with pytest.raises(MemoryLimitError, match="left of what is allowed"):
        common_grid(volume, set_card((0.5, 0.5, 0.5)), 1000)
    with pytest.raises(InputError, match="too few to segment; is the spacing in the header right"):
        common_grid(volume, set_card((30.0, 30.0, 30.0)))
    far = Volume(np.full((1, 4, 4, 4), 3e9, np.float32), np.eye(4), None, ("far.nii",))
    with pytest.raises(
        InputError, match=r"far.nii: expected values that 32-bit whole numbers can hold, found .* 3e\+09"
    ):
        common_grid(far, set_card((2.0, 2.0, 2.0)))


def test_a_later_model_covers_an_earlier_one_where_it_has_a_label() -> None:
    mask = empty_mask((2, 3, 1), 300)
    assert (mask.dtype, empty_mask((1, 1, 1), 255).dtype) == (np.uint16, np.uint8)
    paint(mask, np.array([[[1], [2], [3]], [[0], [1], [2]]], np.uint8), {1: 300, 2: 7})
    assert mask[..., 0].tolist() == [[300, 7, 0], [0, 300, 7]], "label 3 has no value, so it is background"
    paint(mask, np.array([[[0], [1], [1]], [[2], [2], [0]]], np.uint16), {1: 5, 70: 9})
    assert mask[..., 0].tolist() == [[300, 5, 5], [0, 300, 7]]


@pytest.mark.parametrize("seed", range(4))
def test_components_are_removed_by_their_volume(seed: int) -> None:
    mask = np.random.default_rng(seed).choice(4, (9, 10, 11), p=[0.4, 0.2, 0.2, 0.2]).astype(np.uint8)
    voxel_mm = (1.5, 0.7, 2.0)
    wanted = mask.copy()
    for label, most in ((1, None), (2, 3 * 1.5 * 0.7 * 2.0), (3, 1e9)):
        components, count = ndimage.label(mask == label)
        sizes = [int((components == one).sum()) for one in range(1, count + 1)]
        for one, size in enumerate(sizes, 1):
            small = (
                size < max(sizes) or one > 1 + sizes.index(max(sizes)) if most is None else size * 2.1 <= most + 1e-4
            )
            if small:
                wanted[components == one] = 0
    steps = (
        CleaningStep(labels=(1,)),
        CleaningStep(labels=(2,), at_most_mm3=6.3001),
        CleaningStep(labels=(3,), at_most_mm3=1e9),
    )
    clean(mask, steps, voxel_mm)
    np.testing.assert_array_equal(mask, wanted)
    assert (mask == 1).any()
    assert (mask == 2).any()
    assert not (mask == 3).any()
    clean(mask, steps, voxel_mm)  # a label that is not there is no fault
    np.testing.assert_array_equal(mask, wanted)


def test_a_box_has_its_margin_inside_the_scan_and_its_labels_go_back_there() -> None:
    volume = scan((10, 12, 14), TURNED)
    labels = np.zeros((10, 12, 14), np.uint8)
    labels[0, 5, 6], labels[3, 6, 12], labels[9, 0, 0] = 2, 4, 1
    box = box_around(labels, (2, 4), 2.5, volume.affine)
    # 2.5 mm are 3.57, 1.32 and 2 voxels of 0.7, 1.9 and 1.25 mm.
    assert box == (slice(0, 7), slice(4, 8), slice(4, 14))
    part = cut(volume, box)
    np.testing.assert_array_equal(part.data[0], volume.data[0, :7, 4:8, 4:14])
    corner = np.array([3, 2, 5, 1])
    np.testing.assert_allclose(part.affine @ corner, volume.affine @ np.add(corner, (0, 4, 4, 0)))
    whole = put_back(np.full(part.shape, 9, np.uint8), box, volume.shape)
    assert whole.sum() == 9 * part.data[0].size
    assert (whole[box] == 9).all()
    assert box_around(labels, (3,), 2.5, volume.affine) is None
    rounded = cut(scan((3, 3, 3), TURNED, np.float32), (slice(0, 2),) * 3)
    assert rounded.data.dtype == np.int32
