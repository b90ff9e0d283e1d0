"""A student is published only with a report that is about exactly its weights, and that shows agreement enough."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomllib
from safetensors.torch import save_file

from tests.support import students
from tests.support.build_specs import tiny_unet
from tests.support.commands import run as voxtile
from tests.support.in_memory_commands import save_scan
from tests.support.specs import fields, spec
from voxtile.card import StudentOf
from voxtile_build.build import build
from voxtile_build.certificate.distillation import DistillationReport, judged_as, notes_of, student_of
from voxtile_build.checks import check_spec
from voxtile_build.cli import commands as cli
from voxtile_build.errors import AcceptanceError, SpecError
from voxtile_build.evaluation.agreement import agreement_of
from voxtile_build.evaluation.summary import ENOUGH_VOXELS, FEW_VOXELS, SEEN_VOXELS
from voxtile_build.hashing import bytes_sha256, file_sha256
from voxtile_build.repository.card import card_text, get_card
from voxtile_build.repository.config import read_config
from voxtile_build.spec.spec import Spec, load_spec, parse_spec
from voxtile_build.spec.spec_to_toml import spec_to_toml
from voxtile_server.embedded import EmbeddedServer

TABLE = {
    "teacher": students.TEACHER, "teacher_sha256": students.TEACHER_SHA256, "report": "tiny.distillation.json",
    "report_sha256": "0" * 64,
}  # fmt: skip


@pytest.fixture
def tiny(tmp_path: Path) -> Spec:
    """A network with weights."""
    save_file(tiny_unet().state_dict(), tmp_path / "tiny.safetensors")
    weights = {"file": str(tmp_path / "tiny.safetensors"), "sha256": file_sha256(tmp_path / "tiny.safetensors")}
    return spec(weights=weights, serving={"engines": ["onnxruntime"]}, input={"intensity": {"rule": "zscore"}})


def refused(student: Spec, folder: Path) -> str:
    """Why a build of `student` publishes nothing."""
    with pytest.raises(AcceptanceError) as error:
        build(student, folder / "models")
    assert error.value.exit_code == 4
    assert not list((folder / "models").glob("[!.]*"))
    said = str(error.value)
    assert "\n" not in said
    assert said.startswith("tiny: distillation: ")
    return said


# The table ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("least", [-0.01, 1.01, math.nan, math.inf, -math.inf, "0.9", True, None, [0.9]])
def test_a_limit_that_is_no_share_is_refused(least: Any) -> None:
    weights = {"file": "w", "sha256": "c" * 64}
    with pytest.raises(SpecError, match=r"distillation\.min_dice: .*smallest Dice between student and teacher"):
        parse_spec(fields(weights=weights, distillation={**TABLE, "min_dice": least}), "x.toml", Path())


@pytest.mark.parametrize("key", TABLE)
def test_every_key_without_a_default_must_be_given(key: str) -> None:
    table = {name: value for name, value in TABLE.items() if name != key}
    with pytest.raises(SpecError, match=f"distillation.{key}: missing"):
        parse_spec(fields(weights={"file": "w", "sha256": "c" * 64}, distillation=table), "x.toml", Path())


def test_a_network_without_trained_weights_is_no_student() -> None:
    with pytest.raises(SpecError, match="speaks of trained weights"):
        parse_spec(fields(distillation=TABLE), "x.toml", Path())


def test_the_report_lies_beside_the_spec_and_goes_where_the_spec_goes(tmp_path: Path) -> None:
    given = parse_spec(fields(weights={"file": "w", "sha256": "c" * 64}, distillation=TABLE), "x.toml", tmp_path)
    assert given.distillation is not None
    assert given.distillation.report == tmp_path / TABLE["report"]
    assert given.distillation.report in given.files
    assert given.distillation.min_dice == 0.95
    written = tomllib.loads(spec_to_toml(given, tmp_path))
    assert written["distillation"] == TABLE
    assert parse_spec(written, "x.toml", tmp_path) == given


def test_the_tables_of_other_machines_cannot_lower_the_limit(tmp_path: Path, tiny: Spec) -> None:
    student = students.as_student(tiny, tmp_path, students.report_of(tiny, students.agreement(tiny, 0.5)))
    (tmp_path / "tiny.toml").write_text(spec_to_toml(student, tmp_path))
    (tmp_path / "here.toml").write_text("[distillation]\nmin_dice = 0.1\n")
    given = ["spec", str(tmp_path / "tiny.toml"), "--repository", str(tmp_path / "m"), "--settings"]
    assert cli.main([*given, str(tmp_path / "here.toml")]) == 2


# The gate -----------------------------------------------------------------------------------------------------------


def test_no_other_model_is_asked_for_a_report(tiny: Spec) -> None:
    assert student_of(tiny) is None
    assert notes_of(tiny) == ()


@pytest.mark.parametrize(("least", "passes"), [(0.0, True), (0.9, True), (0.9001, False), (1.0, False)])
def test_the_worst_label_of_the_worst_scan_decides(least: float, passes: bool, tiny: Spec, tmp_path: Path) -> None:
    report = students.report_of(tiny, students.agreement(tiny, 0.99, 0.9, 0.98))
    student = students.as_student(tiny, tmp_path, report, min_dice=least)
    if passes:
        assert student_of(student) == StudentOf(
            teacher=students.TEACHER, weights_sha256=students.TEACHER_SHA256, dice_min=0.9, scans=3
        )
        return
    said = refused(student, tmp_path)
    assert f"expected at least {least:g} of every label" in said
    assert "two 0.9" in said
    assert ("one" in said.partition("found")[2]) == (least == 1)
    assert said.endswith("nothing was published")
    with pytest.raises(AcceptanceError):
        check_spec(student)


def test_a_student_below_the_default_is_not_published(tiny: Spec, tmp_path: Path, capsys: Any) -> None:
    student = students.as_student(tiny, tmp_path, students.report_of(tiny, students.agreement(tiny, 0.9499)))
    (tmp_path / "tiny.toml").write_text(spec_to_toml(student, tmp_path))
    assert cli.main(["spec", str(tmp_path / "tiny.toml"), "--repository", str(tmp_path / "models")]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected at least 0.95 of every label of every held-out scan, found two 0.9499" in line
    assert not (tmp_path / "models" / "tiny").exists()
    assert (tmp_path / "tiny.safetensors").is_file()


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Spec, Path], Spec]:
    """The report with a change in its text, and the spec with the digest of the new text."""

    def make(tiny: Spec, folder: Path) -> Spec:
        good = students.as_student(tiny, folder, students.report_of(tiny, students.agreement(tiny, 0.97, 0.99)))
        assert good.distillation is not None
        content = json.loads(good.distillation.report.read_text())
        change(content)
        good.distillation.report.write_text(json.dumps(content))
        digest = bytes_sha256(good.distillation.report.read_bytes())
        return good.model_copy(update={"distillation": good.distillation.model_copy(update={"report_sha256": digest})})

    return make


def raised(report: dict[str, Any]) -> None:
    """Raises what is summed up, and leaves the scans."""
    report["agreement"]["dice_min"] = 0.999


def raised_label(report: dict[str, Any]) -> None:
    report["agreement"]["labels"]["two"]["dice_min"] = 0.999


def not_a_number(report: dict[str, Any]) -> None:
    report["agreement"]["scans"][0]["labels"]["two"]["dice"] = math.nan


def beyond_one(report: dict[str, Any]) -> None:
    report["agreement"]["scans"][0]["labels"]["two"]["dice"] = 1.5


def a_scan_less(report: dict[str, Any]) -> None:
    del report["agreement"]["scans"][0]


def no_scan(report: dict[str, Any]) -> None:
    report["agreement"]["scans"], report["scans"]["held_out"] = [], []


def trained_on_it(report: dict[str, Any]) -> None:
    report["scans"]["trained_on"].append(report["scans"]["held_out"][0])


def a_label_less(report: dict[str, Any]) -> None:
    for scan in report["agreement"]["scans"]:
        del scan["labels"]["one"]
    del report["agreement"]["labels"]["one"]


def of_another_form(report: dict[str, Any]) -> None:
    report["schema_version"] = 2


def with_more(report: dict[str, Any]) -> None:
    report["accepted"] = True


EDITED = {
    raised: "dice_min: expected what follows from the scans",
    raised_label: "labels: expected what follows from the scans",
    not_a_number: "dice",
    beyond_one: "dice",
    a_scan_less: "expected what follows from the scans",
    no_scan: r"at scans\.held_out",
    trained_on_it: "held out that were not trained on",
    a_label_less: "found other labels",
    of_another_form: "schema_version",
    with_more: "accepted",
    dict.clear: "is no report of a distillation",
}


@pytest.mark.parametrize("change", EDITED, ids=lambda change: change.__name__)
def test_a_report_that_contradicts_itself_is_refused(change: Callable[[Any], Any], tiny: Spec, tmp_path: Path) -> None:
    student = edited(change)(tiny, tmp_path)
    with pytest.raises(AcceptanceError, match=EDITED[change]):
        student_of(student)


def test_an_edited_report_is_refused_by_its_digest(tiny: Spec, tmp_path: Path) -> None:
    student = students.as_student(tiny, tmp_path, students.report_of(tiny, students.agreement(tiny, 0.97)))
    assert student.distillation is not None
    report = student.distillation.report
    report.write_text(report.read_text().replace("0.97", "0.98"))
    assert "report.json: expected sha256" in refused(student, tmp_path).replace("distillation.json", "report.json")


@pytest.mark.parametrize("what", ["missing", "a folder", "a pipe", "nothing", "no JSON"])
def test_a_report_that_cannot_be_read_is_refused(what: str, tiny: Spec, tmp_path: Path) -> None:
    student = students.as_student(tiny, tmp_path, students.report_of(tiny, students.agreement(tiny, 0.97)))
    assert student.distillation is not None
    report = student.distillation.report
    report.unlink()
    if what == "a folder":
        report.mkdir()
    elif what == "a pipe":
        os.mkfifo(report)
    elif what != "missing":
        report.write_text("" if what == "nothing" else "report")
        digest = bytes_sha256(report.read_bytes())
        table = student.distillation.model_copy(update={"report_sha256": digest})
        student = student.model_copy(update={"distillation": table})
    said = refused(student, tmp_path)
    assert "distillation: report: " in said
    if what == "missing":
        assert any("distillation.report" in one for one in check_spec(student))


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "weights": ({"weights": {"sha256": "d" * 64}}, "expected weights with sha256 d+, found"),
    "order of labels": ({"output": {"labels": ["background", "two", "one"]}}, "the spec's labels"),
    "names of labels": ({"output": {"labels": ["background", "one", "three"]}}, "the spec's labels"),
    "regions": ({"output": {"regions": True, "region_order": ["background", "one", "two"]}}, "the spec's regions"),
    "channels": ({"input": {"channels": ["T2"]}}, "the spec's channels"),
    "intensity": ({"input": {"intensity": {"rule": "zscore", "mask": "nonzero"}}}, "the spec's intensity"),
    "orientation": ({"input": {"orientation": "LPS"}}, "the spec's orientation"),
    "spacing": ({"input": {"spacing": [1, 1, 1]}}, "the spec's spacing"),
    "roi": ({"tiling": {"roi_size": [16, 16, 16]}}, "the spec's roi_size"),
    "mirroring": ({"tiling": {"mirror_axes": [0]}}, "the spec's mirror_axes"),
    "padding": ({"tiling": {"cval": 0.5}}, "the spec's cval"),
    "network": ({"network": {"args": {"channels": [4, 16]}}}, "the spec's args"),
    "values of labels": (
        {"output": {"labels": ["background", {"name": "one", "value": 2}, {"name": "two", "value": 1}]}},
        r"the spec's labels\[1\]\.value \(1 when it was judged, 2 now\), labels\[2\]\.value \(2 when it was judged, 1",
    ),
    "type of the input": ({"input": {"dtype": "int16"}}, r"the spec's input\.dtype \(.fp32. when"),
    "one label alone": ({"output": {"scores": "foreground", "foreground": "two"}}, "the spec's scores .*foreground"),
    "voted labels": ({"output": {"scores": "labels", "dtype": "uint8"}}, "the spec's scores"),
    "activation": ({"output": {"activation": "softmax"}}, "the spec's activation"),
    "overlap": (
        {"tiling": {"overlap": 0.75}},
        r"the spec's overlap \(\[.*\] when it was judged, \[0.75, 0.75, 0.75\] now\)",
    ),
    "blending": ({"tiling": {"mode": "constant"}}, "the spec's mode"),
    "width of the blending": ({"tiling": {"sigma_scale": 0.5}}, "the spec's sigma_scale"),
    "skipped tiles": ({"tiling": {"background_at_most": 0.0}}, "the spec's background_at_most"),
    "cleaning": (
        {
            "postprocessing": [
                {"transform": "AsDiscrete", "argmax": True},
                {"transform": "KeepLargestConnectedComponent"},
            ]
        },
        r"the spec's postprocessing \(nothing when it was judged",
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_report_on_something_else_is_refused(what: str, tiny: Spec, tmp_path: Path) -> None:
    changes, said = OTHERS[what]
    report = students.report_of(tiny, students.agreement(tiny, 0.97))
    if what == "network":
        changes = {"network": {"args": {**tiny.network.args, "channels": [4, 16]}}}
    kept = {"weights": {"file": "w", "sha256": str(tiny.weights and tiny.weights.sha256)}}
    kept["input"] = {"intensity": {"rule": "zscore"}}
    merged = {key: {**kept.get(key, {}), **changes[key]} for key in changes if isinstance(changes[key], dict)}
    other = spec(**{**kept, **changes, **merged})
    with pytest.raises(AcceptanceError, match=said):
        student_of(students.as_student(other, tmp_path, report))


@pytest.mark.parametrize("key", ["teacher", "teacher_sha256"])
def test_another_teacher_is_refused(key: str, tiny: Spec, tmp_path: Path) -> None:
    report = students.report_of(tiny, students.agreement(tiny, 0.97))
    other = {"teacher": "other-one", "teacher_sha256": "8e" * 32}[key]
    with pytest.raises(AcceptanceError, match=f"expected (the|a) teacher.* {other}, found"):
        student_of(students.as_student(tiny, tmp_path, report, **{key: other}))


def test_what_does_not_change_the_answer_may_change(tiny: Spec) -> None:
    served = tiny.model_copy(update={"name": "other", "title": "more", "version": 3})
    one_number_an_axis = tiny.tiling.model_copy(update={"overlap": tiny.tiling.overlaps, "sw_batch_size": 7})
    labels = tuple(label.model_copy(update={"code": None}) for label in tiny.output.labels)
    output = tiny.output.model_copy(update={"dtype": "fp16", "labels": labels})
    changes = {"tiling": one_number_an_axis, "output": output, "nnunet": {"notes": ["more"]}}
    assert judged_as(served.model_copy(update=changes)) == judged_as(tiny)


# Labels that nobody has seen ----------------------------------------------------------------------------------------


def unseen(tiny: Spec, voxels: int, dice: float | None, changed: int) -> DistillationReport:
    """A report on scans that show `voxels` of the last label."""
    labels = {"background": students.label(0.99), "one": students.label(0.98)}
    scans = [students.scan({**labels, "two": students.label(dice, voxels, changed)}, 1)]
    return students.report_of(tiny, agreement_of(scans))


@pytest.mark.parametrize(("voxels", "dice"), [(0, None), (SEEN_VOXELS - 1, 1.0)])
def test_a_label_that_no_scan_shows_does_not_pass_in_silence(
    voxels: int, dice: float | None, tiny: Spec, tmp_path: Path
) -> None:
    report = unseen(tiny, voxels, dice, 0)
    said = refused(students.as_student(tiny, tmp_path, report), tmp_path)
    assert f"at least {SEEN_VOXELS} voxels of every label, found two in {voxels}" in said
    allowed = students.as_student(tiny, tmp_path, report, allow_unseen_labels=True)
    found = student_of(allowed)
    assert found is not None
    assert found.unseen_labels == ("two",)
    assert found.dice_min == 0.98
    assert any("hardly show: two" in note for note in notes_of(allowed))


def test_a_label_that_only_the_student_sees_is_no_agreement(tiny: Spec, tmp_path: Path) -> None:
    report = unseen(tiny, 0, 0.0, FEW_VOXELS + 1)
    with pytest.raises(AcceptanceError, match=r"found two 0; train longer"):
        student_of(students.as_student(tiny, tmp_path, report, allow_unseen_labels=True))


def test_a_few_voxels_of_a_small_label_decide_only_where_nothing_else_does(tiny: Spec) -> None:
    background = {"background": students.label(0.99)}
    small = students.scan({**background, "one": students.label(0.5, ENOUGH_VOXELS - 1, FEW_VOXELS)}, 1)
    more = students.scan({**background, "one": students.label(0.5, ENOUGH_VOXELS - 1, FEW_VOXELS + 1)}, 1)
    large = students.scan({**background, "one": students.label(0.97)}, 2)
    assert agreement_of([small, large]).dice_min == 0.97
    assert agreement_of([small]).dice_min == 0.5
    assert agreement_of([more, large]).dice_min == 0.5


def test_where_nothing_is_shown_nothing_is_published(tiny: Spec, tmp_path: Path) -> None:
    names = [one.name for one in tiny.output.labels]
    nothing = agreement_of([students.scan({name: students.label(None, 0, 0) for name in names})])
    assert nothing.dice_min is None
    report = students.report_of(tiny, nothing)
    with pytest.raises(AcceptanceError, match="nothing was compared"):
        student_of(students.as_student(tiny, tmp_path, report, allow_unseen_labels=True, min_dice=0))


# What is published says whose student it is -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a student's spec, with a repository `models`."""
    folder = tmp_path_factory.mktemp("student")
    save_file(tiny_unet().state_dict(), folder / "tiny.safetensors")
    weights = {"file": str(folder / "tiny.safetensors"), "sha256": file_sha256(folder / "tiny.safetensors")}
    given = spec(weights=weights, serving={"engines": ["onnxruntime"], "warm_up": False})
    report = students.report_of(given, students.agreement(given, 0.9612, block=True))
    (folder / "tiny.toml").write_text(spec_to_toml(students.as_student(given, folder, report), folder))
    assert cli.main(["spec", str(folder / "tiny.toml"), "--repository", str(folder / "models"), "--quiet"]) == 0
    return folder


STUDENT = f"student of {students.TEACHER}: Dice ≥ 0.9612 to it on a part of one scan"


def test_card_certificate_and_page_say_whose_student_it_is(published: Path) -> None:
    card = get_card(read_config(published / "models/tiny"), published / "models/tiny")
    found = card.provenance.student_of
    assert found == student_of(load_spec(published / "tiny.toml"))
    assert found is not None
    assert found.block
    assert json.loads(card_text(card))["provenance"]["student_of"]["teacher"] == students.TEACHER
    entry = published / "models/tiny_onnxruntime/1"
    certificate = json.loads((entry / "certificate.json").read_text())
    assert StudentOf.model_validate(certificate["student_of"]) == found
    assert any("judged on a part of the same one" in warning for warning in certificate["warnings"])
    page = (entry / "certificate.md").read_text()
    assert STUDENT in page
    assert students.TEACHER_SHA256 in page
    assert "compares the engine with the student, not with the teacher" in page


def test_a_build_tells_it_once(published: Path, capsys: Any) -> None:
    given = ["spec", str(published / "tiny.toml"), "--repository", str(published / "models")]
    assert cli.main(given) == 0
    told = capsys.readouterr()
    assert f"tiny: {STUDENT}\n" in told.out
    assert told.err.count("judged on a part of the same one") == 1


def test_the_card_of_any_other_model_is_as_older_clients_know_it(published: Path) -> None:
    card = get_card(read_config(published / "models/tiny"), published / "models/tiny")
    plain = card.model_copy(update={"provenance": card.provenance.model_copy(update={"student_of": None})})
    assert "student_of" not in card_text(plain)


def test_a_served_student_is_told_by_models_and_its_mask_by_why(published: Path, tmp_path: Path) -> None:
    scan, mask = save_scan(tmp_path / "scan.nii.gz"), tmp_path / "mask.nii.gz"
    with EmbeddedServer(published / "models") as server:
        url = ("--url", server.grpc_url)
        assert voxtile("segment", scan, "--model", "tiny", *url, "-q", "-o", mask).exit_code == 0
        told = voxtile("why", mask, "--check", *url)
        listed = voxtile("models", *url)
        server.kill()
    assert told.exit_code == 0, told.output
    assert f"student of   {students.TEACHER}, weights {students.TEACHER_SHA256}\n" in told.stdout
    assert "agreement    Dice ≥ 0.9612 to it on a part of one scan\n" in told.stdout
    assert "yes          it is a student of the same teacher, and agrees with it as much" in told.stdout
    assert f"student of {students.TEACHER}: Dice ≥ 0.9612" in " ".join(listed.stdout.split())


def test_no_network_is_published_under_the_report_of_another_one(tiny: Spec, tmp_path: Path) -> None:
    student = students.as_student(tiny, tmp_path, students.report_of(tiny, students.agreement(tiny, 0.97)))
    with pytest.raises(SpecError, match="speaks of the weights in a file"):
        build(student, tmp_path / "models", network=tiny_unet(6))
