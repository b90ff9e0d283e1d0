"""What a request asks for: the scan's bytes, and options by parameters or by forwarded HTTP headers.

Knows nothing of Triton's Python interface.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from voxtile.errors import InputError
from voxtile.options import Options

HEADER = "voxtile-"
"""How the HTTP headers begin that tritonserver forwards (`--http-header-forward-pattern=voxtile-.*`)."""

TAKEN = ("overlap", "mode", "mirror", "skip_empty", "spot_check", "half_scores", "postprocessing", "max_ram_mib")
"""Options of `voxtile.Options` that a caller may choose. The others concern connections."""

COMPRESSED = "compressed"
"""Whether the mask comes as .nii.gz, which is the default, or as .nii."""


def asked_for(parameters: str, limit_mib: float | None) -> tuple[Options, bool]:
    """The options of a request, and whether its mask is to be compressed.

    Args:
        parameters: the request's parameters as JSON, as Triton gives them. Headers that were forwarded are among them.
        limit_mib: the most memory that a scan may take, in MiB; a request may ask for less. None for no limit.

    Raises:
        InputError: an option is unknown, or has a value that it cannot have.
    """
    given = {_plain(key): value for key, value in json.loads(parameters or "{}").items() if _is_ours(key)}
    compressed = _value(bool, COMPRESSED, given.pop(COMPRESSED, True))
    unknown = sorted(set(given) - set(TAKEN))
    if unknown:
        raise InputError(f"unknown option {unknown[0]!r}; expected one of {', '.join((*TAKEN, COMPRESSED))}")
    options = _options(given)
    limits = [limit for limit in (options.max_ram_mib, limit_mib) if limit is not None]
    return replace(options, max_ram_mib=min(limits, default=None)), compressed


def _is_ours(key: str) -> bool:
    """Triton adds parameters of its own, such as `triton_enable_empty_final_response`, and headers of every kind."""
    return key.lower().startswith(HEADER) or not ("-" in key or key.startswith(("triton_", "sequence_", "binary_")))


def _plain(key: str) -> str:
    return key.lower().removeprefix(HEADER).replace("-", "_")


def _options(given: Mapping[str, Any]) -> Options:
    try:
        return TypeAdapter(Options).validate_python(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"option {first['loc'][0]}: {first['msg']}, found {first['input']!r}") from None


def _value(kind: Any, name: str, value: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise InputError(f"option {name}: {error.errors()[0]['msg']}, found {value!r}") from None
