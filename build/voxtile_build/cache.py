"""Where builds keep what can be made again. The server fetches its files into the same folder."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "VOXTILE_CACHE"


def cache_folder() -> Path:
    """`$VOXTILE_CACHE`, or `~/.cache/voxtile`."""
    return Path(os.environ.get(VARIABLE) or os.path.expanduser("~/.cache/voxtile")).absolute()
