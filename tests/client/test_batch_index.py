"""The page about a batch: what it marks, what it measures, what it draws, and whose file it never replaces."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.support.commands import refused, run
from tests.support.in_memory_commands import save_scan, transport
from tests.support.page_results import HEAD, LESION, card_with, labelled, result_of
from tests.support.phantoms import ORIENTATIONS, phantom_volume
from voxtile.batch.index.outliers import LEAST_CASES, outliers
from voxtile.batch.index.page import INDEX, Line, index_of
from voxtile.batch.index.row import Row, components, row_of, surface_cm2
from voxtile.batch.summary import Outcome
from voxtile.outputs.page import pack
from voxtile.outputs.thumbnail import HEIGHT, thumbnail

MODEL = ("--model", "phantom", "--url", "memory:1", "-q")


# What is marked

NUMBERS = st.lists(st.integers(-1000, 1000), min_size=LEAST_CASES, max_size=40)


@given(NUMBERS, st.sampled_from([0.5, 2.0, -4.0]), st.integers(-50, 50))
def test_marks_do_not_depend_on_unit_zero_or_order(values: list[int], scale: float, shift: int) -> None:
    marks = outliers([float(value) for value in values])
    assert outliers([scale * value + shift for value in values]) == marks
    assert outliers([float(value) for value in values[::-1]]) == marks[::-1]
    assert sum(marks) < len(values) / 2


def test_a_case_far_from_the_others_is_marked_and_a_usual_one_is_not() -> None:
    usual = [10.0, 11.0, 9.5, 10.5, 9.0, 12.0, 10.2, 9.8]
    assert outliers([*usual, 30.0, None, 10.1]) == [False] * 8 + [True, False, False]
    assert outliers([*usual, 0.0])[-1]
    # 0.6745 · (x − 10.2) / 0.7 passes 3.5 at x = 13.83…
    assert [outliers([*usual, value])[-1] for value in (13.8, 13.9)] == [False, True]


def test_where_most_cases_agree_the_mean_deviation_counts() -> None:
    assert outliers([1.0] * 11 + [40.0]) == [False] * 11 + [True]
    assert not any(outliers([7.0] * 12))


def test_few_cases_have_no_outliers() -> None:
    few = [1.0] * (LEAST_CASES - 2) + [1000.0]
    assert not any(outliers([*few, None, None, None]))
    assert outliers([*few, 1.0])[-2]


# What is measured


def test_pieces_are_counted_for_each_structure_over_corners() -> None:
    labels = np.zeros((6, 7, 8), np.uint16)
    assert components(labels) == 0
    labels[0, 0, 0] = labels[1, 1, 1] = 1  # touch at a corner
    labels[1, 1, 2] = 300  # beside the other, but another structure
    labels[5, 6, 7] = 300
    assert components(labels) == 3


@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), (20.0, -35.0, 70.0)])
def test_the_surface_of_a_box_is_that_of_its_faces(angles: Any) -> None:
    volume = phantom_volume((12, 11, 10), (2.0, 1.5, 3.0), "PIL", angles)
    body = np.zeros(volume.shape, bool)
    body[3:7, 0:5, 8:10] = True  # it reaches two ends of the grid
    i, j, k = 4 * 2.0, 5 * 1.5, 2 * 3.0
    assert surface_cm2(body, volume) == pytest.approx(2 * (i * j + j * k + i * k) / 100)


# What is drawn


@pytest.mark.parametrize("codes", ORIENTATIONS[::5])
def test_a_thumbnail_is_the_same_however_the_scan_is_stored(codes: str) -> None:
    extent = {"R": 24, "L": 24, "A": 30, "P": 30, "S": 27, "I": 27}
    i, j, k = (extent[code] for code in codes)
    pictures = []
    for volume in (phantom_volume((i, j, k), (1.7, 1.7, 1.7), codes), phantom_volume((24, 30, 27), (1.7, 1.7, 1.7))):
        drawn = thumbnail(volume, labelled(volume), card_with({1: HEAD, 2: LESION}).labels)
        pictures.append(np.asarray(Image.open(io.BytesIO(drawn)).convert("RGB")).astype(int))
    np.testing.assert_array_equal(*pictures)
    axial = pictures[0][:, -round(HEIGHT * 24 / 30) :]
    assert len(axial) == HEIGHT
    blue = axial[..., 2] - axial[..., 0] > 20  # the lesion; the head is red
    assert blue.any()
    rows, columns = np.nonzero(blue)
    assert columns.mean() > axial.shape[1] / 2
    assert rows.mean() > HEIGHT / 2


@pytest.mark.parametrize("shape", [(1, 1, 1), (40, 1, 3), (5, 300, 2)])
def test_flat_and_empty_masks_have_a_thumbnail(shape: tuple[int, int, int]) -> None:
    volume = phantom_volume(shape, (1.0, 1.0, 9.0))
    row = row_of(result_of(volume, np.zeros(shape, np.uint8)), "x")
    assert Image.open(io.BytesIO(base64.b64decode(row.thumbnail))).size[1] == HEIGHT
    assert (row.components, row.surface_cm2) == (0, 0.0)


# The page and the command


def rows_of(text: str) -> list[str]:
    return re.findall(r"<tr>(?:(?!</tr>).)*</tr>", text.split("<tbody>")[1], re.DOTALL)


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxtile.segmenter.connect_transport", lambda *_: transport())


def test_batch_writes_a_row_a_case_with_links_and_the_line_of_a_failure(tmp_path: Path) -> None:
    pack.pack()
    scans, masks = tmp_path / "scans", tmp_path / "masks"
    for name in ("a", "b & <i>c", "sub/javascript:d"):
        save_scan(scans / f"{name}.nii.gz", seed=len(name))
    (scans / "broken.nii.gz").write_bytes(b"no scan")
    assert run("batch", scans, masks, *MODEL, "--page", "--index").exit_code == 1
    text = (masks / INDEX).read_text()
    rows = rows_of(text)
    assert len(rows) == 4
    assert text.count("data:image/jpeg") == 3
    assert "<i>c" not in text
    (broken,) = [row for row in rows if "broken" in row]
    assert "failed" in broken
    assert ".nii.gz" in broken
    links = re.findall(r'href="([^"]*)"', text)
    assert links == ["./a.html", "./b%20%26%20%3Ci%3Ec.html", "./sub/javascript%3Ad.html"]
    assert "No case is marked here" in text
    assert "modified z-score" in text

    # Again: finished cases keep their rows, and the page of the earlier run is replaced.
    (scans / "broken.nii.gz").unlink()
    again = run("batch", scans, masks, *MODEL, "--page", "--index")
    assert "3 found finished" in again.stdout
    assert (masks / INDEX).read_text().count("data:image/jpeg") == 3
    assert "broken" not in (masks / INDEX).read_text()


def test_cases_of_a_run_without_an_index_have_volumes_and_no_picture(tmp_path: Path) -> None:
    scans, masks = tmp_path / "scans", tmp_path / "masks"
    save_scan(scans / "a.nii.gz")
    assert run("batch", scans, masks, *MODEL).exit_code == 0
    assert not (masks / INDEX).exists()
    save_scan(scans / "b.nii.gz", seed=5)
    assert run("batch", scans, masks, *MODEL, "--index").exit_code == 0
    text = (masks / INDEX).read_text()
    assert text.count("data:image/jpeg") == 1
    assert "segmented without --index" in text
    assert "href=" not in text


def test_a_mask_that_was_made_anew_is_not_shown_by_the_row_of_the_old_one(tmp_path: Path) -> None:
    scans, masks = tmp_path / "scans", tmp_path / "masks"
    save_scan(scans / "a.nii.gz")
    assert run("batch", scans, masks, *MODEL, "--index").exit_code == 0
    assert "data:image/jpeg" in (masks / INDEX).read_text()
    save_scan(scans / "a.nii.gz", seed=9)
    assert "1 segmented" in run("batch", scans, masks, *MODEL).stdout
    assert "1 found finished" in run("batch", scans, masks, *MODEL, "--index").stdout
    assert "data:image/jpeg" not in (masks / INDEX).read_text()


@pytest.mark.parametrize("other", ["<p>my page", "<!doctype html><title>Voxtile</title>"])
def test_a_file_that_is_not_its_own_is_never_replaced(tmp_path: Path, other: str) -> None:
    save_scan(tmp_path / "scans" / "a.nii.gz")
    masks = tmp_path / "masks"
    masks.mkdir()
    (masks / INDEX).write_text(other)
    assert INDEX in refused(run("batch", tmp_path / "scans", masks, *MODEL, "--index"), masks, INDEX)
    assert (masks / INDEX).read_text() == other


def test_the_page_of_a_case_is_not_that_of_the_batch(tmp_path: Path) -> None:
    pack.pack()
    save_scan(tmp_path / "scans" / "index.nii.gz")
    said = refused(run("batch", tmp_path / "scans", tmp_path / "masks", *MODEL, "--page", "--index"), tmp_path, "scans")
    assert "'index'" in said


def test_a_row_that_cannot_be_made_costs_no_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> bytes:
        raise RuntimeError("no picture")

    monkeypatch.setattr("voxtile.batch.index.row.thumbnail", fails)
    save_scan(tmp_path / "scans" / "a.nii.gz")
    assert run("batch", tmp_path / "scans", tmp_path / "masks", *MODEL, "--index").exit_code == 0
    assert (tmp_path / "masks" / "a.nii.gz").exists()
    assert len(rows_of((tmp_path / "masks" / INDEX).read_text())) == 1


def many(count: int) -> list[Line]:
    """Cases whose heads have about 1,000 ml, but for the last one."""
    picture = row_of(result_of(), "x").thumbnail
    volumes = [1000.0 + number % 7 for number in range(count - 1)] + [12.0]
    return [
        Line(Outcome(f"case {number}", "done", ml={HEAD: ml, LESION: 5.0}),
             Row(mask_sha256="x", thumbnail=picture, components=2, surface_cm2=600.0), None)
        for number, ml in enumerate(volumes)
    ]  # fmt: skip


def test_what_is_far_from_the_others_is_marked_on_the_page(tmp_path: Path) -> None:
    text = index_of(many(20), card_with({1: HEAD, 2: LESION}), tmp_path)
    assert text.count("⚑") == 1
    assert "⚑" in rows_of(text)[-1]
    assert "⚑" not in index_of(many(LEAST_CASES - 1), card_with({1: HEAD, 2: LESION}), tmp_path)


@pytest.mark.system
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_five_hundred_cases_open_and_sort_in_a_browser(tmp_path: Path, scheme: str) -> None:
    from tests.support.browsers import browser

    file = tmp_path / INDEX
    file.write_text(index_of(many(500), card_with({1: HEAD, 2: LESION}), tmp_path), encoding="utf-8")
    assert file.stat().st_size < 6_000_000
    with browser() as opened:
        page = opened.new_page(color_scheme=scheme, viewport={"width": 900, "height": 700})
        complaints: list[str] = []
        asked: list[str] = []
        page.on("console", lambda line: complaints.append(line.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        cases = page.locator("#cases tbody tr")
        assert cases.count() == 500
        assert page.locator("img").first.evaluate("it => it.decode().then(() => it.naturalHeight)") == HEIGHT
        page.click("thead button:has-text('Marks')")
        assert cases.first.locator("th").inner_text() == "case 499"
        page.click("thead button:has-text('Case')")
        assert cases.nth(2).locator("th").inner_text() == "case 2"  # and not case 10
        assert complaints == []
        assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
