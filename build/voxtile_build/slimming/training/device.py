"""Where a student is trained, and in which arithmetic. Knows neither students nor data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

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
        kind = self.name.partition(":")[0]
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(kind, torch.bfloat16, enabled=self.bf16))
            if self.bf16 and kind == "cpu":
                stack.enter_context(_SmallMapsInFp32())
            yield

    @contextmanager
    def random_numbers(self) -> Iterator[None]:
        """In which random numbers may be seeded: the caller's go on afterwards as if nothing had been."""
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if self.name.startswith("cuda") else []):
            yield


class _SmallMapsInFp32(TorchFunctionMode):
    """Convolutions whose kernel is larger than the map compute in fp32, on a CPU.

    Their weights' gradient in bf16 (PyTorch 2.13, oneDNN, 3×3×3 over 2×2×2) holds memory that nobody has written: NaN,
    1e37, or a number that looks right. The maps are tiny, so fp32 costs nothing.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        named: Mapping[str, Any] = kwargs or {}
        if func not in CONVOLUTIONS or not _kernel_is_larger(*args[:2]):
            return func(*args, **named)
        with torch.autocast("cpu", enabled=False):
            return func(*map(_fp32, args), **{name: _fp32(value) for name, value in named.items()})


CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)


def _kernel_is_larger(maps: torch.Tensor, weight: torch.Tensor) -> bool:
    return any(size < extent for size, extent in zip(maps.shape[2:], weight.shape[2:], strict=True))


def _fp32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) else value


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
