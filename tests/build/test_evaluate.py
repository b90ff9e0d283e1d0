"""Every figure of a record against one made by hand, on scores that have no symmetry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.support.specs import spec
from voxtile_build.errors import AcceptanceError
from voxtile_build.evaluation import evaluate
from voxtile_build.evaluation.evaluate import (
    as_votes,
    check_finite,
    compare,
    compare_masks,
    describe,
    error_and_spread,
    measure_scan,
    measure_tiles,
    near_boundary,
    rounded,
    run_tiles,
    thinned,
)
from voxtile_build.evaluation.samples import Scan
from voxtile_build.evaluation.tiles import Tile
from voxtile_build.evaluation.whole_scan import segment, windows
from voxtile_build.spec.output import Output
from voxtile_build.spec.spec import Spec
from voxtile_build.spec.tiling import Tiling

Array = NDArray[Any]
STORED = {"scores": "probabilities"}
LABELS = {"scores": "labels", "dtype": "uint8"}
SPACING = (2.0, 1.0, 0.5)


def output(**changes: Any) -> Output:
    return spec(output=changes).output


# One comparison


def test_a_record_has_every_figure() -> None:
    """Twelve voxels, of which two change their label; all numbers are exact in binary."""
    expected = np.zeros((3, 3, 2, 2), np.float32)
    expected[0] = 0.75
    expected[1, 0, 0, 0] = 1.0
    expected[2, 2, 1] = 1.0
    found = expected.copy()
    found[1, 0, 0, 0] = 0.5  # label one is lost
    found[1, 0, 0, 1] = 1.0  # and found one voxel further
    found[2, 2, 0, 0] = 0.25  # an error that changes nothing
    record = compare(expected, found, spec(output=STORED), "any", "a tile", SPACING)
    squares, voxels = (0.5**2 + 1.0**2 + 0.25**2), 3 * 12
    spread = math.sqrt(np.mean([0.0, np.var([1.0] + [0.0] * 11), np.var([1.0] * 2 + [0.0] * 10)]))
    assert record == {
        "max_abs_error": 1.0,
        "mean_abs_error": rounded(1.75 / voxels),
        "max_abs_error_stored": 1.0,
        "rms_error": rounded(math.sqrt(squares / voxels)),
        "spread": rounded(spread),
        "near_boundary_voxels": 12,
        "dice": {"background": 2 * 8 / (9 + 9), "one": 0.0, "two": 1.0},
        "hausdorff_95_mm": {"background": 0.3, "one": 0.5, "two": 0.0},
        "voxels": {"background": 9, "one": 1, "two": 2},
        "changed_by_label": {"background": 2, "one": 2, "two": 0},
        "changed_voxels": 2,
        "changed_fraction": 2 / 12,
    }


def test_logits_come_with_their_range_and_the_error_of_their_own() -> None:
    expected = np.zeros((3, 2, 2, 2), np.float32)
    expected[0] = 8.0
    expected[2, 0, 1, 1] = -3.0
    found = expected.copy()
    found[0, 1, 1, 1] = 6.0
    record = compare(expected, found, spec(), "any", "a tile", SPACING)
    assert record["logits"] == [-3.0, 8.0]
    assert record["max_abs_error_stored"] == 2.0
    sure = 1 / (1 + 2 * math.exp(-8)) - 1 / (1 + 2 * math.exp(-6))
    assert record["max_abs_error"] == rounded(sure)
    assert "logits" not in compare(expected, found, spec(output=STORED), "any", "a tile", SPACING)


def test_a_foreground_of_bytes_is_compared_as_probabilities_and_as_bytes() -> None:
    expected = np.zeros((1, 2, 2, 2), np.uint8)
    expected[0, 1] = 255
    found = expected.copy()
    found[0, 1, 1, 1] = 102
    chosen = spec(output={"scores": "foreground", "foreground": "two", "dtype": "uint8"})
    record = compare(expected, found, chosen, "any", "a tile", SPACING)
    assert record["max_abs_error"] == 0.6
    assert record["max_abs_error_stored"] == 153.0
    assert record["rms_error"] == rounded(152 / math.sqrt(8))  # one step is no error
    assert record["voxels"] == {"two": 4}
    assert record["dice"] == {"two": 2 * 3 / (4 + 3)}
    assert record["near_boundary_voxels"] == 8


def test_labels_are_compared_as_votes() -> None:
    expected = np.zeros((1, 2, 2, 2), np.uint8)
    expected[0, 0, 0] = [1, 2]
    found = expected.copy()
    found[0, 0, 0, 0] = 2
    record = compare(expected, found, spec(output=LABELS), "any", "a tile", SPACING)
    assert record["max_abs_error"] == 1.0
    assert record["mean_abs_error"] == rounded(2 / 24)
    assert record["rms_error"] == rounded(math.sqrt(2 / 24))
    assert record["changed_by_label"] == {"background": 0, "one": 1, "two": 1}


def test_what_was_empty_and_is_found_has_no_distance() -> None:
    wanted, found = np.zeros((3, 2, 2, 2), bool), np.zeros((3, 2, 2, 2), bool)
    wanted[0], found[0] = True, True
    found[1, 0, 0, 0] = True
    record = compare_masks(wanted, found, output(), SPACING)
    assert record["hausdorff_95_mm"] == {"background": 0.0, "one": None, "two": 0.0}
    assert record["dice"] == {"background": 1.0, "one": 0.0, "two": None}
    with pytest.raises(ValueError, match="zip"):
        compare_masks(wanted[:2], found[:2], output(), SPACING)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_refused_by_model_engine_and_place(value: float) -> None:
    scores = np.zeros((3, 2, 2, 2), np.float32)
    check_finite(scores, spec(), "openvino", "tile 'middle'")
    scores[1, 0, 1, 0], scores[2, 1, 1, 1] = value, value
    expected = r"^tiny: the openvino engine is not accepted: tile 'middle': expected finite scores, found 2 that are"
    with pytest.raises(AcceptanceError, match=expected):
        check_finite(scores, spec(), "openvino", "tile 'middle'")
    with pytest.raises(AcceptanceError, match=expected):
        compare(np.zeros_like(scores), scores, spec(), "openvino", "tile 'middle'", SPACING)


def test_labels_become_votes_once() -> None:
    labels = np.array([[[0, 2], [1, 1]]], np.uint8)
    votes = as_votes(labels, output(**LABELS))
    assert votes.dtype == np.float32
    assert votes.tolist() == [[[1, 0], [0, 0]], [[0, 0], [1, 1]], [[0, 1], [0, 0]]]
    assert as_votes(votes, output(**LABELS)) is votes
    scores = np.zeros((1, 2, 2), np.float32)
    assert as_votes(scores, output()) is scores
    pair = output(**LABELS, labels=["air", "bone"])
    np.testing.assert_array_equal(as_votes(votes[:2], pair), votes[:2])
    alone = output(**LABELS, labels=["all"])
    assert as_votes(np.array([[[0, 0]]], np.uint8), alone).tolist() == [[[1, 1]]]


# Voxels near a border


def test_labels_that_exclude_each_other_may_both_be_off() -> None:
    likely = np.array([[0.625, 0.5, 0.5], [0.375, 0.375, 0.25], [0.0, 0.125, 0.25]], np.float32)
    counts = [near_boundary(likely, output(**STORED), error) for error in (0.0, 0.0625, 0.124, 0.125, 0.25)]
    assert counts == [0, 1, 1, 3, 3]
    assert near_boundary(np.full((3, 2), 1 / 3, np.float32), output(**STORED), 0.0) == 2


def test_the_border_is_between_the_two_most_probable_labels_wherever_they_stand() -> None:
    names = ["air", "a", "b", "c", "d"]
    likely = np.random.default_rng(6).dirichlet(np.ones(5), 300).T.astype(np.float32)
    ordered = np.sort(likely, axis=0)
    for error in (0.01, 0.1):
        near = int((ordered[-1] - ordered[-2] <= 2 * error).sum())
        assert near_boundary(likely, output(**STORED, labels=names), error) == near


@pytest.mark.parametrize(
    "kind", [{**STORED, "regions": True}, {"scores": "foreground", "foreground": "one"}], ids=["regions", "foreground"]
)
def test_a_region_has_its_border_at_one_half(kind: dict[str, Any]) -> None:
    likely = np.array([[0.5, 0.625, 0.25, 1.0]], np.float32)
    counts = [near_boundary(likely, output(**kind), error) for error in (0.0, 0.124, 0.125, 0.25, 0.5)]
    assert counts == [1, 1, 2, 3, 4]


def test_a_voxel_near_the_borders_of_two_regions_counts_once() -> None:
    likely = np.array([[0.5, 0.0], [0.5, 0.0]], np.float32)
    assert near_boundary(likely, output(**STORED, regions=True), 0.25) == 1


def test_one_label_has_no_border() -> None:
    assert near_boundary(np.array([[0.5, 0.0]], np.float32), output(**STORED, labels=["all"]), 1.0) == 0


# The error of all scores, and their spread


@pytest.mark.parametrize(
    ("kind", "step"),
    [({"dtype": "fp32"}, 0.0), ({"dtype": "uint8"}, 1.0), ({"dtype": "fp16"}, 2**-10), (LABELS, 0.0)],
    ids=str,
)
def test_a_step_of_the_type_is_no_error(kind: dict[str, Any], step: float) -> None:
    """In half precision, a step is that of the largest score: 2⁻¹⁰ from 1 to 2."""
    stored = output(**{**STORED, **kind})
    expected = np.array([[1.5, 0.0, 0.0, 0.0]])
    found = expected + np.array([0.0, -step, 3.0, -4.0 - step])
    errors = [0.0, 0.0, 3.0 - step, 4.0]
    assert error_and_spread(expected, found, stored)[0] == pytest.approx(
        math.sqrt(np.mean(np.square(errors))), rel=1e-9
    )


def test_a_negative_score_may_be_the_largest() -> None:
    expected = np.array([[-1000.0, 1.0]])
    found = expected + np.array([0.0, 0.5])
    assert error_and_spread(expected, found, output(dtype="fp16"))[0] == 0.0
    assert error_and_spread(expected, found, output(dtype="fp32"))[0] > 0.3


def test_bytes_are_compared_without_wrapping() -> None:
    expected, found = np.array([[0, 255]], np.uint8), np.array([[11, 245]], np.uint8)
    assert error_and_spread(expected, found, output(**STORED, dtype="uint8"))[0] == pytest.approx(
        math.sqrt((10**2 + 9**2) / 2)
    )


def test_the_spread_is_over_voxels_and_not_over_scores() -> None:
    """Scores that differ from one another, but nowhere in space, do not vary."""
    scores = np.array([[5.0, 5.0, 5.0, 5.0], [0.0, 2.0, 2.0, 0.0]])
    assert error_and_spread(scores, scores, output())[1] == math.sqrt((0 + 1) / 2)


def test_the_spread_of_scores_far_from_zero_keeps_its_digits() -> None:
    """Their mean, 2²⁴ + 1, is no float32."""
    scores = np.array([[2.0**24, 2.0**24 + 2]], np.float32)
    assert error_and_spread(scores, scores, output(**STORED))[1] == 1.0


@pytest.mark.parametrize(
    ("kind", "level", "least"),
    [
        (STORED, 0.25, 1e-3),
        ({**STORED, "dtype": "uint8"}, 100.0, 0.255),
        ({}, -200.0, 0.02),
        ({}, 50.0, 0.005),
        (LABELS, 1.0, 1e-3),
    ],
    ids=str,
)
def test_scores_that_hardly_vary_count_as_if_they_varied_a_little(
    kind: dict[str, Any], level: float, least: float
) -> None:
    scores = np.full((1, 4), level)
    assert error_and_spread(scores, scores, output(**kind))[1] == pytest.approx(least)


@pytest.mark.parametrize(
    ("value", "digits"), [(0.123456, 0.123), (98765.4, 98800.0), (0.00098765, 0.000988), (0.0, 0.0), (-2.0, -2.0)]
)
def test_three_digits_are_kept(value: float, digits: float) -> None:
    assert rounded(value) == digits


# Whole scans


def scan() -> Scan:
    volume = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    return Scan("a.nii.gz", volume, np.array([[0.0, 1.0]]), SPACING)


def test_a_scans_record_says_which_scan_it_was() -> None:
    described = {"name": "a.nii.gz", "shape": [1, 2, 3, 4], "spacing": [2.0, 1.0, 0.5], "batch": 3}
    described["sha256"] = scan().sha256
    assert describe(scan(), 3) == described
    expected = np.zeros((3, 2, 3, 4), np.float32)
    expected[1, 0, 0, 0] = 1.0
    found = np.zeros_like(expected)
    found[1, 1, 0, 0] = 1.0
    record = measure_scan(spec(), "any", scan(), expected, found, 3)
    assert record == {**described, **compare(expected, found, spec(), "any", "", SPACING)}
    assert record["hausdorff_95_mm"]["one"] == 2.0


def test_a_scan_of_no_numbers_is_refused_by_its_name() -> None:
    wrong = np.full((3, 2, 3, 4), np.nan, np.float32)
    with pytest.raises(AcceptanceError, match=r"the any engine is not accepted: scan 'a\.nii\.gz': expected finite"):
        measure_scan(spec(), "any", scan(), np.zeros_like(wrong), wrong, 1)


# Tiles


def tile(name: str, seed: int, shape: tuple[int, ...] = (2, 3, 4)) -> Tile:
    roi = np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32)
    return Tile(name, roi, np.array([[seed, 1]], np.float32))


def right(inputs: Mapping[str, Array]) -> Array:
    return np.concatenate([inputs["roi"] * factor for factor in (1.0, 2.0, -1.0)], axis=1).astype(np.float32)


def truth(tiles: list[Tile], stride: int = 1) -> list[tuple[Tile, Array]]:
    return [(one, thinned(right({"roi": one.roi[None]})[0], stride)) for one in tiles]


class Watched:
    """An engine that remembers what it was asked; `change(scores, number of the run)` makes it wrong."""

    def __init__(self, change: Any = lambda scores, run: scores) -> None:
        self.change = change
        self.asked: list[Array] = []

    def __call__(self, inputs: Mapping[str, Array]) -> Array:
        self.asked.append(inputs["roi"])
        return np.asarray(self.change(right(inputs), len(self.asked) - 1))


def measured(chosen: Spec, run: Any, tiles: list[Tile], batch: int, **options: Any) -> list[dict[str, Any]]:
    return measure_tiles(chosen, "any", run, truth(tiles), batch, spacing=SPACING, **options)[0]


def test_every_run_has_the_batch_size_that_is_measured() -> None:
    tiles = [tile(name, seed) for seed, name in enumerate("abc")]
    for batch, order in ((1, "a b c"), (2, "ab ca"), (3, "abc"), (4, "abca"), (7, "abcabca")):
        run = Watched()
        records = measured(spec(), run, tiles, batch)
        rois = {one.roi.tobytes(): one.name for one in tiles}
        assert " ".join("".join(rois[roi.tobytes()] for roi in asked) for asked in run.asked) == order
        assert [(record["name"], record["batch"]) for record in records] == [(name, batch) for name in "abc"]
        assert all(record["max_abs_error"] == 0.0 for record in records)


def test_once_means_one_run_with_the_tiles_that_fit() -> None:
    tiles = [tile(name, seed) for seed, name in enumerate("abc")]
    run = Watched()
    records = measured(spec(), run, tiles, 2, once=True)
    assert [len(asked) for asked in run.asked] == [2]
    assert [record["name"] for record in records] == ["a", "b"]


def test_tiles_of_several_sizes_go_in_runs_of_their_own() -> None:
    small, large = (2, 3, 4), (4, 3, 4)
    tiles = [tile("a", 0, small), tile("A", 1, large), tile("b", 2, small)]
    run = Watched()
    records = measured(spec(), run, tiles, 2)
    assert [asked.shape for asked in run.asked] == [(2, 1, *small), (2, 1, *large)]
    assert [record["name"] for record in records] == ["a", "b", "A"]


@pytest.mark.parametrize("wrong_run", [0, 1])
def test_a_tile_that_is_run_twice_has_its_worst_record(wrong_run: int) -> None:
    tiles = [tile(name, seed) for seed, name in enumerate("abc")]

    def spoilt(scores: Array, run: int) -> Array:
        scores = scores.copy()
        position = {0: 0, 1: 1}[wrong_run]  # where the first tile is in either run
        if run == wrong_run:
            scores[position, 0, 0, 0, 0] += 5
        return scores

    by_name = {record["name"]: record for record in measured(spec(), Watched(spoilt), tiles, 2)}
    assert by_name["a"]["max_abs_error_stored"] == 5.0
    assert by_name["b"]["max_abs_error_stored"] == by_name["c"]["max_abs_error_stored"] == 0.0


def test_of_two_records_each_error_is_the_larger_one() -> None:
    """Far from even odds, a large error of a logit is a small one of its probability."""
    one = {"max_abs_error": 0.5, "mean_abs_error": 0.1, "max_abs_error_stored": 1.0, "rms_error": 0.3, "dice": 1}
    other = {"max_abs_error": 0.1, "mean_abs_error": 0.2, "max_abs_error_stored": 9.0, "rms_error": 0.9, "dice": 2}
    worst = {"max_abs_error": 0.5, "mean_abs_error": 0.2, "max_abs_error_stored": 9.0, "rms_error": 0.9, "dice": 1}
    assert evaluate._worse(one, other) == evaluate._worse(other, one) == worst


def test_one_wrong_tile_of_a_batch_is_found_by_its_name() -> None:
    tiles = [tile(name, seed) for seed, name in enumerate("abc")]

    def nothing(scores: Array, run: int) -> Array:
        scores[-1, 2] = np.nan
        return scores

    with pytest.raises(AcceptanceError, match=r"^tiny: the any engine .* tile 'c' at a batch of 3: expected finite"):
        measured(spec(), Watched(nothing), tiles, 3)


def test_an_engine_that_leaves_a_tile_out_is_no_engine() -> None:
    with pytest.raises(ValueError, match="zip"):
        measured(spec(), Watched(lambda scores, _: scores[:1]), [tile("a", 0), tile("b", 1)], 2)


def test_a_reference_of_every_second_voxel_is_compared_with_these_voxels() -> None:
    """Distances are then those of the voxels that are left, which lie twice as far apart."""
    assert thinned(np.arange(2 * 5 * 4).reshape(2, 5, 4), 2).tolist() == [
        [[0, 2], [8, 10], [16, 18]],
        [[20, 22], [28, 30], [36, 38]],
    ]
    one = Tile("a", np.zeros((1, 4, 4, 4), np.float32), np.array([[0, 1]]))
    expected = np.zeros((3, 2, 2, 2), np.float32)
    expected[1, 0, 0, 0] = 1.0
    answer = np.zeros((1, 3, 4, 4, 4), np.float32)
    answer[0, 1, 2, 0, 0] = 1.0
    answer[0, 1, 1, 1, 1] = 9.0  # between the voxels that are compared
    (record,), _ = measure_tiles(spec(), "any", lambda _: answer, [(one, expected)], 1, spacing=SPACING, stride=2)
    assert record["changed_voxels"] == 2
    assert record["max_abs_error_stored"] == 1.0
    assert record["hausdorff_95_mm"]["one"] == 2 * SPACING[0]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_tiles_of_a_2d_network_have_the_spacing_of_their_plane(axis: int) -> None:
    chosen = spec(tiling={"roi_size": [8, 8], "slice_axis": axis})
    one = Tile("a", np.zeros((1, 8, 8), np.float32), np.array([[0, 1]]))
    expected = np.zeros((3, 8, 8), np.float32)
    expected[1, 2, 2] = 1.0
    for shift in ((1, 0), (0, 1)):
        answer = np.roll(expected, shift, axis=(1, 2))[None]
        (record,), _ = measure_tiles(chosen, "any", lambda _, a=answer: a, [(one, expected)], 1, spacing=SPACING)
        plane = [size for index, size in enumerate(SPACING) if index != axis]
        assert record["hausdorff_95_mm"]["one"] == plane[shift.index(1)]


def test_a_tile_of_one_value_is_marked() -> None:
    flat = Tile("flat", np.full((1, 2, 3, 4), 7, np.float32), np.array([[0, 1]]))
    records = measured(spec(), Watched(), [flat, tile("a", 0)], 2)
    assert [record.get("constant") for record in records] == [True, None]


def test_every_tile_comes_with_the_figures_of_its_own_scan() -> None:
    chosen = spec(input={"intensity": {"rule": "zscore"}})
    seen: dict[str, Array] = {}

    def run(inputs: Mapping[str, Array]) -> Array:
        seen.update(inputs)
        return right(inputs)

    tiles = [tile("a", 3), tile("b", 8)]
    assert run_tiles(tiles, chosen, run).shape == (2, 3, 2, 3, 4)
    np.testing.assert_array_equal(seen["roi"], np.stack([one.roi for one in tiles]))
    assert seen["intensity"].tolist() == [[[3, 1]], [[8, 1]]]


def test_the_time_is_that_of_one_tile_in_the_fastest_run_of_the_first_size(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(evaluate.time, "perf_counter", lambda: now)
    taken = iter([9.0, 6.0, 8.0, 1.0])

    def run(inputs: Mapping[str, Array]) -> Array:
        nonlocal now
        now += next(taken)
        return right(inputs)

    tiles = [tile(name, seed) for seed, name in enumerate("abcde")] + [tile("A", 9, (4, 3, 4))]
    assert measure_tiles(spec(), "any", run, truth(tiles), 2, spacing=SPACING)[1] == 3.0


@given(
    st.tuples(*[st.integers(3, 23)] * 3),
    st.tuples(*[st.integers(2, 9)] * 3),
    st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    st.sampled_from([None, 0, 1, 2]),
)
@settings(max_examples=40, deadline=None)
def test_windows_are_counted_as_monai_runs_them(
    shape: tuple[int, ...], roi: tuple[int, ...], overlap: float, slice_axis: int | None
) -> None:
    size = roi if slice_axis is None else roi[:2]
    tiling = {"roi_size": list(size), "overlap": overlap, **({} if slice_axis is None else {"slice_axis": slice_axis})}
    chosen = spec().model_copy(update={"tiling": Tiling(**tiling)})
    scan = Scan("scan", np.zeros((1, *shape), np.int16), np.zeros((1, 2), np.float32))
    ran: list[int] = []

    def run(feed: Mapping[str, Array]) -> Array:
        ran.append(len(feed["roi"]))
        return np.zeros((len(feed["roi"]), 3, *size), np.float32)

    segment(scan, chosen, run, 3)
    assert sum(ran) == windows(scan, chosen)
