"""Resampling as nnU-Net computes it, with scikit-image and SciPy, however the work is cut; and how it is cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import zoom
from skimage.transform import resize

from voxtile.chains.nnunet import resampling
from voxtile.chains.nnunet.axis_zoom import Scratch
from voxtile.chains.nnunet.resampling import resample

SINGLE = 1e-6  # of the range
SHAPE, NEW_SHAPE = (7, 9, 11), (12, 8, 17)


def nnunets(data: NDArray[Any], new_shape: Any, axis: int | None, order: int, order_z: int) -> NDArray[np.float64]:
    """What `resample_data_or_seg` does to a scan: a resize of the volume, or of each plane and then of the axis."""
    result = []
    for volume in data.astype(float):
        if axis is None:
            result.append(resize(volume, new_shape, order, mode="edge", anti_aliasing=False))
            continue
        in_plane = [size for at, size in enumerate(new_shape) if at != axis]
        planes = [
            resize(plane, in_plane, order, mode="edge", anti_aliasing=False) for plane in np.moveaxis(volume, axis, 0)
        ]
        factors = (new_shape[axis] / len(planes), 1, 1)
        result.append(np.moveaxis(zoom(planes, factors, order=order_z, mode="nearest", grid_mode=True), 0, axis))
    return np.asarray(result)


def uneven(shape: tuple[int, ...] = SHAPE) -> NDArray[np.float32]:
    """Noise of two quite different ranges, on a ramp, with a step: cubic resampling overshoots beyond the range."""
    noise = np.random.default_rng(0).random((2, *shape)) + np.arange(shape[0])[:, None, None] / 3
    noise[:, shape[0] // 2 :, : shape[1] // 2] += 9
    return (noise * np.array([1, 300])[:, None, None, None]).astype(np.float32)


def assert_near(found: NDArray[Any], expected: NDArray[Any], data: NDArray[Any]) -> None:
    assert found.shape == expected.shape
    span = np.ptp(data, axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(found / span, expected / span, rtol=0, atol=SINGLE)


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize(("order", "order_z"), [(0, 0), (1, 0), (3, 0), (3, 1), (1, 3), (0, 1)])
@pytest.mark.parametrize("new_shape", [NEW_SHAPE, (5, 13, 4)])
def test_every_part_of_the_work_is_nnunets(axis: int | None, order: int, order_z: int, new_shape: Any) -> None:
    data = uneven()
    expected = nnunets(data, new_shape, axis, order, order_z)
    for max_bytes, threads in ((1, 1), (6000, 2), (1 << 25, 3)):
        cut = {"max_bytes": max_bytes, "threads": threads}
        found = resample(data, new_shape, order=order, separate_z_axis=axis, order_z=order_z, **cut)
        assert found.dtype == np.float32
        assert_near(found, expected, data)


@pytest.mark.parametrize("axis", [None, 0, 2])
def test_an_axis_of_the_same_size_stays(axis: int | None) -> None:
    data = uneven()
    for new_shape in ((7, 8, 17), (12, 9, 17), (12, 8, 11), (7, 9, 17), (12, 9, 11)):
        expected = nnunets(data, new_shape, axis, 3, 1)
        assert_near(resample(data, new_shape, separate_z_axis=axis, order_z=1, max_bytes=4000), expected, data)


def test_cubic_order_and_nearest_planes_are_what_nothing_else_is_said_of() -> None:
    data = uneven()
    np.testing.assert_array_equal(resample(data, NEW_SHAPE), resample(data, NEW_SHAPE, order=3))
    found = resample(data, NEW_SHAPE, separate_z_axis=0)
    np.testing.assert_array_equal(found, resample(data, NEW_SHAPE, order=3, separate_z_axis=0, order_z=0))


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize(("dtype", "limit"), [(np.float64, 1e-12), (np.float16, 2.0**-9)])
def test_float64_is_computed_in_float64(dtype: Any, limit: float, axis: int | None) -> None:
    data = (uneven() / 300).astype(dtype)
    expected = nnunets(data, NEW_SHAPE, axis, 3, 1)
    found = resample(data, NEW_SHAPE, separate_z_axis=axis, order_z=1)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=limit, atol=limit)


def test_torchs_positions_are_used_where_they_are_asked_for() -> None:
    line = np.arange(20, dtype=np.float32).reshape(1, 1, 1, 20)
    found = [resample(line, (1, 1, 490), order=0, rule=rule)[0, 0, 0, 24] for rule in ("torch", "scipy")]
    assert found == [1, 0]  # 24.5 · 20/490 is 1, but not in float64


@pytest.fixture
def slabs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The output rows of every slab, whose memory is taken for all channels and threads in turn."""
    seen = []
    zoomed = resampling.zoom_first_axis

    def noted(slab: Any, axis: Any, start: int, stop: int, scratch: Any) -> Any:
        seen.append((start, stop))
        assert axis.dtype == scratch.dtype == slab.dtype, "float32 takes half the work"
        return zoomed(slab, axis, start, stop, scratch)

    monkeypatch.setattr(resampling, "zoom_first_axis", noted)
    return seen


PLANE = 9 * 11 + 8 * 11 + 8 * 17
"""Values that a row takes before, between and after the zooms in its plane."""


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 4), (np.float64, 8), (np.float16, 4)])
def test_a_slab_has_as_many_rows_as_fit(axis: int | None, dtype: Any, size: int, slabs: list[Any]) -> None:
    data = uneven()[:1].astype(dtype)
    resample(data, NEW_SHAPE, separate_z_axis=axis, threads=1, max_bytes=5 * PLANE * size + size * PLANE - 1)
    assert slabs == [(0, 5), (5, 10), (10, 12)]
    slabs.clear()
    resample(data, NEW_SHAPE, separate_z_axis=axis, threads=2, max_bytes=2 * 4 * PLANE * size)
    assert sorted(slabs) == [(0, 4), (4, 6), (6, 10), (10, 12)]  # each of two threads has half of the rows and bytes
    slabs.clear()
    resample(data, NEW_SHAPE, separate_z_axis=axis, threads=1, max_bytes=1)
    assert slabs == [(row, row + 1) for row in range(12)]


def test_a_slab_is_measured_along_the_separate_axis(slabs: list[Any]) -> None:
    plane = 7 * 9 + 12 * 9 + 12 * 8
    resample(uneven()[:1], NEW_SHAPE, separate_z_axis=2, threads=1, max_bytes=4 * 6 * plane)
    assert slabs == [(0, 6), (6, 12), (12, 17)]


def test_a_slab_has_no_more_than_48_rows_and_by_default_32_mebibytes(slabs: list[Any]) -> None:
    resample(np.zeros((1, 3, 2, 2), np.float32), (100, 2, 3), threads=1)
    assert slabs == [(0, 48), (48, 96), (96, 100)]
    slabs.clear()
    resample(np.zeros((1, 3, 1, 1), np.float32), (48, 1024, 1024), order=0, threads=1)
    assert slabs[0] == (0, (32 << 20) // (4 * (1 + 1024 + 1024 * 1024)))


def test_each_channel_is_shared_by_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    run_all = resampling.run_all

    def noted(work: Any, items: Any, threads: int) -> Any:
        items = list(items)
        calls.append((len(items), threads))
        return run_all(work, items, threads)

    monkeypatch.setattr(resampling, "run_all", noted)
    monkeypatch.setattr(resampling, "usable_cores", lambda: 3)
    resample(uneven(), NEW_SHAPE, order=1, threads=5)
    resample(uneven(), NEW_SHAPE, order=1)
    resample(uneven(), (2, 8, 17), order=1)  # no more parts than rows
    assert calls == [(10, 5), (6, 3), (4, 3)]
    calls.clear()
    resample(uneven(), NEW_SHAPE, order=3, threads=2)
    assert calls == [(2, 2), (2, 2), (4, 2)]  # the range of each channel first


def test_planes_between_slabs_are_zoomed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    zoomed = resampling.zoom_middle_axis

    def noted(planes: Any, axis: Any, scratch: Any) -> Any:
        seen.append(len(planes))
        return zoomed(planes, axis, scratch)

    monkeypatch.setattr(resampling, "zoom_middle_axis", noted)
    data = np.random.default_rng(1).random((1, 40, 3, 3)).astype(np.float32)
    resample(data, (60, 4, 4), order=1, order_z=1, separate_z_axis=0, threads=1, max_bytes=4 * 10 * (9 + 12 + 16))
    assert sum(seen) == 40
    assert max(seen) <= 10


@pytest.mark.parametrize(("axis", "names"), [(None, []), (2, ["ready"])])
def test_a_part_of_the_work_holds_one_intermediate_of_each_kind(
    axis: int | None, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()

    class Noted(Scratch):
        def array(self, name: str, *shape: int) -> NDArray[Any]:
            seen.add(name)
            return super().array(name, *shape)

    monkeypatch.setattr(resampling, "Scratch", Noted)
    resample(np.asfortranarray(uneven()), NEW_SHAPE, separate_z_axis=axis, order_z=1)
    assert seen == {"slab", "first", "middle", "last", *names}


def test_results_are_written_over_what_was_there() -> None:
    """A range of one value, and rows that another part has written."""
    data = np.full((2, 4, 5, 6), 7.0, np.float32)
    np.testing.assert_array_equal(resample(data, (9, 3, 8), max_bytes=1, threads=3), np.full((2, 9, 3, 8), 7.0))


@pytest.mark.parametrize(
    ("data", "new_shape", "axis", "message"),
    [
        (np.zeros((3, 3, 3)), (4, 4, 4), None, r"expected an array \[channel, z, y, x\], got one of shape \(3, 3, 3\)"),
        (np.zeros((1, 3, 3, 3)), [4, 4], None, r"expected a new shape of three axes, got \(4, 4\)"),
        (np.zeros((1, 3, 3, 3)), (4, 4, 4, 4), None, "three axes"),
        (np.zeros((1, 3, 3, 3)), (4, 4, 4), 3, "expected separate_z_axis to be 0, 1, 2 or None, got 3"),
        (np.zeros((1, 3, 3, 3)), (4, 4, 4), -1, "got -1"),
    ],
)
def test_what_is_wrong_is_said(data: Any, new_shape: Any, axis: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resample(data, new_shape, separate_z_axis=axis)
