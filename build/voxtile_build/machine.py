"""What a certificate was made with: the machine, and versions of packages."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

GRAPH = ("torch", "monai", "onnx", "onnx-ir", "onnxscript")
ENGINES = ("onnxruntime", "openvino", "nncf")
DISTRIBUTIONS = (*GRAPH, *ENGINES, "numpy", "voxtile-build")


def machine() -> dict[str, str | int]:
    """CPU model, architecture and the number of cores that this process may use."""
    return {"cpu": _cpu_model(), "architecture": platform.machine(), "cores": len(os.sched_getaffinity(0))}


def versions() -> dict[str, str]:
    """Versions of Python and of every package that an entry depends on."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # ONNX Runtime has other package names for builds with other providers
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
