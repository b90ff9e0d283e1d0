"""Gathers the scripts and styles of a page in one file: modules are joined into one. Knows nothing of what they do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from voxtile.errors import MissingExtraError
from voxtile.outputs.page.pack import COMMAND, PLACE

OWN = Path(__file__).with_name("static")
SHARED = PLACE.parent
"""The files that the gateway's page has, too."""

LICENCE = SHARED / "niivue-license.txt"

_IMPORT = re.compile(r"^import \{[^}]*\} from \"\./[a-z]+\.js\";\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?function |const |class )", re.MULTILINE)


def check_niivue() -> None:
    """Checks, before any work, that NiiVue was packed into this installation.

    Raises:
        MissingExtraError: it was not.
    """
    if not PLACE.is_file():
        raise MissingExtraError(
            f"--page draws with NiiVue, which was not packed into this installation of voxtile; pack it with {COMMAND} "
            "(needs npm, which comes with Node.js)"
        )


def niivue() -> str:
    """The text of NiiVue.

    Raises:
        MissingExtraError: it was not packed.
    """
    check_niivue()
    return PLACE.read_text(encoding="utf-8")


def joined(names: Sequence[str]) -> str:
    """One module of several: a file that is opened from a disk may import nothing.

    Args:
        names: files of modules, each after those that it imports from. Their outermost names differ.
    """
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", _text(name))) for name in names)


def styles(names: Sequence[str]) -> str:
    """One style of several files."""
    return "\n".join(map(_text, names))


def _text(name: str) -> str:
    own = OWN / name
    return (own if own.is_file() else SHARED / name).read_text(encoding="utf-8")
