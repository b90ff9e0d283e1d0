"""The gateway's page in Chromium: a scan dropped, the bar moving, the mask on its side, and refusals in one line.

The gateway, Triton and the browser are real.
"""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, Route, expect

from tests.support.browsers import PATIENCE_MS, browser, drop
from tests.support.gateways import Gateway, gateway
from tests.support.page_models import write_page_models
from tests.support.phantoms import affine_of, restored_as, sampled, saved
from voxtile_server.embedded import EmbeddedServer

pytestmark = pytest.mark.system

EGG, LESION = (230, 159, 0), (86, 180, 233)
"""The colours of the first two structures."""

SHAPE = (36, 48, 42)
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    repository = tmp_path_factory.mktemp("page models")
    write_page_models(repository)
    with EmbeddedServer(repository) as running:
        yield running
        running.kill()


@pytest.fixture(scope="module")
def one(triton: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("gateway"), "--url", triton.grpc_url, "--max-upload", "40") as running:
        yield running


@dataclass(frozen=True)
class Scans:
    """The phantom, whose lesion is on the right: as RAS and stored otherwise; a second channel; one of many tiles."""

    plain: Path
    turned: Path
    second: Path
    both: Path
    long: Path


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Scans:
    root = tmp_path_factory.mktemp("scans")
    affine = affine_of(SHAPE, (1.3, 1.3, 1.3))
    values = sampled(SHAPE, affine).astype(np.int16)
    other = np.roll(values, 5, axis=1)
    turned, turned_affine = restored_as(values, affine, "PIL")
    repeated = values.repeat(6, 0).repeat(6, 1).repeat(6, 2)
    return Scans(
        saved(root / "DOE^JOHN t1.nii.gz", values, affine),
        saved(root / "DOE^JOHN.NII.GZ", turned, turned_affine),
        saved(root / "DOE^JOHN t2.nii.gz", other, affine),
        saved(root / "both.nii.gz", np.stack([values, other], axis=3), affine),
        saved(root / "long.nii", repeated, affine_of(repeated.shape, (0.2, 0.2, 0.2))),
    )


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


@pytest.fixture
def page(chromium: Any, one: Gateway) -> Iterator[Page]:
    """The page, opened; it asks nobody else for anything, and its policy stops nothing that it does."""
    with opened(chromium, one.url) as found:
        yield found


class opened:
    """A fresh page at an address; what it complains of and whom it asks is looked at when it is left."""

    def __init__(self, chromium: Any, url: str, **options: Any) -> None:
        self._context = chromium.new_context(**options)
        self._page: Page = self._context.new_page()
        self._url = url
        self.asked: list[str] = []
        self.complaints: list[str] = []

    def __enter__(self) -> Page:
        page = self._page
        page.set_default_timeout(PATIENCE_MS)
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda line: line.type == "error" and self.complaints.append(line.text))
        page.goto(f"{self._url}/")
        page.locator("#slots input, #error:not([hidden])").first.wait_for()  # the models are there, or are not
        return page

    def __exit__(self, kind: Any, *rest: Any) -> None:
        self._context.close()
        if kind is None:
            assert [url for url in self.asked if not url.startswith((f"{self._url}/", "data:", "blob:"))] == []
            assert [one for one in self.complaints if not one.startswith("Failed to load resource")] == []


def finished(page: Page) -> None:
    expect(page.locator("#result")).to_be_visible()
    expect(page.locator("#where")).to_contain_text("mm")


def error_of(page: Page) -> str:
    expect(page.locator("#error")).to_be_visible()
    return page.inner_text("#error")


def picture(page: Page) -> NDArray[np.int64]:
    """[row, column, colour] of the canvas as it is drawn."""
    page.wait_for_timeout(300)  # the next frame
    shot = Image.open(io.BytesIO(page.locator("#canvas").screenshot())).convert("RGB")
    return np.asarray(shot).astype(np.int64)


def where(pixels: NDArray[np.int64], colour: tuple[int, int, int]) -> NDArray[np.float64]:
    """[n, 2] places, -1 to 1 down and to the right, of the pixels of a colour laid over greys with opacity 0.6."""
    hue = np.array(colour) - np.mean(colour)
    grey = pixels.mean(-1, keepdims=True)
    near = np.abs(pixels - grey - 0.6 * hue).max(-1) < 25
    found: NDArray[np.float64] = 2 * np.argwhere(near) / np.array(near.shape) - 1
    return found


@pytest.mark.parametrize("stored", ["plain", "turned"])
def test_a_dropped_scan_gives_a_bar_that_moves_and_the_mask_on_its_side(
    page: Page, one: Gateway, scans: Scans, stored: str, tmp_path: Path
) -> None:
    scan: Path = getattr(scans, stored)
    page.evaluate(
        """() => {
            window.bars = []; window.steps = [];
            new MutationObserver(() => {
                window.bars.push(document.getElementById("bar").value);
                window.steps.push(document.getElementById("step").textContent);
            }).observe(document.getElementById("work"), {subtree: true, childList: true, attributes: true});
        }"""
    )
    drop(page, [scan])
    finished(page)
    bars = page.evaluate("window.bars")
    assert bars[-1] == 1
    steps = " ".join(page.evaluate("window.steps"))
    assert "Reading and preparing" in steps or "Segmenting" in steps

    # The lesion is right of the middle and behind it; right is on the right until radiologists are asked for.
    page.select_option("#planes", "AXIAL")
    lesion, egg = where(picture(page), LESION), where(picture(page), EGG)
    assert len(lesion) > 200
    assert len(egg) > 5 * len(lesion)
    assert lesion[:, 1].min() > 0.02
    assert lesion[:, 0].mean() > egg[:, 0].mean()
    page.check("#radiological")
    assert where(picture(page), LESION)[:, 1].max() < -0.02
    page.fill("#opacity", "0")
    assert len(where(picture(page), LESION)) + len(where(picture(page), EGG)) == 0

    # What is told and downloaded is what curl gets.
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "mask.nii.gz")
    _, headers, mask = one.curl("/v1/models/levels/mask", "-X", "POST", "-T", scan)
    assert (tmp_path / "mask.nii.gz").read_bytes() == mask
    assert download.value.suggested_filename == re.sub(r"(?i)\.nii\.gz$", "_mask.nii.gz", scan.name)
    labels = json.loads(headers["voxtile-report"])["labels"]
    rows = [row.inner_text().split("\t") for row in page.locator("#labels tr").all()]
    assert [row[0] for row in rows] == ["egg", "lesion"]
    assert [int(row[3].replace(",", "")) for row in rows] == [labels[name]["voxels"] for name in ("egg", "lesion")]
    assert float(rows[1][2]) == pytest.approx(labels["lesion"]["ml"], rel=0.005)
    (spool,) = one.folder.iterdir()
    expect(page.locator("#work")).to_be_hidden()
    assert not [file for file in spool.rglob("*") if file.is_file()]


def test_two_scans_in_a_row_leave_nothing_of_the_first(page: Page, scans: Scans, tmp_path: Path) -> None:
    drop(page, [scans.plain])
    finished(page)
    first = page.inner_text("#labels")
    dim = saved(tmp_path / "dim.nii", np.full((20, 24, 22), 100, np.int16), np.eye(4))
    drop(page, [dim])
    expect(page.locator("#labels tr").first.locator("td").nth(2)).to_have_text("0")
    finished(page)
    assert page.inner_text("#labels") != first
    pixels = picture(page)
    assert len(where(pixels, EGG)) + len(where(pixels, LESION)) == 0


NOTE_NAMES = """() => {
    window.names = [];
    const send = XMLHttpRequest.prototype.send;
    XMLHttpRequest.prototype.send = function (body) {
        window.names.push(...(body instanceof FormData ? body.values() : [body]).map(part => part.name ?? null));
        return send.call(this, body);
    };
}"""
"""Notes the names of the files that are sent."""


def channels_mask(one: Gateway, scans: Scans) -> bytes:
    fields = ("-F", f"a=@{scans.plain}", "-F", f"b=@{scans.second}")
    return one.curl("/v1/models/two-channels/mask", *fields)[2]


@pytest.mark.parametrize("how", ["together", "on their lines", "one file"])
def test_every_channel_gets_its_own_file(page: Page, one: Gateway, scans: Scans, how: str, tmp_path: Path) -> None:
    page.evaluate(NOTE_NAMES)
    page.select_option("#model", "two-channels")
    expect(page.locator("#start")).to_be_disabled()
    if how == "together":
        drop(page, [scans.second, scans.plain])  # names decide, not their order
    elif how == "on their lines":
        drop(page, [scans.second], ".slot:nth-child(2)")
        expect(page.locator("#start")).to_be_disabled()
        page.set_input_files("#file-0", scans.plain)
    else:
        page.set_input_files("#file-0", scans.second)  # superseded
        drop(page, [scans.both], ".slot:nth-child(3)")
    page.click("#start")
    finished(page)
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "mask.nii.gz")
    assert (tmp_path / "mask.nii.gz").read_bytes() == channels_mask(one, scans)
    names = page.evaluate("window.names")
    assert names == ([None] if how == "one file" else ["channel-1", "channel-2"])  # a file's own may name a patient


def test_files_of_which_the_channels_are_not_certain_are_not_sent(page: Page, scans: Scans) -> None:
    page.select_option("#model", "two-channels")
    for files in ([scans.turned, scans.plain], [scans.plain], [scans.plain, scans.second, scans.both]):
        drop(page, files)
        assert "Which file is which channel?" in error_of(page)
        expect(page.locator("#start")).to_be_disabled()


def test_bad_files_get_the_gateways_line_and_the_next_scan_its_mask(
    page: Page, one: Gateway, scans: Scans, tmp_path: Path
) -> None:
    whole = scans.plain.read_bytes()
    header = gzip.decompress(whole)[:352]
    bad = {
        "notes.txt": b"no scan at all " * 40,
        "cut.nii.gz": whole[: len(whole) // 2],
        "header.nii": header,
        "zipped-text.nii.gz": gzip.compress(b"hello"),
        "page.html": b"<!doctype html><p>sign in",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    for file in [*(tmp_path / name for name in bad), scans.both]:
        drop(page, [file])
        status, line = one.error("/v1/models/levels/mask", "-X", "POST", "-T", file)
        expect(page.locator("#error")).to_have_text(line)
        assert status == 422
        assert file.name not in line
        expect(page.locator("#view")).to_be_hidden()
    (tmp_path / "nothing.nii").write_bytes(b"")
    drop(page, [tmp_path / "nothing.nii"])
    expect(page.locator("#error")).to_contain_text("found none")
    (tmp_path / "large.nii").write_bytes(bytes(60 << 20))
    page.set_input_files("#file-0", tmp_path / "large.nii")
    expect(page.locator("#error")).to_contain_text("--max-upload")
    drop(page, [scans.plain])
    finished(page)
    expect(page.locator("#error")).to_be_hidden()


def begun(page: Page, scan: Path) -> None:
    page.set_input_files("#file-0", scan)
    expect(page.locator("#step")).to_contain_text(re.compile(r"Segmenting: \d+ %"))


def nothing_runs(running: Gateway, page: Page) -> None:
    for _ in range(200):
        if b"voxtile_jobs 0.0" in running.curl("/metrics")[2]:
            return
        page.wait_for_timeout(100)
    raise AssertionError("the gateway still works on it")


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_cancelling_or_closing_the_page_ends_the_work(page: Page, one: Gateway, scans: Scans, how: str) -> None:
    begun(page, scans.long)
    drop(page, [scans.plain])
    assert "under way" in error_of(page)
    if how == "cancel":
        page.click("#cancel")
        expect(page.locator("#said")).to_contain_text("Cancelled")
        expect(page.locator("#work")).to_be_hidden()
        nothing_runs(one, page)
        drop(page, [scans.plain])
        finished(page)
    else:
        page.goto("about:blank")
        nothing_runs(one, page)


def test_a_gateway_that_goes_in_the_middle_is_told(
    chromium: Any, triton: EmbeddedServer, scans: Scans, tmp_path: Path
) -> None:
    with gateway(tmp_path, "--url", triton.grpc_url) as mortal, opened(chromium, mortal.url) as page:
        begun(page, scans.long)
        mortal.process.terminate()
        assert "is going down" in error_of(page)
        assert mortal.process.wait(60) == 0
        expect(page.locator("#start")).to_be_enabled()
        page.click("#start")
        assert "does not answer" in error_of(page)


def test_without_triton_the_line_is_shown_and_the_models_can_be_asked_for_again(
    chromium: Any, triton: EmbeddedServer, tmp_path: Path
) -> None:
    with gateway(tmp_path, "--url", "127.0.0.1:9") as alone, opened(chromium, alone.url) as page:
        assert "127.0.0.1:9" in error_of(page)
        page.route("**/v1/models", lambda route: route.fulfill(json=[]))
        page.click("#reload")
        expect(page.locator("#model-hint")).to_contain_text("no model")
        page.unroute("**/v1/models")


def test_a_token_is_asked_for_and_used(chromium: Any, triton: EmbeddedServer, scans: Scans, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("right-one\n")
    with (
        gateway(tmp_path / "run", "--url", triton.grpc_url, "--token-file", str(tokens)) as closed,
        opened(chromium, closed.url) as page,
    ):
        expect(page.locator("#token")).to_be_focused()
        for wrong in ("wrong-one", "wröng", "two words"):
            page.fill("#token", wrong)
            page.keyboard.press("Enter")
            assert "token" in error_of(page)
        page.fill("#token", "right-one")
        page.keyboard.press("Enter")
        expect(page.locator("#token-form")).to_be_hidden()
        drop(page, [scans.plain])
        finished(page)


def test_a_prefix_changes_nothing(chromium: Any, one: Gateway, scans: Scans) -> None:
    def through(route: Route) -> None:
        route.fulfill(response=route.fetch(url=route.request.url.replace("/seg/", "/", 1)))

    with opened(chromium, one.url) as page:
        page.route("**/seg/**", through)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{one.url}/seg/")
        page.locator("#slots input").wait_for()
        drop(page, [scans.plain])
        finished(page)
        assert [url for url in asked if not url.startswith((f"{one.url}/seg/", "data:", "blob:"))] == []


def test_the_mask_can_be_had_without_a_viewer(chromium: Any, one: Gateway, scans: Scans) -> None:
    with opened(chromium, one.url) as page:
        page.route("**/niivue.js", lambda route: route.fulfill(status=404, json={"error": "it is not packed"}))
        drop(page, [scans.plain])
        expect(page.locator("#result")).to_be_visible()
        expect(page.locator("#view-error")).to_contain_text("it is not packed")
        with page.expect_download():
            page.click("#download")


def test_the_mask_can_be_had_without_webgl(chromium: Any, one: Gateway, scans: Scans) -> None:
    with opened(chromium, one.url) as page:
        page.evaluate("HTMLCanvasElement.prototype.getContext = () => null")
        drop(page, [scans.plain])
        expect(page.locator("#result")).to_be_visible()
        expect(page.locator("#view-error")).to_contain_text("WebGL 2")


def test_keys_and_readers_of_screens(page: Page, scans: Scans) -> None:
    controls = page.locator("input, select, progress").all()
    assert len(controls) >= 6
    named = "it => it.labels.length > 0 || it.ariaLabelledByElements.length > 0"
    assert all(control.evaluate(named) for control in controls)
    drop(page, [scans.plain])
    finished(page)
    expect(page.locator("#said")).to_contain_text("The mask is made")
    expect(page.locator("#download")).to_be_focused()
    page.focus("#canvas")
    before = page.inner_text("#where")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("PageUp")
    expect(page.locator("#where")).not_to_have_text(before)
    page.keyboard.press("v")  # NiiVue's own key for another view
    assert page.input_value("#planes") == "MULTIPLANAR"


def test_a_phone_shows_all_of_it(chromium: Any, one: Gateway, scans: Scans) -> None:
    with opened(chromium, one.url, viewport={"width": 360, "height": 740}) as page:
        drop(page, [scans.plain])
        finished(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
