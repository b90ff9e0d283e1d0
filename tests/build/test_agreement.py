"""How far a student agrees with its teacher: the figures of whole masks, whatever the memory, and what both cost."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.build_specs import Linear, spec, tiny_unet
from voxtile_build.arrays import Array, Feed, Runner
from voxtile_build.errors import AcceptanceError
from voxtile_build.evaluation.evaluate import compare_masks
from voxtile_build.evaluation.metrics import masks
from voxtile_build.evaluation.samples import Scan
from voxtile_build.evaluation.whole_scan import segment, torch_runner
from voxtile_build.graph.wrapper import Wrapper
from voxtile_build.slimming.judging.agreement import _compared, measure_agreement, student_runner
from voxtile_build.slimming.judging.cost import cost_of, costs, seconds_in_turns, tile_feed
from voxtile_build.slimming.judging.whole_masks import WholeMasks, decide
from voxtile_build.spec.spec import Spec

SPACING = (0.8, 1.5, 2.5)


def scan(shape: tuple[int, ...] = (21, 30, 18), seed: int = 0, name: str = "Doe^Jane.nii.gz") -> Scan:
    """A scan of smooth blobs, unlike any mirror image of itself."""
    waves = np.random.default_rng(seed).normal(0, 1, (8, 4))
    points = np.stack(np.meshgrid(*(np.linspace(0, 2, size) for size in shape), indexing="ij"), -1)
    values = sum(a * np.sin(points @ np.array([b, c, d]) * 3) for a, b, c, d in waves)
    return Scan(name, values[None].astype(np.float32), np.array([[0.0, 1.0]], np.float32), SPACING)


def steps(*edges: float) -> Runner:
    """A label for each range of intensities between `edges`."""

    def run(feed: Feed) -> Array:
        index = np.digitize(feed["roi"][:, 0], edges)
        return np.stack([(index == n).astype(np.float32) for n in range(len(edges) + 1)], axis=1)

    return run


CASES: dict[str, dict[str, Any]] = {
    "classes": {},
    "probabilities": {"output": {"scores": "probabilities"}},
    "regions": {"output": {"regions": True, "region_order": ["background", "one", "two"]}},
    "slices": {"tiling": {"roi_size": [16, 12], "slice_axis": 2}, "network": {"args": {"spatial_dims": 2}}},
    "slices along the first axis": {"tiling": {"roi_size": [16, 12], "slice_axis": 0}},
    "whole slices": {"tiling": {"roi_size": [16, 16], "slice_axis": 1, "multiple": 4, "overlap": 0.0}},
    "constant weights": {"tiling": {"mode": "constant", "overlap": 0.5}},
    "larger than the scan": {"tiling": {"roi_size": [32, 16, 24]}},
}


def noisy(seed: int, shift: float) -> Runner:
    """Scores that depend on each tile's intensities, so that a tile in the wrong place shows."""
    weights = np.random.default_rng(seed).normal(0, 1, 3).astype(np.float32)

    def run(feed: Feed) -> Array:
        values = feed["roi"].astype(np.float32).clip(-99, 99)
        return np.concatenate([np.sin(values * w + shift) for w in weights], axis=1)

    return run


@pytest.mark.parametrize("most_bytes", [None, 1])
@pytest.mark.parametrize("case", CASES)
def test_figures_are_those_of_masks_that_monai_stitches(case: str, most_bytes: int | None) -> None:
    chosen = spec(**CASES[case])
    one, other = noisy(1, 0.0), noisy(1, 0.1)
    scans = [scan(), scan((17, 25, 23), 1)]
    found = measure_agreement(chosen, one, other, [lambda s=s: s for s in scans], batch=3, most_bytes=most_bytes)
    for record, source in zip(found.scans, scans, strict=True):
        stitched = [masks(segment(source, chosen, run, 2), chosen.output) for run in (one, other)]
        wanted = compare_masks(*stitched, chosen.output, SPACING)
        # Rounding decides where two scores are equal; masks of smooth scores have no such voxels here.
        assert record.changed_voxels == wanted["changed_voxels"] > 0
        assert record.changed_fraction == wanted["changed_fraction"]
        assert (record.shape, record.spacing, record.sha256) == (source.volume.shape[1:], SPACING, source.sha256)
        for index, (name, label) in enumerate(record.labels.items()):
            assert label.dice == wanted["dice"][name]
            assert label.hausdorff_95_mm == wanted["hausdorff_95_mm"][name]
            assert label.voxels == wanted["voxels"][name]
            assert label.changed_voxels == wanted["changed_by_label"][name]
            before, after = (int(one[index].sum()) for one in stitched)
            assert label.student_voxels == after
            assert label.volume_difference_ml == pytest.approx((after - before) * 0.8 * 1.5 * 2.5 / 1000)
            if before:
                assert label.volume_difference_percent == pytest.approx(100 * (after / before - 1))


@pytest.mark.parametrize("regions", [False, True])
def test_masks_that_lie_apart_are_compared_whole(regions: bool) -> None:
    """One mask reaches farther to one side, the other one to the other side, so that no box of one holds both."""
    chosen = spec(output={"regions": regions, **({"region_order": ["background", "one", "two"]} if regions else {})})
    blocks = ((slice(2, 9), slice(3, 14), slice(1, 6)), (slice(5, 12), slice(1, 8), slice(2, 15)))
    decided = [np.zeros((14, 16, 18), np.uint8) for _ in blocks]
    for one, block in zip(decided, blocks, strict=True):
        one[block] = 1
    apart = [np.stack([one == index for index in range(3)]) for one in decided]
    found = _compared(
        scan((14, 16, 18)),
        chosen.output,
        *(WholeMasks(masks if regions else one, 3, not regions) for one, masks in zip(decided, apart, strict=True)),
    )
    wanted = compare_masks(*apart, chosen.output, SPACING)
    for name in ("background", "one"):
        assert found.labels[name].dice == wanted["dice"][name]
        assert found.labels[name].voxels == wanted["voxels"][name]
        assert found.labels[name].hausdorff_95_mm == wanted["hausdorff_95_mm"][name]
        assert found.labels[name].changed_voxels == wanted["changed_by_label"][name]
    assert found.labels["two"].dice is None
    assert found.changed_voxels == wanted["changed_voxels"]


@pytest.mark.parametrize("case", CASES)
def test_little_memory_gives_the_same_masks(case: str) -> None:
    """Strips change no sum, and hold fewer scores at a time."""
    chosen, run = spec(**CASES[case]), noisy(2, 0.3)
    plain, cut = (decide(scan((21, 60, 18)), chosen, run, 2, most_bytes=most) for most in (1 << 30, 1))
    np.testing.assert_array_equal(plain.decided, cut.decided)
    assert plain.excluding is (case != "regions")


def test_strips_hold_fewer_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    from voxtile_build.certificate import stitched_scan

    held: list[int] = []

    class Noted(stitched_scan.Stitcher):  # type: ignore[name-defined,misc]
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            held.append(self._sums.nbytes)

    monkeypatch.setattr(stitched_scan, "Stitcher", Noted)
    decide(scan((20, 64, 18)), spec(), noisy(1, 0), 2)
    (whole,) = held
    decide(scan((20, 64, 18)), spec(), noisy(1, 0), 2, most_bytes=whole // 5)
    assert len(held) > 5
    assert max(held[1:]) <= whole // 5


def test_the_same_network_agrees_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    run = steps(-1.0, 1.0)
    found = measure_agreement(spec(), run, run, [lambda: scan((40, 40, 40))], told=shares.append)
    assert found.dice_min == 1
    assert found.changed_fraction == 0
    assert not found.unseen_labels
    assert all(one.hausdorff_95_mm == 0 for one in found.scans[0].labels.values())
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert len(set(shares)) > 3


def test_labels_are_summed_up_over_scans() -> None:
    one, other = steps(-1.0, 1.0), steps(-0.9, 1.3)
    readers: list[Callable[[], Scan]] = [lambda n=n: scan((30, 34, 32), n) for n in range(3)]
    found = measure_agreement(spec(), one, other, readers)
    for name, label in found.labels.items():
        each = [one.labels[name] for one in found.scans]
        dice = [one.dice for one in each if one.dice is not None]
        assert label.dice_mean == pytest.approx(sum(dice) / 3)
        assert label.dice_min == min(dice)
        assert label.hausdorff_95_mm_max == max(one.hausdorff_95_mm or 0 for one in each)
        assert label.volume_difference_ml_mean == pytest.approx(np.mean([abs(e.volume_difference_ml) for e in each]))
        assert label.voxels == sum(one.voxels for one in each)
    assert found.dice_min == min(one.dice_min or 0 for one in found.labels.values())
    assert found.dice_min < 1


def test_a_label_that_no_scan_shows_is_named_and_has_no_figures() -> None:
    found = measure_agreement(spec(), steps(-1.0, 90.0), steps(-1.1, 90.0), [scan], block=True)
    label = found.labels["two"]
    assert found.unseen_labels == {"two": 0}
    assert (label.scans, label.dice_mean, label.dice_min, label.hausdorff_95_mm_mean) == (0, None, None, None)
    assert found.block


def test_a_label_that_only_one_of_them_sees_agrees_in_nothing() -> None:
    for one, other in itertools.permutations((steps(-1.0, 1.0), steps(-1.0, 90.0))):
        found = measure_agreement(spec(), one, other, [lambda: scan((40, 40, 40))])
        assert found.scans[0].labels["two"].hausdorff_95_mm is None
        assert found.dice_min == found.labels["two"].dice_min == 0
        assert math.isfinite(found.labels["two"].volume_difference_ml_mean)


@pytest.mark.parametrize("who", ["teacher", "student"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_end_it_without_a_name(who: str, value: float) -> None:
    def broken(feed: Feed) -> Array:
        scores = steps(-1.0, 1.0)(feed).copy()
        scores[0, 1, 3, 3, 3] = value
        return scores

    good = steps(-1.0, 1.0)
    pair = (broken, good) if who == "teacher" else (good, broken)
    with pytest.raises(AcceptanceError) as error:
        measure_agreement(spec(), *pair, [scan, scan])
    assert f"held-out scan 1 of 2: expected finite scores of the {who}" in str(error.value)
    assert "Doe" not in str(error.value)


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_a_student_answers_in_the_form_of_its_teacher(kind: str) -> None:
    student = spec(output={"scores": "foreground", "foreground": "one", "dtype": "uint8"}, input={"dtype": "int16"})
    scoring = spec(output={"scores": kind}, input={"dtype": "int16"})
    network = tiny_unet()
    roi = np.random.default_rng(0).integers(-30, 90, (2, 1, 16, 8, 12)).astype(np.int16)
    found = student_runner(network, student, scoring)({"roi": roi})
    np.testing.assert_array_equal(found, torch_runner(Wrapper(network, scoring).eval())({"roi": roi}))
    assert found.shape[1] == 3
    assert (np.abs(found.sum(1) - 1).max() < 1e-5) == (kind == "probabilities")


@pytest.mark.parametrize("axes", [(0,), (1, 2)])
def test_a_student_that_mirrors_is_judged_with_its_mirror_images(axes: tuple[int, ...]) -> None:
    scoring = spec()
    student = spec(tiling={"mirror_axes": list(axes)})
    network = tiny_unet()
    roi = np.random.default_rng(0).normal(0, 1, (2, 1, 16, 8, 12)).astype(np.float32)
    wrapped = Wrapper(network, scoring).eval()
    images = [
        [axis + 2 for axis in some] for count in range(len(axes) + 1) for some in itertools.combinations(axes, count)
    ]
    with torch.inference_mode():
        each = [wrapped(torch.from_numpy(roi).flip(one)).flip(one) for one in images]
    wanted = torch.stack(each).mean(0).numpy()
    found = student_runner(network, student, scoring)({"roi": roi})
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(found - each[0].numpy()).max() > 1e-2


# What it costs ------------------------------------------------------------------------------------------------------


class Uncopied(nn.Sequential):
    """A network that cannot be copied, as programs of torch.export cannot."""

    def __deepcopy__(self, _: Any) -> Any:
        raise TypeError("no copies")


def test_operations_and_parameters_are_those_of_the_layers() -> None:
    first, inner, last = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 6, 2, stride=2), nn.ConvTranspose3d(6, 3, 2, 2)
    network = nn.Sequential(first, nn.InstanceNorm3d(8), inner, last)
    voxels = 16 * 8 * 12
    wanted = 2 * voxels * (27 * 8 + 8 * 8 * 6 / 8 + 6 * 3)
    found = cost_of(network.eval(), spec(), networks=5, passes=8)
    assert found.gflop == pytest.approx(5 * 8 * wanted / 1e9)
    assert found.parameters == 5 * sum(one.numel() for one in network.parameters())
    assert cost_of(network.eval(), spec()).gflop == pytest.approx(wanted / 1e9)
    assert cost_of(Uncopied(first), spec()).gflop == pytest.approx(2 * voxels * 27 * 8 / 1e9)


def test_what_cannot_be_counted_is_not_said_to_be_nothing() -> None:
    class Refusing(nn.Module):
        def forward(self, _: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no")

    assert cost_of(Refusing(), spec()).gflop is None
    assert cost_of(Linear((1.0, 2.0, 3.0)), spec()).gflop is None


def test_runs_take_turns_and_each_has_its_fastest() -> None:
    order: list[str] = []
    found = seconds_in_turns({name: lambda n=name: order.append(n) for name in "ab"}, most_seconds=0, rounds=(3, 9))
    assert order == list("ab" * 4)
    assert found.keys() == {"a", "b"}
    assert all(0 <= one < 1 for one in found.values())
    order.clear()
    seconds_in_turns({"a": lambda: order.append("a")}, most_seconds=60, rounds=(1, 5))
    assert order == ["a"] * 6


@dataclasses.dataclass
class Asked:
    """A teacher that notes what it is asked."""

    scoring: Spec
    network: nn.Module
    engine: str = "openvino"
    precision: str = "bf16"
    mirrorings: tuple[tuple[int, ...], ...] = ((), (0,))
    feeds: list[Any] = dataclasses.field(default_factory=list)

    @property
    def networks(self) -> Any:
        return [self] * 3

    def load(self) -> nn.Module:
        return self.network

    def run(self, feed: Feed) -> None:
        self.feeds.append(feed)


@pytest.mark.parametrize("rule", ["none", "zscore"])
def test_teacher_and_student_are_measured_on_the_same_tile(rule: str) -> None:
    scoring = spec(input={"intensity": {"rule": rule}, "dtype": "int16"}).model_copy(update={"name": "large"})
    teacher: Any = Asked(scoring, tiny_unet())
    theirs, ours = costs(teacher, tiny_unet(), scoring, most_seconds=0)
    assert theirs.seconds.keys() == {"PyTorch fp32", "openvino bf16"}
    assert ours.seconds.keys() == {"PyTorch fp32"}
    assert theirs.parameters == 3 * ours.parameters
    assert theirs.gflop == pytest.approx(6 * (ours.gflop or 0))
    assert {feed["roi"].shape for feed in teacher.feeds} == {(1, 1, 16, 8, 12)}
    assert all(("intensity" in feed) == (rule == "zscore") for feed in [*teacher.feeds, tile_feed(scoring)])
