"""The page about one mask in Chromium: sides, proportions and colours, switches, and no way out of it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, Route, expect

from tests.support.browsers import PATIENCE_MS, browser
from tests.support.page_results import HEAD, LESION, card_with, labelled, result_of, written
from tests.support.phantoms import phantom_volume
from voxtile.outputs.base import Result
from voxtile.outputs.page.structures import structures_of

pytestmark = pytest.mark.system
expect.set_options(timeout=PATIENCE_MS)

OPACITY = 0.6

LETTER = 20
"""Pixels across that hold a letter, and not the lines of the crosshair."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


@contextmanager
def shown(chromium: Any, result: Result, folder: Path, **options: Any) -> Iterator[Page]:
    """The page, drawn. Everything that it asks of others is refused and counted: it is nothing."""
    file = written(result, folder / "page.html")
    context = chromium.new_context(**{"viewport": {"width": 640, "height": 720}, **options})
    asked: list[str] = []
    complaints: list[str] = []

    def refuse(route: Route) -> None:
        if route.request.url == file.as_uri():
            route.continue_()
        else:
            asked.append(route.request.url)
            route.abort()

    context.route("**/*", refuse)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda line: line.type == "error" and complaints.append(line.text))
    page.goto(file.as_uri())
    page.locator("html[data-drawn]").wait_for(state="attached")
    yield page
    context.close()
    assert asked == []
    assert complaints == []


def picture(page: Page) -> NDArray[np.int64]:
    """[row, column, colour] of the canvas as it is drawn."""
    page.wait_for_timeout(300)  # the next frame
    shot = Image.open(io.BytesIO(page.locator("#canvas").screenshot())).convert("RGB")
    return np.asarray(shot).astype(np.int64)


def where(pixels: NDArray[np.int64], colour: tuple[int, int, int]) -> NDArray[np.int64]:
    """[n, 2] rows and columns of the pixels of a colour that is laid over greys."""
    hue = np.array(colour) - np.mean(colour)
    near = np.abs(pixels - pixels.mean(-1, keepdims=True) - OPACITY * hue).max(-1) < 12
    return np.argwhere(near)


def colours_of(result: Result) -> dict[str, tuple[int, int, int]]:
    found = structures_of(result.card, result.volume.data[0], result.labels)
    return {one.name: one.rgb for one in found}


def letters(page: Page) -> tuple[str, str]:
    """Which of L and R stands at the left and at the right edge of the axial slice.

    The scan is made black and the mask is taken away: what is white then is letters. The upper half of an R reaches as
    far to the right as its lower half, that of an L does not.
    """
    before = [page.input_value(name) for name in ("#low", "#high")]
    page.fill("#opacity", "0")
    window(page, "1000000", "2000000")
    white = (picture(page) > 235).all(-1)
    page.fill("#opacity", str(OPACITY))
    window(page, *before)
    middle = white[len(white) // 4 : len(white) * 3 // 4, 2:-2]  # the canvas may end within a pixel
    columns = np.flatnonzero(middle.any(0))
    left, right = middle[:, columns.min() :][:, :LETTER], middle[:, : columns.max() + 1][:, -LETTER:]
    return letter(left), letter(right)


def letter(pixels: NDArray[np.bool_]) -> str:
    rows, columns = np.argwhere(pixels).min(0), np.argwhere(pixels).max(0)
    glyph = pixels[rows[0] : columns[0] + 1, rows[1] : columns[1] + 1]
    upper = np.flatnonzero(glyph[: len(glyph) // 2].any(0))
    return "R" if upper.max() > 0.6 * glyph.shape[1] else "L"


def window(page: Page, low: str, high: str) -> None:
    """Sets black and white; in this order, so that white always lies above black."""
    for name, value in (("#high", high), ("#low", low)) if float(high) > 1e5 else (("#low", low), ("#high", high)):
        page.fill(name, value)
        page.press(name, "Enter")


def proportion(places: NDArray[np.int64], spacing: tuple[float, float] = (1.0, 1.0)) -> float:
    """How much longer the extent of `places` [n, 2] is along the first axis than along the second."""
    first, second = (np.ptp(places, axis=0) + 1) * spacing
    return float(first / second)


def proportion_at(page: Page, result: Result) -> float:
    """The same of the mask, from the back to the front and from left to right, in the axial plane that is shown."""
    millimetres = [float(one) for one in page.inner_text("#where").split(" mm")[0].split(",")]
    to_ras = result.volume.towards("RAS")
    voxel = np.linalg.inv(result.volume.affine) @ (*millimetres, 1)
    marked = np.zeros(result.labels.shape, bool)
    marked[tuple(np.rint(voxel[:3]).astype(int))] = True
    (plane,) = np.unique(np.argwhere(to_ras.apply(marked))[:, 2])
    across, up, _ = to_ras.reorder(result.volume.spacing)
    return proportion(np.argwhere(to_ras.apply(result.labels > 0)[:, :, plane].T), (up, across))


@pytest.mark.parametrize(
    ("codes", "spacing", "angles"),
    [("RAS", (1.0, 1.0, 1.0), (0, 0, 0)), ("LPI", (0.8, 1.6, 2.5), (0, 0, 0)), ("SAL", (2.0, 0.9, 1.2), (12, 7, -15))],
    ids=["plain", "anisotropic", "oblique"],
)
def test_the_lesion_lies_on_the_side_that_is_marked_right_in_true_proportions(
    chromium: Any, tmp_path: Path, codes: str, spacing: tuple[float, float, float], angles: Any
) -> None:
    """The lesion is right of the middle; axes, voxels and angles change nothing."""
    extent = {"R": 44.0, "L": 44.0, "A": 56.0, "P": 56.0, "S": 48.0, "I": 48.0}
    i, j, k = (round(extent[code] / step) for code, step in zip(codes, spacing, strict=True))
    volume = phantom_volume((i, j, k), spacing, codes, angles)
    result = result_of(volume, labelled(volume))
    colours = colours_of(result)
    with shown(chromium, result, tmp_path) as page:
        page.select_option("#planes", "AXIAL")
        for radiological in (False, True):
            page.set_checked("#radiological", radiological)
            pixels = picture(page)
            head, lesion = where(pixels, colours[HEAD]), where(pixels, colours[LESION])
            assert len(lesion) > 200
            assert letters(page) == (("R", "L") if radiological else ("L", "R"))
            to_the_right = lesion[:, 1].mean() - head[:, 1].mean()
            assert (to_the_right < 0) == radiological
            assert lesion[:, 0].mean() > head[:, 0].mean()  # behind the middle
            assert proportion(head) == pytest.approx(proportion_at(page, result), rel=0.1)


def test_a_series_of_dicom_is_seen_as_radiologists_see_it(chromium: Any, tmp_path: Path) -> None:
    from tests.support.dicom_series import saved, slices
    from voxtile.io.scan import open_scan

    phantom = phantom_volume((44, 56, 30), (1.0, 1.0, 1.6), "LPS")
    volume = open_scan(saved(slices(phantom.data[0], phantom.affine, "MR"), tmp_path / "series"), ["any"])
    result = result_of(volume, labelled(volume))
    with shown(chromium, result, tmp_path) as page:
        expect(page.locator("#radiological")).to_be_checked()
        page.select_option("#planes", "AXIAL")
        assert letters(page) == ("R", "L")
        pixels = picture(page)
        lesion, head = (where(pixels, colours_of(result)[name])[:, 1].mean() for name in (LESION, HEAD))
        assert lesion < head


@pytest.mark.parametrize("count", [117, 300])
def test_each_structure_has_its_colour_however_many_there_are(chromium: Any, tmp_path: Path, count: int) -> None:
    """NiiVue blends the lowest colours of a long table; the head is the first structure, and the air around it none."""
    volume = phantom_volume((44, 56, 48), (1.0, 1.0, 1.0))
    names = {value: HEAD if value == 1 else f"structure {value}" for value in range(1, count + 1)}
    names[count] = LESION
    labels = labelled(volume, 1, count)
    result = result_of(volume, labels, card_with(names))
    colours = colours_of(result)
    with shown(chromium, result, tmp_path) as page:
        page.select_option("#planes", "AXIAL")
        pixels = picture(page)
        assert len(where(pixels, colours[HEAD])) > 3000
        assert len(where(pixels, colours[LESION])) > 200
        coloured = np.ptp(pixels, axis=-1) > 40
        assert proportion(np.argwhere(coloured)) == pytest.approx(proportion_at(page, result), rel=0.1)
        assert coloured.mean() < 0.4  # nothing around the head
        expect(page.locator("#labels tr")).to_have_count(count)
        expect(page.locator("#labels tr").first).to_contain_text(HEAD)


def test_switches_opacity_window_views_and_keys_do_what_they_say(chromium: Any, tmp_path: Path) -> None:
    result = result_of(phantom_volume((44, 56, 48), (1.0, 1.0, 1.0)))
    colours = colours_of(result)
    with shown(chromium, result, tmp_path) as page:

        def seen(name: str) -> int:
            return len(where(picture(page), colours[name]))

        page.click("text='lesion'")
        expect(page.locator("#where")).to_contain_text(f", {LESION}")
        assert seen(LESION) > 100
        page.uncheck(f"[aria-label='Show {LESION}']")
        assert seen(LESION) == 0
        assert seen(HEAD) > 1000
        page.click("#none")
        assert seen(HEAD) == 0
        page.click("#all")
        assert seen(LESION) > 100

        bright = picture(page).mean()
        window(page, "1000000", "2000000")
        assert page.input_value("#window") == ""
        assert picture(page).mean() < bright - 5
        page.select_option("#window", "0")
        assert page.input_value("#high") != "2000000"
        assert picture(page).mean() == pytest.approx(bright, abs=1)
        page.fill("#low", "1e9")
        page.press("#low", "Enter")
        assert not page.eval_on_selector("#high", "it => it.validity.valid")
        assert picture(page).mean() == pytest.approx(bright, abs=1)

        views = {view: picture(view_of(page, view)) for view in ("AXIAL", "CORONAL", "SAGITTAL", "RENDER", "ALL")}
        for one in views.values():
            assert len(where(one, colours[HEAD])) > 0 or (np.ptp(one, axis=-1) > 60).sum() > 1000
            assert sum(np.array_equal(one, other) for other in views.values()) == 1

        page.select_option("#planes", "MULTIPLANAR")
        page.focus("#canvas")
        before = page.inner_text("#where")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("PageUp")
        expect(page.locator("#where")).not_to_have_text(before)
        page.keyboard.press("v")  # NiiVue's own key for another view
        assert page.input_value("#planes") == "MULTIPLANAR"


def view_of(page: Page, name: str) -> Page:
    page.select_option("#planes", name)
    return page


def test_a_structure_between_the_voxels_that_are_shown_is_not_looked_for_elsewhere(
    chromium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a scan of one plane, and an empty rest of the mask."""
    monkeypatch.setattr("voxtile.outputs.page.images.MOST_VOXELS", 500)
    volume = phantom_volume((44, 56, 1), (1.0, 1.0, 5.0))
    labels = np.zeros(volume.shape, np.uint8)
    labels[21, 21, 0], labels[0, 0, 0] = 1, 2
    with shown(chromium, result_of(volume, labels), tmp_path) as page:
        page.click(f"text='{LESION}'")
        expect(page.locator("#where")).to_contain_text(f", {LESION}")
        page.click(f"text='{HEAD}'")
        expect(page.locator("#where")).to_contain_text("between the voxels")


def test_the_table_sorts_by_its_heads(chromium: Any, tmp_path: Path) -> None:
    volume = phantom_volume()
    result = result_of(volume, labelled(volume), card_with({1: HEAD, 2: LESION, 3: "absent"}))
    with shown(chromium, result, tmp_path) as page:

        def names() -> list[str]:
            return page.locator("#labels th").all_inner_texts()

        assert names() == [HEAD, LESION, "absent"]
        for head, orders in (
            ("Mean", ([LESION, HEAD, "absent"], [HEAD, LESION, "absent"])),
            ("Voxels", ([HEAD, LESION, "absent"], ["absent", LESION, HEAD])),
            ("Structure", (["absent", HEAD, LESION], [LESION, HEAD, "absent"])),
        ):
            for order in orders:
                page.click(f"thead button:has-text('{head}')")
                assert names() == order
        assert page.locator("th[aria-sort]").count() == 1


def test_nothing_gets_out_and_nothing_foreign_runs(chromium: Any, tmp_path: Path) -> None:
    nasty = "</script><img src=https://example.org/x.png onerror=alert(1)><script>globalThis.ran=1</script>"
    card = card_with({1: nasty, 2: LESION}, title=nasty)
    with shown(chromium, result_of(card=card), tmp_path) as page:
        assert page.evaluate("globalThis.ran") is None
        assert page.locator("#labels th").first.inner_text() == nasty
        assert page.inner_text("h1") == nasty
        page.locator("#labels button").first.click()
        expect(page.locator("#where")).to_contain_text(nasty)

    file = tmp_path / "page.html"
    other = chromium.new_page()
    asked: list[str] = []
    other.route("https://**", lambda route: (asked.append(route.request.url), route.abort()))
    other.goto(file.as_uri())
    blocked = other.evaluate(
        """async () => {
            const seen = [];
            document.addEventListener("securitypolicyviolation", (event) => seen.push(event.effectiveDirective));
            await fetch("https://example.org/").catch(() => 0);
            document.body.append(Object.assign(new Image(), { src: "https://example.org/a.png" }));
            for (const tag of ["script", "style"])
                document.body.append(Object.assign(document.createElement(tag), { textContent: "globalThis.ran = 1" }));
            document.body.append(Object.assign(document.createElement("script"), { src: "https://example.org/a.js" }));
            document.body.append(Object.assign(document.createElement("iframe"), { src: "https://example.org/" }));
            await new Promise((done) => setTimeout(done, 500));
            return [seen, globalThis.ran ?? null];
        }"""
    )
    other.close()
    assert {"connect-src", "img-src", "script-src-elem", "style-src-elem", "frame-src"} <= set(blocked[0])
    assert blocked[1] is None
    assert asked == []


def test_a_browser_without_webgl_has_the_tables(chromium: Any, tmp_path: Path) -> None:
    file = written(result_of(), tmp_path / "page.html")
    context = chromium.new_context()
    context.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    page = context.new_page()
    page.goto(file.as_uri())
    expect(page.locator("#view-error")).to_contain_text("WebGL 2")
    expect(page.locator("#labels tr")).to_have_count(2)
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_and_every_control_has_a_name(chromium: Any, tmp_path: Path, scheme: str) -> None:
    with shown(chromium, result_of(), tmp_path, viewport={"width": 360, "height": 740}, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        paper, ink = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        assert (brightness(paper) > brightness(ink)) == (scheme == "light")
        assert abs(brightness(paper) - brightness(ink)) > 150
        controls = page.locator("input, select, button").all()
        assert len(controls) > 12
        named = "it => it.labels?.length > 0 || it.ariaLabel || it.textContent.trim()"
        assert all(control.evaluate(named) for control in controls)


def brightness(colour: str) -> float:
    return float(np.mean([int(part) for part in colour[4:-1].split(",")[:3]]))
