"""nnU-Net's export by its definition, with scikit-image; how it is cut into slabs and strips, and what that takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, softmax
from skimage.transform import resize

from tests.support.nnunet_plans import export_labels, fast_resampling, parsed, plans
from tests.support.strips import fed
from voxtile.chains.nnunet import exporting
from voxtile.chains.nnunet.block_argmax import REGION_LOGIT, BlockLabels
from voxtile.chains.nnunet.exporting import (
    LabelExporter,
    export_bytes,
    export_probabilities,
    export_strips,
    label_dtype,
)
from voxtile.chains.nnunet.plan import NnunetPlan
from voxtile.chains.nnunet.preprocessing import GridProperties
from voxtile.errors import ModelError
from voxtile.tiling.strips import Strip, whole

Shape = tuple[int, int, int]
NONE = {
    **{f"resampling_fn_{what}": "no_resampling_hack" for what in ("data", "probabilities", "seg")},
    **{f"resampling_fn_{what}_kwargs": {} for what in ("data", "probabilities", "seg")},
}
LINEAR, CUBIC = fast_resampling({"order": 1}), fast_resampling({"order": 3})
TURNED = {"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]}


def plan_of(changes: dict[str, Any]) -> NnunetPlan:
    return parsed(plans(**changes))


def grid_of(network: Shape, crop: Shape, margin: int = 2) -> GridProperties:
    """The network's grid on a crop of a scan that is larger by `margin` before it, and by one voxel behind it."""
    z, y, x = (size + margin + 1 for size in crop)
    first, second, third = ((margin, margin + size) for size in crop)
    spacing = tuple(new / old for new, old in zip(network, crop, strict=True))
    return GridProperties(
        (z, y, x),
        (z, y, x),
        (first, second, third),
        crop,
        network,
        (spacing[0], spacing[1], spacing[2]),
        (1.0, 1.0, 1.0),
    )


def restored(logits: NDArray[Any], grid: GridProperties, order: int) -> NDArray[np.float64]:
    shape = grid.shape_after_cropping
    each = [resize(one.astype(float), shape, order, mode="edge", anti_aliasing=False) for one in logits]
    return np.stack(each)


def random_logits(classes: int, shape: Shape) -> NDArray[np.float32]:
    return np.random.default_rng(classes).normal(0, 4, (classes, *shape)).astype(np.float32)


def in_scan(inside: NDArray[Any], grid: GridProperties, plan: NnunetPlan) -> NDArray[Any]:
    """The labels of the crop within the scan, background around them, in the scan's own axes."""
    full = np.zeros(grid.shape_before_cropping, np.uint8)
    full[tuple(slice(*span) for span in grid.bbox)] = inside
    return full.transpose(plan.transpose_backward)


NETWORK, CROP = (7, 40, 9), (11, 35, 14)


@pytest.mark.parametrize("turned", [{}, TURNED])
@pytest.mark.parametrize(("changes", "order"), [(LINEAR, 1), (CUBIC, 3)])
@pytest.mark.parametrize("regions", [None, (2, 4, 1)])
def test_labels_are_decided_on_the_crop_and_put_into_the_scan(
    changes: dict[str, Any], order: int, turned: dict[str, Any], regions: Any
) -> None:
    plan, grid = plan_of({**changes, **turned}), grid_of(NETWORK, CROP)
    logits = random_logits(3, NETWORK)
    scores = restored(logits, grid, order)
    expected = scores.argmax(0)
    if regions:
        expected = np.zeros(CROP, int)
        for score, label in zip(scores, regions, strict=True):
            expected[score > 0] = label
    found = export_labels(logits, grid, plan, n_labels=5 if regions else 3, regions_class_order=regions)
    assert (found.dtype, found.flags.c_contiguous) == (np.uint8, True)
    level = np.ptp(np.sort(scores, 0)[-2:], 0) < 1e-4 if regions is None else (np.abs(scores) < 1e-4).any(0)
    assert level.mean() < 1e-3
    wrong = found != in_scan(expected, grid, plan)
    assert wrong.sum() <= level.sum()


@pytest.mark.parametrize("changes", [LINEAR, CUBIC])
def test_a_region_begins_above_the_logit_whose_sigmoid_exceeds_one_half(changes: dict[str, Any]) -> None:
    grid, level = grid_of((3, 4, 5), (5, 4, 6), margin=0), np.float32(REGION_LOGIT)
    for logit, label in ((level, 0), (np.nextafter(level, np.float32(1)), 1)):
        scores = np.full((1, 3, 4, 5), logit)
        found = export_labels(scores, grid, plan_of(changes), n_labels=2, regions_class_order=[1])
        np.testing.assert_array_equal(found[:5, :4, :6], label)


@pytest.mark.parametrize("changes", [LINEAR, CUBIC])
def test_half_precision_is_not_that_of_resampled_scores(changes: dict[str, Any]) -> None:
    """Around 1000 it has steps of one half, by which most classes would be level between voxels."""
    grid, plan = grid_of(NETWORK, CROP), plan_of(changes)
    logits = np.rint(1000 + random_logits(3, NETWORK) / 4).astype(np.float16)
    expected = export_labels(logits.astype(np.float32), grid, plan, n_labels=3)
    np.testing.assert_array_equal(export_labels(logits, grid, plan, n_labels=3), expected)


@pytest.mark.parametrize("turned", [{}, TURNED])
@pytest.mark.parametrize("regions", [False, True])
def test_probabilities_are_those_of_the_resampled_scores(turned: dict[str, Any], regions: bool) -> None:
    plan, grid = plan_of({**LINEAR, **turned}), grid_of(NETWORK, CROP)
    logits = random_logits(3, NETWORK) * 30  # some exponentials overflow in float32
    scores = restored(logits, grid, 1)
    full = np.zeros((3, *grid.shape_before_cropping))
    full[0] = 0 if regions else 1
    box = tuple(slice(*span) for span in grid.bbox)
    full[(slice(None), *box)] = expit(scores) if regions else softmax(scores, axis=0)
    with np.errstate(over="raise"):
        found = export_probabilities(logits, grid, plan, regions=regions)
    assert (found.dtype, found.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_allclose(found, full.transpose(0, *(axis + 1 for axis in plan.transpose_backward)), atol=1e-4)


def test_a_softmax_is_what_nothing_else_is_said_of() -> None:
    plan, grid = plan_of(LINEAR), grid_of(NETWORK, CROP)
    logits = random_logits(3, NETWORK)
    expected = export_probabilities(logits, grid, plan, regions=False)
    np.testing.assert_array_equal(export_probabilities(logits, grid, plan), expected)
    np.testing.assert_allclose(expected.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize(("labels", "expected"), [(1, np.uint8), (255, np.uint8), (256, np.uint16)])
def test_255_foreground_labels_are_written_in_two_bytes(labels: int, expected: Any) -> None:
    assert label_dtype(labels) is expected
    grid = grid_of((2, 2, 2), (2, 2, 2))
    exporter = LabelExporter(grid, plan_of(NONE), n_labels=labels, regions_class_order=[1])
    exporter.add_planes(np.ones((1, 2, 2, 2), np.float32))
    assert exporter.finish().dtype == expected


@pytest.fixture
def slabs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The output planes of every slab, how many logits' planes they read, and the threads."""
    seen = []
    fill = BlockLabels.fill

    def noted(self: Any, rows: Any, logits: Any, out: Any, threads: int, strip: Any) -> None:
        seen.append((rows, logits.shape[1], threads))
        assert len(out) == rows[1] - rows[0]
        assert all(zoom is None or zoom.dtype == np.float32 for zoom in self.zooms), "half the work of float64"
        fill(self, rows, logits, out, threads, strip)

    monkeypatch.setattr(BlockLabels, "fill", noted)
    return seen


def export(grid: GridProperties, plan: NnunetPlan, classes: int, **options: Any) -> Any:
    return export_labels(np.zeros((classes, *grid.shape_after_resampling)), grid, plan, n_labels=classes, **options)


@pytest.mark.parametrize(
    ("planes", "rows"), [(0, [1] * 20), (3, [6, 6, 6, 2]), (4, [8, 8, 4]), (99, [20])], ids=lambda case: str(case)[:9]
)
def test_a_slab_reads_no_more_planes_than_may_wait(
    planes: int, rows: list[int], slabs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three scores of ten planes of 4 · 5 voxels, which become twenty."""
    monkeypatch.setattr(exporting, "BUFFER_BYTES", (planes + 1) * (4 * 3 * 4 * 5) - 1)
    export(grid_of((10, 4, 5), (20, 6, 7)), plan_of(LINEAR), 3)
    assert [stop - start for (start, stop), _, _ in slabs] == rows
    assert [rows[0] for rows, _, _ in slabs] == list(np.cumsum([0, *rows[:-1]]))


def test_a_slab_has_no_more_than_32_planes(slabs: list[Any]) -> None:
    export(grid_of((10, 4, 5), (70, 4, 5)), plan_of(LINEAR), 2)
    assert [rows for rows, _, _ in slabs] == [(0, 32), (32, 64), (64, 70)]


def test_a_slab_is_labelled_once_its_planes_have_come(slabs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "BUFFER_BYTES", 2 * (4 * 2 * 4 * 5))  # two planes wait: four are made of them
    grid, plan = grid_of((6, 4, 5), (12, 4, 5)), plan_of(LINEAR)
    exporter, done = LabelExporter(grid, plan, n_labels=2, threads=1), []
    for _ in range(6):
        exporter.add_planes(np.zeros((2, 1, 4, 5), np.float32))
        done.append(sum(stop - start for (start, stop), _, _ in slabs))
    assert done == [0, 0, 4, 4, 8, 12]  # planes 0 … 3 lie at -0.25 … 1.25, 4 … 7 at 1.75 … 3.25
    assert [count for _, count, _ in slabs] == [3, 4, 3]


def test_threads_are_those_that_are_asked_for_or_the_usable_cores(
    slabs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "usable_cores", lambda: 3)
    for threads in (2, None):
        export(grid_of((3, 4, 5), (3, 4, 6)), plan_of(LINEAR), 2, threads=threads)
    assert [threads for _, _, threads in slabs] == [2, 3]


def held(exporter: Any) -> list[NDArray[Any]]:
    """The planes that wait."""
    return list(exporter._waiting._pieces)


def test_only_the_planes_that_the_next_slab_needs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "BUFFER_BYTES", 1)
    exporter = LabelExporter(grid_of((6, 4, 5), (12, 4, 5)), plan_of(LINEAR), n_labels=2, threads=1)
    exporter.add_planes(
        np.zeros((2, 4, 4, 5), np.float32)
    )  # planes 0 … 6 are labelled; the next, at 3.25, reads 3 and 4
    [kept] = held(exporter)
    assert (kept.shape, kept.base) == ((2, 1, 4, 5), None), "a copy, since a view would hold all that came"
    exporter.add_planes(np.zeros((2, 2, 4, 5), np.float32))
    assert held(exporter) == []


def test_planes_that_came_in_one_piece_are_read_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a plane of the call before is still kept, or the next piece begins behind them."""
    views, fill = [], BlockLabels.fill
    given = np.zeros((2, 2, 4, 5), np.float32)

    def noted(self: Any, rows: Any, logits: Any, *rest: Any) -> None:
        views.append(np.shares_memory(logits, given))
        fill(self, rows, logits, *rest)

    monkeypatch.setattr(BlockLabels, "fill", noted)
    monkeypatch.setattr(exporting, "BUFFER_BYTES", 1)
    exporter = LabelExporter(grid_of((4, 4, 5), (8, 4, 5)), plan_of(LINEAR), n_labels=2, threads=1)
    for _ in range(2):
        exporter.add_planes(given)
    assert views == [True] * 3 + [False] * 2 + [True] * 3  # at -0.25, 0.25, 0.75, then 1.25 and 1.75 across both pieces


@pytest.mark.parametrize("changes", [LINEAR, CUBIC])
def test_planes_that_wait_are_copied_once(changes: dict[str, Any]) -> None:
    exporter = LabelExporter(grid_of((6, 4, 5), (12, 4, 5)), plan_of(changes), n_labels=2, threads=1)
    given = np.ones((2, 1, 4, 5), np.float32)
    exporter.add_planes(given)
    exporter.add_planes(given)
    assert not any(np.shares_memory(piece, given) for piece in held(exporter))
    assert sum(piece.shape[1] for piece in held(exporter)) == 2


def test_bytes_of_a_slab_are_counted_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, plan = grid_of((10, 4, 5), (20, 6, 7)), plan_of(LINEAR)
    plane = 4 * 3 * 4 * 5
    monkeypatch.setattr(exporting, "BUFFER_BYTES", 4 * plane - 1)
    strip = whole(grid.shape_after_resampling, grid.shape_after_cropping)
    assert (
        export_bytes(grid, plan, 3, strip) == 3 * 5 * plane
    )  # six planes lie on three, and read one more on each side
    assert export_bytes(grid, plan, 3, Strip(2, (1, 4), (2, 6))) == 3 * 5 * (plane * 3 // 5)
    monkeypatch.setattr(exporting, "BUFFER_BYTES", 99 * plane)
    assert export_bytes(grid, plan, 3, strip) == 3 * 10 * plane  # no more than there are
    uneven = grid_of((10, 4, 5), (17, 6, 7))
    monkeypatch.setattr(exporting, "BUFFER_BYTES", 3 * plane)
    assert export_bytes(uneven, plan, 3, strip) == 3 * 5 * plane  # five planes lie on 2.9


def test_without_slabs_all_logits_are_held_twice_and_three_volumes_of_scores() -> None:
    grid = grid_of((10, 4, 5), (20, 6, 7))
    strip = whole(grid.shape_after_resampling, grid.shape_after_cropping)
    assert export_bytes(grid, plan_of(CUBIC), 3, strip) == 2 * 10 * (4 * 3 * 4 * 5) + 3 * 4 * 20 * 6 * 7


def test_strips_are_cut_between_blocks_and_read_the_rows_around_them() -> None:
    grid, plan = grid_of((5, 40, 50), (5, 80, 50)), plan_of(LINEAR)
    uncut = (whole((5, 40, 50), (5, 80, 50)),)
    assert export_strips(grid, plan, 1, 1) == uncut
    assert export_strips(grid, plan_of(CUBIC), 1, 2) == uncut
    # Row 31 lies at 15.25 and row 32 at 15.75.
    assert export_strips(grid, plan, 1, 2) == (Strip(1, (0, 17), (0, 32)), Strip(1, (15, 40), (32, 80)))
    assert [strip.target for strip in export_strips(grid, plan, 1, 9)] == [(0, 32), (32, 64), (64, 80)]
    assert export_strips(grid, plan, 2, 2) == (Strip(2, (0, 32), (0, 32)), Strip(2, (32, 50), (32, 50)))


def test_a_plan_without_resampling_takes_only_the_grid_of_the_scan() -> None:
    same = grid_of((5, 4, 3), (5, 4, 3))
    assert export(same, plan_of(NONE), 2).shape == same.shape_before_cropping
    with pytest.raises(ModelError, match=r"\(5, 4, 3\) voxels cannot become \(5, 4, 4\); nnU-Net cannot export such"):
        LabelExporter(grid_of((5, 4, 3), (5, 4, 4)), plan_of(NONE), n_labels=2)


def test_scores_that_do_not_fit_are_refused_in_words() -> None:
    grid, plan = grid_of((5, 4, 3), (6, 4, 3)), plan_of(LINEAR)
    for wrong in ((3, 1, 4, 3), (2, 1, 5, 3), (2, 1, 4, 4), (2, 4, 3)):
        message = rf"expected scores of shape \[2, planes, 4, 3\], got \({', '.join(map(str, wrong))}\); the model on"
        with pytest.raises(ModelError, match=message):
            LabelExporter(grid, plan, n_labels=2).add_planes(np.zeros(wrong, np.float32))
    exporter = LabelExporter(grid, plan, n_labels=2)
    exporter.add_planes(np.zeros((2, 4, 4, 3), np.float32))
    with pytest.raises(ModelError, match="expected 5 planes of scores, got 6"):
        exporter.add_planes(np.zeros((2, 2, 4, 3), np.float32))


def test_a_strip_is_to_be_complete_before_the_next() -> None:
    grid, plan = grid_of((5, 40, 3), (6, 40, 3)), plan_of(LINEAR)
    first, second = export_strips(grid, plan, 1, 2)
    exporter = LabelExporter(grid, plan, n_labels=2)
    exporter.start_strip(first)
    exporter.start_strip(first)
    exporter.add_planes(np.zeros((2, 4, 32, 3), np.float32))
    with pytest.raises(ModelError, match="expected 5 planes of scores, got 4"):
        exporter.start_strip(second)
    with pytest.raises(ModelError, match="expected 5 planes of scores, got 4"):
        exporter.finish()
    exporter.add_planes(np.zeros((2, 1, 32, 3), np.float32))
    exporter.start_strip(second)
    exporter.add_planes(np.zeros((2, 5, 8, 3), np.float32))
    assert not exporter.finish().any()


def test_every_plane_may_come_alone_where_nothing_is_resampled() -> None:
    grid, plan = grid_of((5, 4, 3), (5, 4, 3)), plan_of(NONE)
    logits = random_logits(3, (5, 4, 3))
    exporter = LabelExporter(grid, plan, n_labels=3)
    for row in range(5):
        exporter.add_planes(logits[:, row : row + 1])
        assert held(exporter) == [] or row < 4
    np.testing.assert_array_equal(exporter.finish(), in_scan(logits.argmax(0), grid, plan))


@pytest.mark.parametrize(("changes", "crop"), [(LINEAR, (9, 80, 50)), (CUBIC, (9, 80, 50)), (NONE, (5, 40, 50))])
@pytest.mark.parametrize("regions", [None, (2, 1, 3)])
@pytest.mark.parametrize("axis", [1, 2])
def test_pieces_and_strips_change_nothing(changes: dict[str, Any], crop: Shape, regions: Any, axis: int) -> None:
    grid, plan = grid_of((5, 40, 50), crop), plan_of(changes)
    logits = random_logits(3, (5, 40, 50))
    options = {"n_labels": 4 if regions else 3, "regions_class_order": regions, "threads": 1}
    expected = export_labels(logits, grid, plan, **options)
    for strips in (export_strips(grid, plan, axis, 1), export_strips(grid, plan, axis, 2)):
        exporter = LabelExporter(grid, plan, **options)
        fed(exporter, logits, strips, (1, 3))
        np.testing.assert_array_equal(exporter.finish(), expected)
