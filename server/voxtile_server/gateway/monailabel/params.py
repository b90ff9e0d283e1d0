"""The `params` of a request of MONAI Label's clients: which options and which file format they ask for.

Knows nothing of scans.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voxtile.asked import TAKEN
from voxtile.io.formats.all import FORMATS, format_to_write
from voxtile_server.gateway.failures import HttpFailure

USUAL_ENDING = ".nii.gz"

PASSED_OVER = (
    "client_id", "model", "image", "device", "gpus", "multi_gpu", "logging", "timeout", "max_workers",
    "max_batch_size", "cache_image", "result_dtype", "result_compress", "restore_label_idx", "label_tag", "label_info",
)  # fmt: skip
"""What clients send to every server of MONAI Label and what has no bearing on a mask here: who they are, where and how
it is to be calculated and stored. A mask has the values of the model's labels, and the type that these need."""

ENDINGS = tuple(end for one in FORMATS for end in one.written if not one.written_parts(Path(f"mask{end}")))
"""The endings of masks that are one file."""


@dataclass(frozen=True)
class Asked:
    """What a request asks for.

    Attributes:
        options: options of ours with their values.
        ending: how the name of the mask's file ends, which decides its format.
    """

    options: dict[str, Any] = field(default_factory=dict)
    ending: str = USUAL_ENDING


def read_params(text: str) -> Asked:
    """Reads the field `params` of a form.

    Args:
        text: an object in JSON, or nothing.

    Raises:
        HttpFailure: 422, it is no object, or asks for what there is not.
        MissingExtraError: the format needs a package that is not installed.
    """
    asked = object_in(text)
    ending = _ending(asked.pop("result_extension", None))
    options = {name: value for name, value in asked.items() if name.replace("-", "_") in TAKEN}
    for name, value in asked.items():
        # A name without a value asks for nothing; clients send some of them always.
        if name in options or name in PASSED_OVER or value in (None, False, "", [], {}):
            continue
        known = ", ".join((*TAKEN, "result_extension"))
        raise HttpFailure(
            422, f"params: expected options out of {known}, found {name[:40]!r}, which no model here can follow"
        )
    return Asked(options, ending)


def object_in(text: str) -> dict[str, Any]:
    """The object in a field `params`, whatever it holds; raises HttpFailure 422 where it is none."""
    try:
        found = json.loads(text.strip() or "{}")
    except (ValueError, RecursionError):
        found = text
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise HttpFailure(422, f"params: expected an object in JSON, such as {{}}, found {text[:40]!r}")
    return found


def _ending(wanted: Any) -> str:
    if wanted in (None, ""):
        return USUAL_ENDING
    ending = f".{wanted.lower().removeprefix('.')}" if isinstance(wanted, str) else ""
    if ending not in ENDINGS:
        found = repr(wanted)[:40]
        raise HttpFailure(422, f"params: expected a result_extension out of {', '.join(ENDINGS)}, found {found}")
    format_to_write(Path(f"mask{ending}"))  # says what is not installed, before any work
    return ending
