"""Optimisation profiles: the shapes that an engine is built for. Knows nothing of TensorRT itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from voxtile_build.engines.tensorrt.errors import ProfileError

DYNAMIC = -1


@dataclass(frozen=True)
class ShapeRange:
    """Smallest, best and largest shape of one input, batch first, in voxels along space."""

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]


Profile = Mapping[str, ShapeRange]


def batch_profile(model: onnx.ModelProto, minimum: int, optimum: int, maximum: int) -> dict[str, ShapeRange]:
    """One range per graph input, whose first axis is the batch and whose other axes are fixed.

    Raises ProfileError where another axis than the first is dynamic: give that input's ShapeRange by hand.
    """
    return {
        name: ShapeRange(*((batch, *_fixed(name, shape)) for batch in (minimum, optimum, maximum)))
        for name, shape in input_shapes(model).items()
    }


def input_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shape of each graph input that is not an initialiser; -1 for a dynamic axis."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: tuple(
            axis.dim_value if axis.HasField("dim_value") else DYNAMIC for axis in value.type.tensor_type.shape.dim
        )
        for value in model.graph.input
        if value.name not in constants
    }


def check_profile(profile: Profile, shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuses, by input and axis, what TensorRT would refuse later or (a missing input) not explain.

    `shapes` are the network's own, -1 for a dynamic axis. Raises ProfileError.
    """
    for name in sorted(set(profile) ^ set(shapes)):
        found = "is missing from" if name in shapes else "is no input of the network but stands in"
        raise ProfileError(
            f"Input '{name}' {found} the profile. Expected ranges for exactly {sorted(shapes)}, got {sorted(profile)}.",
            layer=name,
        )
    for name, shape in shapes.items():
        _check_range(name, profile[name], tuple(shape))


def profile_shapes(profile: Profile, bound: str) -> str:
    """`name:1x1x96x96x96,…`, the notation of ONNX Runtime's TensorRT provider, for one bound."""
    return ",".join(f"{name}:{'x'.join(map(str, getattr(sizes, bound)))}" for name, sizes in profile.items())


def _fixed(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if DYNAMIC in shape[1:]:
        raise ProfileError(
            f"Input '{name}' has shape {shape}: only the batch (axis 0) may be dynamic here. "
            "Export with a fixed ROI, or give this input's minimum, optimum and maximum shape.",
            layer=name,
        )
    return shape[1:]


def _check_range(name: str, sizes: ShapeRange, shape: tuple[int, ...]) -> None:
    bounds = (sizes.minimum, sizes.optimum, sizes.maximum)
    for bound in bounds:
        if len(bound) != len(shape):
            raise ProfileError(
                f"Input '{name}' has {len(shape)} axes {shape}, but the profile gives {len(bound)}: {bound}.",
                layer=name,
            )
    for axis, (size, *wanted) in enumerate(zip(shape, *bounds, strict=True)):
        _check_axis(name, axis, size, wanted)


def _check_axis(name: str, axis: int, size: int, wanted: list[int]) -> None:
    if not 1 <= wanted[0] <= wanted[1] <= wanted[2]:
        raise ProfileError(
            f"Input '{name}', axis {axis}: expected 1 <= minimum <= optimum <= maximum, got {wanted}.",
            layer=name,
        )
    if size != DYNAMIC and set(wanted) != {size}:
        raise ProfileError(
            f"Input '{name}', axis {axis}: the network fixes it to {size}, the profile asks for {wanted}. "
            "Use the fixed size, or export again with another ROI.",
            layer=name,
        )
