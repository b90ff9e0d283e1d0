"""The pool of labelled patches: what is stored, what a killed run leaves, and which answers may be mirrored."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.slimming_teachers import FunctionTeacher, by_brightness, by_side, head, model
from voxtile_build.errors import SlimmingError
from voxtile_build.evaluation.samples import Scan
from voxtile_build.slimming.pool import Pool, patches_within, wanted_patches
from voxtile_build.slimming.pool.augment import make_patch
from voxtile_build.slimming.pool.files import IMAGES, TARGETS
from voxtile_build.slimming.pool.layout import FEWEST, REPLAYS, SPARE, Layout, check_room
from voxtile_build.slimming.pool.mirrors import agreeing, own_axes
from voxtile_build.slimming.pool.pool import LIST
from voxtile_build.slimming.pool.survey import survey
from voxtile_build.spec.spec import Spec

Array = NDArray[Any]
COUNT = 7


class Killed(BaseException):
    """Ends a run where it is, as SIGKILL does: nothing of the pool catches it."""


class Reader:
    """Reads scans, and notes which."""

    def __init__(self, given: Spec, count: int = 3) -> None:
        self.scans = [head(given, seed=seed) for seed in range(count)]
        self.read: list[int] = []

    def sources(self) -> list[Callable[[], Scan]]:
        def source(index: int) -> Callable[[], Scan]:
            def read() -> Scan:
                self.read.append(index)
                return self.scans[index]

            return read

        return [source(index) for index in range(len(self.scans))]


def content(pool: Pool) -> list[bytes]:
    return [(pool.folder / name).read_bytes() for name in (IMAGES, TARGETS, LIST)]


def labelled(folder: Path, given: Spec, count: int = COUNT, function: Any = by_brightness, **options: Any) -> Pool:
    pool = Pool(folder, given, count, 5, **options)
    pool.label(Reader(given).sources(), FunctionTeacher(given, function))
    return pool


@pytest.fixture
def whole(tmp_path: Path) -> Pool:
    return labelled(tmp_path / "whole", model())


# What is stored


def test_a_patch_is_stored_with_its_teachers_answer(whole: Pool) -> None:
    given = model()
    teacher, scans = FunctionTeacher(given, by_brightness), Reader(given).scans
    for number in range(COUNT):
        scan = scans[number * 3 // COUNT]
        patch = make_patch(np.random.default_rng([5, number]), scan, survey(scan, 5), given)
        image, target = whole.batch([number], [()])
        expected = teacher.image(patch.roi[None], patch.statistics[None])
        np.testing.assert_allclose(image, expected, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(target, by_brightness(expected), rtol=1e-3, atol=2e-3)
        assert image.dtype == target.dtype == np.float32
        assert list(whole.voxels[number]) == [int((target[0].argmax(axis=0) == label).sum()) for label in range(3)]


def test_the_disk_holds_what_the_limit_counts(whole: Pool) -> None:
    stored = sum((whole.folder / name).stat().st_size for name in (IMAGES, TARGETS))
    assert stored == COUNT * whole.layout.patch_bytes == COUNT * 16 * 8 * 12 * (2 + 3 * 2)
    assert patches_within(model(), 20 * whole.layout.patch_bytes + 5) == 20


def test_a_batch_is_mirrored_image_and_answer_alike(whole: Pool) -> None:
    image, target = whole.batch([2, 4], [(), ()])
    flipped = whole.batch([2, 4], [(0, 2), (1,)])
    for plain, mirrored in zip((image, target), flipped, strict=True):
        np.testing.assert_array_equal(mirrored[0], plain[0, :, ::-1, :, ::-1])
        np.testing.assert_array_equal(mirrored[1], plain[1, :, :, ::-1])


def test_scores_beyond_fp16_are_brought_to_its_end(tmp_path: Path) -> None:
    pool = labelled(tmp_path, model(), function=lambda image: by_brightness(image) * 1e6)
    _, target = pool.batch([0], [()])
    assert np.isfinite(target).all()
    assert abs(target).max() == 65504


def test_values_without_normalisation_are_stored_in_fp32(tmp_path: Path) -> None:
    given = model(input={"dtype": "fp32", "intensity": {"rule": "none"}})
    scan = head(given)
    large = Scan(scan.name, scan.volume * np.float32(1e5) + np.float32(1), scan.statistics)
    pool = Pool(tmp_path, given, 3, 0)
    pool.label([lambda: large], FunctionTeacher(given, lambda image: by_brightness(image / 1e8)))
    assert pool.batch([0, 1, 2], [()] * 3)[0].max() > 1e7


def test_a_2d_network_has_patches_of_slices(tmp_path: Path) -> None:
    given = model(tiling={"roi_size": [16, 12], "slice_axis": 2}, network={"args": {"spatial_dims": 2}})
    pool = labelled(tmp_path, given)
    image, target = pool.batch([0, 3], [(0,), (1,)])
    assert image.shape == (2, 1, 16, 12)
    assert target.shape == (2, 3, 16, 12)
    assert pool.flips() == (0, 1)


# Killed and damaged


@pytest.mark.parametrize("after", [0, 1, 3, 6])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(whole: Pool, tmp_path: Path, after: int) -> None:
    given, reader = model(), Reader(model())
    pool = Pool(tmp_path / "cut off", given, COUNT, 5)

    def kill(done: int, _: int) -> None:
        if done > after:
            raise Killed

    with pytest.raises(Killed):
        pool.label(reader.sources(), FunctionTeacher(given, by_brightness), told=kill)
    reader.read.clear()
    again = Pool(tmp_path / "cut off", given, COUNT, 5)
    assert again.missing == tuple(range(after + 1, COUNT))
    teacher = FunctionTeacher(given, by_brightness)
    again.label(reader.sources(), teacher)
    assert content(again) == content(whole)
    assert reader.read == sorted({number * 3 // COUNT for number in range(after + 1, COUNT)})
    again.label(reader.sources(), teacher)
    assert again.missing == ()
    assert len(reader.read) == len(set(reader.read)), "no scan is read twice"


def test_each_scan_is_read_once_and_has_its_share(tmp_path: Path) -> None:
    given, reader = model(), Reader(model(), count=4)
    pool = Pool(tmp_path, given, 10, 0)
    seen: list[int] = []
    pool.label(
        reader.sources(), FunctionTeacher(given, by_brightness), told=lambda done, count: seen.append(len(reader.read))
    )
    assert reader.read == [0, 1, 2, 3]
    assert np.bincount(seen)[1:].tolist() == [3, 2, 3, 2]


@pytest.mark.parametrize("name", [IMAGES, TARGETS])
@pytest.mark.parametrize("damage", ["cut short", "one bit", "gone", "zeros"])
def test_damaged_patches_are_made_again(whole: Pool, name: str, damage: str) -> None:
    before, path = content(whole), whole.folder / name
    stored = bytearray(path.read_bytes())
    if damage == "cut short":
        path.write_bytes(stored[: len(stored) // 2])
    elif damage == "one bit":
        stored[len(stored) // 2] ^= 1
        path.write_bytes(stored)
    elif damage == "zeros":
        path.write_bytes(bytes(len(stored)))
    else:
        path.unlink()
    again = Pool(whole.folder, model(), COUNT, 5)
    expected = {"cut short": (3, 4, 5, 6), "one bit": (3,), "gone": tuple(range(7)), "zeros": tuple(range(7))}
    assert again.missing == expected[damage]
    again.label(Reader(model()).sources(), FunctionTeacher(model(), by_brightness))
    images, targets, records = content(again)
    assert [images, targets] == before[:2]
    assert sorted(records.splitlines()) == sorted(before[2].splitlines())


@pytest.mark.parametrize(
    "tail", ['{"patch": 6, "sha', "\x00\x00\x00\n", "[]\n", '{"patch": 99, "sha256": "", "voxels": []}\n']
)
def test_a_torn_line_of_the_list_costs_its_patch_alone(whole: Pool, tail: str) -> None:
    path = whole.folder / LIST
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + tail)
    again = Pool(whole.folder, model(), COUNT, 5)
    assert again.missing == (6,)
    again.label(Reader(model()).sources(), FunctionTeacher(model(), by_brightness))
    assert path.read_text() == "".join(lines)


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 6},
        {"count": 8},
        {"key": "another teacher"},
        {"kind": "probabilities"},
        {"spec": model(tiling={"roi_size": [8, 8, 8]})},
    ],
)
def test_the_pool_of_another_run_is_refused_and_stays(whole: Pool, other: dict[str, Any]) -> None:
    before = content(whole)
    given = {"folder": whole.folder, "spec": model(), "count": COUNT, "seed": 5, **other}
    with pytest.raises(SlimmingError, match=r"found those of another one .* remove the folder"):
        Pool(**given)
    assert content(whole) == before


def test_a_pool_that_was_cut_short_under_a_training_is_an_error(whole: Pool) -> None:
    with (whole.folder / TARGETS).open("r+b") as stream:
        stream.truncate(10)
    with pytest.raises(SlimmingError, match=r"cannot be used: .*ends after 10 bytes"):
        whole.batch([0], [()])


def test_nothing_is_left_of_a_pool_that_is_removed(whole: Pool) -> None:
    whole.remove()
    assert not whole.folder.exists()
    whole.remove()


def test_what_others_put_into_the_folder_stays(whole: Pool) -> None:
    (whole.folder / "mine").touch()
    whole.remove()
    assert [path.name for path in whole.folder.iterdir()] == ["mine"]


# No room


def test_a_disk_without_room_is_refused_before_any_scan_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, pool = Reader(model()), Pool(tmp_path, model(), COUNT, 5)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=300 << 20))
    pool.label(reader.sources()[:0], FunctionTeacher(model(), by_brightness))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=256 << 20))
    needed = r"expected 256.1 MiB of free disk \(84.0 KiB for 7 patches, 256.0 MiB .*\), found 256.0 MiB"
    with pytest.raises(SlimmingError, match=needed):
        pool.label(reader.sources(), FunctionTeacher(model(), by_brightness))
    with pytest.raises(SlimmingError, match="free some, and go on with --resume"):
        pool.label(reader.sources(), FunctionTeacher(model(), by_brightness), begun=True)
    assert reader.read == []


def test_a_smaller_pool_is_advised_where_it_helps_and_in_words_that_are_then_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = model()
    layout = Layout.of(given)
    for patches, free, may_be_fewer, helps in (
        (10**6, SPARE + 10 * FEWEST * layout.patch_bytes, True, True),
        (10**6, SPARE + 10 * FEWEST * layout.patch_bytes, False, False),
        (10**6, SPARE, True, False),  # not even the fewest patches fit
        (FEWEST, SPARE, True, False),  # there are never fewer
        (FEWEST, 40 << 10, True, False),
    ):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        with pytest.raises(SlimmingError) as caught:
            check_room(tmp_path, layout, patches, may_be_fewer=may_be_fewer)
        advised = re.search(r"--pool, from (\S+)", str(caught.value))
        assert (advised is not None) == helps, str(caught.value)
        assert "found 0.0" not in str(caught.value)
        assert ("--resume" in str(caught.value)) != may_be_fewer
        if advised:
            check_room(tmp_path, layout, patches_within(given, int(float(advised[1]) * 2**30)))


@pytest.mark.parametrize("roi", [(8, 8, 8), (16, 8, 12), (24, 40, 17), (96, 96, 96), (160, 192, 224)])
def test_the_pool_that_is_advised_is_large_enough(roi: tuple[int, ...]) -> None:
    given = model(tiling={"roi_size": list(roi)})
    with pytest.raises(SlimmingError, match="--pool: expected room for at least 16 patches") as caught:
        patches_within(given, 1000)
    advised = re.search(r"give --pool (\S+) or more", str(caught.value))
    assert advised
    found = patches_within(given, int(float(advised[1]) * 2**30))
    assert FEWEST <= found <= 1.2 * FEWEST


@pytest.mark.parametrize("name", [IMAGES, TARGETS, LIST])
def test_a_disk_that_fills_up_leaves_whole_patches(tmp_path: Path, name: str) -> None:
    pool = Pool(tmp_path, model(), COUNT, 5)
    path = tmp_path / name

    def fill(done: int, _: int) -> None:
        if done == 3:
            path.rename(tmp_path / "kept")
            path.symlink_to("/dev/full")

    with pytest.raises(SlimmingError, match=r"the disk is full .* --resume"):
        pool.label(Reader(model()).sources(), FunctionTeacher(model(), by_brightness), told=fill)
    (tmp_path / "kept").replace(path)
    assert Pool(tmp_path, model(), COUNT, 5).missing == (3, 4, 5, 6)


def test_a_limit_too_small_to_learn_from_is_refused() -> None:
    with pytest.raises(SlimmingError, match=f"at least {FEWEST} patches"):
        patches_within(model(), 100_000)


def test_patches_wanted_by_a_budget() -> None:
    assert wanted_patches(600, None, 2) == 600 * 2 // REPLAYS
    assert wanted_patches(1, None, 1) == FEWEST
    assert wanted_patches(None, 3600, 2, 0.5) == 2160
    assert wanted_patches(None, 10, 2, 100) == FEWEST
    # Where the student is slow, fewer are labelled, so that each is shown as often as it should be.
    wanted = wanted_patches(None, 3600, 2, 3.0, 5.0)
    assert wanted == int(3600 / (3 + REPLAYS * 5))
    assert wanted * 3 + REPLAYS * wanted * 5 <= 3600
    assert wanted_patches(None, 3600, 2, 0.5, 1e-6) == 2160


# Answers that cannot be used


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_teacher_that_answers_no_number_is_refused(tmp_path: Path, value: float) -> None:
    def broken(image: Array) -> Array:
        scores = by_brightness(image)
        scores[0, 1, 2, 3, 4] = value
        return scores

    with pytest.raises(SlimmingError, match="expected finite scores of the teacher"):
        labelled(tmp_path, model(), function=broken)


def test_a_teacher_with_other_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SlimmingError, match=r"expected the teacher's answer as \[3, 16, 8, 12\].* found \[2,"):
        labelled(tmp_path, model(), function=lambda image: by_brightness(image)[:, :2])


def test_normalised_values_beyond_fp16_are_refused(tmp_path: Path) -> None:
    given = model(input={"intensity": {"rule": "fixed", "mean": [0.0], "std": [1e-4]}})
    with pytest.raises(SlimmingError, match=r"expected normalised values within ±65504"):
        labelled(tmp_path, given)


# Mirror images


def test_a_teacher_without_a_side_may_be_mirrored(whole: Pool) -> None:
    assert whole.flips() == (0, 1, 2)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_teacher_that_tells_sides_apart_is_not_mirrored_there(tmp_path: Path, axis: int) -> None:
    pool = labelled(tmp_path, model(), function=by_side(axis), count=16)
    assert pool.flips() == tuple(other for other in range(3) if other != axis)


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_one_region_with_a_side_is_enough(tmp_path: Path, kind: str) -> None:
    given = model(output={"labels": ["whole", "left", "bright"], "regions": True})

    def answer(image: Array) -> Array:
        scores = np.concatenate([image, by_side(1)(image)[:, 1:2] - 2, image - 1], axis=1)
        return scores if kind == "logits" else 0.5 + 0.5 * np.tanh(0.5 * scores)

    pool = labelled(tmp_path, given, function=answer, count=16, kind=kind)
    assert pool.flips() == (0, 2)


def test_a_rare_label_with_a_side_is_enough(tmp_path: Path) -> None:
    """It is seen in the last scan alone, and asked about there."""

    def answer(image: Array) -> Array:
        scores = by_brightness(image)
        if len(asked) > 20:
            scores[:, 2] = np.where(by_side(0)(image)[:, 1] > 2, 50.0, -50.0)
        else:
            scores[:, 2] = -50
        asked.append(1)
        return scores

    asked: list[int] = []
    given = model()
    pool = Pool(tmp_path, given, 24, 5)
    pool.label(Reader(given).sources(), FunctionTeacher(given, answer))
    assert pool.voxels[:, 2].sum() > 100
    assert 0 not in pool.flips()


def test_the_teacher_is_asked_few_mirrored_patches(tmp_path: Path) -> None:
    given = model()
    teacher, pool = FunctionTeacher(given, by_brightness), Pool(tmp_path, given, 24, 5)
    pool.label(Reader(given).sources(), teacher)
    assert 24 + 3 <= teacher.asked <= 24 + 3 * 6
    lines = [json.loads(line) for line in (tmp_path / LIST).read_text().splitlines()[1:]]
    assert 3 * sum(bool(line["mirrored"]) for line in lines) == teacher.asked - 24


def test_axes_that_the_teacher_mirrors_by_itself_are_not_asked(tmp_path: Path) -> None:
    given = model()
    teacher, pool = FunctionTeacher(given, by_brightness), Pool(tmp_path, given, 8, 5)
    every = [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    pool.label(Reader(given).sources(), teacher, mirrorings=every)
    assert teacher.asked == 8
    assert pool.flips(every) == (0, 1, 2)
    assert pool.flips([(), (0,)]) == (0,)


@pytest.mark.parametrize(
    ("mirrorings", "expected"),
    [([()], ()), ([(), (1,)], (1,)), ([(), (0,), (2,), (0, 2)], (0, 2)), ([(), (0,), (1,)], ()), ([(), (0, 1)], ())],
)
def test_a_mean_is_its_own_mirror_image_if_its_passes_are(mirrorings: Any, expected: tuple[int, ...]) -> None:
    assert own_axes(mirrorings) == expected


def test_a_teacher_that_is_not_sure_of_its_mirror_image_is_not_mirrored() -> None:
    """The least agreement that students are to reach is 0.97: mirrored answers must not stand in its way."""
    found = [[500, 1000], [480, 1000]], [[500, 1000], [490, 1000]]
    overlaps = [{"0": found[0], "1": found[1]}]
    assert agreeing(overlaps, [500, 500], [0, 1], []) == (1,)


def test_a_label_that_was_not_asked_about_counts_as_one_with_a_side() -> None:
    overlap = {"0": [[500, 1000], [0, 0]]}
    assert agreeing([overlap], [500, 20], [0], []) == (0,)
    assert agreeing([overlap], [500, 80], [0], []) == ()
    assert agreeing([], [500, 80], [0], []) == ()
