"""A mask says what made it, the same in every file, and names nobody; `voxtile why` sees what no longer stands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from tests.support.commands import refused, run
from tests.support.in_memory_commands import save_scan, transport
from tests.support.phantoms import card_of
from voxtile.io.note import note_of
from voxtile.io.writing import image_bytes, write_image
from voxtile.outputs.passport import Passport
from voxtile.segmenter import Segmentation, Segmenter

MODEL = ("--model", "phantom", "--url", "memory:1")


@pytest.fixture(autouse=True)
def _in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxtile.segmenter.connect_transport", lambda *_: transport())


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return save_scan(tmp_path / "in" / "scan.nii.gz")


def segmented(scan: Any, **options: Any) -> Segmentation:
    with Segmenter("memory:1", "phantom", **options) as segmenter:
        return segmenter.segment(scan)


def passport_in(path: Path) -> Passport:
    return Passport.model_validate_json(note_of(nib.load(path)))


def test_file_report_and_result_say_the_same(scan: Path, tmp_path: Path) -> None:
    mask, report = tmp_path / "mask.nii.gz", tmp_path / "report.json"
    assert run("segment", scan, *MODEL, "-q", "-o", mask, "--json", report).exit_code == 0
    passport = passport_in(mask)
    assert passport == segmented(scan).passport
    assert passport == Passport.model_validate(json.loads(report.read_text())["passport"])
    card = card_of()
    assert (passport.model, passport.weights_sha256) == (card.name, card.provenance.weights_sha256)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nii.bz2"])
def test_other_readers_see_the_mask_as_before(suffix: str, scan: Path, tmp_path: Path) -> None:
    done = segmented(scan)
    path = tmp_path / f"mask{suffix}"
    write_image(done.mask, path)
    image: Any = nib.load(path)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), done.labels)
    np.testing.assert_array_equal(image.affine, nib.load(scan).affine)
    assert int(image.header["vox_offset"]) % 16 == 0
    assert passport_in(path) == done.passport
    if suffix != ".nii.bz2":
        read = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).T
        np.testing.assert_array_equal(read, done.labels)


def test_nibabel_itself_keeps_it(scan: Path, tmp_path: Path) -> None:
    done = segmented(scan)
    nib.save(done.mask, tmp_path / "mask.nii")
    assert passport_in(tmp_path / "mask.nii") == done.passport


def test_the_same_scan_gives_the_same_bytes(scan: Path) -> None:
    first, second = segmented(scan), segmented(scan.read_bytes(), in_flight=1)
    assert image_bytes(first.mask, compressed=False) == image_bytes(second.mask, compressed=False)


def test_comments_of_others_are_left_out(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.ones((3, 4, 5), np.uint8), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"Doe^Jane"))
    write_image(image, tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes()
    assert b"Doe" not in content
    assert content[348:352] == bytes(4)


def test_what_changes_the_result_is_in_it_and_what_does_not_is_not(scan: Path, tmp_path: Path) -> None:
    own = segmented(scan).passport
    assert own is not None
    assert segmented(scan, in_flight=1, sw_batch_size=1).passport == own
    assert segmented(scan, overlap=0.5).passport != own
    assert segmented(save_scan(tmp_path / "other.nii.gz", seed=2)).passport != own


def test_it_names_no_file_no_server_and_no_patient(tmp_path: Path) -> None:
    folder = tmp_path / "Kanarienvogel"
    scan = save_scan(folder / "Kanarienvogel.nii.gz")
    image = nib.load(scan)
    image.header["descrip"] = b"Kanarienvogel"
    nib.save(image, scan)
    passport = segmented(scan).passport
    assert passport is not None
    text = passport.model_dump_json()
    assert "Kanarienvogel" not in text
    assert "memory:1" not in text


# voxtile why ---------------------------------------------------------------------------------------------------


@pytest.fixture
def mask(scan: Path, tmp_path: Path) -> Path:
    path = tmp_path / "mask.nii.gz"
    assert run("segment", scan, *MODEL, "-q", "-o", path, "--json", tmp_path / "report.json").exit_code == 0
    return path


def test_why_says_what_made_it(mask: Path) -> None:
    done = run("why", mask)
    assert done.exit_code == 0
    assert "model        phantom, version 1" in done.stdout
    assert "changes      none: the model's own semantics" in done.stdout
    assert "yes          the mask is as it was written" in done.stdout


def test_why_of_a_report(mask: Path) -> None:
    found = json.loads(run("why", mask.with_name("report.json"), "--json").stdout)
    assert found["passport"] == json.loads(passport_in(mask).model_dump_json())
    assert found["compared"] == {}


def test_why_sees_a_voxel_that_was_changed(mask: Path) -> None:
    image: Any = nib.load(mask)
    labels = np.asanyarray(image.dataobj).copy()
    labels[3, 4, 5] ^= 1
    nib.save(nib.Nifti1Image(labels, image.affine, image.header), mask)
    done = run("why", mask)
    assert done.exit_code == 1
    assert "NO           the mask is as it was written" in done.stdout


def test_why_compares_with_a_card_that_was_kept(mask: Path, tmp_path: Path) -> None:
    card = json.loads(card_of().model_dump_json())
    kept = tmp_path / "card.json"
    kept.write_text(json.dumps(card))
    same = json.loads(run("why", mask, "--card", kept, "--json").stdout)["compared"]
    assert same["the model has the same weights"] is True
    card["provenance"]["weights_sha256"] = "0" * 64
    kept.write_text(json.dumps(card))
    done = run("why", mask, "--card", kept)
    assert done.exit_code == 1
    assert "NO           the model has the same weights" in done.stdout


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.nii.gz", None, "cannot be read"),
        ("text.nii.gz", b"no mask", "expected a mask of NIfTI"),
        ("a.json", b"{}", "expected a mask that says what made it"),
        ("b.json", b"{broken", r"expected a report \(JSON\)"),
        ("c.dcm", bytes(128) + b"DICM", "expected a mask that says what made it"),
    ],
)
def test_why_of_what_says_nothing(name: str, content: bytes | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert re.search(said, refused(run("why", tmp_path / name), tmp_path, *([name] if content is not None else [])))


def test_why_of_another_programs_mask(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((3, 4, 5), np.uint8), np.eye(4)), tmp_path / "m.nii")
    assert "expected a mask that says what made it" in refused(run("why", tmp_path / "m.nii"), tmp_path, "m.nii")
