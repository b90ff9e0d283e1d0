"""Debian's Chromium without a screen, and what a reader does in it. Needs the package `chromium`.

Drawing is by SwiftShader, so WebGL works without a GPU.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
SOFTWARE_WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
PATIENCE_MS = 60_000

MAKE_FILES = """files => {
    const carried = new DataTransfer();
    for (const [name, content] of files)
        carried.items.add(new File([Uint8Array.from(atob(content), letter => letter.charCodeAt(0))], name));
    return carried;
}"""


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A browser."""
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage", *SOFTWARE_WEBGL]  # tests run as root, in containers
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        try:
            yield opened
        finally:
            opened.close()


def drop(page: Page, files: Sequence[Path], onto: str = "#drop") -> None:
    """Drop files onto an element, as from a file manager."""
    named = [(file.name, base64.b64encode(file.read_bytes()).decode()) for file in files]
    page.dispatch_event(onto, "drop", {"dataTransfer": page.evaluate_handle(MAKE_FILES, named)})
