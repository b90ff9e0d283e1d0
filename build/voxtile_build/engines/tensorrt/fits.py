"""Whether a plan fits the machine that it is opened on: the certificate beside it says what it was built for."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from voxtile_build.engines.gpu import Gpu
from voxtile_build.errors import EngineError

MODULE = "tensorrt"
FILE = "model.plan"
AMPERE = 8.0
"""Compute capability of the first GPUs that a plan for `ampere_plus` fits."""


def here() -> str:
    """The version of TensorRT that this process can load; empty if it has none, or one without its libraries."""
    try:
        return str(importlib.import_module(MODULE).__version__)
    except (ImportError, OSError, AttributeError, RuntimeError):
        return ""


def as_facts(gpu: Gpu, version: str, compatibility: str = "none") -> dict[str, Any]:
    """What the certificate says of the machine that a plan fits."""
    return {"gpu": asdict(gpu), "tensorrt": version, "hardware_compatibility": compatibility}


def together(gpus: Collection[Gpu], compatibility: str = "none") -> bool:
    """Whether one plan fits all of these GPUs.

    Source: NVIDIA's TensorRT documentation, "Hardware Compatibility".
    """
    kinds = {gpu.architecture for gpu in gpus}
    return len(kinds) <= 1 or (compatibility == "ampere_plus" and all(map(_is_ampere_plus, gpus)))


def _is_ampere_plus(gpu: Gpu) -> bool:
    return float(gpu.capability) >= AMPERE


def fitting(facts: Mapping[str, Any], gpus: Mapping[int, Gpu], version: str) -> int:
    """The index of the first GPU that a plan fits.

    A plan is loaded by the version of TensorRT that made it, on the architecture that it was made for.

    Args:
        facts: of the certificate, as `as_facts` gives them.
        gpus: of this machine, by index.
        version: of TensorRT here; empty if there is none.

    Raises:
        EngineError: names what differs.
    """
    try:
        built_on, built_with = Gpu(**facts["gpu"]), facts["tensorrt"]
    except (KeyError, TypeError):
        raise EngineError(
            f"{FILE}: expected a certificate that says what GPU and TensorRT it fits, found none; build it again"
        ) from None
    where = "open it on the machine that serves it, or give --url HOST:PORT"
    for needed, there in ((f"a GPU {built_on.architecture}", gpus), (f"TensorRT {built_with}", version)):
        if not there:
            raise EngineError(f"{FILE}: expected {needed}, found none here; {where}")
    if version != built_with:
        raise EngineError(
            f"{FILE}: expected TensorRT {built_with}, which built it, found {version}; build the entry again with this "
            f"one, or {where}"
        )
    for index, gpu in gpus.items():
        if together((built_on, gpu), facts.get("hardware_compatibility", "none")):
            return index
    raise EngineError(
        f"{FILE}: expected a GPU {built_on.architecture} such as {built_on.name}, found "
        f"{', '.join(f'{gpu.name} ({gpu.architecture})' for gpu in gpus.values())}; build the entry again here, or "
        f"{where}"
    )
