"""Where the stub finds Voxtile's client and what it needs, beside NumPy 1.x. Knows nothing of models."""

from __future__ import annotations

import os
import sys

VARIABLE = "VOXTILE_CLIENT"
"""The environment variable with folders of packages, separated as in PATH; a container has them among its own."""


def import_client() -> None:
    """Let `import voxtile` find the client.

    Behind all others, so that the stub's own NumPy goes before one beside the client.
    """
    folders = os.environ.get(VARIABLE, "").split(os.pathsep)
    sys.path += [folder for folder in folders if folder and folder not in sys.path]
