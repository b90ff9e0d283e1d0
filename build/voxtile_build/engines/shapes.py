"""The shapes that TensorRT optimises a graph for, whoever runs it. Knows nothing of TensorRT itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from voxtile_build.errors import EngineError
from voxtile_build.spec.serving import Serving

FREE = -1
"""Size of an axis that is not fixed."""


class ShapesError(EngineError):
    """The shapes do not fit the inputs of the graph. `layer` is the input's name."""

    def __init__(self, message: str, layer: str) -> None:
        super().__init__(message)
        self.layer = layer


@dataclass(frozen=True)
class ShapeRange:
    """Smallest, best and largest shape [batch, channel, *spatial] of one input."""

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]


Shapes = Mapping[str, ShapeRange]
"""By the name of the input."""


def serving_shapes(model: onnx.ModelProto, serving: Serving) -> Shapes:
    """From one tile to max_batch_size, best at the largest batch that the server waits for.

    Raises:
        ShapesError: another axis than the batch is free.
    """
    optimum = max(serving.preferred_batch_size or (serving.max_batch_size,))
    return batch_shapes(model, 1, optimum, serving.max_batch_size)


def batch_shapes(model: onnx.ModelProto, minimum: int, optimum: int, maximum: int) -> dict[str, ShapeRange]:
    """The shapes of each input for these batch sizes.

    Raises:
        ShapesError: another axis than the batch is free.
    """
    return {
        name: ShapeRange(*((batch, *_fixed(name, shape)) for batch in (minimum, optimum, maximum)))
        for name, shape in input_shapes(model).items()
    }


def input_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shape of each input of the graph; `FREE` for a free axis. Constants that are listed as inputs are left out."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: tuple(
            axis.dim_value if axis.HasField("dim_value") else FREE for axis in value.type.tensor_type.shape.dim
        )
        for value in model.graph.input
        if value.name not in constants
    }


def _fixed(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if FREE in shape[1:]:
        raise ShapesError(
            f"Input '{name}' has shape {shape}: only the batch (axis 0) may be free here. Export with a fixed ROI.",
            name,
        )
    return shape[1:]
