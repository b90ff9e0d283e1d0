"""build.json: what changes from one build to the next. All other files of an entry are reproducible."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

from voxtile_build.graph.passes.verify import PassReport
from voxtile_build.graph.report import as_json
from voxtile_build.repository.entries import BUILD_FACTS


def write_facts(
    folder: Path,
    seconds: Mapping[str, float],
    reports: Mapping[str, Sequence[PassReport]],
    warnings: Sequence[str],
) -> None:
    """Write build.json.

    Args:
        folder: the entry's version folder.
        seconds: how long each part of the build took.
        reports: what each graph pass did, by graph.
        warnings: what the user should know of the engine.
    """
    facts = {
        "graphs": as_json(reports),
        "warnings": list(warnings),
        "built": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
    }
    (folder / BUILD_FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
