"""Runs an engine once for many requests: gather, run, check, split.

It knows no engine, and nothing of Triton's Python interface.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import Contract, Declared

Array = NDArray[Any]
Tensors = dict[str, Array]
# Takes batches by input name, and the names of the wanted outputs. Its next run may overwrite the arrays it returns.
Run = Callable[[Mapping[str, Array], Sequence[str]], Mapping[str, Array]]


class OutputError(Exception):
    """The engine's answer is not of the declared type or shape."""


@dataclass(frozen=True)
class Request:
    """One caller's request.

    Attributes:
        inputs: arrays by input name.
        wanted: names of the outputs that the caller wants.
    """

    inputs: Tensors
    wanted: tuple[str, ...]


def answer(requests: Sequence[Request], contract: Contract, run: Run) -> list[Tensors | Exception]:
    """Answer each request, or say why not; requests of one shape share one run of the engine.

    Args:
        requests: the callers' requests.
        contract: what config.pbtxt declares.
        run: the engine.

    Returns:
        In the order of `requests`: the wanted outputs by name ([batch, *dims] of the declared type), or the
        exception that concerns this request alone.
    """
    answers: list[Tensors | Exception] = [RuntimeError("no answer was made")] * len(requests)
    groups = _group(requests, contract)
    for group in groups:
        results = _answer_group([requests[index] for index in group], contract, run, keep=len(groups) > 1)
        for index, result in zip(group, results, strict=True):
            answers[index] = result
    return answers


def one_by_one(run: Run) -> Run:
    """Run each sample of a batch alone, so that the answer for a tile never depends on the tiles beside it.

    Sums of an engine may differ in their last digits from one batch size to the next, and the server makes a batch of
    whatever waits. On a CPU a batch is no faster.

    Args:
        run: takes a batch of one.

    Returns:
        A function that takes any batch. Its next run overwrites the arrays that it returns.
    """
    buffers: dict[str, Array] = {}  # new memory for each answer would cost more time than the copy into it

    def each(inputs: Mapping[str, Array], outputs: Sequence[str]) -> Mapping[str, Array]:
        count = min(len(array) for array in inputs.values())
        if count == 1:
            return run(inputs, outputs)
        for index in range(count):
            found = run({name: array[index : index + 1] for name, array in inputs.items()}, outputs)
            for name, array in found.items():
                held = buffers.get(name)
                if held is None or len(held) < count or held.shape[1:] != array.shape[1:] or held.dtype != array.dtype:
                    held = buffers[name] = np.empty((count, *array.shape[1:]), array.dtype)
                held[index] = array[0]
        return {name: buffers[name][:count] for name in outputs}

    return each


def _group(requests: Sequence[Request], contract: Contract) -> list[list[int]]:
    """Indices of the requests that can be concatenated: their shapes behind the batch axis are the same."""
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
    except Exception as error:  # an engine's exception, of any kind, must not end the server
        if len(requests) == 1:
            return [error]
    # The values of one request may be the cause: run alone, each of the others still gets its answer.
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
