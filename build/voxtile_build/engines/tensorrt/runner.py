"""A plan that is loaded on a GPU: what its layers compute in, and its scores. Through PyTorch's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from voxtile_build.arrays import Array, Feed
from voxtile_build.engines.shapes import Shapes
from voxtile_build.engines.tensorrt.plan import error_log
from voxtile_build.errors import EngineError

if TYPE_CHECKING:
    import torch

TORCH_TYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "UINT8": "uint8"}
"""PyTorch's names of TensorRT's types, of those that tiles and scores may have."""


class PlanRunner:
    """Runs a plan on one GPU.

    Args:
        trt: the module `tensorrt`.
        plan: its bytes.
        device: index of the GPU, as CUDA counts.

    Raises:
        EngineError: the plan cannot be loaded: another version of TensorRT, another architecture, or no GPU.
    """

    def __init__(self, trt: ModuleType, plan: bytes, device: int = 0) -> None:
        self._trt, self._device = trt, device
        logger = error_log(trt)
        logger.errors.clear()
        use_gpu(device)
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(
                "the plan cannot be loaded: no usable GPU or driver, or the plan is of another TensorRT or "
                f"for another GPU: {' '.join(logger.errors) or 'TensorRT says nothing'}"
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"the plan does not fit into the GPU's memory: {' '.join(logger.errors)}")
        # A stream of its own: TensorRT synchronises where it is given the default one.
        self._stream = new_stream(device)

    def information(self, shapes: Shapes) -> str:
        """The layers as JSON, with their types at the largest of these shapes.

        Without shapes, TensorRT 10 says "N/A due to dynamic shapes" in place of a type.
        """
        for name, sizes in shapes.items():
            self._set_shape(name, sizes.maximum)
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def __call__(self, inputs: Feed) -> Array:
        """`scores` [batch, score, *spatial] for inputs by name, batch first.

        Raises:
            EngineError: a shape lies outside the plan's profile, or TensorRT fails.
        """
        import torch

        use_gpu(self._device)
        with torch.cuda.stream(self._stream):
            given = {name: torch.from_numpy(np.ascontiguousarray(value)).cuda() for name, value in inputs.items()}
            return np.asarray(self.on_device(given).cpu().numpy())  # waits for the stream

    def on_device(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The same of tensors that are on the GPU, contiguous, in PyTorch's current stream."""
        import torch

        for name, tensor in inputs.items():
            if tensor.dtype != self._type_of(name):
                raise EngineError(f"TensorRT: expected '{name}' in {self._type_of(name)}, found {tensor.dtype}")
            self._set_shape(name, tuple(tensor.shape))
            self._context.set_tensor_address(name, tensor.data_ptr())
        shape = tuple(self._context.get_tensor_shape("scores"))
        scores = torch.empty(shape, dtype=self._type_of("scores"), device="cuda")
        self._context.set_tensor_address("scores", scores.data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise EngineError(f"TensorRT fails at a batch of {len(next(iter(inputs.values())))}")
        return scores

    def _type_of(self, name: str) -> torch.dtype:
        import torch

        kind: torch.dtype = getattr(torch, TORCH_TYPES[self._engine.get_tensor_dtype(name).name])
        return kind

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if not self._context.set_input_shape(name, shape):
            raise EngineError(
                f"TensorRT: expected a shape of '{name}' that the plan was built for, found {list(shape)}"
            )


def require_cuda() -> None:
    """Checks that PyTorch can run a plan.

    Raises:
        EngineError: it sees no GPU.
    """
    import torch

    if not torch.cuda.is_available():
        raise EngineError(
            f"a plan is measured through PyTorch with CUDA, and PyTorch {torch.__version__} sees no GPU here; install "
            "a build of PyTorch for this driver"
        )


def use_gpu(device: int) -> None:
    """Lets this thread build and run on one GPU.

    Raises:
        EngineError: PyTorch sees no GPU.
    """
    import torch

    require_cuda()
    torch.cuda.set_device(device)


def new_stream(device: int) -> torch.cuda.Stream:
    """A stream of one GPU."""
    import torch

    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
