"""Runs a plan on the first GPU, through PyTorch's tensors."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from voxtile_build.arrays import Array, Feed
from voxtile_build.errors import EngineError


class PlanRunner:
    """Runs a plan on the first GPU."""

    def __init__(self, trt: ModuleType, plan: bytes) -> None:
        """Loads a plan with the module `tensorrt`.

        Raises:
            EngineError: TensorRT cannot load it.
        """
        self._trt = trt
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError("TensorRT cannot load the plan that it has just built; see its messages above")
        self._context = self._engine.create_execution_context()

    def __call__(self, inputs: Feed) -> Array:
        """`scores` [batch, score, *spatial] for inputs by name, batch first."""
        import torch

        if not torch.cuda.is_available():
            raise EngineError("the plan's certificate needs PyTorch with CUDA; install it in the container")
        given = {name: torch.from_numpy(np.ascontiguousarray(value)).cuda() for name, value in inputs.items()}
        for name, tensor in given.items():
            self._context.set_input_shape(name, tuple(tensor.shape))
            self._context.set_tensor_address(name, tensor.data_ptr())
        kind = self._trt.nptype(self._engine.get_tensor_dtype("scores"))
        empty = np.empty(tuple(self._context.get_tensor_shape("scores")), dtype=kind)
        scores = torch.from_numpy(empty).cuda()
        self._context.set_tensor_address("scores", scores.data_ptr())
        stream = torch.cuda.current_stream()
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise EngineError(f"TensorRT fails at a batch of {len(inputs['roi'])}")
        stream.synchronize()
        return np.asarray(scores.cpu().numpy())
