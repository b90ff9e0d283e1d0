"""Packs NiiVue into the distribution when it is built or installed editable. Without npm, all but the viewer works."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACK = Path(__file__).parent / "voxtile" / "outputs" / "page" / "pack.py"


class NiivueHook(BuildHookInterface[Any]):
    """Runs `voxtile.outputs.page.pack`, without the package: what that needs is not there while it is built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        packing = runpy.run_path(str(PACK))
        try:
            packing["pack"]()
        except packing["PackError"] as error:
            self.app.display_warning(f"built without the viewer of --page and of the gateway's page: {error}")
