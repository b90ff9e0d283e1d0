"""What a request asks for: the scan, and options by parameters or by forwarded HTTP headers.

Knows nothing of Triton's Python interface.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from voxtile.asked import value_of, with_asked
from voxtile.budget import MIB
from voxtile.errors import InputError, MemoryLimitError
from voxtile.options import Options

HEADER = "voxtile-"
"""How the HTTP headers begin that tritonserver forwards (`--http-header-forward-pattern=voxtile-.*`)."""

COMPRESSED = "compressed"
"""Whether the mask comes as .nii.gz, which is the default, or as .nii."""

BYTES, TEXT = "scan", "scan_base64"
"""The tensors that a scan may come in. JSON, which `generate_stream` takes, has texts and no bytes."""


def scan_of(tensors: Mapping[str, NDArray[Any]], most_bytes: int | None = None) -> bytes:
    """The bytes of the scan's file.

    Args:
        tensors: the request's, by name: `scan` UINT8 [1, bytes], or `scan_base64` [1, 1] of one text.
        most_bytes: the most that the file may have; None for no limit.

    Raises:
        InputError: there is none, there are two, or the text is not base64.
        MemoryLimitError: the file is too large.
    """
    given = [name for name in (BYTES, TEXT) if name in tensors]
    if len(given) != 1:
        raise InputError(f"expected the scan in {BYTES} (bytes) or in {TEXT} (a text), found {len(given)} of them")
    if given == [BYTES]:
        _check_size(tensors[BYTES].nbytes, most_bytes)
        return tensors[BYTES].tobytes()
    text = bytes(tensors[TEXT].item())
    _check_size(len(text) * 3 // 4, most_bytes)
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error as error:
        raise InputError(
            f"{TEXT}: expected the bytes of a scan's file in base64, found another text ({error})"
        ) from None


def _check_size(size: int, most: int | None) -> None:
    """Refuse a file before it is copied."""
    if most is not None and size > most:
        raise MemoryLimitError(
            f"the scan's file has {size / MIB:.0f} MiB, and {most / MIB:.0f} MiB are left for reading it; allow more "
            "(max_ram_mib of the entry), or send it compressed"
        )


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
