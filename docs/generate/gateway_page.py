"""`python -m docs.generate.gateway_page URL SCAN PICTURE` makes the picture of the gateway's page for the manual.

A gateway answers at URL; its first model takes the scan. Needs Debian's Chromium.
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
WEBGL = ["--no-sandbox", "--disable-dev-shm-usage", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
PATIENCE_MS = 600_000


def photograph(url: str, scan: Path, picture: Path) -> None:
    """Segments a scan on the page at `url`, and writes what is seen then as PNG."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=WEBGL)
        page = browser.new_page(viewport={"width": 900, "height": 1000})
        page.set_default_timeout(PATIENCE_MS)
        page.goto(url)
        page.set_input_files("#file-0", scan)
        page.locator("#where", has_text="mm").wait_for()
        page.wait_for_timeout(1000)  # the next frames
        page.screenshot(path=picture, full_page=True)
        browser.close()


if __name__ == "__main__":
    photograph(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
