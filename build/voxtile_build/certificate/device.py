"""Names the device that a certificate is made or verified on."""

from __future__ import annotations

from voxtile_build.engines.gpu import visible_gpu
from voxtile_build.machine import machine


def device_name(kind: str) -> str:
    """The name of this machine's device of a kind, `cpu` or `gpu`; "unknown" where it has none of that kind."""
    if kind == "cpu":
        return str(machine()["cpu"])
    gpu = visible_gpu()
    return gpu.name if gpu else "unknown"
