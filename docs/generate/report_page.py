"""`python -m docs.generate.report_page PAGE PICTURE` makes the picture of a report's page for the manual.

PAGE is a file of `--page`. Needs Debian's Chromium.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from docs.generate.gateway_page import CHROMIUM, PATIENCE_MS, WEBGL

COLOURS = 96
"""A picture of these is a quarter as large, and looks the same."""


def photograph(file: Path, picture: Path) -> None:
    """Writes what is seen of a page as PNG."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=WEBGL)
        page = browser.new_page(viewport={"width": 900, "height": 1180})
        page.set_default_timeout(PATIENCE_MS)
        page.goto(file.resolve().as_uri())
        page.locator("html[data-drawn]").wait_for(state="attached")
        page.wait_for_timeout(1000)  # the next frames
        shot = page.screenshot()
        browser.close()
    Image.open(io.BytesIO(shot)).quantize(COLOURS).save(picture, optimize=True)


if __name__ == "__main__":
    photograph(Path(sys.argv[1]), Path(sys.argv[2]))
