"""Where a student is trained, and in which arithmetic. Knows neither students nor data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from voxtile_build.engines.aotinductor.variants import has_bf16


@dataclass(frozen=True)
class Device:
    """A device.

    Attributes:
        name: as PyTorch calls it, such as `cuda` or `cpu`.
        bf16: whether it has bf16 arithmetic; weights and loss stay in fp32.
    """

    name: str
    bf16: bool

    @property
    def words(self) -> str:
        """For the log."""
        return f"{self.name}, {'bf16 autocast' if self.bf16 else 'fp32'}"

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """In which the network computes."""
        with torch.autocast(self.name.partition(":")[0], torch.bfloat16, enabled=self.bf16):
            yield

    @contextmanager
    def random_numbers(self) -> Iterator[None]:
        """In which random numbers may be seeded: the caller's go on afterwards as if nothing had been."""
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if self.name.startswith("cuda") else []):
            yield


def best_device() -> Device:
    """A GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        return Device("cuda", torch.cuda.is_bf16_supported(including_emulation=False))
    return Device("cpu", has_bf16())


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Denormals count as 0: after ReLU-like layers they slow a CPU down manyfold and mean nothing."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
