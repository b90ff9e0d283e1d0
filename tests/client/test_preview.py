"""The preview shows the anatomy upright in true proportions, labels where they are, and appears whole or not at all."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.phantoms import ORIENTATIONS, card_of, phantom_volume
from voxtile.card import Label
from voxtile.errors import MissingExtraError, OutputError
from voxtile.io.volume import Volume
from voxtile.outputs.palette import colours
from voxtile.outputs.preview import PREVIEW, choose_slices, draw_preview, grey_window

LABELS = (Label(name="background", value=0), Label(name="head", value=1), Label(name="lesion", value=300))


def labelled(volume: Volume) -> NDArray[Any]:
    """[i, j, k] uint16: the head, and in it what is brightest."""
    data = volume.data[0]
    return np.where(data > 420, 300, np.where(data > 150, 1, 0)).astype(np.uint16)


def drawn(path: Path, volume: Volume, labels: NDArray[Any]) -> NDArray[np.float32]:
    draw_preview(volume, labels, LABELS, path)
    picture: NDArray[np.float32] = matplotlib.image.imread(io.BytesIO(path.read_bytes()), format="png")[..., :3]
    return picture


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_slices_are_anatomical_however_the_scan_is_stored(codes: str) -> None:
    """The lesion lies right, behind the middle and slightly above it: the same cuts, the same way up, each time."""
    shape = {"R": 24, "L": 24, "A": 30, "P": 30, "S": 27, "I": 27}
    step = {"R": 2.0, "L": 2.0, "A": 1.5, "P": 1.5, "S": 1.7, "I": 1.7}
    i, j, k = tuple(codes)
    volume = phantom_volume((shape[i], shape[j], shape[k]), (step[i], step[j], step[k]), codes)
    reference = phantom_volume((24, 30, 27), (2.0, 1.5, 1.7))
    cuts = choose_slices(volume, labelled(volume))
    for cut, expected in zip(cuts, choose_slices(reference, labelled(reference)), strict=True):
        assert (cut.axis, cut.index) == (expected.axis, expected.index)
        np.testing.assert_array_equal(cut.labels, expected.labels)
        np.testing.assert_array_equal(cut.grey, expected.grey)
        np.testing.assert_allclose(cut.size, expected.size)
    across, up = np.nonzero(cuts[2].labels == 300)
    assert across.mean() > 24 / 2
    assert up.mean() < 30 / 2


def test_slices_go_through_the_largest_cross_sections() -> None:
    volume = phantom_volume((20, 20, 20), (1.0, 1.0, 1.0))
    labels = np.zeros(volume.shape, np.uint8)
    labels[3, 4:8, 11:15] = labels[1:6, 5, 12:15] = labels[2:5, 4:8, 13] = 1
    assert [cut.index for cut in choose_slices(volume, labels)] == [3, 5, 13]


def test_an_empty_mask_is_cut_in_the_middle() -> None:
    volume = phantom_volume((20, 22, 24))
    assert [cut.index for cut in choose_slices(volume, np.zeros(volume.shape, np.uint8))] == [10, 11, 12]


def test_labels_are_coloured_and_the_rest_is_grey(tmp_path: Path) -> None:
    volume = phantom_volume((30, 36, 32), (1.3, 1.2, 1.25))
    plain = drawn(tmp_path / "plain.png", volume, np.zeros(volume.shape, np.uint8))
    tinted = drawn(tmp_path / "tinted.png", volume, labelled(volume))
    height = int(0.8 * len(plain))  # above the legend
    assert np.ptp(plain[:height], axis=-1).max() < 0.02
    assert (np.ptp(tinted[:height], axis=-1) > 0.2).mean() > 0.1


def test_proportions_are_those_of_the_patient(tmp_path: Path) -> None:
    """A ball stays round in voxels three times as high as wide."""
    shape, spacing = (48, 48, 16), (1.0, 1.0, 3.0)
    volume = phantom_volume(shape, spacing)
    place = (np.indices(shape).T - (np.array(shape) - 1) / 2) * spacing
    ball = (np.linalg.norm(place, axis=-1).T < 18).astype(np.uint8)
    black = Volume(np.zeros_like(volume.data), volume.affine, volume.header, volume.names)
    picture = drawn(tmp_path / "ball.png", black, ball)
    coloured = np.ptp(picture[: int(0.8 * len(picture))], axis=-1) > 0.2
    columns, rows = np.nonzero(coloured.any(axis=0))[0], np.nonzero(coloured.any(axis=1))[0]
    first = np.split(columns, np.nonzero(np.diff(columns) > 1)[0] + 1)[0]
    assert len(first) == pytest.approx(len(rows), rel=0.12)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((160, 160, 1), (1.0, 1.0, 1.0)), ((1, 90, 160), (0.5, 1.0, 3.0)), ((40, 1, 30), (1.0, 1e-3, 1.0)),
     ((30, 40, 20), (1e3, 1e-3, 1.0)), ((4000, 3, 2), (1.0, 1.0, 1.0)), ((1, 1, 1), (1e-3, 1e3, 1.0))],
)  # fmt: skip
def test_a_picture_has_an_ordinary_size_whatever_the_proportions(
    tmp_path: Path, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    affine = np.diag([*spacing, 1.0])
    data = np.arange(np.prod(shape), dtype=np.int32).reshape(1, *shape)
    volume = Volume(data, affine, None, ("scan",))
    labels = np.where(data[0] % 3 == 0, 1, 0).astype(np.uint8)
    height, width = drawn(tmp_path / "flat.png", volume, labels).shape[:2]
    assert 690 <= height <= 1000
    assert width <= 5300


def test_the_same_scan_gives_the_same_file_and_draws_through_no_global_state(tmp_path: Path) -> None:
    volume = phantom_volume(codes="LPS", angles=(10.0, 20.0, 30.0))
    for name in ("one.png", "two.png"):
        draw_preview(volume, labelled(volume), LABELS, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


@pytest.mark.parametrize("value", [0, 5])
def test_a_scan_without_contrast_is_drawn_all_the_same(tmp_path: Path, value: int) -> None:
    volume = Volume(np.full((1, 5, 6, 7), value, np.int16), np.eye(4), None, ("scan",))
    low, high = grey_window(volume.data[0])
    assert high > low
    drawn(tmp_path / "flat.png", volume, np.zeros(volume.shape, np.uint8))


def test_the_window_ignores_background_and_single_bright_voxels() -> None:
    data = np.zeros((40, 40, 40), np.float32)
    data[10:30, 10:30, 10:30] = np.linspace(100, 200, 20)
    data[15, 15, 15] = 1e6
    low, high = grey_window(data)
    assert 100 <= low < 110
    assert 190 < high <= 200


def test_a_large_scan_is_sampled() -> None:
    """A view with steps in all axes, which must not be walked voxel by voxel."""
    data = np.random.default_rng(0).normal(100, 10, (300, 200, 200)).astype(np.float32)
    low, high = grey_window(data)
    np.testing.assert_allclose((low, high), np.percentile(data, (1, 99)), atol=0.3)


def test_colours_differ_from_their_neighbours() -> None:
    palette = np.array(colours(60))
    assert ((palette >= 0) & (palette <= 1)).all()
    assert np.linalg.norm(np.diff(palette, axis=0), axis=1).min() > 0.3
    assert len({tuple(colour) for colour in palette.tolist()}) == 60


def test_more_labels_than_can_be_named_are_drawn(tmp_path: Path) -> None:
    volume = phantom_volume()
    labels = np.clip(volume.data[0] // 30, 0, 40).astype(np.uint8)
    draw_preview(volume, labels, [Label(name=f"structure {n}", value=n) for n in range(41)], tmp_path / "many.png")


def test_only_a_png_that_can_be_written(tmp_path: Path) -> None:
    volume = phantom_volume()
    with pytest.raises(OutputError, match=r"ends in .png"):
        PREVIEW.check(tmp_path / "picture.jpg")
    with pytest.raises(OutputError, match="cannot be written"):
        draw_preview(volume, labelled(volume), LABELS, tmp_path / "none" / "picture.png")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_extra_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"--preview needs matplotlib.*pip install 'voxtile\[preview\]'"):
        PREVIEW.check_model(card_of())
