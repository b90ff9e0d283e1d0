"""Where PyTorch lies, which the backend `pytorch` needs and the cache does not hold: it is larger than all else there.

Knows nothing of running it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

VARIABLE = "VOXTILE_TORCH"
"""The environment variable that tells the backend the folder."""


def folder() -> Path | None:
    """The folder of packages in this environment that has PyTorch; None if there is none. Loads nothing."""
    found = importlib.util.find_spec("torch")
    return Path(found.origin).parents[1] if found is not None and found.origin else None
