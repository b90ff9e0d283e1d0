"""Which public names a model may have, and the nearest allowed one to any other. Knows nothing of repositories."""

from __future__ import annotations

import re
import unicodedata

from voxtile_build.spec.engines import ENGINE_NAMES

ALLOWED = re.compile("[a-z0-9][a-z0-9_-]*")
INNER = re.compile(rf"_({'|'.join(ENGINE_NAMES)}|mean|fold_[a-z0-9]+)$")
"""How the names of entries behind a public name end."""
LARGEST_VERSION = 999_999_999
"""The largest number of a version that clients take."""
UNNAMED = "model"


def checked_name(name: str) -> str:
    """The name itself.

    Raises:
        ValueError: it is not allowed; the message offers the nearest name that is.
    """
    if not ALLOWED.fullmatch(name):
        raise ValueError(
            f"expected small letters, digits, - and _, with a letter or a digit first, found {name!r:.80}; "
            f"{nearest_name(name)!r} will do"
        )
    ending = INNER.search(name)
    if ending:
        raise ValueError(
            f"must not end in {ending[0]!r}: entries behind the public name {name[: ending.start()]!r} end so; "
            f"{nearest_name(name)!r} will do"
        )
    return name


def nearest_name(name: str) -> str:
    """An allowed name that looks like `name`: small letters without accents, and - for everything else."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    allowed = re.sub("[^a-z0-9_-]+", "-", plain).strip("-_") or UNNAMED
    return allowed.replace("_", "-") if INNER.search(allowed) else allowed
