"""Says which pip command installs an optional dependency that is missing."""

from __future__ import annotations

from importlib.util import find_spec

from voxtile.errors import MissingExtraError


def require(module: str, extra: str, purpose: str) -> None:
    """Checks, before any work, that an optional dependency is installed.

    Args:
        module: the module that is needed.
        extra: the extra of the distribution `voxtile` that brings it.
        purpose: what it is needed for, as the subject of a sentence: "a preview".

    Raises:
        MissingExtraError: it is not installed.
    """
    if find_spec(module) is None:
        raise MissingExtraError(f"{purpose} needs {module}, which is not installed: pip install 'voxtile[{extra}]'")
