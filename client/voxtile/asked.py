"""Reads the options of a request that comes from elsewhere, such as over HTTP: names and texts, nothing else.

Knows nothing of where they come from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from voxtile.errors import InputError
from voxtile.io.dicom.choice import SeriesChoice
from voxtile.options import Options

OF_DICOM = ("series", "modality", "description", "gaps", "tilt")
"""What a caller may say of DICOM: the fields of `SeriesChoice`."""

TAKEN = (
    "overlap", "mode", "mirror", "skip_empty", "spot_check", "half_scores", "postprocessing", "max_ram_mib",
    "nan", "posinf", "neginf", *OF_DICOM,
)  # fmt: skip
"""The options that a caller may choose. The others concern connections, which are the operator's."""

FLAGS = {f"--{name.replace('_', '-')}": name for name in TAKEN} | {
    "--max-ram": "max_ram_mib",
    "--allow-half-scores": "half_scores",
}
"""Options of the command `voxtile`, and what a request calls them."""
_FLAG = re.compile(r"(?<![\w-])(--[a-z][a-z-]*[a-z])( (?:VALUE|MIB|none|fill|straighten|-?\d[\d.]*)(?![\w.]))?")


def as_parameters(text: str) -> str:
    """A message of the library with the options in it called as a request calls them: `--nan VALUE` is `nan=VALUE`.

    What a request may not choose is the operator's to change, and the message says so.
    """

    def called(match: re.Match[str]) -> str:
        flag, value = match[1], match[2] or ""
        if flag not in FLAGS:
            return f"the operator's {flag.removeprefix('--')}{value}"
        return FLAGS[flag] + (f"={value.strip()}" if value else "")

    return _FLAG.sub(called, text)


def with_asked(options: Options, asked: Mapping[str, Any], beside: tuple[str, ...] = ()) -> Options:
    """`options` with what a caller asks for.

    Args:
        options: what holds where the caller says nothing. Its `max_ram_mib` is a limit for the caller too.
        asked: names and values; values may be texts, and hyphens stand for underscores. `series` may be several texts.
        beside: names of what the caller may ask for too, and that is dealt with elsewhere; for messages.

    Raises:
        InputError: an option is unknown or not the caller's to choose, or has a value that it cannot have.
    """
    given = {key.replace("-", "_"): value for key, value in asked.items()}
    unknown = [key for key in given if key not in TAKEN]
    if unknown:
        raise InputError(f"unknown option {unknown[0]!r}; expected one of {', '.join((*TAKEN, *beside))}")
    own = [key for key in TAKEN if key not in OF_DICOM]
    wanted = value_of(Options, "", {**{key: getattr(options, key) for key in own}, **_part(given, own)})
    limits = [limit for limit in (wanted.max_ram_mib, options.max_ram_mib) if limit is not None]
    changed = {key: getattr(wanted, key) for key in own} | {"max_ram_mib": min(limits, default=None)}
    return replace(options, **changed, dicom=_choice(options.dicom, _part(given, OF_DICOM)))


def _part(given: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key in names}


def _choice(before: SeriesChoice, asked: dict[str, Any]) -> SeriesChoice:
    """Which series is meant; a name without a value says nothing."""
    said = {key: value for key, value in asked.items() if value not in ("", None)}
    if "series" in said:
        series = said["series"] if isinstance(said["series"], (list, tuple)) else (said["series"],)
        said["series"] = tuple(str(one) for one in series if one not in ("", None))
    choice: SeriesChoice = value_of(SeriesChoice, "", {**vars(before), **said})
    return choice


def value_of(kind: Any, name: str, value: Any) -> Any:
    """`value`, which may be a text, as `kind`; `name` is what messages call it.

    Raises:
        InputError: it is none.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or name
        raise InputError(f"option {place}: {first['msg'].lower()}, found {first['input']!r}") from None
