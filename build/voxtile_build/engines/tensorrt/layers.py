"""What the layers of a built plan write, read from the JSON of TensorRT's EngineInspector, which needs a GPU.

It is told, and decides nothing: a region of many layers that was compiled into one tells only the types at its border.
What a plan computes in is checked on its network, which is strongly typed, and by the certificate.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from typing import Any

LISTING = "layers.json"
"""Beside the plan: the inspector's JSON, each layer with its types and the kernel that was chosen."""

# Types as inspectors spell them: "Half" in new releases, "Row major linear FP32" in older ones.
_SPELLINGS = {"fp32": {"float", "fp32"}, "fp16": {"half", "fp16"}, "bf16": {"bf16", "bfloat16"}, "int8": {"int8"}}


def layers_by_type(information: str) -> dict[str, int]:
    """How many layers of a plan write each type (`fp32`, `fp16`, `bf16`, `int8`); nothing of what is not understood."""
    found: Counter[str] = Counter()
    with contextlib.suppress(ValueError, KeyError, TypeError):
        for layer in json.loads(information)["Layers"]:
            if isinstance(layer, dict):  # else only a name
                found.update({kind for output in layer.get("Outputs", ()) for kind in _kinds(output)})
    return dict(sorted(found.items()))


def _kinds(tensor: dict[str, Any]) -> set[str]:
    text = " ".join(str(tensor.get(key, "")) for key in ("Format/Datatype", "Datatype", "Format"))
    words = set(re.findall(r"[a-z0-9]+", text.lower()))
    return {kind for kind, spellings in _SPELLINGS.items() if words & spellings}
