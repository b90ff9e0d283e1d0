"""What all tables of a spec share: their base class, and types of values. Knows the keys of no table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from voxtile.transforms.base import Strict

MOST_INT = 2**31 - 1
"""Triton's configuration, ONNX and the engines keep sizes and counts in 32 bits."""

PositiveInt = Annotated[int, Field(gt=0, le=MOST_INT)]
NaturalInt = Annotated[int, Field(ge=0, le=MOST_INT)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
AnyPath = Annotated[Path, Field(strict=False)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Table(Strict):
    """A table of the TOML file."""

    def said(self, key: str) -> Any:
        """The value of a key as people write it; reading it back gives the same value."""
        return getattr(self, key)


def as_scans(value: Any) -> Any:
    """The scans of a TOML array, each as a tuple of files; a file alone is a scan of one channel."""
    if not isinstance(value, list | tuple):
        return value
    return tuple(_files_of(scan) for scan in value)


def from_json(value: Any) -> Any:
    """A table that stands in a TOML file as JSON text, because a value in it is null; any other value as it is.

    Raises:
        ValueError: the text is not JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected a table, or one as JSON text, found text that is no JSON: {error}") from None


def _files_of(scan: Any) -> Any:
    if isinstance(scan, str):
        return (scan,)
    return tuple(scan) if isinstance(scan, list) else scan
