"""Whoever reads a mask of a distilled network sees whose student it is, in every file, and how far the two agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import dicom_findings, dicom_series
from tests.support.cards import card
from tests.support.commands import run
from tests.support.in_memory import InMemoryTransport
from tests.support.in_memory_commands import doubled, save_scan
from tests.support.phantoms import card_of
from voxtile.card import MOST_NAMES, Card, StudentOf, parse_card, rounded_down
from voxtile.errors import ModelError
from voxtile.io.writing import write_image
from voxtile.outputs.dicom.provenance import SHORT_TEXT, algorithm_parameters, passport_text
from voxtile.outputs.dicom.seg import seg_of
from voxtile.outputs.dicom.write import write_object
from voxtile.outputs.page.made_by import passports
from voxtile.outputs.passport import Passport, Teacher, method_sha256
from voxtile.outputs.signed_files import read_signed
from voxtile.outputs.standing import reservations, standing
from voxtile.segmenter import Segmentation, Segmenter
from voxtile.triton.catalogue import ModelListing

TEACHER = {"teacher": "large-one", "weights_sha256": "7e" * 32, "dice_min": 0.96129, "scans": 12}
SAME = "it is a student of the same teacher, and agrees with it as much"


def student_card(**changes: Any) -> Card:
    """The card of a student."""
    provenance = {"network": "UNet", "weights_sha256": "ab" * 32, "onnx_sha256": "cd" * 32}
    return card_of(provenance={**provenance, "student_of": {**TEACHER, **changes}})


PLAIN = card_of(provenance={"network": "UNet", "weights_sha256": "ab" * 32, "onnx_sha256": "cd" * 32})


def segmented(chosen: Card, folder: Path) -> Segmentation:
    with Segmenter(transport=InMemoryTransport(chosen, doubled)) as segmenter:
        return segmenter.segment(save_scan(folder / "scan.nii.gz"))


@pytest.fixture
def done(tmp_path: Path) -> Segmentation:
    return segmented(student_card(unseen_labels=("head",)), tmp_path)


def passport_of(done: Segmentation) -> Passport:
    assert done.passport is not None
    return done.passport


def test_mask_and_report_name_the_teacher(done: Segmentation, tmp_path: Path) -> None:
    wanted = Teacher(**TEACHER, unseen_labels=1)
    write_image(done.mask, tmp_path / "mask.nii.gz", done.place)
    (tmp_path / "report.json").write_text(done.report.model_dump_json())
    for name in ("mask.nii.gz", "report.json"):
        assert read_signed(tmp_path / name).passport.student_of == wanted
        told = run("why", tmp_path / name).stdout
        assert f"student of   large-one, weights {'7e' * 32}\n" in told
        assert "agreement    Dice ≥ 0.9612 to it on 12 held-out scans; 1 label not seen there\n" in told
    assert json.loads(run("why", tmp_path / "mask.nii.gz", "--json").stdout)["passport"]["student_of"] == (
        wanted.model_dump()
    )


def test_the_page_names_the_teacher(done: Segmentation) -> None:
    ((_, rows),) = passports(passport_of(done))
    told = dict(rows)
    assert told["Student of"] == "large-one"
    assert told["Agreement with its teacher"].startswith("Dice ≥ 0.9612 to it on 12 held-out scans")
    assert told["Digest of the teacher's weights"] == "7e" * 32


def test_an_object_of_dicom_names_the_teacher(done: Segmentation, tmp_path: Path) -> None:
    voxels, affine = dicom_findings.scan()
    fields = passport_of(done).model_dump(exclude={"mask_sha256"})
    finding = dicom_findings.finding(dicom_series.slices(voxels, affine), voxels, affine, **fields)
    seg = seg_of(finding)
    write_object(seg, tmp_path / "seg.dcm")
    assert read_signed(tmp_path / "seg.dcm").passport.student_of == passport_of(done).student_of
    parameters = algorithm_parameters(finding.passport)
    assert parameters["student_of"].startswith(f"large-one, weights {'7e' * 32}, Dice ≥ 0.9612")
    assert all(isinstance(value, str) and "{" not in value for value in parameters.values())


def test_a_hundred_unseen_labels_still_leave_room_for_the_passport(tmp_path: Path) -> None:
    labels = [{"name": f"a structure with a long name {index}", "value": index} for index in range(100)]
    unseen = tuple(label["name"] for label in labels)
    many = student_card(unseen_labels=unseen)
    passport = passport_of(segmented(many, tmp_path))
    text = passport_text(passport)
    assert len(text.encode()) <= SHORT_TEXT
    assert json.loads(text)["student_of"]["unseen_labels"] == 100
    (said,) = many.provenance.student_of.reservations if many.provenance.student_of else ()
    assert said.endswith(f"{unseen[MOST_NAMES - 1]} and {100 - MOST_NAMES} more")


def test_of_any_other_network_nothing_is_said(tmp_path: Path) -> None:
    done = segmented(PLAIN, tmp_path)
    write_image(done.mask, tmp_path / "mask.nii", done.place)
    told = run("why", tmp_path / "mask.nii").stdout
    assert "student" not in told
    assert "agreement" not in told
    assert "student_of" not in algorithm_parameters(passport_of(done))
    assert "student" not in " ".join(ModelListing("u", "phantom", "1", PLAIN).row())


@pytest.mark.parametrize(
    ("today", "holds"),
    [
        (student_card(unseen_labels=("head",)), True),
        (student_card(unseen_labels=("head",), teacher="another"), False),
        (student_card(unseen_labels=("head",), weights_sha256="8e" * 32), False),
        (student_card(unseen_labels=("head",), dice_min=0.97), False),
        (student_card(unseen_labels=("head",), block=True, scans=1), False),
        (student_card(), False),
        (PLAIN, False),
    ],
)
def test_another_teacher_or_another_agreement_is_seen(today: Card, holds: bool, done: Segmentation) -> None:
    claims = standing(passport_of(done), {"phantom": [today]})
    assert claims[SAME] is holds
    assert claims["it does the same with a scan"]
    assert method_sha256(today) == method_sha256(PLAIN)


def test_a_passport_of_an_older_client_claims_nothing_of_a_teacher(done: Segmentation) -> None:
    fields = passport_of(done).model_dump(exclude={"student_of"})
    older = Passport.model_validate(fields)
    assert older.student_of is None
    assert SAME not in standing(older, {"phantom": [student_card()]})


def test_what_nobody_knows_of_a_student_is_told_with_its_certificate(done: Segmentation) -> None:
    today = {"phantom": [student_card(unseen_labels=("head",))]}
    assert reservations(passport_of(done), today) == ["phantom: student of large-one: not seen: head"]
    assert reservations(passport_of(done), {"phantom": [student_card()]}) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "none; student of large-one: Dice ≥ 0.9612 to it on 12 held-out scans"),
        ({"scans": 1}, "none; student of large-one: Dice ≥ 0.9612 to it on 1 held-out scan"),
        ({"scans": 1, "block": True}, "none; student of large-one: Dice ≥ 0.9612 to it on a part of one scan"),
        (
            {"unseen_labels": ("head",)},
            "none; student of large-one: Dice ≥ 0.9612 to it on 12 held-out scans; student of large-one: not seen: "
            "head",
        ),
    ],
)
def test_the_list_of_models_tells_it(changes: dict[str, Any], said: str) -> None:
    assert ModelListing("url", "phantom", "1", student_card(**changes)).row()[-1] == said


@pytest.mark.parametrize(
    ("dice", "said"),
    [(0.97, "0.9700"), (0.96999, "0.9699"), (1 - 1e-9, "0.9999"), (1, "1.0000"), (1e-9, "0.0000"), (0.57, "0.5700")],
)
def test_an_agreement_is_never_rounded_up(dice: float, said: str) -> None:
    assert rounded_down(dice) == said


def test_cards_of_older_builds_are_read() -> None:
    assert parse_card(json.dumps(card()), "model").provenance.student_of is None
    fields = {"network": "", "weights_sha256": "", "onnx_sha256": "", "student_of": TEACHER}
    found = parse_card(json.dumps(card(provenance=fields)), "model")
    assert found.provenance.student_of == StudentOf(**TEACHER)


@pytest.mark.parametrize(
    "changes",
    [{"dice_min": -0.1}, {"dice_min": 1.1}, {"dice_min": float("nan")}, {"scans": 0}, {"teacher": ""}, {"accuracy": 1}],
)
def test_a_card_that_says_something_impossible_of_a_student_is_refused(changes: dict[str, Any]) -> None:
    fields = {"network": "", "weights_sha256": "", "onnx_sha256": "", "student_of": {**TEACHER, **changes}}
    with pytest.raises(ModelError, match=r"provenance\.student_of"):
        parse_card(json.dumps(card(provenance=fields)), "m")
