"""build.json: what changes from one build to the next. All other files of an entry are reproducible."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

from voxtile_build.errors import RepositoryError
from voxtile_build.graph.passes.verify import PassReport
from voxtile_build.graph.report import as_json
from voxtile_build.repository.entries import BUILD_FACTS

PER_TILE = "batch "
"""How the keys of `seconds` begin that tell what one tile takes, in a batch of so many."""


def write_facts(
    folder: Path,
    seconds: Mapping[str, float],
    reports: Mapping[str, Sequence[PassReport]],
    warnings: Sequence[str],
    pytorch_seconds: float,
) -> None:
    """Write build.json.

    Args:
        folder: the entry's version folder.
        seconds: how long each part of the build took.
        reports: what each graph pass did, by graph.
        warnings: what the user should know of the engine.
        pytorch_seconds: what fp32 PyTorch takes for one tile.
    """
    facts = {
        "graphs": as_json(reports),
        "warnings": list(warnings),
        "built": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "pytorch_seconds": round(pytorch_seconds, 4),
    }
    (folder / BUILD_FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def tile_seconds(entry: Path) -> float:
    """What one tile took when the entry was built, in the fastest of its runs.

    Args:
        entry: the folder of an engine's entry; its newest version counts.

    Raises:
        RepositoryError: build.json is not there, or does not say it.
    """
    files = sorted(entry.glob(f"*/{BUILD_FACTS}"), key=lambda file: int(file.parent.name))
    try:
        seconds = json.loads(files[-1].read_text(encoding="utf-8"))["seconds"]
        return min(float(value) for name, value in seconds.items() if name.startswith(PER_TILE))
    except (IndexError, KeyError, OSError, TypeError, ValueError, AttributeError):
        raise RepositoryError(
            f"{entry}: expected {BUILD_FACTS} with the seconds of a tile in its version folder, found none; build the "
            "model again, or name the engine"
        ) from None
