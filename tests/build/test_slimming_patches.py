"""Patches cut out of scans, as a client sends them and as other scanners would make them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from tests.support.slimming_teachers import head, model
from voxtile_build.evaluation.samples import Scan
from voxtile_build.evaluation.whole_scan import segment
from voxtile_build.slimming.pool import augment, geometry, intensities, places
from voxtile_build.slimming.pool.augment import Patch, make_patch
from voxtile_build.slimming.pool.survey import survey
from voxtile_build.spec.input import PADDING
from voxtile_build.spec.spec import Spec

Array = NDArray[Any]
TWO_D = {"roi_size": [16, 12], "slice_axis": 1}
ABSOLUTE = {"channels": ["CT"], "dtype": "int16", "intensity": {"rule": "fixed", "mean": [500.0], "std": [200.0]}}


def patches(scan: Scan, given: Spec, count: int, first: int = 0) -> list[Patch]:
    found = survey(scan, 0)
    return [make_patch(np.random.default_rng([0, index]), scan, found, given) for index in range(first, first + count)]


@pytest.fixture
def only_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "PLAIN", 1.0)


@pytest.fixture
def only_augmented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "PLAIN", 0.0)


def counted(shape: tuple[int, ...]) -> Array:
    """[1, *shape] int16: every voxel has a value of its own, never 0."""
    return np.arange(1, 1 + np.prod(shape), dtype=np.int16).reshape(1, *shape)


def inner(values: Array) -> Array:
    """The values of a body in air, away from its edge, where voxels hold some of both."""
    body = (values != -1000) & (values != PADDING["int16"])
    return values[ndimage.binary_erosion(body, iterations=3)].astype(float)


# Patches that are not augmented


@pytest.mark.parametrize("tiling", [{}, *({**TWO_D, "slice_axis": axis} for axis in (0, 1, 2))])
@pytest.mark.usefixtures("only_plain")
def test_a_plain_patch_is_a_window_of_the_scan(tiling: dict[str, Any]) -> None:
    given = model(tiling={"roi_size": [16, 8, 12], **tiling})
    scan = Scan("counted", counted((24, 26, 22)), np.array([[7, 3]], np.float32))
    for patch in patches(scan, given, 20):
        start = np.argwhere(scan.volume[0] == patch.roi.min())[0]
        sides = list(given.tiling.roi_size)
        if given.tiling.slice_axis is not None:
            sides.insert(given.tiling.slice_axis, 1)
        window = scan.volume[(0, *(slice(first, first + side) for first, side in zip(start, sides, strict=True)))]
        np.testing.assert_array_equal(patch.roi[0], window.reshape(given.tiling.roi_size))
        np.testing.assert_array_equal(patch.statistics, scan.statistics)
        assert patch.roi.dtype == np.int16


@pytest.mark.parametrize("mode", ["constant", "replicate", "reflect", "circular"])
@pytest.mark.usefixtures("only_plain")
def test_a_scan_smaller_than_the_roi_is_padded_as_monai_pads_it(mode: str) -> None:
    given = model(tiling={"roi_size": [16, 8, 12], "padding_mode": mode})
    scan = Scan("small", counted((11, 8, 7)), np.array([[7, 3]], np.float32))
    seen = []

    def look(feed: Any) -> Array:
        seen.append(feed["roi"][0])
        return np.zeros((1, 3, 16, 8, 12), np.float32)

    segment(scan, given, look, 1)
    for patch in patches(scan, given, 3):
        np.testing.assert_array_equal(patch.roi, seen[0])


@pytest.mark.usefixtures("only_plain")
def test_windows_reach_all_edges_and_the_middle() -> None:
    given, shape = model(), (32, 24, 36)
    scan = Scan("counted", counted(shape), np.array([[7, 3]], np.float32))
    starts = [np.argwhere(scan.volume[0] == patch.roi.min())[0] for patch in patches(scan, given, 200)]
    room = np.subtract(shape, given.tiling.roi_size)
    at_edge = [np.mean([(start[axis] in (0, room[axis])) for start in starts]) for axis in range(3)]
    assert all(0.1 < share < 0.8 for share in at_edge)
    assert all(len({start[axis] for start in starts}) > room[axis] // 2 for axis in range(3))


def test_a_patch_depends_on_its_number_alone() -> None:
    given = model()
    scan = head(given)
    together, alone = patches(scan, given, 8), patches(scan, given, 1, first=5)[0]
    np.testing.assert_array_equal(together[5].roi, alone.roi)
    np.testing.assert_array_equal(together[5].statistics, alone.statistics)
    assert len({patch.roi.tobytes() for patch in together}) > 4


# Augmented patches


@pytest.mark.parametrize("background", [0, -1024])
@pytest.mark.parametrize("dtype", ["int16", "fp16", "fp32"])
@pytest.mark.usefixtures("only_augmented")
def test_what_is_exactly_background_stays_so(background: int, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "EMPTIED", 0.0)
    monkeypatch.setattr(places, "OUTSIDE", 0.0)
    given = model(input={"dtype": dtype}, tiling={"roi_size": [24, 20, 22]})
    volume = np.full((1, 24, 20, 22), background, dtype={"int16": "i2", "fp16": "f2", "fp32": "f4"}[dtype])
    volume[0, 9:17, 7:14, 8:15] = np.random.default_rng(1).integers(400, 900, (8, 7, 7))
    scan = Scan("cube", volume, np.array([[650, 150]], np.float32))
    cube = 8 * 7 * 7
    for patch in patches(scan, given, 20):
        assert patch.roi.dtype == volume.dtype
        body = int(((patch.roi != background) & (patch.roi != PADDING[dtype])).sum())
        assert cube / 2.2 < body < cube * 2.2, "a patch voxel is 0.8 to 1.26 voxels of the scan along each axis"
        for corner in np.ndindex(2, 2, 2):
            assert patch.roi[(0, *(-one for one in corner))] in (background, PADDING[dtype])


@pytest.mark.usefixtures("only_augmented")
def test_all_channels_are_moved_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "EMPTIED", 0.3)
    given = model(input={"channels": ["a", "b"]}, network={"args": {"in_channels": 2}})
    scan = head(given)
    assert len(scan.volume) == 2
    for patch in patches(scan, given, 20):
        assert patch.roi.shape == given.roi_shape
        assert patch.statistics.shape == (2, 2)
        np.testing.assert_allclose((patch.roi[0] == 0).mean(), (patch.roi[1] == 0).mean(), atol=0.01)
        assert ((patch.roi[0] == 0) == (patch.roi[1] == 0)).mean() > 0.99


@pytest.mark.parametrize("mode", ["constant", "replicate", "reflect", "circular"])
@pytest.mark.usefixtures("only_augmented")
def test_padding_is_marked_where_the_tiler_marks_it(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "OUTSIDE", 0.5)
    given = model(tiling={"roi_size": [16, 8, 12], "padding_mode": mode})
    scan = head(given)
    marked = [(patch.roi == PADDING["int16"]) for patch in patches(scan, given, 30)]
    shares = [float(one.mean()) for one in marked]
    if mode != "constant":
        assert max(shares) == 0
        return
    assert 4 < sum(share > 0.02 for share in shares) < 26
    assert max(shares) < 1


@pytest.mark.usefixtures("only_augmented")
def test_statistics_follow_the_change_of_tone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch that holds the whole scan is normalised to mean 0 and deviation 1, whatever its contrast became."""
    for module, name in (
        *((augment, name) for name in ("EMPTIED", "SHIFT", "STRETCH")),
        *((intensities, name) for name in ("COARSER", "BLURRED", "SHARPENED", "SHADED", "NOISY")),
        (geometry, "ZOOMED"),
        (geometry, "TURNED"),
        (places, "OUTSIDE"),
    ):
        monkeypatch.setattr(module, name, 0.0)
    monkeypatch.setattr(intensities, "TONED", 1.0)
    given = model(tiling={"roi_size": [24, 18, 20]})
    scan = head(given)
    means = []
    for patch in patches(scan, given, 12):
        body = patch.roi[patch.roi != 0].astype(np.float64)
        normal = (body - patch.statistics[0, 0]) / patch.statistics[0, 1]
        assert abs(normal.mean()) < 0.05
        assert normal.std() == pytest.approx(1, abs=0.05)
        means.append(body.mean())
    assert np.ptp(means) > 50, "the tone did change"


@pytest.mark.usefixtures("only_augmented")
def test_values_that_mean_something_are_hardly_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "EMPTIED", 0.0)
    monkeypatch.setattr(places, "OUTSIDE", 0.0)
    given = model(input=ABSOLUTE, tiling={"roi_size": [24, 18, 20]})
    scan = head(given, background=-1000)
    body = inner(scan.volume[0])
    for patch in patches(scan, given, 12):
        assert abs(np.median(inner(patch.roi[0])) - np.median(body)) < 0.2 * body.std()
        np.testing.assert_array_equal(patch.statistics, scan.statistics)


@pytest.mark.usefixtures("only_augmented")
def test_values_stay_within_the_type_and_above_the_scans_lowest() -> None:
    given = model()
    scan = head(given)
    loud = replace(
        scan, volume=np.where(scan.volume == 0, 0, scan.volume.astype(int) * 32 + 100).clip(0, 32767).astype("i2")
    )
    for patch in patches(loud, given, 20):
        values = patch.roi[patch.roi != PADDING["int16"]]
        assert values.min(initial=0) >= 0


@pytest.mark.parametrize("value", [0, 300])
def test_a_scan_of_one_value_gives_patches(value: int) -> None:
    given = model()
    scan = Scan("flat", np.full((1, 20, 9, 13), value, np.int16), np.array([[value, 1]], np.float32))
    for patch in patches(scan, given, 8):
        assert patch.roi.shape == given.roi_shape
        assert np.isfinite(patch.statistics).all()
        assert (patch.statistics[:, 1] > 0).all()


@pytest.mark.parametrize("shape", [(3, 2, 40), (1, 1, 1), (16, 8, 12), (17, 9, 2)])
def test_scans_of_any_shape_give_patches(shape: tuple[int, ...]) -> None:
    given = model()
    scan = head(given, shape)
    for patch in patches(scan, given, 12):
        assert patch.roi.shape == given.roi_shape
        assert np.isfinite(patch.statistics).all()


# What the survey finds


@pytest.mark.parametrize("background", [0, -1024, 2000])
def test_the_body_is_found_in_front_of_any_background(background: int) -> None:
    given = model()
    scan = head(given, background=background)
    found = survey(scan, 0)
    body = np.array([scan.volume[(0, *place)] != background for place in found.body])
    assert body.mean() > 0.99
    assert found.channels[0].background == (None if background == 2000 else background)


def test_noise_around_the_body_is_no_background_value() -> None:
    given = model()
    scan = head(given)
    noise = np.random.default_rng(3).rayleigh(15, scan.volume.shape).round() + 1
    noisy = replace(scan, volume=np.where(scan.volume == 0, noise, scan.volume).astype(np.int16))
    found = survey(noisy, 0)
    assert found.channels[0].background is None
    assert np.mean([scan.volume[(0, *place)] != 0 for place in found.body]) > 0.95


# The changes themselves


@pytest.mark.parametrize("seed", range(8))
def test_a_change_of_tone_keeps_order_and_background(seed: int) -> None:
    given = model()
    channel = survey(head(given), 0).channels[0]
    tone = intensities.draw_tone(np.random.default_rng(seed), channel, intensities.RELATIVE)
    values = np.linspace(channel.low - 50, channel.high + 200, 300).astype(np.float32)
    assert (np.diff(tone(values)) >= 0).all()
    assert tone(np.zeros(3, np.float32)).tolist() == [0, 0, 0]


def test_sampling_without_a_change_is_cutting() -> None:
    volume = np.random.default_rng(1).normal(size=(2, 12, 10, 9)).astype(np.float32)
    volume[:, :3] = 0
    for start in ((2, 1, 0), (-3, 4, 2)):
        plain = geometry.cut(volume, start, (8, 6, 7), "constant")
        same = geometry.sample(volume, start, np.eye(3), (8, 6, 7), [0.0, 0.0])
        np.testing.assert_allclose(same.values, plain.values, atol=1e-6)
        np.testing.assert_array_equal(same.inside, plain.inside)
        np.testing.assert_array_equal(same.background, plain.values == 0)


def test_a_zoomed_patch_shows_a_ramp_with_another_slope() -> None:
    ramp = np.arange(40, dtype=np.float32)[None, :, None, None] * np.ones((1, 40, 12, 11), np.float32)
    found = geometry.sample(ramp, (8, 2, 2), np.diag([1.2, 0.9, 1.0]), (10, 6, 5), [None])
    np.testing.assert_allclose(np.diff(found.values[0], axis=0), 1.2, atol=1e-4)
    np.testing.assert_allclose(np.diff(found.values[0], axis=1), 0, atol=1e-4)
    assert float(found.values.mean()) == pytest.approx(8 + 5.5, abs=1e-4), "the middle of the 12 voxels covered"


@pytest.mark.parametrize("shape", [(9, 8, 7), (9, 8), (2, 1, 5)])
def test_a_coarser_resolution_keeps_a_linear_slope(shape: tuple[int, ...]) -> None:
    grid = np.indices(shape).sum(axis=0).astype(np.float32)
    np.testing.assert_allclose(intensities.coarser(grid, np.full(len(shape), 2.0)), grid, atol=1e-4)
