"""What a distillation is asked, what it holds to when it goes on, and its folder: one run at a time, nothing left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.specs import spec
from voxtile_build.errors import SlimmingError
from voxtile_build.slimming.plan import Options, check_options, facts_of
from voxtile_build.slimming.work_folder import check_work_folder, claimed, finish_removal, work_folder

ASKED = Options(Path("teacher.toml"), Path("scans"), Path("out"), width=0.5)
SCANS = {"1" * 64: "training", "2" * 64: "held out"}


def facts(asked: Options = ASKED, weights: str = "a" * 64, scans: dict[str, str] = SCANS, **changes: Any) -> Any:
    return facts_of(asked, spec(), weights, spec(name="student", **changes), scans)


# Options


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"width": None}, "--width"),
        ({"student": Path("s.toml")}, "--width or --student"),
        ({"steps": 10, "hours": 1.0}, "--steps or --hours"),
        ({"width": 0.0}, "--width"),
        ({"width": 1.0}, "--width"),
        ({"width": -0.5}, "--width"),
        ({"width": 50.0}, "--width"),
        ({"width": float("nan")}, "--width"),
        ({"steps": 0}, "--steps"),
        ({"steps": -5}, "--steps"),
        ({"hours": 0.0}, "--hours"),
        ({"hours": float("nan")}, "--hours"),
        ({"hours": float("inf")}, "--hours"),
        ({"held_out": 0.0}, "--held-out"),
        ({"held_out": 1.0}, "--held-out"),
        ({"held_out": float("nan")}, "--held-out"),
        ({"seed": -1}, "--seed"),
        ({"seed": 2**40}, "--seed"),
        ({"batch": 0}, "--batch"),
        ({"batch": 10**6}, "--batch"),
        ({"learning_rate": 0.0}, "--learning-rate"),
        ({"learning_rate": float("nan")}, "--learning-rate"),
        ({"pool_gib": 0.0}, "--pool"),
        ({"pool_gib": float("nan")}, "--pool"),
        ({"min_dice": 95.0}, "--min-dice"),
        ({"min_dice": float("nan")}, "--min-dice"),
        ({"threads": 0}, "--threads"),
        ({"threads": 99999999999}, "--threads"),
        ({"threads": 10**400}, "--threads"),
        ({"steps": 10**400}, "--steps"),
        ({"seed": 10**400}, "--seed"),
        ({"batch": 10**400}, "--batch"),
        ({"pool_gib": 1e300}, "--pool"),
        ({"pool_gib": float("inf")}, "--pool"),
        ({"hours": 1e300}, "--hours"),
        ({"learning_rate": float("inf")}, "--learning-rate"),
    ],
)
def test_options_that_no_run_can_hold_to_are_refused_by_name_in_one_line(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(SlimmingError) as error:
        check_options(replace(ASKED, **changes))
    assert str(error.value).startswith((f"{named}: expected", f"expected {named}"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"width": None, "student": Path("s.toml")},
        {"width": 1e-3, "steps": 1, "held_out": 0.999, "min_dice": 0.0, "threads": 1, "batch": 1},
        {"hours": 1e-6, "min_dice": 1.0, "seed": 2**31 - 1},
    ],
)
def test_options_at_their_limits_are_taken(changes: dict[str, Any]) -> None:
    check_options(replace(ASKED, **changes))


def test_training_has_one_budget() -> None:
    assert ASKED.seconds == 3600
    assert replace(ASKED, hours=0.5).seconds == 1800
    assert replace(ASKED, steps=7).seconds is None


def interrupted(output: Path, by: type[BaseException], *, made: bool = True) -> bool:
    """A run that ends early; whether it went on with another."""
    with suppress(by), claimed(output, "student") as work:
        goes_on = work.hold_to(facts())
        work.holds_work = work.holds_work or made
        raise by("ends early")
    return goes_on


# What a run holds to


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (facts(replace(ASKED, seed=1)), "--seed 0 then, 1 now"),
        (facts(replace(ASKED, steps=9)), "--steps left out then, 9 now"),
        (facts(replace(ASKED, hours=2.0)), "--hours 1.0 then, 2.0 now"),
        (facts(replace(ASKED, held_out=0.5)), "--held-out"),
        (facts(replace(ASKED, batch=3)), "--batch"),
        (facts(replace(ASKED, one_scan=True)), "--one-scan"),
        (facts(replace(ASKED, pool_gib=1.0)), "--pool"),
        (facts(weights="b" * 64), "the teacher's weights"),
        (facts(scans={"1" * 64: "held out"}), "scans (1 missing)"),
        (facts(scans=dict.fromkeys(SCANS, "training")), "scans (1 changed sides"),
        (facts(scans={"1" * 64: "training", "3" * 64: "held out", "4" * 64: "training"}), "scans (1 missing, 2 new)"),
        (facts(network={"args": {"channels": [2, 4]}}), "another student"),
    ],
)
def test_a_run_goes_on_only_with_what_it_was_begun_with(tmp_path: Path, other: Any, named: str) -> None:
    assert not interrupted(tmp_path, KeyboardInterrupt, made=False)
    assert interrupted(tmp_path, KeyboardInterrupt, made=False)
    with pytest.raises(SlimmingError) as error, claimed(tmp_path, "student") as work:
        work.hold_to(other)
    assert named in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert (work_folder(tmp_path, "student") / "plan.json").exists()  # nothing of the interrupted run is lost


def test_what_does_not_change_the_weights_may_change() -> None:
    moved = replace(
        ASKED, teacher=Path("t.toml"), scans=Path("x"), output=Path("y"), threads=4, min_dice=0.5, resume=True
    )
    assert facts(moved) == facts()
    assert facts(serving={"max_batch_size": 1}, acceptance={"min_dice": 0.5}, precision={"openvino": "int8"}) == facts()


@pytest.mark.parametrize("text", ["", "[]", "{", "7"])
def test_a_plan_that_cannot_be_read_is_no_traceback(tmp_path: Path, text: str) -> None:
    folder = work_folder(tmp_path, "student")
    folder.mkdir()
    (folder / "plan.json").write_text(text)
    with pytest.raises(SlimmingError, match="begin anew"), claimed(tmp_path, "student") as work:
        work.hold_to(facts())


# The folder


def test_nothing_is_left_of_a_run_that_ended_well_or_was_refused_before_it_made_anything(tmp_path: Path) -> None:
    output = tmp_path / "new"
    interrupted(output, SlimmingError, made=False)
    assert list(tmp_path.iterdir()) == []
    with claimed(output, "student") as work:
        work.hold_to(facts())
        work.holds_work = True
        (work.path / "pool").mkdir()
        (output / "student.toml").touch()
    assert [path.name for path in output.iterdir()] == ["student.toml"]


def test_what_took_time_stays_for_a_run_that_goes_on(tmp_path: Path) -> None:
    check_work_folder(tmp_path, "student", resume=False)
    interrupted(tmp_path, SlimmingError)
    with pytest.raises(SlimmingError, match="--resume"):
        check_work_folder(tmp_path, "student", resume=False)
    check_work_folder(tmp_path, "student", resume=True)
    check_work_folder(tmp_path, "other", resume=False)


def test_one_run_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    with claimed(tmp_path, "student") as work:
        work.hold_to(facts())
        for resume in (False, True):
            with pytest.raises(SlimmingError, match="another distillation is at work"):
                check_work_folder(tmp_path, "student", resume=resume)
        with pytest.raises(SlimmingError, match="another distillation is at work"), claimed(tmp_path, "student"):
            pass
        with claimed(tmp_path, "another"):
            pass
        assert json.loads((work.path / "plan.json").read_text()) == facts()


@pytest.mark.parametrize("found", ["file", "link"])
def test_something_else_in_the_folders_place_is_left_alone(tmp_path: Path, found: str) -> None:
    place = work_folder(tmp_path, "student")
    place.touch() if found == "file" else place.symlink_to(tmp_path / "elsewhere")
    for resume in (False, True):
        with pytest.raises(SlimmingError, match="move it away"):
            check_work_folder(tmp_path, "student", resume=resume)
    assert os.path.lexists(place)


KILLED = """
import os, sys, shutil
from pathlib import Path
from voxtile_build.slimming import work_folder
real = shutil.rmtree
def dies(path, **options):
    if not options:
        os.unlink(path / "plan.json")
        os._exit(9)
    real(path, **options)
shutil.rmtree = dies
with work_folder.claimed(Path(sys.argv[1]), "student") as work:
    work.hold_to({})
    (work.path / "pool").mkdir()
"""


def test_a_run_that_dies_while_it_removes_its_folder_has_ended(tmp_path: Path) -> None:
    """What is left is no run to go on with, and the next run removes it."""
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path]).returncode == 9
    assert len(list(tmp_path.iterdir())) == 1
    check_work_folder(tmp_path, "student", resume=False)
    finish_removal(tmp_path, "student")
    assert list(tmp_path.iterdir()) == []
