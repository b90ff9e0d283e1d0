"""The instructions that a package for CPUs is compiled for, and whether this CPU has them. Needs no PyTorch."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

_V2 = ("cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3")
_V3 = (*_V2, "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave")
_V4 = (*_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
LEVELS = {"x86-64-v4": _V4, "x86-64-v3": _V3, "x86-64-v2": _V2}
"""Levels of the x86-64 psABI, the highest first, with what each demands in the words of /proc/cpuinfo."""

FLAGS = {
    "avx512bf16": "avx512_bf16",
    "avx512vnni": "avx512_vnni",
    "amx-tile": "amx_tile",
    "amx-bf16": "amx_bf16",
    "amx-int8": "amx_int8",
    "amx-fp16": "amx_fp16",
}
"""Options of the compiler whose names differ from those in /proc/cpuinfo."""


def features(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """What this CPU has, as Linux names it; nothing where Linux does not tell."""
    try:
        text = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def level(found: frozenset[str]) -> str | None:
    """The compiler's name of the highest level that a CPU with these features has; None: the compiler's own choice."""
    if platform.machine() != "x86_64":
        return None
    return next((name for name, needed in LEVELS.items() if found.issuperset(needed)), None)


def needed(chosen: str | None, options: str) -> tuple[str, ...]:
    """Features that code of the level `chosen` needs, compiled with further `options` such as `-mavx512f -mfma`."""
    words = [word.removeprefix("-m") for word in options.split() if word.startswith("-m")]
    return tuple(sorted({*LEVELS.get(chosen or "", ()), *(FLAGS.get(word, word) for word in words)}))


def missing(wanted: Sequence[str], found: frozenset[str]) -> tuple[str, ...]:
    """What this CPU lacks of `wanted`; nothing where Linux does not tell what it has."""
    return tuple(one for one in wanted if one not in found) if found else ()
