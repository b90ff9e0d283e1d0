"""What a built plan computes in, read from the JSON of TensorRT's EngineInspector.

Only a machine with a GPU gives that JSON.
"""

import json
import re
from collections import Counter
from typing import Any

from voxtile_build.engines.tensorrt.errors import EnginePrecisionError
from voxtile_build.engines.tensorrt.network import PLAIN, Precision

# Types as inspectors spell them: "Half" in new releases, "Row major linear FP32" in older ones.
_SPELLINGS = {
    "fp32": {"float", "fp32"},
    "fp16": {"half", "fp16"},
    "bf16": {"bf16", "bfloat16"},
    "int8": {"int8"},
}


def engine_precisions(information: str) -> Counter[str]:
    """How many layers write each type (`fp32`, `fp16`, `bf16`, `int8`), from the inspector's JSON."""
    found: Counter[str] = Counter()
    for layer in json.loads(information)["Layers"]:
        if not isinstance(layer, dict):
            raise EnginePrecisionError(
                f"The engine gives only the names of its layers ('{layer}'), not their types. Build it with "
                "detailed profiling verbosity."
            )
        found.update({kind for output in layer.get("Outputs", []) for kind in _kinds(output)})
    return found


def check_engine_precision(information: str, promised: Precision) -> Counter[str]:
    """How many layers of the plan write each type.

    Raises:
        EnginePrecisionError: none writes the promised type.
    """
    found = engine_precisions(information)
    if not found["fp32" if promised in PLAIN else promised]:
        raise EnginePrecisionError(
            f"The engine was to compute in {promised}, but none of its layers does: {dict(found)}. "
            "The ONNX graph was not converted, or the builder ignored it."
        )
    return found


def _kinds(tensor: dict[str, Any]) -> set[str]:
    text = " ".join(str(tensor.get(key, "")) for key in ("Format/Datatype", "Datatype", "Format"))
    words = set(re.findall(r"[a-z0-9]+", text.lower()))
    return {kind for kind, spellings in _SPELLINGS.items() if words & spellings}
