"""Runs model.pt2 in this process. Needs PyTorch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxtile_build.arrays import Array, Feed
from voxtile_build.engines.aotinductor import cpu
from voxtile_build.engines.aotinductor.exact import exact_float32
from voxtile_build.engines.aotinductor.interface import FREE, INPUTS, Tensor, interface_of
from voxtile_build.errors import EngineError, reason_of

THREADS = "INTRA_OP_THREAD_COUNT"
"""Triton's parameter for the CPU threads of one run."""

NUMPY_TYPES = {"TYPE_FP32": np.float32, "TYPE_FP16": np.float16, "TYPE_INT16": np.int16, "TYPE_UINT8": np.uint8}
NAME = "model"
"""Of the only program in a package."""

DEVICE = "AOTI_DEVICE_KEY"
"""PyTorch's word in the metadata for `cpu` or `cuda`."""


class PackageRunner:
    """Runs a package on the kind of device that it was compiled for.

    The embedded server runs each sample alone, a batch of one; the container runs larger batches whole.
    """

    def __init__(self, file: Path, threads: int) -> None:
        """Opens the package, which runs code of its own; 0 threads are PyTorch's choice.

        Raises:
            EngineError: it is for another CPU or device, or PyTorch cannot load it.
        """
        self._threads = threads
        # What torch._inductor.aoti_load_package makes, which looks for a compiler first.
        loader: Any = torch._C._aoti.AOTIModelPackageLoader
        try:
            metadata = loader.load_metadata_from_package(str(file), NAME)
        except Exception as error:
            raise EngineError(f"{file}: not a package of AOTInductor: {reason_of(error)}") from error
        self._interface = interface_of(metadata, str(file))
        self._device = metadata.get(DEVICE, "cpu")
        lacking = cpu.missing(self._interface.instructions, cpu.features())
        if lacking:
            raise EngineError(
                f"{file}: compiled for a CPU with {', '.join(lacking)}, which this one lacks; build the entry again on "
                "a machine of the kind that serves"
            )
        try:
            self._package = loader(str(file), NAME, False, 1, -1)
        except Exception as error:  # also what the system's loader says of a library
            raise EngineError(
                f"{file}: PyTorch {torch.__version__} cannot load what {self._interface.torch} compiled: "
                f"{reason_of(error)}"
            ) from error

    def __call__(self, inputs: Feed) -> Array:
        """`scores` [batch, score, *spatial] for inputs by name, batch first."""
        given = [inputs[name] for name in INPUTS if name in inputs]
        for tensor, array in zip(self._interface.inputs, given, strict=True):
            _check(tensor, array)
        tensors = [torch.from_numpy(np.array(array)).to(self._device) for array in given]
        try:
            with torch.inference_mode(), exact_float32(), _threads(self._threads):
                (scores,) = self._package.boxed_run(tensors)
            return np.asarray(scores.cpu().numpy())
        except RuntimeError as error:
            raise EngineError(f"AOTInductor fails at a batch of {len(given[0])}: {reason_of(error)}") from error


def _check(tensor: Tensor, array: Array) -> None:
    """A package takes what it is given: other sizes or types would give wrong scores without an error."""
    fits = len(tensor.dims) == array.ndim and all(
        size in (FREE, found) for size, found in zip(tensor.dims, array.shape, strict=True)
    )
    if not fits or array.dtype != NUMPY_TYPES[tensor.type]:
        raise EngineError(
            f"{tensor.name}: expected {tensor.type} {list(tensor.dims)} ({FREE}: any size), found {array.dtype} "
            f"{list(array.shape)}"
        )


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
