"""A mask says what made it, the same in every file, and names nobody; `voxtile why` sees what no longer stands."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from tests.support import dicom_findings, dicom_series, odd_headers
from tests.support.commands import refused, run
from tests.support.fake_triton import FakeTriton
from tests.support.in_memory import InMemoryTransport
from tests.support.in_memory_commands import doubled, save_scan
from tests.support.phantoms import card_of
from tests.support.waiting import in_time
from voxtile.card import Card
from voxtile.errors import InputError
from voxtile.io.writing import image_bytes, write_image
from voxtile.outputs.dicom.seg import seg_of
from voxtile.outputs.dicom.write import write_object
from voxtile.outputs.passport import OtherModel, Passport, mask_sha256, method_sha256
from voxtile.outputs.signed_files import read_signed
from voxtile.outputs.standing import standing
from voxtile.segmenter import Segmentation, Segmenter

MODEL = ("--model", "phantom", "--url", "memory:1")
CERTIFICATE = {
    "sha256": "ce" * 32, "accepted": True, "precision": "fp32", "dice_min": 1.0, "changed_fraction": 0.0,
    "max_abs_error": 0.0,
}  # fmt: skip


def provenance(weights: str = "ab", graph: str = "cd") -> dict[str, str]:
    return {"network": "UNet", "weights_sha256": weights * 32, "onnx_sha256": graph * 32}


def certified(**changes: Any) -> Card:
    """A card with all that a passport names."""
    fields = {"certificates": {"openvino": CERTIFICATE, "tensorrt": CERTIFICATE}, "provenance": provenance()}
    return card_of(**{"engine": "openvino", **fields, **changes})


CARD = certified()


@pytest.fixture(autouse=True)
def _in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxtile.segmenter.connect_transport", lambda *_: InMemoryTransport(CARD, doubled))


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return save_scan(tmp_path / "in" / "scan.nii.gz")


def segmented(scan: Any, **options: Any) -> Segmentation:
    with Segmenter("memory:1", "phantom", **options) as segmenter:
        return segmenter.segment(scan)


def passport_in(path: Path) -> Passport:
    """What another reader of NIfTI finds among the comments."""
    image: Any = nib.load(path)
    (text,) = (one.get_content() for one in image.header.extensions)
    text = text if isinstance(text, bytes) else text.encode()
    return Passport.model_validate_json(text.rstrip(b"\0").removeprefix(b"voxtile: "))


def test_file_report_and_result_say_the_same(scan: Path, tmp_path: Path) -> None:
    mask, report = tmp_path / "mask.nii.gz", tmp_path / "report.json"
    assert run("segment", scan, *MODEL, "-q", "-o", mask, "--json", report).exit_code == 0
    passport = passport_in(mask)
    assert passport == segmented(scan).passport
    assert passport == Passport.model_validate(json.loads(report.read_text())["passport"])
    assert (passport.model, passport.weights_sha256) == (CARD.name, CARD.provenance.weights_sha256)
    assert (passport.certificate_sha256, passport.certified, passport.precision) == ("ce" * 32, True, "fp32")


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
    assert read_signed(tmp_path / "mask.nii").unchanged is True


ODD = {
    "sound": {},
    "neither form": {"codes": (0, 0)},
    "a qform alone": {"codes": (1, 0), "srow": [0.0] * 12},
    "forms that differ": {"qoffset": (40.0, 0.0, 0.0)},
    "no handedness": {"pixdim": (0.0, 1.0, 1.5, 2.0), "codes": (1, 0)},
    "turned": {"pixdim": (-1.0, 1.0, 1.5, 2.0), "codes": (1, 0)},
    "sizes below 0": {"pixdim": (1.0, -1.0, 1.5, 2.0)},
    "unknown codes": {"codes": (9, 1)},
    "unknown units": {"units": 7},
    "metres": {"units": 1},
    "sheared": {"srow": (1, 0.2, 0, -4, 0, 1.5, 0, 5, 0, 0, 2, 6)},
}


@pytest.mark.parametrize("how", ODD)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_mask_is_as_it_was_written_whatever_its_scans_header_says(how: str, suffix: str, tmp_path: Path) -> None:
    try:
        done = segmented(odd_headers.written(tmp_path / "scan.nii", **ODD[how]))
    except InputError:
        return  # no mask, and no claim
    write_image(done.mask, tmp_path / f"m{suffix}", done.place)
    assert read_signed(tmp_path / f"m{suffix}").unchanged is True
    nib.save(nib.load(tmp_path / f"m{suffix}"), tmp_path / f"again{suffix}")
    assert read_signed(tmp_path / f"again{suffix}").unchanged is True


def test_a_mask_of_two_axes_is_one_of_one_plane(scan: Path) -> None:
    mask = segmented(scan).mask
    labels = np.asanyarray(mask.dataobj)[..., :1]
    assert mask_sha256(labels[..., 0], mask.header) == mask_sha256(labels, mask.header) != ""


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
    image: Any = nib.load(scan)
    voxels, affine = np.asanyarray(image.dataobj), image.affine.copy()
    affine[0, 3] += 1
    here, there = segmented((voxels, image.affine)).passport, segmented((voxels, affine)).passport
    assert here is not None
    assert there is not None
    assert here.scan_sha256 == own.scan_sha256 != there.scan_sha256


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


# A mask that was changed ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a mask and its report."""
    folder = tmp_path_factory.mktemp("written")
    with Segmenter(transport=InMemoryTransport(CARD, doubled)) as segmenter:
        done = segmenter.segment(save_scan(folder / "in" / "scan.nii.gz"))
    write_image(done.mask, folder / "mask.nii.gz", done.place)
    (folder / "report.json").write_text(done.report.model_dump_json())
    return folder


@pytest.fixture
def mask(written: Path, tmp_path: Path) -> Path:
    for name in ("report.json", "mask.nii.gz"):
        shutil.copy(written / name, tmp_path)
    return tmp_path / "mask.nii.gz"


UNCHANGED = "the mask is as it was written"


def resaved(mask: Path, change: Callable[[Any, Any], Any], name: str = "copy.nii.gz") -> Path:
    """The mask as nibabel saves it anew; `change` takes its labels and its header, and gives labels."""
    image: Any = nib.load(mask)
    header = image.header.copy()
    labels = change(np.asanyarray(image.dataobj).copy(), header)
    header.set_data_dtype(labels.dtype)
    header.set_data_shape(labels.shape)
    copy = type(image)(labels, None, header)
    copy.header.set_slope_inter(*image.header.get_slope_inter())
    path = mask.with_name(name)
    nib.save(copy, path)
    return path


def as_float(labels: Any, _: Any) -> Any:
    return labels.astype(np.float32)


SAME: dict[str, Callable[[Any, Any], Any]] = {
    "as it is": lambda labels, _: labels,
    "int32": lambda labels, _: labels.astype(np.int32),
    "float": as_float,
    "with an axis of one": lambda labels, _: labels[..., None],
    "of five axes": lambda labels, _: labels[..., None, None],
    "described otherwise": lambda labels, header: header.__setitem__("descrip", b"mine") or labels,
}


@pytest.mark.parametrize("how", SAME)
@pytest.mark.parametrize("name", ["copy.nii", "copy.nii.gz", "copy.nii.bz2"])
def test_a_copy_with_the_same_labels_in_the_same_place_is_unchanged(how: str, name: str, mask: Path) -> None:
    assert read_signed(resaved(mask, SAME[how], name)).unchanged is True


def put(field: str, value: Any) -> Callable[[Any, Any], Any]:
    return lambda labels, header: header.__setitem__(field, value) or labels


def one_voxel(value: Any, dtype: Any = None) -> Callable[[Any, Any], Any]:
    def change(labels: Any, _: Any) -> Any:
        labels = labels.astype(dtype or labels.dtype)
        labels[3, 4, 5] = value(labels[3, 4, 5])
        return labels

    return change


def moved(labels: Any, header: Any) -> Any:
    affine = header.get_sform()
    affine[:3, 3] += 1
    header.set_sform(affine, int(header["sform_code"]))
    return labels


def moved_for_some(labels: Any, header: Any) -> Any:
    """Only in the qform, which some programs look at first."""
    header["qoffset_x"] += 5
    return labels


CHANGED: dict[str, Callable[[Any, Any], Any]] = {
    "another label": one_voxel(lambda label: label ^ 1),
    "a label beyond 16 bits": one_voxel(lambda label: label + 65536, np.int32),
    "a label below 0": one_voxel(lambda label: label - 65536, np.int32),
    "a part of a label": one_voxel(lambda label: label + 0.25, np.float32),
    "no number": one_voxel(lambda _: np.nan, np.float32),
    "infinity": one_voxel(lambda _: np.inf, np.float64),
    "nothing left": lambda labels, _: labels * 0,
    "nothing left, as float": lambda labels, _: (labels * 0).astype(np.float32),
    "nothing left, of five axes": lambda labels, _: (labels * 0)[..., None, None],
    "twice": lambda labels, _: np.stack([labels, labels], 3),
    "turned over": lambda labels, _: labels[::-1],
    "axes exchanged": lambda labels, _: labels.transpose(1, 0, 2),
    "cut": lambda labels, _: labels[:-1],
    "laid out anew": lambda labels, _: labels.reshape(labels.shape[::-1], order="F"),
    "another place": moved,
    "another place for some": moved_for_some,
    "no sform": put("sform_code", 0),
    "another space": put("sform_code", 4),
    "metres": put("xyzt_units", 1),
    "other sizes": put("pixdim", [1, 2, 2, 2, 1, 1, 1, 1]),
}


@pytest.mark.parametrize("how", CHANGED)
def test_a_mask_that_was_changed_or_moved_is_seen(how: str, mask: Path) -> None:
    done = run("why", resaved(mask, CHANGED[how]))
    assert done.exit_code == 1, done.output
    assert f"NO           {UNCHANGED}" in done.stdout


@pytest.mark.parametrize(("slope", "inter", "same"), [(1.0, 0.0, True), (2.0, 0.0, False), (1.0, 1.0, False)])
def test_labels_count_as_readers_scale_them(slope: float, inter: float, same: bool, mask: Path) -> None:
    content = bytearray(gzip.decompress(mask.read_bytes()))
    content[112:120] = np.array([slope, inter], "<f4").tobytes()
    (mask.with_name("scaled.nii")).write_bytes(content)
    assert read_signed(mask.with_name("scaled.nii")).unchanged is same


def test_a_mask_in_the_other_byte_order_is_the_same(mask: Path, tmp_path: Path) -> None:
    image: Any = nib.load(mask)
    header = image.header.as_byteswapped(">")
    header.extensions.extend(image.header.extensions)
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj).astype(">u2"), None, header), tmp_path / "big.nii")
    assert (tmp_path / "big.nii").read_bytes()[:4] == (348).to_bytes(4, "big")
    assert read_signed(tmp_path / "big.nii").unchanged is True


def noted(mask: Path, *texts: bytes) -> Path:
    """The mask with other notes."""
    image: Any = nib.load(mask)
    image.header.extensions[:] = [nib.nifti1.Nifti1Extension(6, b"voxtile: " + text) for text in texts]
    nib.save(image, mask.with_name("noted.nii.gz"))
    return mask.with_name("noted.nii.gz")


def test_of_two_passports_none_is_believed(mask: Path) -> None:
    text = passport_in(mask).model_dump_json().encode()
    assert "expected one passport, found 2" in run("why", noted(mask, text, text)).stderr
    assert run("why", noted(mask, text)).exit_code == 0


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"null", b"{", b"[" * 100_000, b'{"model": 1}', b"\xff"])
def test_a_passport_that_is_none(text: bytes, mask: Path) -> None:
    assert "expected a mask that says what made it" in run("why", noted(mask, text)).stderr


def test_what_cannot_be_said_is_said_to_be_so(mask: Path) -> None:
    passport = passport_in(mask).model_copy(update={"mask_sha256": ""})
    for file in (noted(mask, passport.model_dump_json().encode()), mask.with_name("report.json")):
        done = run("why", file)
        assert done.exit_code == 0
        assert re.search(r"^not compared the mask \(", done.stdout, re.M)
        assert UNCHANGED not in done.stdout


@pytest.mark.parametrize("keep", [0, 100, 347, 352, 360, 600, -40, -1])
def test_a_mask_that_is_cut_off_is_refused(keep: int, mask: Path) -> None:
    cut = mask.with_name("cut.nii")
    cut.write_bytes(gzip.decompress(mask.read_bytes())[:keep])
    done = run("why", cut)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1


# voxtile why ---------------------------------------------------------------------------------------------------


def test_why_says_what_made_it(mask: Path) -> None:
    done = run("why", mask)
    assert done.exit_code == 0
    assert "model        phantom, version 1" in done.stdout
    assert "changes      none: the model's own semantics" in done.stdout
    assert f"yes          {UNCHANGED}" in done.stdout


def test_why_of_a_report_page_says_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<!DOCTYPE html><title>Report</title>")
    with pytest.raises(InputError, match="such as --page writes for people; give the mask"):
        read_signed(tmp_path / "report.html")


def test_why_of_a_report(mask: Path) -> None:
    found = json.loads(run("why", mask.with_name("report.json"), "--json").stdout)
    assert found["passport"] == json.loads(passport_in(mask).model_dump_json())
    assert found["compared"] == {}
    assert found["not_compared"] == ["the mask (a report holds no mask)"]


OTHER = {**CERTIFICATE, "sha256": "cf" * 32}
WEIGHTS, GRAPH = "the model has the same weights", "its engines were built from the same graph"
METHOD, ENGINE = "it does the same with a scan", "the same engine answers"
SAME_CERTIFICATE, VALID = "its certificate is the same", "its certificate is valid"

OTHERWISE: list[tuple[dict[str, Any], set[str]]] = [
    ({}, set()),
    ({"title": "another title"}, set()),
    ({"name": "another"}, {"the model has the same name"}),
    ({"provenance": provenance(weights="ef")}, {WEIGHTS}),
    ({"provenance": provenance(graph="ef")}, {GRAPH}),
    ({"engine": "tensorrt"}, {ENGINE}),
    ({"engine": "open"}, {ENGINE, SAME_CERTIFICATE, VALID}),
    ({"certificates": {}}, {SAME_CERTIFICATE, VALID}),
    ({"certificates": {"openvino": OTHER}}, {SAME_CERTIFICATE, VALID}),
    ({"certificates": {"openvino": {**CERTIFICATE, "accepted": False}}}, {VALID}),
    ({"spacing": (2.0, 1.0, 1.0)}, {METHOD}),
    ({"orientation": None}, {METHOD}),
    ({"channels": ("CT",)}, {METHOD}),
    ({"intensity": {"rule": "zscore"}}, {METHOD}),
    ({"labels": ({"name": "background", "value": 0}, {"name": "head", "value": 2})}, {METHOD}),
    ({"tiling": {"overlap": 0.5}}, {METHOD}),
    ({"postprocessing": [{"transform": "AsDiscrete", "argmax": True}]}, {METHOD}),
    ({"mirror_axes": (0,)}, {METHOD}),
]


@pytest.mark.parametrize(("changes", "false"), OTHERWISE)
def test_each_claim_falls_with_what_it_is_about(changes: dict[str, Any], false: set[str], scan: Path) -> None:
    passport = segmented(scan).passport
    assert passport is not None
    claims = standing(passport, {"phantom": [certified(**changes)]})
    assert {what for what, holds in claims.items() if not holds} == false
    for cards in ([CARD, certified(**changes)], [certified(**changes), CARD]):  # one server of several
        assert standing(passport, {"phantom": cards}) == claims


@pytest.mark.parametrize(
    ("changes", "false"),
    [
        ({"certified": False}, {VALID}),
        ({"certificate_sha256": ""}, {SAME_CERTIFICATE, VALID}),
        ({"engine": "openvino, tensorrt"}, {ENGINE}),
        ({"weights_sha256": ""}, {WEIGHTS}),
        ({"method_sha256": ""}, {METHOD}),
    ],
)
def test_what_the_passport_does_not_say_is_not_the_same(changes: dict[str, Any], false: set[str], scan: Path) -> None:
    passport = segmented(scan).passport
    assert passport is not None
    for card in (CARD, certified(provenance=provenance(weights="" if "weights_sha256" in changes else "ab"))):
        claims = standing(passport.model_copy(update=changes), {"phantom": [card]})
        assert {what for what, holds in claims.items() if not holds} == false


def test_two_without_a_certificate_have_no_valid_one(scan: Path) -> None:
    passport = segmented(scan).passport
    assert passport is not None
    passport = passport.model_copy(update={"certificate_sha256": "", "certified": False, "precision": ""})
    claims = standing(passport, {"phantom": [certified(certificates={})]})
    assert claims[SAME_CERTIFICATE] is claims[VALID] is False


def test_why_compares_with_cards_that_were_kept(mask: Path, tmp_path: Path) -> None:
    kept, other = tmp_path / "card.json", certified(name="other").model_dump(mode="json")
    card = CARD.model_dump(mode="json")
    for content in (card, {"card": card}, [{"card": card}], [{"card": None}, {"card": other}, {"card": card}]):
        kept.write_text(json.dumps(content))
        done = run("why", mask, "--card", kept)
        assert (done.exit_code, f"yes          {WEIGHTS}" in done.stdout) == (0, True), done.output
    changed = certified(provenance=provenance(weights="ef")).model_dump(mode="json")
    for content in (changed, [{"card": card}, {"card": changed}], [{"card": changed}, {"card": card}]):
        kept.write_text(json.dumps(content))
        done = run("why", mask, "--card", kept)
        assert (done.exit_code, f"NO           {WEIGHTS}" in done.stdout) == (1, True)
    for content in ({}, [], [{"card": None}], [{"card": other}, {"card": other}], 3, [3], "card"):
        kept.write_text(json.dumps(content))
        assert "expected a card" in run("why", mask, "--card", kept).stderr


def test_what_a_certificate_does_not_prove_is_told(mask: Path, tmp_path: Path) -> None:
    kept = tmp_path / "card.json"
    elsewhere = {**CERTIFICATE, "device": "cpu", "serves_on": "gpu"}
    kept.write_text(certified(certificates={"openvino": elsewhere}).model_dump_json())
    done = run("why", mask, "--card", kept)
    assert "but          phantom: not certified on this device" in done.stdout
    assert json.loads(run("why", mask, "--card", kept, "--json").stdout)["reservations"]


@contextmanager
def serving(*cards: Card) -> Iterator[list[str]]:
    """Servers, each of which offers one of the models."""
    servers = []
    with contextlib.ExitStack() as stack:
        for card in cards:
            servers.append(stack.enter_context(FakeTriton()))
            servers[-1].card = card.model_dump(mode="json")
        yield [word for one in servers for word in ("--url", one.url)]


def test_why_compares_with_all_servers(mask: Path) -> None:
    with serving(CARD, CARD) as urls:
        assert run("why", mask, "--check", *urls).exit_code == 0
        assert run("why", mask, "--check", *urls, "--url", "127.0.0.1:9").exit_code == 2
    with serving(CARD, certified(spacing=(2.0, 2.0, 2.0))) as urls:
        done = run("why", mask, "--check", *urls)
        assert done.exit_code == 1
        assert f"NO           {METHOD}" in done.stdout
    kept = mask.with_name("card.json")
    kept.write_text(certified(spacing=(2.0, 2.0, 2.0)).model_dump_json())
    with serving(CARD) as urls:
        assert run("why", mask, "--check", *urls, "--card", kept).exit_code == 1
    with serving(certified(name="other")) as urls:
        assert "expected the model 'phantom'" in run("why", mask, "--check", *urls).stderr


# Models behind others --------------------------------------------------------------------------------------------


def behind(role: str, card: Card) -> OtherModel:
    return OtherModel(
        role=role, model=card.name, version="1", weights_sha256=card.provenance.weights_sha256,
        onnx_sha256=card.provenance.onnx_sha256, method_sha256=method_sha256(card), engine=card.engine,
        precision="fp32", certificate_sha256="ce" * 32, certified=True,
    )  # fmt: skip


HEAD = certified(name="h", provenance=provenance(weights="1a"))
TRUNK = certified(name="t", provenance=provenance(weights="2b"))
SET = certified(
    name="set", spacing=(1.0, 1.0, 1.0),
    parts={
        "models": [
            {"model": "h", "weights_sha256": "1a" * 32, "labels": {1: 1}},
            {"model": "t", "weights_sha256": "2b" * 32, "labels": {1: 1}},
        ],
        "crop": {"model": "phantom", "labels": [1], "margin_mm": 2},
    },
)  # fmt: skip


@pytest.fixture
def of_a_set(scan: Path) -> Segmentation:
    cards = {card.name: card for card in (CARD, HEAD, TRUNK, SET)}
    with Segmenter(model="set", connect=lambda name: InMemoryTransport(cards[name], doubled)) as segmenter:
        return segmenter.segment(scan)


def test_every_model_that_shaped_a_mask_is_named(of_a_set: Segmentation) -> None:
    assert of_a_set.passport is not None
    assert of_a_set.passport.others == (behind("crop", CARD), behind("part", HEAD), behind("part", TRUNK))
    assert of_a_set.passport.model == "set"


def test_a_first_stage_is_named_and_what_is_behind_a_part_too(scan: Path) -> None:
    with (
        Segmenter(transport=InMemoryTransport(HEAD, doubled)) as first,
        Segmenter(transport=InMemoryTransport(CARD, doubled), previous=first) as cascade,
        Segmenter(transport=InMemoryTransport(TRUNK, doubled), previous=cascade) as longer,
    ):
        two, three = cascade.segment(scan).passport, longer.segment(scan).passport
    assert two is not None
    assert three is not None
    assert two.others == (behind("first stage", HEAD),)
    assert three.others == (behind("first stage", CARD), behind("first stage", HEAD))
    claims = standing(two, {"phantom": [CARD], "h": [certified(name="h", provenance=provenance(weights="00"))]})
    assert [what for what, holds in claims.items() if not holds] == [f"the first stage h: {WEIGHTS}"]


@pytest.mark.parametrize("name", ["set", "phantom", "h", "t"])
def test_a_model_behind_that_was_replaced_is_seen(name: str, of_a_set: Segmentation) -> None:
    assert of_a_set.passport is not None
    cards = {card.name: [card] for card in (CARD, HEAD, TRUNK, SET)}
    claims = standing(of_a_set.passport, cards)
    assert all(claims.values()), claims
    (card,) = cards[name]
    cards[name] = [card.model_copy(update={"provenance": card.provenance.model_copy(update={"weights_sha256": "0"})})]
    claims = standing(of_a_set.passport, cards)
    (false,) = (what for what, holds in claims.items() if not holds)
    assert false.endswith(WEIGHTS)
    assert (f" {name}: " in false) == (name != "set")
    fewer = of_a_set.passport.model_copy(update={"others": of_a_set.passport.others[:-1]})
    assert standing(fewer, cards)["the passport names the models behind it"] is False


def test_a_card_of_one_model_leaves_the_others_open(of_a_set: Segmentation, tmp_path: Path) -> None:
    write_image(of_a_set.mask, tmp_path / "m.nii")
    (tmp_path / "card.json").write_text(SET.model_dump_json())
    done = run("why", tmp_path / "m.nii", "--card", tmp_path / "card.json")
    assert done.exit_code == 0
    for one in ("crop phantom", "part h", "part t"):
        assert f"not compared {one}" in done.stdout
    (tmp_path / "card.json").write_text(json.dumps([one.model_dump(mode="json") for one in (SET, CARD, HEAD, TRUNK)]))
    assert "not compared" not in run("why", tmp_path / "m.nii", "--card", tmp_path / "card.json").stdout


def test_an_object_of_dicom_names_them_too(of_a_set: Segmentation, tmp_path: Path) -> None:
    passport = of_a_set.passport
    assert passport is not None
    voxels, affine = dicom_findings.scan()
    fields = passport.model_dump(exclude={"mask_sha256"})
    finding = dicom_findings.finding(dicom_series.slices(voxels, affine), voxels, affine, **fields)
    write_object(seg_of(finding), tmp_path / "s.dcm")
    found = read_signed(tmp_path / "s.dcm")
    assert found.passport.others == passport.others
    assert found.passport == passport.model_copy(update={"mask_sha256": ""})
    assert found.unchanged is None


# Files that are none, and texts of others ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.nii.gz", None, "cannot be read"),
        ("text.nii.gz", b"no mask", "expected a mask of NIfTI"),
        ("empty.nii", b"", "found an empty file"),
        ("a.json", b"{}", "expected a mask that says what made it"),
        ("b.json", b"{broken", r"expected a report \(JSON\)"),
        ("d.json", b'{"passport": [1]}', "expected a mask that says what made it"),
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


def test_a_mask_that_claims_more_than_there_is_is_refused(mask: Path) -> None:
    content = bytearray(gzip.decompress(mask.read_bytes()))
    content[42:48] = np.array([32767, 32767, 32767], "<i2").tobytes()
    for name, data in (("huge.nii", bytes(content)), ("huge.nii.gz", gzip.compress(content))):
        mask.with_name(name).write_bytes(data)
        done = run("why", mask.with_name(name))
        assert done.exit_code == 2
        assert "its header" in done.stderr


def test_a_pipe_is_not_waited_for(mask: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with in_time():
        for place in (tmp_path / "pipe", tmp_path):
            for words in ((place,), (mask, "--card", place)):
                done = run("why", *words)
                assert done.exit_code == 2
                assert "plain file" in done.stderr


EVIL = "x\x1b]0;evil\x07\x1b[2J\nNO           all\r\u202e\x9b2J"


def fit_for_a_terminal(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def test_texts_of_others_tell_a_terminal_nothing(mask: Path, tmp_path: Path) -> None:
    passport = passport_in(mask)
    evil = passport.model_copy(
        update={
            "model": EVIL, "version": EVIL, "weights_sha256": EVIL, "onnx_sha256": EVIL, "engine": EVIL,
            "precision": EVIL, "certificate_sha256": EVIL, "triton": EVIL, "voxtile": EVIL, "scan_sha256": EVIL,
            "tiling": {EVIL: EVIL}, "changes": (EVIL, EVIL), "others": (behind("crop", CARD).model_copy(
                update={"role": EVIL, "model": EVIL, "version": EVIL}),),
        }
    )  # fmt: skip
    (tmp_path / "card.json").write_text(CARD.model_dump_json())
    clean = behind("crop", CARD)
    lines = []
    for one in (passport.model_copy(update={"others": (clean,)}), evil):
        done = run("why", noted(mask, one.model_dump_json().encode()), "--card", tmp_path / "card.json")
        assert fit_for_a_terminal(done.output)
        lines.append([line[:12] for line in done.stdout.splitlines()])
    assert len(lines[0]) == len(lines[1])


@pytest.mark.parametrize("command", ["models", "doctor"])
def test_titles_and_names_of_models_tell_a_terminal_nothing(command: str) -> None:
    labels = [{"name": "background", "value": 0}, {"name": EVIL, "value": 1}]
    with serving(certified(title=EVIL, channels=(EVIL,), engine=EVIL, labels=labels)) as urls:
        done = run(command, *urls, *(["--model", "phantom"] if command == "doctor" else []))
    assert "phantom" in done.stdout
    assert fit_for_a_terminal(done.stdout + done.stderr)


@pytest.mark.parametrize(
    "words", [(f"--{EVIL}",), (f"{EVIL}.nii",), ("m.nii", EVIL), ("m.nii", "--check", f"--url={EVIL}")]
)
def test_what_is_repeated_of_a_command_line_tells_a_terminal_nothing(words: tuple[str, ...]) -> None:
    done = run("why", *words)
    assert done.exit_code == 2
    assert done.stderr
    assert fit_for_a_terminal(done.stderr)
