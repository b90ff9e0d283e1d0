"""What comes out of a distillation: files that read back as they were judged, all of them or none, and no names."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import DynUNet
from torch import nn

from tests.support import students
from tests.support.build_specs import tiny_unet
from tests.support.specs import spec
from voxtile_build.certificate.distillation import Cost, DistillationReport, Scans, Teacher, student_of
from voxtile_build.errors import AcceptanceError, SlimmingError, WeightsError
from voxtile_build.evaluation.agreement import agreement_of
from voxtile_build.hashing import file_sha256
from voxtile_build.importers.network import load_network, untrained_network
from voxtile_build.networks.heads import OneHead
from voxtile_build.slimming import outcome
from voxtile_build.slimming.judging.model_card import model_card
from voxtile_build.slimming.outcome import Made, check_new, outcome_files, write_outcome
from voxtile_build.slimming.student import student_spec
from voxtile_build.spec.spec import Spec, load_spec

STUDENT = spec(title="Two things", input={"intensity": {"rule": "zscore"}})


def made(student: Spec = STUDENT, *dice: float, network: nn.Module | None = None, **changes: Any) -> Made:
    """A student that never was trained."""
    found = students.agreement(student, *(dice or (0.97, 0.99)))
    fields: dict[str, Any] = {
        "student": student,
        "network": network or tiny_unet(),
        "teacher": Teacher(
            name=students.TEACHER,
            weights_sha256=students.TEACHER_SHA256,
            networks=5,
            mirrored_passes=8,
            engine="openvino",
            precision="bf16",
            cost=Cost(parameters=31_000_000, gflop=900, seconds={"PyTorch fp32": 12.0, "openvino bf16": 3.0}),
        ),
        "scans": Scans(
            trained_on=("aa" * 32, "bb" * 32, "cc" * 32),
            held_out=tuple(f"{number:02x}" * 32 for number in range(len(found.scans))),
        ),
        "agreement": found,
        "cost": Cost(parameters=1_500_000, gflop=None, seconds={"PyTorch fp32": 0.25}),
        "options": {"--width": 0.5, "--hours": None, "--seed": 7},
        "training": {"steps": 1200, "seconds": 3599.5, "device": "CPU, fp32"},
        "log": '{"step": 1}\n',
        "source": "a hospital | a ward",
        "licence": "ask first",
    }
    return Made(**{**fields, **changes})


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Where files come to lie, and the folder of what is not finished."""
    folder, work = tmp_path / "out", tmp_path / "out" / ".work"
    work.mkdir(parents=True)
    return folder, work


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_all_files_appear_and_name_one_another(places: tuple[Path, Path]) -> None:
    folder, work = places
    given = made()
    written = write_outcome(given, folder, work)
    endings = (".safetensors", ".toml", ".md", ".jsonl", ".distillation.json")
    assert set(contents(folder)) == {f"tiny{ending}" for ending in endings}
    read = load_spec(folder / "tiny.toml")
    assert read == written.spec
    assert read.distillation is not None
    assert read.distillation.min_dice == 0.95
    found = student_of(read)
    assert found is not None
    assert (found.teacher, found.dice_min, found.scans) == (students.TEACHER, 0.97, 2)
    report = DistillationReport.model_validate_json((folder / "tiny.distillation.json").read_bytes())
    assert report.student.weights_sha256 == file_sha256(folder / "tiny.safetensors")
    assert report.agreement == given.agreement
    assert report.scans == given.scans
    assert report.options == given.options
    assert report.versions["torch"]
    loaded = load_network(read).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in given.network.state_dict().items())
    assert (folder / "tiny.jsonl").read_text() == given.log


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_all_files_may_be_read_by_those_who_may_read_any_new_file(mask: int, places: tuple[Path, Path]) -> None:
    before = os.umask(mask)
    try:
        write_outcome(made(), *places)
    finally:
        os.umask(before)
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in places[0].iterdir() if path.is_file()}
    assert found == dict.fromkeys(found, 0o666 & ~mask)
    assert len(found) == len(outcome.ENDINGS)


def test_the_folder_can_be_moved(places: tuple[Path, Path], tmp_path: Path) -> None:
    write_outcome(made(), *places)
    places[0].rename(tmp_path / "elsewhere")
    moved = load_spec(tmp_path / "elsewhere/tiny.toml")
    assert student_of(moved) is not None
    load_network(moved)


def test_a_student_that_agrees_too_little_is_written_and_not_published(places: tuple[Path, Path]) -> None:
    written = write_outcome(made(STUDENT, 0.8), *places)
    assert all(path.is_file() for path in written.files.values())
    with pytest.raises(AcceptanceError, match=r"expected at least 0\.95 .* found two 0\.8"):
        student_of(written.spec)
    lower = write_outcome(made(STUDENT, 0.8, min_dice=0.7), *places, overwrite=True)
    assert student_of(lower.spec) is not None


DYN_UNET = {
    "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "kernel_size": [3, 3, 3], "strides": [1, 2, 2],
    "upsample_kernel_size": [2, 2], "filters": [4, 6, 8], "deep_supervision": False,
}  # fmt: skip


def test_weights_under_several_names_are_written_once_and_read_back(places: tuple[Path, Path]) -> None:
    described = STUDENT.network.model_copy(update={"name": "DynUNet", "args": DYN_UNET})
    chosen = STUDENT.model_copy(update={"network": described})
    network = DynUNet(**DYN_UNET).eval()
    shared = [value.data_ptr() for value in network.state_dict().values()]
    assert len(set(shared)) < len(shared)
    write_outcome(made(chosen, network=network), *places)
    loaded = load_network(load_spec(places[0] / "tiny.toml")).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in network.state_dict().items())


def test_a_network_whose_head_is_chosen_reads_back(places: tuple[Path, Path]) -> None:
    chosen = STUDENT.model_copy(update={"network": STUDENT.network.model_copy(update={"head": 0})})
    write_outcome(made(chosen, network=OneHead(tiny_unet(), 0)), *places)
    assert isinstance(load_network(load_spec(places[0] / "tiny.toml")), OneHead)


def test_half_precision_is_no_student(places: tuple[Path, Path]) -> None:
    """What was judged in another type than it is read in was judged as another network."""
    with pytest.raises(SlimmingError, match="read back as they were judged"):
        write_outcome(made(network=tiny_unet().half()), *places)
    assert not contents(places[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_leave_nothing(value: float, places: tuple[Path, Path]) -> None:
    network = tiny_unet()
    with torch.no_grad():
        next(network.parameters()).view(-1)[3] = value
    with pytest.raises(WeightsError, match="expected finite weights"):
        write_outcome(made(network=network), *places)
    assert not contents(places[0])


def test_another_network_than_the_specs_leaves_nothing(places: tuple[Path, Path]) -> None:
    with pytest.raises(WeightsError, match="do not fit"):
        write_outcome(made(network=nn.Conv3d(1, 3, 1)), *places)
    assert not contents(places[0])


# Nothing is overwritten, nothing is half there -----------------------------------------------------------------------


@pytest.mark.parametrize("what", outcome.ENDINGS)
def test_no_file_of_somebody_elses_is_replaced(what: str, places: tuple[Path, Path]) -> None:
    taken = outcome_files(places[0], "tiny")[what]
    taken.write_text("mine")
    for act in (lambda: check_new(places[0], "tiny", overwrite=False), lambda: write_outcome(made(), *places)):
        with pytest.raises(SlimmingError, match=f"{taken}: expected names of new files.*--overwrite") as error:
            act()
        assert error.value.exit_code == 2
    assert contents(places[0]) == {taken.name: b"mine"}
    write_outcome(made(), *places, overwrite=True)
    assert taken.read_bytes() != b"mine"


@pytest.mark.parametrize("kind", ["folder", "link", "dangling", "pipe"])
def test_what_is_no_file_is_never_replaced(kind: str, places: tuple[Path, Path], tmp_path: Path) -> None:
    taken = places[0] / "tiny.md"
    (tmp_path / "other").write_text("mine")
    makers = {
        "folder": taken.mkdir,
        "link": lambda: taken.symlink_to(tmp_path / "other"),
        "dangling": lambda: taken.symlink_to(tmp_path / "nowhere"),
        "pipe": lambda: os.mkfifo(taken),
    }
    makers[kind]()
    with pytest.raises(SlimmingError, match="found a folder, a link or a device"):
        write_outcome(made(), *places, overwrite=True)
    assert os.path.lexists(taken)
    assert (tmp_path / "other").read_text() == "mine"
    assert not contents(places[0]).keys() - {"tiny.md"}


@pytest.mark.parametrize(
    ("overwrite", "fails_at"), [(False, 0), (False, 4), (True, 0), (True, 3), (True, 5), (True, 7), (True, 9)]
)
def test_a_disk_that_fails_leaves_all_as_it_was(
    overwrite: bool, fails_at: int, places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, work = places
    if overwrite:
        write_outcome(made(STUDENT, 0.9), folder, work)
    before = contents(folder)
    calls, rename = iter(range(1000)), os.rename

    def failing(source: Any, target: Any) -> None:
        if next(calls) == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(outcome.os, "rename", failing)
    with pytest.raises(OSError, match="No space left"):
        write_outcome(made(), folder, work, overwrite=overwrite)
    assert contents(folder) == before
    monkeypatch.undo()
    write_outcome(made(), folder, work, overwrite=overwrite)  # what was left over is no obstacle
    assert student_of(load_spec(folder / "tiny.toml")) is not None


def test_a_run_that_is_killed_while_files_get_their_names_leaves_no_spec(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spec comes last, and an old one goes first: nobody builds from one half of two outcomes."""
    folder, work = places
    write_outcome(made(STUDENT, 0.9), folder, work)
    rename, seen = os.rename, []

    def noted(source: Any, target: Any) -> None:
        rename(source, target)
        seen.append((folder / "tiny.toml").exists())

    monkeypatch.setattr(outcome.os, "rename", noted)
    write_outcome(made(), folder, work, overwrite=True)
    assert seen == [False] * 9 + [True]


# What people read ----------------------------------------------------------------------------------------------------


def page(given: Made, folder: Path, work: Path) -> str:
    write_outcome(given, folder, work, overwrite=True)
    return (folder / f"{given.student.name}.md").read_text()


def test_the_page_says_whose_student_it_is_and_what_it_is_not(places: tuple[Path, Path]) -> None:
    text = page(made(), *places)
    assert text.startswith(f"# tiny, a student of {students.TEACHER}\n")
    assert students.TEACHER_SHA256 in text
    assert "Agreement is no accuracy" in text
    assert "accura" not in text.replace("no accuracy", "")
    assert f"It is not {students.TEACHER}" in text
    assert "answered for 3 scans" in text
    assert "2 others were held out" in text
    assert "| networks × passes for a tile | 1 × 1 | 5 × 8 |" in text
    assert "| GFLOP for a tile | – | 900 |" in text
    assert "| seconds for a tile, openvino bf16 | – | 3 |" in text
    assert "| seconds | 3599.5 |" in text
    assert "| --hours | – |" in text
    assert "a hospital | a ward" in text
    assert "Lowest Dice of all: 0.9700." in text
    (row,) = [line for line in text.splitlines() if line.startswith("| two |")]
    assert row.split(" | ")[1:4] == ["2", "0.9800", "0.9700"]
    tables = [line for line in text.splitlines() if line.startswith("|")]
    for first, second in itertools.pairwise(tables):
        if second.startswith("| --"):
            assert first.count("|") == second.count("|")


def test_the_page_of_one_scan_says_so(places: tuple[Path, Path]) -> None:
    block = students.agreement(STUDENT, 0.97, block=True)
    scans = Scans(trained_on=("aa" * 32,), held_out=("aa" * 32,))
    text = page(made(agreement=block, scans=scans), *places)
    assert "There was one scan" in text
    assert "judged on one scan alone" in text


def test_the_page_names_labels_that_nobody_saw(places: tuple[Path, Path]) -> None:
    labels = {"background": students.label(0.99), "one": students.label(0.98), "two": students.label(None, 0, 0)}
    scans = Scans(trained_on=("aa" * 32,), held_out=("00" * 32,))
    text = page(made(agreement=agreement_of([students.scan(labels)]), scans=scans), *places)
    assert "**Not seen: two (0 voxels).**" in text
    assert "| two | 0 | – | – | – | – | 0 | – |" in text


def test_what_was_done_is_told_in_place_of_what_was_asked_for() -> None:
    done, asked = {"steps": 1518, "device": "cpu"}, {"steps": None, "hours": 2.0}
    named = spec(weights={"file": "w", "sha256": "c" * 64})
    report = students.report_of(named, students.agreement(named, 0.97), training=done, options=asked)
    text = model_card(report, "", "", "")
    assert "| steps | 1518 |" in text
    assert "| hours | 2 |" in text


def test_names_of_labels_cannot_break_a_table() -> None:
    odd = spec(output={"labels": ["background", "a|b", "c\nd"]}, weights={"file": "w", "sha256": "c" * 64})
    report = students.report_of(odd, students.agreement(odd, 0.97))
    text = model_card(report, "", "", "")
    assert "\n| a\\|b | 1 |" in text
    assert "\n| c d | 1 |" in text


def test_what_names_a_file_is_not_written_into_a_report(places: tuple[Path, Path]) -> None:
    for value in (Path("Doe"), "scans/Doe^Jane.nii.gz", ["a", {"b": "/data/Doe"}]):
        with pytest.raises(ValueError, match="names of files"):
            write_outcome(dataclasses.replace(made(), options={"--scans": value}), *places)
    assert not contents(places[0])


def test_a_report_is_the_same_text_for_the_same_report(places: tuple[Path, Path]) -> None:
    write_outcome(made(), *places)
    before = contents(places[0])
    write_outcome(made(), *places, overwrite=True)
    assert contents(places[0]) == before
    assert json.loads(before["tiny.distillation.json"])["schema_version"] == 1


def test_a_student_may_teach_and_its_own_student_is_not_its_teachers(places: tuple[Path, Path]) -> None:
    teacher = write_outcome(made(), *places).spec
    student = student_spec(teacher, "tinier", {**teacher.network.args, "channels": [2, 4]})
    assert student.distillation is None
    network = untrained_network(student).eval()
    named = Teacher(name="tiny", weights_sha256=str(teacher.weights and teacher.weights.sha256), cost=made().cost)
    written = write_outcome(made(student, network=network, teacher=named), *places)
    found = student_of(written.spec)
    assert found is not None
    assert found.teacher == "tiny"
    assert student_of(load_spec(places[0] / "tiny.toml")) == student_of(teacher)
