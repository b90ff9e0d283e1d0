"""The page about one mask, without a browser: what it carries, says and keeps to itself, and what stops it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.commands import refused, run
from tests.support.dicom_series import saved as saved_series
from tests.support.dicom_series import slices
from tests.support.in_memory_commands import doubled, save_scan, transport
from tests.support.page_results import HEAD, LESION, card_with, labelled, result_of, written
from tests.support.phantoms import phantom_volume
from voxtile.io.scan import open_scan
from voxtile.io.volume import Volume
from voxtile.outputs.page import images, pack
from voxtile.outputs.page.structures import structures_of
from voxtile.outputs.page.windows import looks_like_ct, says_ct, windows_of

NASTY = "</script><script>alert(1)</script><!-- \"quoted\" & \u2028 'x' <img src=x onerror=alert(2)>"
"""A name that ends a script and opens another one."""


class Read(HTMLParser):
    """What a browser finds on a page: its scripts, its styles, its rows, and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.inside: dict[str, str] = {}
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self._id = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.elements.append((tag, values))
        self._open.append(tag)
        if tag == "script" and values.get("type", "module") == "module":
            self.scripts.append("")
            self._id = ""
        elif tag == "script":
            self._id = values["id"]
        elif tag == "style":
            self.styles.append("")
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        where = self._open[-1] if self._open else ""
        if where == "script" and self._id:
            self.inside[self._id] = self.inside.get(self._id, "") + data
        elif where == "script":
            self.scripts[-1] += data
        elif where == "style":
            self.styles[-1] += data
        elif {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data

    @property
    def told(self) -> Any:
        return json.loads(self.inside["told"])

    def image(self, name: str) -> Any:
        return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(self.inside[name])))

    def row(self, name: str) -> list[str]:
        return next(row for row in self.rows if name in row)


def page(folder: Path, **changes: Any) -> Read:
    file = written(result_of(**changes), folder / "page.html")
    return Read(file.read_text(encoding="utf-8"))


# The images


@pytest.mark.parametrize("codes", ["RAS", "LPI", "PIR", "SAL"])
def test_each_voxel_that_is_shown_is_one_of_the_scan_at_its_own_place(
    codes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = phantom_volume((31, 22, 17), (0.8, 1.2, 2.0), codes, (8.0, 20.0, 5.0))
    for most in (10**6, 3000, 200):
        monkeypatch.setattr(images, "MOST_VOXELS", most)
        read = page(tmp_path, volume=volume)
        scan, mask = read.image("scan"), read.image("mask")
        assert scan.shape == mask.shape
        assert np.prod(scan.shape) <= most
        assert mask.get_data_dtype() == np.uint8
        np.testing.assert_allclose(scan.affine, mask.affine)
        np.testing.assert_allclose(scan.header.get_zooms(), np.linalg.norm(scan.affine[:3, :3], axis=0), rtol=1e-6)
        voxels = np.indices(scan.shape).reshape(3, -1)
        to_scan = np.linalg.inv(volume.affine) @ scan.affine
        at = to_scan[:3, :3] @ voxels + to_scan[:3, 3:]
        whole = np.rint(at).astype(int)
        np.testing.assert_allclose(at, whole, atol=1e-4)
        np.testing.assert_array_equal(np.asarray(scan.dataobj).ravel(), volume.data[0][tuple(whole)])
        np.testing.assert_array_equal(np.asarray(mask.dataobj).ravel(), labelled(volume)[tuple(whole)])
        said = "too large for a page" in (tmp_path / "page.html").read_text()
        assert said == (most < volume.data[0].size)


@pytest.mark.parametrize("shape", [(512, 512, 300), (4000, 3, 2), (1, 1, 1), (1024, 1024, 1024), (70_000, 1, 1)])
def test_what_is_drawn_has_a_size_for_a_laptop_and_loses_no_axis(shape: tuple[int, int, int]) -> None:
    every = images.thinning(shape, (0.7, 0.7, 1.5))
    left = [-(-size // step) for size, step in zip(shape, every, strict=True)]
    assert min(left) >= 1
    assert np.prod(left) <= images.MOST_VOXELS
    assert max(left) <= images.MOST_ALONG
    assert every == (1, 1, 1) or np.prod(left) > images.MOST_VOXELS / 8 or max(shape) > images.MOST_ALONG


@pytest.mark.parametrize(
    ("values", "exact"),
    [
        (np.arange(-32768, 32768, dtype=np.int16), True),
        (np.arange(0, 65536, dtype=np.uint16), True),
        (np.arange(0, 256, dtype=np.uint8), True),
        (np.arange(-128, 128, dtype=np.int8), True),
        (np.array([-70_000, 0, 5, 90_000], np.int32), False),
        (np.linspace(-1e-6, 1e-6, 999, dtype=np.float32), False),
        (np.linspace(0, 3e9, 999, dtype=np.float32), False),
        (np.full(5, 7.25, np.float32), True),
    ],
)
def test_values_are_kept_to_a_step_of_sixteen_bits(values: NDArray[Any], exact: bool) -> None:
    low, high = float(values.min()), float(values.max())
    stored, slope, inter, kept = images.storable(values, (low, high or 1.0))
    assert stored.dtype.itemsize <= 2
    assert kept is None
    back = stored.astype(np.float64) * slope + inter
    step = 0.0 if exact else (high - low) / images.STEPS
    np.testing.assert_allclose(back, values.astype(np.float64), atol=0.51 * step, rtol=0)


def test_one_bright_voxel_does_not_cost_the_others_their_shades() -> None:
    values = np.linspace(0, 1, 1000, dtype=np.float32)
    values[3] = 1e30
    stored, slope, inter, kept = images.storable(values, (0.0, 1.0))
    assert kept is not None
    assert kept[1] < 100
    back = stored.astype(np.float64) * slope + inter
    np.testing.assert_allclose(np.delete(back, 3), np.delete(values, 3), atol=1e-3)
    assert back[3] == pytest.approx(kept[1])


def test_a_scan_in_metres_is_drawn_in_millimetres() -> None:
    volume = phantom_volume()
    small = Volume(volume.data, np.diag([1e-3, 1e-3, 1e-3, 1]) @ volume.affine, volume.header, volume.names, unit=1000)
    made = images.page_images(small, labelled(volume), (0.0, 400.0))
    read = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(made.scan)))
    np.testing.assert_allclose(read.affine, volume.affine, rtol=1e-5, atol=1e-4)


def test_the_first_of_several_channels_is_shown_and_named(tmp_path: Path) -> None:
    volume = phantom_volume(channels=3)
    read = page(tmp_path, volume=volume, card=card_with({1: HEAD, 2: LESION}, channels=("T1", "T2", "FLAIR")))
    np.testing.assert_array_equal(np.asarray(read.image("scan").dataobj), volume.data[0])
    assert "of the channel T1" in (tmp_path / "page.html").read_text()


# The structures


def test_every_structure_has_its_number_colour_volume_and_intensities(tmp_path: Path) -> None:
    """Also value 300, regions of one value, structures without a voxel, and a value that the model does not name."""
    volume = phantom_volume()
    labels = labelled(volume, head=3, lesion=300)
    labels[0, 0, :3] = 77
    card = card_with({300: LESION, 3: HEAD, 9: "absent"})
    regions = (*card.labels, card.labels[2].model_copy(update={"name": "whole head"}))
    card = card.model_copy(update={"labels": regions})
    read = page(tmp_path, volume=volume, labels=labels, card=card)
    names = {one["name"]: one["number"] for one in read.told["structures"]}
    unnamed = "value 77, which the model does not name"
    assert set(names) == {LESION, f"{HEAD} + whole head", "absent", unnamed}
    assert len({tuple(one["rgb"]) for one in read.told["structures"]}) == 4
    mask = np.asarray(read.image("mask").dataobj)
    for name, value in ((LESION, 300), (f"{HEAD} + whole head", 3), (unnamed, 77)):
        np.testing.assert_array_equal(mask == names[name], labels == value)
        inside = volume.data[0][labels == value].astype(float)
        measured = (inside.size * volume.voxel_ml, inside.size, inside.mean(), inside.std(), inside.min(), inside.max())
        for text, number in zip(read.row(name)[2:], measured, strict=True):
            assert float(text.replace(",", "")) == pytest.approx(number, rel=1e-3), (name, text)
    assert read.row("absent")[2:] == ["0", "0", *"––––"]
    shown = [row[1] for row in read.rows if len(row) == 8][1:]
    assert shown[-1] == "absent"


def test_a_mask_of_more_structures_than_bytes_has(tmp_path: Path) -> None:
    volume = phantom_volume()
    card = card_with({value: f"structure {value}" for value in range(1, 400)})
    labels = labelled(volume, 1, 399)
    read = page(tmp_path, volume=volume, labels=labels, card=card)
    np.testing.assert_array_equal(np.asarray(read.image("mask").dataobj), labels)
    assert "2 of 399 structures found" in (tmp_path / "page.html").read_text()


def test_an_empty_mask_and_a_model_without_structures_have_a_page(tmp_path: Path) -> None:
    volume = phantom_volume()
    nothing = np.zeros(volume.shape, np.uint8)
    for card in (card_with({1: HEAD}), card_with({})):
        read = page(tmp_path, volume=volume, labels=nothing, card=card)
        assert not np.asarray(read.image("mask").dataobj).any()
        assert "The mask is empty" in (tmp_path / "page.html").read_text()


def test_colours_are_those_of_the_preview() -> None:
    volume = phantom_volume()
    card = card_with({5: HEAD, 2: LESION})
    from voxtile.outputs.palette import palette_of

    palette = palette_of(card.labels)
    for one in structures_of(card, volume.data[0], labelled(volume, 5, 2)):
        np.testing.assert_allclose(one.rgb, np.array(palette[one.value]) * 255, atol=0.5)


# The windows


def test_hounsfield_units_are_known_by_the_modality_or_by_the_air(tmp_path: Path) -> None:
    phantom = phantom_volume()
    values = phantom.data[0]
    for modality in ("CT", "MR"):
        folder = saved_series(slices(values, phantom.affine, modality), tmp_path / modality)
        read = open_scan(folder, ["any"])
        assert looks_like_ct(read) == says_ct(read) == (modality == "CT")
    hounsfield = Volume(phantom.data * np.int16(2) - np.int16(1024), phantom.affine, phantom.header, phantom.names)
    assert looks_like_ct(hounsfield)
    assert not says_ct(hounsfield)
    assert windows_of(hounsfield)[0].name == "soft tissue"
    phases = np.random.default_rng(1).integers(-4096, 4096, phantom.data.shape).astype(np.int16)
    for other in (
        phases,
        phantom.data,
        phantom.data.astype(np.float32) / 100 - 3,
        phantom.data * np.int16(20) - 20_000,
    ):
        assert not looks_like_ct(Volume(other, phantom.affine, phantom.header, phantom.names))
    assert [(one.low, one.high) for one in windows_of(phantom)][1] == (values.min(), values.max())
    for window in (*windows_of(hounsfield), *windows_of(phantom)):
        assert window.low < window.high
    flat = Volume(np.zeros((1, 3, 4, 5), np.int16), np.eye(4), None, ("x",))
    assert all(window.low < window.high for window in windows_of(flat))


# What it says, and to whom


def test_no_text_of_a_model_or_a_report_is_taken_for_html(tmp_path: Path) -> None:
    card = card_with({1: NASTY, 2: LESION}, title=NASTY, channels=(NASTY, "b"))
    certificate = {"engine": NASTY, "accepted": False}
    words = {"changes": [NASTY], "warnings": [NASTY], "certificate": certificate}
    read = page(tmp_path, volume=phantom_volume(channels=2), card=card, **words)
    words = {"changes": ["a"], "warnings": ["b"], "certificate": {"engine": "c", "accepted": False}}
    plain = page(tmp_path, volume=phantom_volume(channels=2), **words)
    assert [tag for tag, _ in read.elements] == [tag for tag, _ in plain.elements]
    assert read.scripts == plain.scripts
    assert read.told["structures"][0]["name"] == NASTY
    assert not [tag for tag, values in read.elements if tag == "img" or any(name.startswith("on") for name in values)]


def test_the_passport_and_the_certificate_are_told(tmp_path: Path) -> None:
    read = page(tmp_path, changes=["overlap 0.5"])
    for name, text in (
        ("Version", "3"),
        ("Server", "Triton 2.62.0"),
        ("Digest of the weights", "abc"),
        ("Measured on", "Some CPU (cpu)"),
        ("What it does not prove", "not certified on this device; not seen: spleen"),
        ("Lowest Dice of a label, against fp32", "0.99987"),
    ):
        assert read.row(name) == [name, text]
    assert ["Version", "7"] in read.rows
    assert "Model behind it: first stage" in (tmp_path / "page.html").read_text()
    assert "overlap 0.5" in (tmp_path / "page.html").read_text()
    assert "server:1" not in (tmp_path / "page.html").read_text()
    without = page(tmp_path, certificate={"engine": "none", "accepted": False})
    assert "no certificate" in without.row("Result")[1]
    one = {"version": "1", "engine": "none", "tiles": 1, "grid": (1, 1, 1), "seconds": {}, "predicted_peak_bytes": 0}
    parts = [{**one, "model": f"part {n}", "certificate": {"engine": f"engine {n}"}} for n in range(2)]
    several = page(tmp_path, parts=parts)
    assert ["Engine", "engine 1"] in several.rows


def test_a_patient_is_named_only_where_that_is_asked_for(tmp_path: Path) -> None:
    canary = "Kanari</b>&Vogel"
    words = ("PatientName", "PatientID", "StudyDescription", "SeriesDescription", "InstitutionName", "AccessionNumber")
    phantom = phantom_volume()
    made = slices(phantom.data[0], phantom.affine, **dict.fromkeys(words, canary), PatientBirthDate="19331122")
    volume = open_scan(saved_series(made, tmp_path / canary.replace("/", "")), ["any"])
    page(tmp_path, volume=volume, labels=labelled(volume))
    said = (tmp_path / "page.html").read_text()
    assert not [word for word in ("Kanari", "Vogel", "19331122", str(made[0].StudyInstanceUID)) if word in said]
    read = page(tmp_path, volume=volume, labels=labelled(volume), show_patient=True)
    assert read.row("Name")[1] == read.row("Identifier")[1] == canary
    assert read.row("Born")[1] == "19331122"
    assert read.told["radiological"]

    header = phantom.header.copy()
    header["descrip"] = b"Kanarien"
    of_file = Volume(phantom.data, phantom.affine, header, ("/hospital/Kanarien^Vogel\udcff.nii.gz",))
    page(tmp_path, volume=of_file)
    assert "Kanarien" not in (tmp_path / "page.html").read_text()
    read = page(tmp_path, volume=of_file, show_patient=True)
    assert read.row("File") == ["File", "Kanarien^Vogel\\udcff.nii.gz"]
    assert "/hospital" not in (tmp_path / "page.html").read_text()
    assert not read.told["radiological"]


def test_the_policy_allows_its_own_scripts_and_nothing_else(tmp_path: Path) -> None:
    read = page(tmp_path)
    (policy,) = [values["content"] for _, values in read.elements if "http-equiv" in values]
    first_script = next(at for at, (tag, _) in enumerate(read.elements) if tag in ("script", "style"))
    assert [values.get("http-equiv") for _, values in read.elements[:first_script]].count(
        "Content-Security-Policy"
    ) == 1
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for texts, rule in ((read.scripts, "script-src"), (read.styles, "style-src")):
        hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in texts}
        assert set(rules[rule].split()) == hashes
    assert len(read.scripts) == 2
    assert not re.search(r"unsafe|\*|https?:", policy)
    assert rules["img-src"] == rules["connect-src"] == "data: blob:"
    attributes = [(name, value) for _, values in read.elements for name, value in values.items()]
    assert not [one for one in attributes if one[0] in ("src", "href", "style", "action") or one[0].startswith("on")]


def test_the_same_mask_gives_the_same_page(tmp_path: Path) -> None:
    first = written(result_of(), tmp_path / "a.html").read_bytes()
    assert written(result_of(), tmp_path / "b.html").read_bytes() == first


def test_the_licence_of_what_draws_stands_on_it(tmp_path: Path) -> None:
    assert "Copyright (c) 2021, Niivue" in written(result_of(), tmp_path / "a.html").read_text()


# The command


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tiles were sent."""
    sent: list[int] = []

    def network(values: NDArray[Any]) -> NDArray[Any]:
        sent.append(len(values))
        return doubled(values)

    monkeypatch.setattr("voxtile.segmenter.connect_transport", lambda *_: transport(network=network))
    return sent


def test_segment_writes_it_beside_the_mask(tmp_path: Path, tiles: list[int]) -> None:
    pack.pack()
    scan = save_scan(tmp_path / "DOE^JOHN.nii.gz")
    words = ("segment", scan, "--model", "phantom", "--url", "memory:1", "-q", "-o", tmp_path / "m.nii.gz")
    run(*words, "--page", tmp_path / "p.html")
    read = Read((tmp_path / "p.html").read_text())
    np.testing.assert_array_equal(np.asarray(read.image("mask").dataobj), nib.load(tmp_path / "m.nii.gz").get_fdata())
    assert "DOE^JOHN" not in (tmp_path / "p.html").read_text()
    assert len(read.row("Digest of the mask")[1]) == 64
    run(*words, "--page", tmp_path / "p.html", "--show-patient")
    assert "DOE^JOHN.nii.gz" in (tmp_path / "p.html").read_text()


def test_dicom_and_batch_write_it_too(tmp_path: Path, tiles: list[int]) -> None:
    pack.pack()
    phantom = phantom_volume((20, 18, 17))
    series = saved_series(slices(phantom.data[0], phantom.affine, PatientName="Kanarienvogel"), tmp_path / "series")
    model = ("--model", "phantom", "--url", "memory:1", "-q")
    run("dicom", series, tmp_path / "found", *model, "--page", tmp_path / "p.html")
    assert "Kanarienvogel" not in (tmp_path / "p.html").read_text()
    run("dicom", series, tmp_path / "found", *model, "--page", tmp_path / "p.html", "--show-patient")
    assert Read((tmp_path / "p.html").read_text()).row("Name") == ["Name", "Kanarienvogel"]
    save_scan(tmp_path / "scans" / "a" / "one.nii.gz")
    assert run("batch", tmp_path / "scans", tmp_path / "masks", *model, "--page").exit_code == 0
    read = Read((tmp_path / "masks" / "a" / "one.html").read_text())
    mask = nib.load(tmp_path / "masks" / "a" / "one.nii.gz")
    np.testing.assert_array_equal(np.asarray(read.image("mask").dataobj), mask.get_fdata())
    again = run("batch", tmp_path / "scans", tmp_path / "masks", *model, "--page")
    assert "1 found finished" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--page", "p.htm"], "ends in .html"),
        (["--page", "nowhere/p.html"], "expected a folder"),
        (["--show-patient"], "--page"),
    ],
)
def test_what_cannot_be_is_said_before_any_tile_is_sent(
    arguments: list[str], said: str, tmp_path: Path, tiles: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scan = save_scan(tmp_path / "scan.nii.gz")
    words = ("segment", scan, "--model", "phantom", "--url", "memory:1", "-q", "-o", "m.nii.gz", *arguments)
    assert said in refused(run(*words), tmp_path, "scan.nii.gz")
    assert not tiles


def test_an_installation_without_niivue_says_what_to_do_before_any_tile_is_sent(
    tmp_path: Path, tiles: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voxtile.outputs.page.scripts.PLACE", tmp_path / "none.js")
    scan = save_scan(tmp_path / "scan.nii.gz")
    words = ("segment", scan, "--model", "phantom", "--url", "memory:1", "-q", "-o", tmp_path / "m.nii.gz")
    assert pack.COMMAND in refused(run(*words, "--page", tmp_path / "p.html"), tmp_path, "scan.nii.gz")
    assert not tiles
