"""One run of an engine over many requests: gather, run once, check, split.

Knows the model's declared tensors and NumPy; knows neither Triton's Python interface nor any engine,
so that it is tested without a server. A copy lies beside each backend's `model.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Tensors = dict[str, Array]
# Takes batches by input name and the outputs wanted; what it returns may be overwritten by its next run.
Run = Callable[[Mapping[str, Array], Sequence[str]], Mapping[str, Array]]

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


class OutputError(Exception):
    """The engine's answer is not of the declared type or shape."""


@dataclass(frozen=True)
class Declared:
    """A tensor as config.pbtxt declares it. `dims` are without the batch axis; -1 is a free size."""

    name: str
    type_name: str
    dims: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(TRITON_TO_NUMPY[self.type_name])

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether `shape` (without the batch axis) is what was declared."""
        return len(shape) == len(self.dims) and all(d in (-1, s) for d, s in zip(self.dims, shape, strict=True))


@dataclass(frozen=True)
class InGraph:
    """A tensor as the graph has it: `dims` with the batch axis; -1 is a free size, None an unknown rank."""

    name: str
    type_name: str
    dims: tuple[int, ...] | None


@dataclass(frozen=True)
class Contract:
    """What config.pbtxt promises about a model. `max_batch_size` 0 means that tensors have no batch axis."""

    model: str
    max_batch_size: int
    inputs: tuple[Declared, ...]
    outputs: tuple[Declared, ...]

    @property
    def batched(self) -> bool:
        return self.max_batch_size > 0

    def output(self, name: str) -> Declared:
        return next(declared for declared in self.outputs if declared.name == name)


@dataclass(frozen=True)
class Request:
    """One caller's tensors and the outputs that it wants."""

    inputs: Tensors
    wanted: tuple[str, ...]


def parse_contract(config: Mapping[str, Any]) -> Contract:
    """Read the declared tensors from a model config (the JSON form that Triton hands to a backend)."""
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
    """Refuse a config whose names, types or dims are not the graph's. Graph outputs may stay undeclared.

    Raises:
        ConfigError: with the tensor, what the config says and what the graph has.
    """
    for role, declared, found in (("input", contract.inputs, inputs), ("output", contract.outputs, outputs)):
        in_graph = {tensor.name: tensor for tensor in found}
        for tensor in declared:
            if tensor.name not in in_graph:
                raise ConfigError(
                    f"config.pbtxt declares {role} '{tensor.name}', which the graph has not; "
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
    """A free axis of the graph takes any size; a fixed one must be declared as it is.

    The batch axis must be free, or fixed to the only batch there is.
    """
    if max_batch_size:
        if not graph or not (graph[0] == -1 or graph[0] == max_batch_size == 1):
            return False
        graph = graph[1:]
    return len(graph) == len(declared.dims) and all(
        found in (-1, size) for size, found in zip(declared.dims, graph, strict=True)
    )


def answer(requests: Sequence[Request], contract: Contract, run: Run) -> list[Tensors | Exception]:
    """Answer each request, or say why not; requests of one shape share one run of the engine.

    Returns, in the order of `requests`, the wanted outputs by name ([batch, *dims] of the declared type)
    or the exception that stands for this request alone.
    """
    answers: list[Tensors | Exception] = [RuntimeError("no answer was made")] * len(requests)
    groups = _group(requests, contract)
    for group in groups:
        results = _answer_group([requests[index] for index in group], contract, run, keep=len(groups) > 1)
        for index, result in zip(group, results, strict=True):
            answers[index] = result
    return answers


def _group(requests: Sequence[Request], contract: Contract) -> list[list[int]]:
    """Indices of requests that can be concatenated: all of one shape behind the batch axis."""
    if not contract.batched:
        return [[index] for index in range(len(requests))]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, request in enumerate(requests):
        key = tuple(request.inputs[tensor.name].shape[1:] for tensor in contract.inputs)
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def _answer_group(
    requests: Sequence[Request], contract: Contract, run: Run, *, keep: bool
) -> list[Tensors | Exception]:
    try:
        return list(_run_once(requests, contract, run, keep=keep))
    except Exception as error:  # whatever an engine throws is this request's error, never the server's end
        if len(requests) == 1:
            return [error]
    # One request's values may be what failed: alone, each of the others still gets its answer.
    return [_answer_group([request], contract, run, keep=True)[0] for request in requests]


def _run_once(requests: Sequence[Request], contract: Contract, run: Run, *, keep: bool) -> list[Tensors]:
    wanted = tuple(tensor.name for tensor in contract.outputs if any(tensor.name in r.wanted for r in requests))
    inputs = {tensor.name: _concatenated(requests, tensor.name) for tensor in contract.inputs}
    sizes = [request.inputs[contract.inputs[0].name].shape[0] if contract.batched else 0 for request in requests]
    outputs = run(inputs, wanted)
    checked = {name: _checked(contract.output(name), outputs[name], contract, sum(sizes)) for name in wanted}
    if keep:
        checked = {name: array.copy() for name, array in checked.items()}
    if len(requests) == 1:
        return [{name: checked[name] for name in requests[0].wanted}]
    return _split(requests, checked, sizes)


def _concatenated(requests: Sequence[Request], name: str) -> Array:
    if len(requests) == 1:
        return requests[0].inputs[name]
    return np.concatenate([request.inputs[name] for request in requests], axis=0)


def _split(requests: Sequence[Request], outputs: Tensors, sizes: Sequence[int]) -> list[Tensors]:
    ends = np.cumsum(sizes)
    return [
        {name: outputs[name][end - size : end] for name in request.wanted}
        for request, size, end in zip(requests, sizes, ends, strict=True)
    ]


def _checked(declared: Declared, array: Array, contract: Contract, batch: int) -> Array:
    shape = array.shape[1:] if contract.batched else array.shape
    batch_fits = not contract.batched or (array.ndim > 0 and array.shape[0] == batch)
    if array.dtype != declared.dtype or not batch_fits or not declared.fits(shape):
        expected = ([batch] if contract.batched else []) + list(declared.dims)
        raise OutputError(
            f"model '{contract.model}', output '{declared.name}': expected {declared.dtype} {expected}, "
            f"the engine gave {array.dtype} {list(array.shape)}; correct config.pbtxt or the graph"
        )
    return np.ascontiguousarray(array)
