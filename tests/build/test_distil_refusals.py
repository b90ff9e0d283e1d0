"""What cannot end well is refused by the command before anything is trained: one line, exit code 2, nothing written."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.distilling import write_scans, write_teacher
from voxtile_build.cli import commands as cli
from voxtile_build.repository import publishing
from voxtile_build.slimming import distil as flow
from voxtile_build.slimming.given.looked_at import LookedAt
from voxtile_build.slimming.plan import Options
from voxtile_build.slimming.request import read_request
from voxtile_build.slimming.work_folder import work_folder

STUDENT = """
name = "student"
[network]
name = "UNet"
args = { spatial_dims = 3, in_channels = 1, out_channels = 3, channels = [2, 4], strides = [2] }
[input]
channels = ["T1"]
orientation = "RAS"
intensity = { rule = "zscore" }
[output]
labels = ["background", "bright", "brightest"]
[inferer]
roi_size = [16, 16, 16]
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    write_teacher(folder, steps=0)
    write_scans(folder / "scans")
    return folder


@pytest.fixture
def case(given: Path, tmp_path: Path) -> Path:
    """A copy of what is given."""
    shutil.copytree(given, tmp_path / "case")
    return tmp_path / "case"


def replaced(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def student(folder: Path, *changes: tuple[str, str]) -> list[str]:
    text = STUDENT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "student.toml").write_text(text)
    return ["--student", str(folder / "student.toml")]


def existing(name: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / "out").mkdir()
        (folder / "out" / name).write_text("precious")
        return []

    return make


def interrupted(folder: Path) -> list[str]:
    work_folder(folder / "out", "teacher-w50").mkdir(parents=True)
    return []


def one_scan(folder: Path) -> list[str]:
    for file in sorted((folder / "scans").iterdir())[1:]:
        file.unlink()
    return []


def no_scans(folder: Path) -> list[str]:
    shutil.rmtree(folder / "scans")
    (folder / "scans").mkdir()
    return []


def in_a_file(folder: Path) -> list[str]:
    replaced(folder / "teacher.toml", 'name = "UNet"\nargs', "#")
    return []


def regions(folder: Path) -> list[str]:
    replaced(folder / "teacher.toml", "[output]", "[output]\nregions = true")
    return []


def limits_that_nothing_keeps(folder: Path) -> list[str]:
    replaced(folder / "teacher.toml", "[serving]", "[acceptance]\nmax_abs_error = 1e-12\n[serving]")
    return []


def a_file(name: str, option: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / name).write_text("precious")
        return [option, str(folder / name)]

    return make


def weights_in_place(folder: Path) -> list[str]:
    (folder / "teacher.safetensors").rename(folder / "big.safetensors")
    replaced(folder / "teacher.toml", "teacher.safetensors", "big.safetensors")
    return ["--name", "big", "--output", str(folder), "--overwrite"]


def in_repository(place: str, option: str = "models") -> Callable[[Path], list[str]]:
    """Something of somebody else in or around the repository."""

    def make(folder: Path) -> list[str]:
        taken = folder / place
        taken.parent.mkdir(parents=True, exist_ok=True)
        taken.write_bytes(b"precious")
        return ["--repository", str(folder / option)]

    return make


def with_volume(make: Callable[[Path], list[str]]) -> Callable[[Path], list[str]]:
    """The teacher asks for entries for whole scans, and so does its student."""

    def change(folder: Path) -> list[str]:
        replaced(folder / "teacher.toml", "[serving]", "[serving]\nvolume = true")
        return make(folder)

    return change


CASES: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "other labels": (lambda f: student(f, ('"brightest"', '"darkest"')), "output.labels[2].name"),
    "fewer labels": (
        lambda f: student(f, (', "brightest"', ""), ("out_channels = 3", "out_channels = 2")),
        "output.labels: 3 in the teacher, 2 in the student",
    ),
    "other tiles": (lambda f: student(f, ("[16, 16, 16]", "[16, 16, 24]")), "inferer.roi_size"),
    "other intensities": (lambda f: student(f, ('"zscore"', '"none"')), "input.intensity"),
    "a network that does not fit": (lambda f: student(f, ("out_channels = 3", "out_channels = 4")), "student.toml: "),
    "a teacher of regions without an order": (regions, "teacher.toml: teacher: output.region_order"),
    "a width that leaves no channel": (lambda f: ["--width", "0.05"], "leaves no channel"),
    "a width above 1": (lambda f: ["--width", "50"], "--width"),
    "a width and a student": (lambda f: [*student(f), "--width", "0.5"], "found both"),
    "neither": (lambda f: ["--seed", "9"], "found neither"),
    "steps and hours": (lambda f: ["--steps", "9", "--hours", "1"], "--steps or --hours"),
    "one scan": (one_scan, "--one-scan"),
    "no scans": (no_scans, "expected scans"),
    "no such folder": (lambda f: ["--scans", str(f / "nowhere")], "nowhere"),
    "weights that exist": (existing("teacher-w50.safetensors"), "teacher-w50.safetensors"),
    "a spec that exists": (existing("teacher-w50.toml"), "teacher-w50.toml"),
    "an interrupted run": (interrupted, "--resume"),
    "the teacher's name": (lambda f: ["--name", "teacher"], "--name"),
    "a name that is not allowed": (lambda f: ["--name", "My Student"], "--name"),
    "a pool of no size": (lambda f: ["--pool", "1e-6"], "give --pool 0.00"),
    "a disk without room": (lambda f: ["--steps", "99999999", "--pool", "1e5"], "of free disk"),
    "an output that is a file": (a_file("o", "--output"), "expected a folder"),
    "an output below a file": (lambda f: ["--output", str(f / "teacher.toml" / "out")], "expected a folder"),
    "an output in a folder that takes none": (lambda f: ["--output", "/proc/students"], "folder that can be written"),
    "an output of a name that is too long": (
        lambda f: ["--output", str(f / ("o" * 300))],
        "expected a folder that can be written",
    ),
    "a repository that is a file": (a_file("models", "--repository"), "expected a folder"),
    "a repository below a file": (in_repository("file", "file/models"), "expected a folder as the repository"),
    "another's model of the name": (
        in_repository("models/teacher-w50/1/model.onnx"),
        "teacher-w50: expected nothing, or an entry that was built here, found another's model",
    ),
    "another's model of an engine's name": (
        in_repository("models/teacher-w50_tensorrt/1/model.plan"),
        "teacher-w50_tensorrt: expected nothing",
    ),
    "another's model of the name for whole scans": (
        with_volume(in_repository("models/teacher-w50_scan/1/model.onnx")),
        "teacher-w50_scan: a model has the name",
    ),
    "another's model among the entries for whole scans": (
        with_volume(in_repository("models-volume/teacher-w50_scan/1/model.onnx")),
        "teacher-w50_scan: expected nothing",
    ),
    "a file in place of the entries for whole scans": (
        with_volume(in_repository("models-volume")),
        "models-volume: expected a folder for the entries",
    ),
    "a repository where nothing can be made": (lambda f: ["--repository", "/proc"], "nothing can be made in /proc"),
    "a repository below such a one": (lambda f: ["--repository", "/proc/models"], "nothing can be made in /proc"),
    "threads without end": (lambda f: ["--threads", "99999999999"], "--threads: expected from 1 to"),
    "steps without end": (lambda f: ["--steps", "1" + 400 * "0"], "--steps: expected from 1 to"),
    "a spec that is given": (
        lambda f: [*student(f), "--output", str(f), "--overwrite"],
        "student.toml: is given, and would be replaced",
    ),
    "the teacher's own weights": (weights_in_place, "big.safetensors: is given"),
    "an unknown option": (lambda f: ["--stepps", "9"], "--stepps"),
    "no number": (lambda f: ["--steps", "many"], "--steps"),
    "no teacher": (lambda f: (f / "teacher.toml").unlink() or [], "teacher.toml"),
    "a teacher without weights": (lambda f: (f / "teacher.safetensors").unlink() or [], "teacher.safetensors"),
    "options of nnU-Net": (lambda f: ["--folds", "0"], "--folds"),
    "a teacher below its limits": (limits_that_nothing_keeps, "max_abs_error"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_in_one_line_and_nothing_is_left(
    name: str, case: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, told = CASES[name]
    arguments: list[Any] = [case / "teacher.toml", "--scans", case / "scans", "--output", case / "out", "--quiet"]
    more = make(case)
    if not {"--steps", "--hours"} & {*more}:
        more += ["--steps", "1"]
    if not {"--width", "--student"} & {*more} and name != "neither":
        more += ["--width", "0.5"]
    before = contents(case)
    code = cli.main(["distil", *map(str, arguments), *more])
    error = capsys.readouterr().err
    assert code == (4 if name == "a teacher below its limits" else 2), error
    assert told in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1, error
    assert contents(case) == before


def test_nothing_is_left_of_a_run_that_was_refused_before_a_patch_was_labelled(
    case: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up while the teacher's engine is built."""
    free = [1 << 40]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free.pop() if free else 64 << 10))
    before = contents(case)
    arguments = ("distil", case / "teacher.toml", "--scans", case / "scans", "--output", case / "out", "--quiet")
    assert cli.main([*map(str, arguments), "--width", "0.5", "--steps", "1", "--any-modality"]) == 2
    error = capsys.readouterr().err
    assert "for 16 patches" in error
    assert "found 64.0 KiB; free some, or choose another --output" in error
    assert contents(case) == before


@pytest.mark.parametrize("protected", ["models", "."])
def test_a_repository_that_cannot_be_written_is_refused_at_the_start(
    protected: str, case: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build renames entries into it from a folder beside it."""
    (case / "store" / "models").mkdir(parents=True)
    before, closed, make = contents(case), (case / "store" / protected).resolve(), tempfile.TemporaryFile

    def refusing(*, dir: Path) -> Any:
        if dir == closed:
            raise PermissionError(errno.EACCES, "Permission denied")
        return make(dir=dir)

    # Those who may write everywhere, as in a container, would be refused nowhere.
    monkeypatch.setattr(publishing.tempfile, "TemporaryFile", refusing)
    given = ["--scans", case / "scans", "--output", case / "out", "--width", "0.5", "--steps", "1"]
    code = cli.main(["distil", *map(str, [case / "teacher.toml", *given, "--repository", case / "store/models"])])
    error = capsys.readouterr().err
    assert code == 2, error
    assert f"found that nothing can be made in {closed} (Permission denied)" in error
    assert contents(case) == before


# What is told, and not refused ---------------------------------------------------------------------------------------


def options(case: Path, **changes: Any) -> Options:
    return Options(case / "teacher.toml", case / "scans", case / "out", **changes)


@pytest.mark.parametrize(
    ("channels", "start"), [((4, 8), "the teacher's network, as it is"), ((4, 16), "random"), ((2, 8), None)]
)
def test_a_student_that_gains_nothing_is_told(channels: tuple[int, int], start: str | None, case: Path) -> None:
    wide = student(case, ("[2, 4]", str([*channels])))[1]
    request = read_request(options(case, student=Path(wide), steps=1))
    if start is None:
        assert not request.warnings
        assert request.start == "the teacher's network, narrowed"
        return
    (line,) = request.warnings
    assert "hardly be faster" in line
    assert line.endswith(f"its start is {start}")
    assert request.start == start


def test_a_student_as_wide_as_a_teacher_that_mirrors_gains(case: Path) -> None:
    replaced(case / "teacher.toml", "overlap = 0.25", "overlap = 0.25\nmirror_axes = [0]")
    wide = student(case, ("[2, 4]", "[4, 8]"))[1]
    assert not read_request(options(case, student=Path(wide), steps=1)).warnings


@pytest.mark.parametrize("count", [1, 3])
def test_a_report_says_whether_one_scan_was_parted_not_whether_that_was_asked_for(count: int, case: Path) -> None:
    for file in sorted((case / "scans").iterdir())[count:]:
        file.unlink()
    request = read_request(options(case, width=0.5, steps=1, one_scan=True))
    told: list[str] = []
    parted = flow._parted(request, LookedAt(case / "work"), told.append, lambda _: None)
    found = flow._options(request, parted)
    assert found["one-scan"] is parted.by_block is (count == 1)
    assert (found["held-out"] is None) == (count == 1)
    assert [line for line in told if "not needed for scans of several persons; 1 of 3" in line] == (
        told if count == 3 else []
    )
    assert len(told) == (count == 3)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}
