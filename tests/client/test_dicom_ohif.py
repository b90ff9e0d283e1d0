"""OHIF shows what `voxtile dicom` wrote: each structure in its colour, at its place, under its name, over its own scan.

Orthanc, OHIF and Chromium are real. Every voxel of a slice is compared with the pixel that shows it. Pictures of the
viewer are kept in the folder of the environment variable VOXTILE_TEST_PICTURES, where it is set.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import time
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from pydicom import dcmread
from pydicom.uid import generate_uid

from tests.support import dicom_findings as made
from tests.support import dicom_series as series
from tests.support.browsers import PATIENCE_MS, browser
from tests.support.commands import run
from tests.support.in_memory import InMemoryTransport
from tests.support.ohif import viewer
from tests.support.orthanc import Orthanc, orthanc, upload
from tests.support.phantoms import affine_of
from voxtile.outputs.dicom.structures import structures_of

pytestmark = pytest.mark.system

STRUCTURES = {
    "kidney_left": (300, np.s_[40:52, 30:44, 1:5]),
    "kidney_right": (400, np.s_[14:22, 32:40, 2:6]),
    "liver": (500, np.s_[8:30, 10:24, 3:7]),
    "spleen": (600, np.s_[44:54, 12:20, 4:6]),
    "aorta": (700, np.s_[30:34, 26:30, :]),
}
"""Brightness and place [i, j, k] of each, in an axial scan; no two are alike, and no flip leaves one where it is."""

LEVELS = [level for level, _ in STRUCTURES.values()]
CARD = made.card_for(list(STRUCTURES))
COLOURS = np.array([one.rgb for one in structures_of(CARD)], float)
BODY, BODY_PLACE = 150, np.s_[5:57, 6:50]
WINDOW, LEVEL = 1000, 500
SLICES = 7
DRAWN_WITHIN_S = 20

ALIKE = 0.97
"""The cosine between a colour that is seen and the one that is meant: colours are stored as CIELab and rounded."""

GREY = 8.0
"""How far a grey may be from grey."""

DARK = (BODY / 2 - LEVEL + WINDOW / 2) / WINDOW * 255
"""Between air and body, as the window shows them."""

TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

VIEWPORT = "const viewport = cornerstone.getRenderingEngines()[0].getViewports()[0];"

WHERE = (
    VIEWPORT + "return cornerstone.metaData.get('imagePlaneModule', viewport.getCurrentImageId()).imagePositionPatient;"
)
PLACES = VIEWPORT + "return points.map(point => viewport.worldToCanvas(point));"
PIXELS = VIEWPORT + "return viewport.getCanvas().toDataURL('image/png');"
OUTLINES = """const drawn = [...document.querySelectorAll('svg.svg-layer path')];
    return drawn.map(one => [one.getAttribute('stroke'), one.getAttribute('d')]);"""
GO = VIEWPORT + "return viewport.setImageIdIndex(number).then(() => viewport.render());"


def said(page: Page, body: str, **given: Any) -> Any:
    """What JavaScript says of the viewer's own state."""
    return page.evaluate(f"({{{', '.join(given)}}}) => {{{body}}}", given)


def brightness(tiles: NDArray[Any]) -> NDArray[np.float32]:
    """Scores by which each structure is what is as bright as it."""
    value = tiles[:, :1]
    scores = [np.full_like(value, 1.0), *(np.where(value >= level, level, 0.0) for level in LEVELS)]
    return np.concatenate(scores, axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture(scope="module")
def ohif(pacs: Orthanc) -> Iterator[str]:
    with viewer(pacs.root) as url:
        yield url


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened.new_context(viewport={"width": 900, "height": 600})  # one, which keeps the viewer's files


@dataclass(frozen=True)
class Case:
    """A series, and what was written about it.

    Attributes:
        study: its UID.
        voxels: [i, j, k].
        affine: [4, 4] voxel to RAS millimetres.
        written: modality and description of each object about it.
    """

    study: str
    voxels: NDArray[np.int16]
    affine: NDArray[np.float64]
    written: set[tuple[str, str]]

    def labels(self, k: int) -> NDArray[np.int64]:
        """[i, j] the structures of a slice."""
        return np.searchsorted(LEVELS, self.voxels[..., k], side="right")


@pytest.fixture
def case(request: pytest.FixtureRequest, pacs: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    """The parameters are columns, angles, whether the objects are one enhanced one, and options of the command."""
    columns, angles, enhanced, options = request.param
    shape = (columns, 56, SLICES)
    affine = affine_of(shape, (2.0, 2.0, 4.0), "LPS", angles)
    voxels = np.zeros(shape, np.int16)
    voxels[BODY_PLACE] = BODY
    for level, place in STRUCTURES.values():
        voxels[place] = level
    tags = {"WindowCenter": LEVEL, "WindowWidth": WINDOW, "PatientID": generate_uid()[-20:]}
    objects: list[Any] = series.slices(voxels, affine, **tags)
    study = str(objects[0].StudyInstanceUID)
    if enhanced:
        objects = [made.enhanced(objects)]
    series.saved(objects, tmp_path / "in")
    monkeypatch.setattr("voxtile.segmenter.connect_transport", lambda *_: InMemoryTransport(CARD, brightness))
    result = run("dicom", tmp_path / "in", tmp_path / "out", "--model", "phantom", "--url", "memory:1", *options)
    assert result.exit_code == 0, result.output
    for folder in (tmp_path / "in", tmp_path / "out"):
        upload(pacs, folder)
    written = [dcmread(file) for file in (tmp_path / "out").iterdir()]
    return Case(study, voxels, affine, {(one.Modality, one.SeriesDescription) for one in written})


@contextlib.contextmanager
def opened(chromium: Any, ohif: str, case: Case, wanted: str = "phantom segmentation") -> Iterator[Page]:
    """The viewer with an object of a case loaded over its scan. It must not ask for anything elsewhere."""
    asked: list[str] = []
    page = chromium.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.on("request", lambda request: asked.append(request.url))
    page.add_locator_handler(page.get_by_text("Skip all"), lambda tour: tour.click())
    try:
        page.goto(f"{ohif}/viewer?StudyInstanceUIDs={case.study}")
        page.get_by_text(wanted).dblclick()
        page.get_by_role("button", name="Yes").click()
        yield page
    finally:
        page.close()
    assert [url for url in asked if not url.startswith((f"{ohif}/", "data:", "blob:"))] == []


def slice_shown(page: Page, case: Case) -> int:
    """The slice k that is shown."""
    lps = TO_LPS @ case.affine
    starts = lps[:3, 3] + np.outer(np.arange(SLICES), lps[:3, 2])
    return int(np.argmin(np.linalg.norm(starts - np.array(said(page, WHERE)), axis=1)))


def on_canvas(page: Page, case: Case, voxels: NDArray[Any], k: int) -> NDArray[np.float64]:
    """[..., 2] where the viewer shows voxels [..., 2] (i, j) of a slice: x to the right and y downwards."""
    whole = np.concatenate([voxels, np.full((*voxels.shape[:-1], 1), k), np.ones((*voxels.shape[:-1], 1))], -1)
    points = whole.reshape(-1, 4) @ (TO_LPS @ case.affine).T
    return np.array(said(page, PLACES, points=points[:, :3].tolist())).reshape(voxels.shape)


def seen(page: Page, case: Case) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """The slice k that is shown, [i, j, colour] the pixel at the middle of each of its voxels, [i, j, 2] where it is.

    Places are x to the right and y downwards. The slice is known by the position that its object has in the archive.
    """
    k = slice_shown(page, case)
    places = on_canvas(page, case, np.moveaxis(np.indices(case.voxels.shape[:2]), 0, -1), k)
    data = base64.b64decode(said(page, PIXELS).partition(",")[2])
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float)
    x, y = np.rint(places).astype(int).transpose(2, 0, 1)
    return k, pixels[y, x], places


def labels_in(colours: NDArray[np.float64]) -> NDArray[np.int64]:
    """[i, j] the structure whose colour was laid over greys, or 0; -1 for any other colour.

    Half of a colour laid over a grey keeps the direction in which it differs from grey.
    """
    off, wanted = (one - one.mean(-1, keepdims=True) for one in (colours, COLOURS))
    length = np.linalg.norm(off, axis=-1)
    alike = (off @ wanted.T) / np.maximum(length, 1e-9)[..., None] / np.linalg.norm(wanted, axis=1)
    found = np.where(alike.max(-1) > ALIKE, alike.argmax(-1) + 1, -1)
    return np.where(length < GREY, 0, found)


STRAIGHT = (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param((64, STRAIGHT, False, ("--sr", "--sc", "--rtstruct")), id="binary"),
        pytest.param((61, STRAIGHT, False, ("--seg", "labelmap")), id="labelmap"),
        pytest.param((64, (11.0, -17.0, 8.0), True, ()), id="enhanced-oblique"),
    ],
    indirect=True,
)
def test_each_voxel_has_the_colour_of_its_structure(
    case: Case, chromium: Any, ohif: str, request: pytest.FixtureRequest
) -> None:
    with opened(chromium, ohif, case) as page:
        assert case.written <= listed(page).items()
        shown = set()
        for number in range(SLICES):
            said(page, GO, number=number)
            shown.add(_check_slice(page, case))
        assert shown == set(range(SLICES))
        page.locator("[data-cy=panelSegmentation-btn]").click()  # last, because it makes the picture narrower
        for name in STRUCTURES:
            expect(page.locator("[data-cy=data-row]").filter(has_text=name)).to_be_visible()
        if folder := os.environ.get("VOXTILE_TEST_PICTURES"):
            page.screenshot(path=f"{folder}/ohif-{request.node.callspec.id}.png")


def listed(page: Page) -> dict[str, str]:
    """The series of the study, as the viewer lists them: modality and description."""
    columns = (page.locator(f"[data-cy=series-{what}-label]").all_inner_texts() for what in ("modality", "description"))
    return dict(zip(*columns, strict=True))


def _check_slice(page: Page, case: Case) -> int:
    """Checks the slice that is shown; returns its k. What is still being drawn gets some time."""
    limit = time.monotonic() + DRAWN_WITHIN_S
    while True:
        k, colours, places = seen(page, case)
        labels, wanted = labels_in(colours), case.labels(k)
        if np.array_equal(labels, wanted) or time.monotonic() > limit:
            break
        page.wait_for_timeout(100)
    np.testing.assert_array_equal(labels, wanted)
    # The scan lies under it, with the patient's left at the right and the back below.
    free = wanted == 0
    np.testing.assert_array_equal((colours.mean(-1) > DARK)[free], (case.voxels[..., k] >= BODY)[free])
    assert (np.diff(places[..., 0], axis=0) > 0).all()
    assert (np.diff(places[..., 1], axis=1) > 0).all()
    return k


@pytest.mark.parametrize("case", [pytest.param((64, STRAIGHT, False, ("--rtstruct",)), id="rtstruct")], indirect=True)
def test_outlines_run_along_the_edges_of_structures(case: Case, chromium: Any, ohif: str) -> None:
    with opened(chromium, ohif, case, "phantom contours") as page:
        for number in range(SLICES):
            said(page, GO, number=number)
            k = slice_shown(page, case)
            wanted = {}
            for name, colour in zip(STRUCTURES, COLOURS, strict=True):
                i, j = np.nonzero(case.voxels[..., k] == STRUCTURES[name][0])
                if i.size:
                    edges = np.array([[i.min() - 0.5, j.min() - 0.5], [i.max() + 0.5, j.max() + 0.5]])
                    wanted[tuple(colour)] = on_canvas(page, case, edges, k)
            found = _outlines(page, wanted.keys())
            assert found.keys() == wanted.keys()
            for colour, edges in wanted.items():
                np.testing.assert_allclose(found[colour], edges, atol=PIXEL)


PIXEL = 0.5
"""How far an outline may be drawn from its place: coordinates are written with a digit behind the point."""


def _outlines(page: Page, colours: Set[tuple[float, ...]]) -> dict[tuple[float, ...], NDArray[np.float64]]:
    """[2, 2] the lowest and the highest x and y of each outline that is drawn, by its colour; these are awaited."""
    limit = time.monotonic() + DRAWN_WITHIN_S
    while True:
        drawn = said(page, OUTLINES)
        found = {}
        for stroke, path in drawn:
            points = np.array(re.findall(r"[-\d.]+", path), float).reshape(-1, 2)
            found[tuple(map(float, re.findall(r"[\d.]+", stroke)[:3]))] = np.array([points.min(0), points.max(0)])
        if (found.keys() == colours and len(drawn) == len(found)) or time.monotonic() > limit:
            assert len(drawn) == len(found)
            return found
        page.wait_for_timeout(100)
