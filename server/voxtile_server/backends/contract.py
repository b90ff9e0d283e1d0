"""The tensors that config.pbtxt declares, and whether a graph has them.

It knows no engine, and nothing of Triton's Python interface.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TRITON_TO_NUMPY = {
    "TYPE_BOOL": np.bool_,
    "TYPE_UINT8": np.uint8,
    "TYPE_UINT16": np.uint16,
    "TYPE_UINT32": np.uint32,
    "TYPE_UINT64": np.uint64,
    "TYPE_INT8": np.int8,
    "TYPE_INT16": np.int16,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64,
}


class ConfigError(Exception):
    """config.pbtxt asks for what the graph or the backend cannot give; the text says what to change."""


@dataclass(frozen=True)
class Declared:
    """A tensor as config.pbtxt declares it.

    Attributes:
        name: its name.
        type_name: Triton's word for its type, such as TYPE_FP32.
        dims: sizes without the batch axis; -1 is a free size.
    """

    name: str
    type_name: str
    dims: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's type for it."""
        return np.dtype(TRITON_TO_NUMPY[self.type_name])

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether `shape` (without the batch axis) is what was declared."""
        return _matches(self.dims, shape)


@dataclass(frozen=True)
class InGraph:
    """A tensor as the graph has it.

    Attributes:
        name: its name.
        type_name: Triton's word for its type, or the engine's own where Triton has none.
        dims: sizes with the batch axis; -1 is a free size. None where the rank is unknown.
    """

    name: str
    type_name: str
    dims: tuple[int, ...] | None


@dataclass(frozen=True)
class Contract:
    """What config.pbtxt promises about a model.

    Attributes:
        model: its name.
        max_batch_size: the largest batch; 0 means that the tensors have no batch axis.
        inputs: the declared inputs.
        outputs: the declared outputs.
    """

    model: str
    max_batch_size: int
    inputs: tuple[Declared, ...]
    outputs: tuple[Declared, ...]

    @property
    def batched(self) -> bool:
        """Whether the tensors have a batch axis."""
        return self.max_batch_size > 0

    def output(self, name: str) -> Declared:
        """The declared output of this name."""
        return next(declared for declared in self.outputs if declared.name == name)


def parse_contract(config: Mapping[str, Any]) -> Contract:
    """Read the declared tensors from a model config.

    Args:
        config: the JSON form of config.pbtxt that Triton hands to a backend.

    Raises:
        ConfigError: a tensor cannot be served as it is declared, or none is declared.
    """
    inputs = tuple(_declared(entry, "input") for entry in config.get("input", []))
    outputs = tuple(_declared(entry, "output") for entry in config.get("output", []))
    if not inputs or not outputs:
        raise ConfigError("config.pbtxt must declare the model's inputs and outputs (name, data_type, dims)")
    return Contract(str(config["name"]), int(config.get("max_batch_size", 0)), inputs, outputs)


def _declared(entry: Mapping[str, Any], role: str) -> Declared:
    name = entry["name"]
    if entry.get("reshape", {}).get("shape"):
        raise ConfigError(f"{role} '{name}': 'reshape' is not supported; declare the graph's own dims")
    for option in ("optional", "allow_ragged_batch", "is_shape_tensor"):
        if entry.get(option):
            raise ConfigError(f"{role} '{name}': '{option}' is not supported; remove it from config.pbtxt")
    if entry["data_type"] not in TRITON_TO_NUMPY:
        known = ", ".join(TRITON_TO_NUMPY)
        raise ConfigError(f"{role} '{name}': data_type {entry['data_type']} is not supported; use one of {known}")
    return Declared(name, entry["data_type"], tuple(int(size) for size in entry["dims"]))


def check_against_graph(contract: Contract, inputs: Sequence[InGraph], outputs: Sequence[InGraph]) -> None:
    """Refuse a config whose names, types or dims are not the graph's.

    Outputs of the graph may stay undeclared.

    Args:
        contract: what config.pbtxt declares.
        inputs: the graph's inputs.
        outputs: the graph's outputs.

    Raises:
        ConfigError: it names the tensor, what the config says and what the graph has.
    """
    for role, declared, found in (("input", contract.inputs, inputs), ("output", contract.outputs, outputs)):
        in_graph = {tensor.name: tensor for tensor in found}
        for tensor in declared:
            if tensor.name not in in_graph:
                raise ConfigError(
                    f"config.pbtxt declares {role} '{tensor.name}', which the graph does not have; "
                    f"its {role}s are {_names(found)}"
                )
            _check_tensor(role, tensor, in_graph[tensor.name], contract)
    missing = {tensor.name for tensor in inputs} - {tensor.name for tensor in contract.inputs}
    if missing:
        raise ConfigError(f"the graph needs input {sorted(missing)}, which config.pbtxt does not declare; add it")


def _names(tensors: Sequence[InGraph]) -> str:
    return ", ".join(repr(tensor.name) for tensor in tensors)


def _check_tensor(role: str, declared: Declared, graph: InGraph, contract: Contract) -> None:
    if declared.type_name != graph.type_name:
        raise ConfigError(
            f"{role} '{declared.name}': config.pbtxt says {declared.type_name}, the graph has "
            f"{graph.type_name}; declare the graph's type or cast inside the graph"
        )
    if graph.dims is not None and not _dims_fit(declared, graph.dims, contract.max_batch_size):
        batch = f" and max_batch_size {contract.max_batch_size}, a free first axis" if contract.batched else ""
        raise ConfigError(
            f"{role} '{declared.name}': config.pbtxt says dims {list(declared.dims)}{batch}; "
            f"the graph has {list(graph.dims)} (-1 is a free size)"
        )


def _dims_fit(declared: Declared, graph: Sequence[int], max_batch_size: int) -> bool:
    """Whether the declared sizes are the graph's, where the graph fixes them.

    The graph's batch axis must be free; with max_batch_size 1 it may be fixed to 1.
    """
    if max_batch_size:
        if not graph or not (graph[0] == -1 or graph[0] == max_batch_size == 1):
            return False
        graph = graph[1:]
    return _matches(graph, declared.dims)


def _matches(dims: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether `shape` has the sizes that `dims` fixes; -1 in `dims` takes any size."""
    return len(dims) == len(shape) and all(dim in (-1, size) for dim, size in zip(dims, shape, strict=True))
