"""An engine in the precision that the spec asks for, and what `auto` may choose: on engines made of rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.specs import spec
from voxtile_build.engines import select
from voxtile_build.engines.base import Compiled, Variant
from voxtile_build.engines.select import calibration_metrics, compile_at
from voxtile_build.errors import EngineError
from voxtile_build.evaluation.samples import Scan
from voxtile_build.evaluation.summary import ENOUGH_VOXELS, FEW_VOXELS, SEEN_VOXELS
from voxtile_build.spec.spec import Spec

Array = NDArray[Any]
SHAPE = (20, 30, 7)
LAYERS = ("a", "b", "c", "d")


def scores(*sizes: int) -> Array:
    """[label, *SHAPE] of which the first labels after the background have so many voxels, one after the other."""
    found = np.zeros((3, *SHAPE), np.float32)
    found[0] = 0.5
    flat, start = found.reshape(3, -1), 0
    for label, size in enumerate(sizes, 1):
        flat[label, start : start + size] = 1.0
        start += size
    return found


def changed(wanted: Array, label: int, count: int) -> Array:
    """`count` voxels of a label are lost to the background."""
    found = wanted.copy()
    where = np.flatnonzero(found[label].ravel() == 1.0)[:count]
    found[label].reshape(-1)[where] = 0.0
    return found


def graphs_of(chosen: Spec, *expected: Array, generated: bool = False) -> Any:
    scans = tuple(
        Scan(f"scan {index}", np.full((1, *SHAPE), index), np.zeros((1, 2))) for index in range(len(expected))
    )
    return SimpleNamespace(
        spec=chosen,
        expected=expected,
        calibration=SimpleNamespace(scans=scans, generated=generated),
        warnings_of=lambda names: tuple(f"a pass of {name}" for name in names),
    )


@pytest.fixture(autouse=True)
def _segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine of these tests is given whole scans, and says with which batch."""
    monkeypatch.setattr(select, "segment", lambda scan, spec, run, batch: run({"scan": scan, "batch": batch}))


def answers(*found: Array) -> Callable[[Any], Array]:
    def run(inputs: Any) -> Array:
        assert inputs["batch"] == 5
        return found[int(inputs["scan"].volume.flat[0])]

    return run


def chosen_spec(**changes: Any) -> Spec:
    return spec(serving={"max_batch_size": 5}, **changes)


# What is measured


def test_of_several_scans_the_worst_dice_of_each_label_and_the_largest_change_count() -> None:
    wanted = (scores(2000, 1000), scores(1000, 2000), scores(1500, 1500))
    found = (changed(wanted[0], 1, 20), changed(wanted[1], 2, 400), changed(wanted[2], 1, 10))
    for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        graphs = graphs_of(chosen_spec(), *(wanted[index] for index in order))
        metrics = calibration_metrics(graphs, answers(*(found[index] for index in order)))
        background = [1200, 1200, 1200]
        assert metrics.dice == {
            "background": 2 * background[1] / (2 * background[1] + 400),
            "one": 2 * 1980 / (2000 + 1980),
            "two": 2 * 1600 / (2000 + 1600),
        }
        assert metrics.changed == 400 / np.prod(SHAPE)


def test_an_engine_that_changes_nothing_has_dice_1_of_every_label() -> None:
    wanted = scores(2000, 0)
    metrics = calibration_metrics(graphs_of(chosen_spec(), wanted), answers(wanted))
    assert metrics.dice == {"background": 1.0, "one": 1.0, "two": 1.0}
    assert metrics.changed == 0.0


def test_of_a_single_mask_the_change_is_a_share_of_the_scan_too() -> None:
    foreground = chosen_spec(output={"labels": ["background", "one"], "scores": "foreground", "foreground": "one"})
    wanted = scores(2000)[1:2]
    found = changed(wanted, 0, 20)
    metrics = calibration_metrics(graphs_of(foreground, wanted), answers(found))
    assert metrics.dice == {"one": 2 * 1980 / (2000 + 1980)}
    assert metrics.changed == 20 / np.prod(SHAPE)


@pytest.mark.parametrize(
    ("size", "lost", "counts"),
    [
        (ENOUGH_VOXELS - 1, FEW_VOXELS, False),
        (ENOUGH_VOXELS - 1, FEW_VOXELS + 1, True),
        (ENOUGH_VOXELS, 1, True),
    ],
)
def test_of_a_small_label_a_few_changed_voxels_decide_nothing(size: int, lost: int, counts: bool) -> None:
    wanted = scores(size, 1000)
    metrics = calibration_metrics(graphs_of(chosen_spec(), wanted), answers(changed(wanted, 1, lost)))
    assert metrics.dice["one"] == (2 * (size - lost) / (2 * size - lost) if counts else 1.0)
    assert metrics.changed == lost / np.prod(SHAPE)


def test_every_calibration_scan_is_compared() -> None:
    wanted = scores(2000, 1000)
    with pytest.raises(ValueError, match="zip"):
        calibration_metrics(
            SimpleNamespace(
                spec=chosen_spec(), expected=(wanted,), calibration=graphs_of(chosen_spec(), wanted, wanted).calibration
            ),  # type: ignore[arg-type]
            answers(wanted, wanted),
        )


# The precision that was asked for


class Engine:
    """Variants by name; each `works` for so many layers back, and writes one file."""

    name = "onnxruntime"

    def __init__(self, works: dict[str, int], wanted: Array) -> None:
        self.works, self.wanted = works, wanted
        self.built: list[tuple[str, frozenset[str], Path]] = []
        self.given: list[tuple[Any, ...]] = []

    def variants(self) -> tuple[Variant, ...]:
        return tuple(Variant(name, self._build(name), lambda graphs: LAYERS) for name in self.works)

    def search(self, _: Spec) -> Sequence[Variant]:
        return self.variants()

    def settle(self, found: Compiled, kept: frozenset[str], graphs: Any, chosen: Spec, folder: Path) -> Compiled:
        self.given.append((found, kept, graphs, chosen, folder))
        assert all(file.exists() for file in found.files)
        return replace(found, facts={"settled": True}, warnings=("settled",))

    def _build(self, precision: str) -> Any:
        def build(graphs: Any, chosen: Spec, folder: Path, kept: frozenset[str]) -> Compiled:
            assert folder.is_dir()
            assert list(folder.iterdir()) == []
            self.built.append((precision, kept, folder))
            file = folder / "model.bin"
            file.write_text(precision)
            right = len(kept) >= self.works[precision]
            run = answers(self.wanted if right else changed(self.wanted, 1, 500))
            facts = {"calibration": {}} if precision == "int8" else {}
            self.given.append((graphs, chosen))
            return Compiled((file,), precision, run, ("base",), facts=facts, warnings=(f"{precision} is new",))

        return build


def compiled(
    tmp_path: Path, engine: Engine, *, precision: str = "auto", generated: bool = False, **changes: Any
) -> Compiled:
    folder = tmp_path / "entry" / "1"
    folder.mkdir(parents=True)
    chosen = chosen_spec(precision={"onnxruntime": precision}, **changes)
    graphs = graphs_of(chosen, engine.wanted, generated=generated)
    return compile_at(engine, graphs, chosen, folder)  # type: ignore[arg-type]


WANTED = scores(2000, 1000)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_precision_that_is_named_is_built_as_it_is(tmp_path: Path, precision: str) -> None:
    engine = Engine({"int8": 9, "fp16": 9, "fp32": 9}, WANTED)
    made = compiled(tmp_path, engine, precision=precision)
    assert [(name, kept, folder) for name, kept, folder in engine.built] == [
        (precision, frozenset(), tmp_path / "entry" / "1")
    ]
    assert made.precision == precision
    assert made.warnings == ("a pass of base", f"{precision} is new")


@pytest.mark.parametrize(("precision", "warned"), [("int8", True), ("fp32", False), ("auto", True)])
def test_what_was_calibrated_on_a_phantom_comes_with_a_warning(tmp_path: Path, precision: str, warned: bool) -> None:
    made = compiled(tmp_path, Engine({"int8": 0, "fp32": 0}, WANTED), precision=precision, generated=True)
    told = [warning for warning in made.warnings if "calibrated on a generated phantom" in warning]
    assert len(told) == int(warned)
    assert all(warning.startswith(f"{made.precision}: calibrated") for warning in told)
    assert not warned or made.warnings[-1] == told[0]


def test_what_was_calibrated_on_scans_comes_without(tmp_path: Path) -> None:
    made = compiled(tmp_path, Engine({"int8": 0, "fp32": 0}, WANTED), precision="int8")
    assert made.warnings == ("a pass of base", "int8 is new")


# What `auto` finds


def test_auto_takes_the_first_precision_that_keeps_the_segmentation(tmp_path: Path) -> None:
    engine = Engine({"int8": 9, "fp16": 1, "fp32": 0}, WANTED)
    made = compiled(tmp_path, engine)
    assert made.precision == "fp16"
    found, kept, graphs, chosen, folder = engine.given[-1]
    assert (found.precision, kept, folder) == ("fp16", frozenset({"a"}), tmp_path / "entry" / "1")
    assert all(given == (graphs, chosen) for given in engine.given[:-1])
    assert made.facts["settled"]
    assert made.facts["search"]["order"] == ["int8", "fp16", "fp32"]
    tried = [(step["precision"], step["kept"]) for step in made.facts["search"]["path"]]
    assert tried == [("int8", []), ("int8", ["a"]), ("int8", ["a", "b"]), ("fp16", []), ("fp16", ["a"])]
    assert made.facts["search"]["accepted"]["kept"] == ["a"]
    assert made.warnings == ("a pass of base", "settled")


def test_attempts_lie_on_the_file_system_of_the_entry_and_leave_nothing(tmp_path: Path) -> None:
    engine = Engine({"int8": 9, "fp32": 0}, WANTED)
    seen: list[list[str]] = []
    right = engine.settle

    def settle(found: Compiled, *others: Any) -> Compiled:
        seen.append(sorted(file.read_text() for file in found.files[0].parents[1].rglob("model.bin")))
        return right(found, *others)

    engine.settle = settle  # type: ignore[method-assign]
    compiled(tmp_path, engine)
    folders = [folder for _, _, folder in engine.built]
    assert len(set(folders)) == len(folders) == 4
    assert {folder.parents[1] for folder in folders} == {tmp_path}
    assert seen == [["fp32"]]  # the files of refused attempts are gone by then
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["1", "entry"]


def test_an_attempt_without_its_file_can_be_removed_as_well(tmp_path: Path) -> None:
    select._remove_files(Compiled((tmp_path / "gone.bin",), "int8", answers()))


def test_the_seconds_of_every_attempt_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 50.0
    monkeypatch.setattr(select.time, "perf_counter", lambda: now)
    right = select.calibration_metrics

    def slow(*arguments: Any) -> Any:
        nonlocal now
        now += 2.0
        return right(*arguments)

    monkeypatch.setattr(select, "calibration_metrics", slow)
    made = compiled(tmp_path, Engine({"int8": 9, "fp32": 0}, WANTED))
    assert made.seconds == {"auto 1: int8": 2.0, "auto 2: int8": 2.0, "auto 3: int8": 2.0, "auto 4: fp32": 2.0}


@pytest.mark.parametrize(
    ("lost", "limits", "accepted"),
    [
        (4, {}, True),
        (5, {}, False),
        (5, {"max_changed": 0.01}, True),
        (20, {"max_changed": 0.01}, False),
        (20, {"max_changed": 0.01, "min_dice": 0.9}, True),
        (20, {"min_dice": 0.9}, False),
    ],
    ids=str,
)
def test_auto_keeps_the_limits_of_the_spec(tmp_path: Path, lost: int, limits: dict[str, float], accepted: bool) -> None:
    """Of 4200 voxels 4 may change, and of a label of 1000 voxels Dice 0.995 leaves 9."""
    engine = Engine({"int8": 0, "fp32": 0}, WANTED)
    build = engine._build

    def spoilt(precision: str) -> Any:
        def made(*arguments: Any) -> Compiled:
            right = build(precision)(*arguments)
            return replace(right, run=answers(changed(WANTED, 2, lost))) if precision == "int8" else right

        return made

    engine._build = spoilt  # type: ignore[method-assign]
    assert compiled(tmp_path, engine, acceptance=limits).precision == ("int8" if accepted else "fp32")


def test_a_figure_on_the_limit_is_accepted_though_binary_is_a_hair_off(tmp_path: Path) -> None:
    """1 - 0.9 is 0.09999999999999998, and the Dice of 900 and 1100 voxels, of which 900 are shared, is 0.9."""
    engine = Engine({"int8": 0, "fp32": 0}, scores(2000, 1100))
    lost = changed(engine.wanted, 2, 200)  # Dice 2 · 900 / (1100 + 900)
    build = engine._build

    def on_the_limit(precision: str) -> Any:
        return lambda *arguments: replace(build(precision)(*arguments), run=answers(lost))

    engine._build = on_the_limit  # type: ignore[method-assign]
    made = compiled(tmp_path, engine, acceptance={"min_dice": 0.9, "max_changed": 0.5})
    assert made.precision == "int8"


def test_where_nothing_keeps_the_segmentation_there_is_no_engine(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="No precision keeps the segmentation"):
        compiled(tmp_path, Engine({"int8": 9}, WANTED))


# Labels that the calibration scans do not show


def provable(
    *expected: Array, works: tuple[str, ...] = ("int8", "fp16", "fp32"), **changes: Any
) -> tuple[list[str], tuple[str, ...]]:
    chosen = chosen_spec(**changes)
    engine = Engine(dict.fromkeys(works, 0), WANTED)
    wanted, warnings = select._provable(engine.variants(), graphs_of(chosen, *expected), chosen)
    return [variant.precision for variant in wanted], warnings


def test_of_a_label_that_no_scan_shows_only_fp32_says_enough() -> None:
    names, (warning,) = provable(scores(2000, SEEN_VOXELS - 1))
    assert names == ["fp32"]
    assert f"show fewer than {SEEN_VOXELS} voxels of two; name" in warning
    names, (warning,) = provable(scores(0, 0))
    assert "voxels of one, two; name" in warning


def test_all_scans_together_may_show_it() -> None:
    assert provable(scores(2000, SEEN_VOXELS)) == (["int8", "fp16", "fp32"], ())
    first, second = scores(SEEN_VOXELS - 1, SEEN_VOXELS // 2), scores(1, SEEN_VOXELS - SEEN_VOXELS // 2)
    assert provable(first, second) == (["int8", "fp16", "fp32"], ())
    assert provable(first, first)[0] == ["int8", "fp16", "fp32"]
    assert provable(first)[0] == ["fp32"]


@pytest.mark.parametrize("acceptance", [{"allow_unseen_labels": True}, {"max_abs_error": 0.1}], ids=str)
def test_the_spec_may_take_unseen_labels(acceptance: dict[str, Any]) -> None:
    assert provable(scores(0, 0), acceptance=acceptance) == (["int8", "fp16", "fp32"], ())


def test_an_engine_without_fp32_is_searched_all_the_same() -> None:
    """Its certificate decides: it refuses labels that its own scans do not show."""
    assert provable(scores(0, 0), works=("int8", "fp16")) == (["int8", "fp16"], ())


def test_a_foreground_alone_has_to_be_seen() -> None:
    output = {"scores": "foreground", "foreground": "one"}
    seen = np.zeros((1, *SHAPE), np.float32)
    assert provable(seen, output=output)[0] == ["fp32"]
    seen.reshape(-1)[:SEEN_VOXELS] = 1.0
    assert provable(seen, output=output)[0] == ["int8", "fp16", "fp32"]


def test_an_unseen_label_makes_auto_fp32_and_says_so(tmp_path: Path) -> None:
    engine = Engine({"int8": 0, "fp32": 0}, scores(2000, 0))
    made = compiled(tmp_path, engine)
    assert made.precision == "fp32"
    assert made.facts["search"]["order"] == ["fp32"]
    assert made.warnings[:2] == ("a pass of base", "settled")
    assert made.warnings[2].startswith("auto: fp32, because the calibration scans show fewer than")
