"""Packs NiiVue into the distribution when it is built or installed editable. Without npm, all but the viewer works."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent))


class NiivueHook(BuildHookInterface[Any]):
    """Runs `voxtile_server.gateway.page.pack`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        from voxtile_server.errors import ServerError
        from voxtile_server.gateway.page.pack import pack

        try:
            pack()
        except ServerError as error:
            self.app.display_warning(f"built without the gateway's viewer: {error}")
