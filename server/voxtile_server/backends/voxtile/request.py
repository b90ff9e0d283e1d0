"""What a request asks for: options by parameters or by forwarded HTTP headers.

Knows nothing of Triton's Python interface.
"""

from __future__ import annotations

import json

from voxtile.asked import value_of, with_asked
from voxtile.options import Options

HEADER = "voxtile-"
"""How the HTTP headers begin that tritonserver forwards (`--http-header-forward-pattern=voxtile-.*`)."""

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
    given = {
        key.lower().removeprefix(HEADER): value
        for key, value in json.loads(parameters or "{}").items()
        if _is_ours(key)
    }
    compressed = bool(value_of(bool, COMPRESSED, given.pop(COMPRESSED, True)))
    return with_asked(Options(max_ram_mib=limit_mib), given, (COMPRESSED,)), compressed


def _is_ours(key: str) -> bool:
    """Triton adds parameters of its own, such as `triton_enable_empty_final_response`, and headers of every kind."""
    return key.lower().startswith(HEADER) or not ("-" in key or key.startswith(("triton_", "sequence_", "binary_")))
