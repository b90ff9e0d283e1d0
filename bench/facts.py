"""The machine that was measured on: what it is, and how fast it copies and multiplies (its roofline)."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .timing import interleave, spread, timed

PACKAGES = ("torch", "monai", "onnxruntime", "openvino", "nnunetv2", "numpy", "scipy", "tritonclient", "nibabel")
COPIED_BYTES = 1 << 28
"""Larger than any last-level cache."""
SIDE = 2048
"""Of the matrices: large enough that memory does not matter."""


def machine_facts(device: str) -> dict[str, Any]:
    """CPU model, cores, memory, GPU where it is used, and the versions of everything that is measured."""
    facts: dict[str, Any] = {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "matrix_extensions": matrix_extensions(),
        "versions": {name: _version(name) for name in PACKAGES},
        "load_before": os.getloadavg()[0],
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def cpu_model() -> str:
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def matrix_extensions() -> list[str]:
    """What of the CPU decides how much faster a reduced precision can be."""
    flags = next((line.split() for line in _cpuinfo() if line.startswith("flags")), [])
    return [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8") if flag in flags]


def roofline(device: str, repetitions: int = 3) -> dict[str, Any]:
    """What this machine can do at best: bytes copied a second, and multiply-adds (two operations each) a second."""
    source, target = np.ones(COPIED_BYTES, np.uint8), np.empty(COPIED_BYTES, np.uint8)
    ways = {"copy": timed(lambda: np.copyto(target, source))}
    half = torch.float16 if device == "cuda" else torch.bfloat16
    for name, dtype in (("fp32", torch.float32), (str(half).removeprefix("torch."), half)):
        one = torch.randn(SIDE, SIDE).to(device, dtype)
        ways[f"matmul {name}"] = timed(partial(_multiply, one))
    for way in ways.values():
        way()
    fastest = {name: spread(found).low for name, found in interleave(ways, repetitions).items()}
    rates = {
        f"{name} GFLOP/s": round(2 * SIDE**3 / seconds / 1e9, 1) for name, seconds in fastest.items() if name != "copy"
    }
    # A copy reads every byte and writes it.
    return {"copy GB/s": round(2 * COPIED_BYTES / fastest["copy"] / 1e9, 2), **rates}


def _multiply(one: torch.Tensor) -> None:
    torch.matmul(one, one)
    if one.is_cuda:
        torch.cuda.synchronize()


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
