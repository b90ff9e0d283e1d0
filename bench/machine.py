"""The machine that is measured on: what it is, and how fast it copies and multiplies."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from timeit import timeit
from typing import Any

import numpy as np
import torch

from .turns import interleave

PACKAGES = ("torch", "monai", "onnxruntime", "openvino", "nnunetv2", "numpy", "scipy", "tritonclient", "nibabel")
EXTENSIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""What of a CPU decides how much faster a reduced precision can be."""
COPIED_BYTES = 1 << 28  # larger than any last-level cache
SIDE = 2048  # of the matrices: large enough that memory does not matter


def machine_facts(device: str) -> dict[str, Any]:
    """Returns CPU, cores, memory, the GPU if it is used, and the versions of everything that is measured."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    told = dict(line.replace("\t", "").split(":", 1) for line in cpuinfo.splitlines() if ":" in line)
    facts: dict[str, Any] = {
        "cpu": told.get("model name", platform.processor() or platform.machine()).strip(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "matrix_extensions": [flag for flag in EXTENSIONS if flag in told.get("flags", "").split()],
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "load_before": os.getloadavg()[0],
    }
    return {**facts, "gpu": torch.cuda.get_device_name()} if device == "cuda" else facts


def roofline(device: str, repetitions: int = 3) -> dict[str, float]:
    """Returns what this machine can do at best: GB/s of copying, and GFLOP/s of PyTorch's large matrix products.

    A multiplication and its addition are two operations.
    """
    source, target = np.ones(COPIED_BYTES, np.uint8), np.empty(COPIED_BYTES, np.uint8)
    work: dict[str, Callable[[], object]] = {"copy GB/s": partial(np.copyto, target, source)}
    half = torch.float16 if device == "cuda" else torch.bfloat16
    for name, dtype in (("fp32", torch.float32), (str(half).removeprefix("torch."), half)):
        work[f"matmul {name} GFLOP/s"] = partial(_product, torch.randn(SIDE, SIDE).to(device, dtype))
    for one in work.values():
        one()
    runs = interleave({name: partial(timeit, one, number=1) for name, one in work.items()}, repetitions)
    # A copy reads every byte and writes it.
    done = {name: 2 * COPIED_BYTES if name.startswith("copy") else 2 * SIDE**3 for name in runs}
    return {name: round(done[name] / min(seconds) / 1e9, 1) for name, seconds in runs.items()}


def _product(one: torch.Tensor) -> None:
    torch.matmul(one, one)
    if one.is_cuda:
        torch.cuda.synchronize()
