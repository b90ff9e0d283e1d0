"""The machine: what it is, and how fast it copies and multiplies. Knows nothing of networks."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from .settings import Known, Row, Settings, in_one_line
from .timing import digits, timed

MODULES = ("monai", "nibabel", "voxtile", "dynamic_network_architectures", "triton", "onnx", "tensorrt")
"""What a stage may lack; a run says which are there."""
PEAK = "matmul bf16"
"""The rate that shares of peak refer to, for every way alike."""


def measure(settings: Settings, known: Known) -> Iterator[Row]:
    """Yields the machine's rates, each as `what`, `rate` and `unit`."""
    yield from _copies(settings)
    yield from _products(settings)


def peak_rate(known: Known) -> float | None:
    """Returns the measured operations a second of large bf16 products; None if they were not measured."""
    rates = [row["rate"] for rows in known.values() for row in rows if row.get("what") == PEAK and "rate" in row]
    return rates[0] * 1e12 if rates else None


def facts(device: str) -> Row:
    """Returns GPU, CPU and versions. Nothing in it says where the machine stands."""
    told: Row = {"torch": torch.__version__, "python": platform.python_version(), "cpu": _cpu()}
    told |= {"cores": len(os.sched_getaffinity(0)), "compiler": bool(shutil.which("g++") or shutil.which("clang++"))}
    told["modules"] = {name: _version(name) for name in MODULES}
    if device == "cpu":
        return told
    gpu, cudnn = torch.cuda.get_device_properties(0), torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return told | {
        "gpu": gpu.name, "gpus": torch.cuda.device_count(), "capability": f"{gpu.major}.{gpu.minor}",
        "memory_bytes": gpu.total_memory, "multiprocessors": gpu.multi_processor_count,
        "cuda": torch.version.cuda, "cudnn": cudnn,
    }  # fmt: skip


def _copies(settings: Settings) -> Iterator[Row]:
    size = settings.pick(1 << 32, 1 << 20)
    there = torch.randint(0, 255, (size,), dtype=torch.uint8, device=settings.device)
    target = torch.empty_like(there)
    # A copy on the device reads every byte and writes it.
    yield _rate("copy", 2 * size / 1e9, "GB/s", lambda: target.copy_(there), settings)
    if settings.device == "cpu":
        return
    there = there[: size // 16]
    here = torch.empty_like(there, device="cpu").pin_memory()
    yield _rate("device to host", len(here) / 1e9, "GB/s", lambda: here.copy_(there, non_blocking=True), settings)
    yield _rate("host to device", len(here) / 1e9, "GB/s", lambda: there.copy_(here, non_blocking=True), settings)


def _products(settings: Settings) -> Iterator[Row]:
    side = settings.pick(8192, 64)
    for name, dtype in (
        ("bf16", torch.bfloat16), ("fp16", torch.float16), ("tf32", torch.float32), ("fp32", torch.float32),
    ):  # fmt: skip
        allow_tf32(name == "tf32")
        # Zeros would be faster than numbers are.
        one, other = (torch.randn(side, side, device=settings.device).to(dtype) for _ in range(2))
        result = torch.empty_like(one)

        def product(one: torch.Tensor = one, other: torch.Tensor = other, out: torch.Tensor = result) -> None:
            torch.matmul(one, other, out=out)

        # A multiplication and its addition are two operations.
        yield _rate(f"matmul {name}", 2 * side**3 / 1e12, "TFLOP/s", product, settings)
    allow_tf32(False)


def allow_tf32(allowed: bool) -> bool:
    """Lets fp32 products and convolutions be computed in TF32, or not; returns whether they were."""
    before: bool = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
    return before


def _rate(what: str, work: float, unit: str, call: Callable[[], object], settings: Settings) -> Row:
    try:
        times = timed(call, settings)
    except Exception as error:  # a type that a device lacks must not hide the other rates
        return {"what": what, "error": in_one_line(error)}
    return {"what": what, "rate": digits(1e3 * work / times["ms"]), "unit": unit, **times}


def _cpu() -> str:
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(name: str) -> str:
    try:
        return str(getattr(importlib.import_module(name), "__version__", "there"))
    except Exception as error:  # a library that is there but cannot be loaded counts as missing
        return f"missing ({type(error).__name__})"
