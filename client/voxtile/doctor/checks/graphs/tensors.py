"""A graph's inputs and outputs beside those of a configuration. Knows no format."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from voxtile.doctor.checks.ensemble import dims_fit
from voxtile.doctor.entry import is_there
from voxtile.doctor.finding import Finding


@dataclass(frozen=True)
class GraphTensor:
    """An input or output of a graph.

    Attributes:
        names: those by which it can be asked for, the usual one first.
        dtype: Triton's number of its type, TYPE_INVALID for one that Triton has not; None where the file tells none.
        dims: extents, -1 where free; None where the file tells no shape.
    """

    names: tuple[str, ...]
    dtype: int | None
    dims: tuple[int, ...] | None


def check_tensors(
    file: Path, inputs: Sequence[GraphTensor], outputs: Sequence[GraphTensor], config: pb.ModelConfig
) -> Iterator[Finding]:
    """What differs between a graph and the configuration of its entry.

    Args:
        file: with the graph, for the findings.
        inputs: of the graph.
        outputs: of the graph; a configuration may leave some out.
        config: the configuration.
    """
    for kind, described, graph in (("input", config.input, inputs), ("output", config.output, outputs)):
        there = {name: tensor for tensor in graph for name in tensor.names}
        for tensor in described:
            found = there.get(tensor.name)
            if found is None:
                usual = ", ".join(sorted(one.names[0] for one in graph if one.names)) or "none"
                yield _differs(file, f"has no {kind} {tensor.name!r}; it has {usual}")
            elif fault := _difference(tensor, found, config.max_batch_size > 0):
                yield _differs(file, f"{kind} {tensor.name!r} {fault}")
        known = {tensor.name for tensor in described}
        for lacking in graph if kind == "input" else ():
            if not known.intersection(lacking.names):
                name = lacking.names[0] if lacking.names else ""
                yield _differs(file, f"needs the input {name!r}, which config.pbtxt does not have")


def _difference(tensor: pb.ModelInput | pb.ModelOutput, found: GraphTensor, batched: bool) -> str:
    wanted = (*((-1,) if batched else ()), *(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims))
    if found.dtype is not None and found.dtype != tensor.data_type:
        name = pb.DataType.Name(found.dtype)
        return f"is {name} in the graph, {pb.DataType.Name(tensor.data_type)} in config.pbtxt"
    if found.dims is not None and not dims_fit(found.dims, wanted):
        return f"has shape {list(found.dims)} in the graph, {list(wanted)} in config.pbtxt"
    if batched and found.dims is not None and found.dims[0] >= 0:
        return f"has a fixed batch of {found.dims[0]} in the graph, but max_batch_size in config.pbtxt"
    return ""


def _differs(file: Path, what: str) -> Finding:
    return Finding(
        "error",
        "graph-differs",
        str(file),
        what,
        "the backend refuses to load it, or fails at the first tile",
        "build the model again",
    )


def unreadable(file: Path, what: str) -> Finding:
    """An engine's file that is none."""
    return Finding(
        "error",
        "engine-unreadable",
        str(file),
        what,
        "the backend cannot load it",
        "copy it again, or build the model again",
    )


def check_weights(graph: Path, weights: Path, end: int) -> Iterator[Finding]:
    """Whether the file with a graph's weights is there, and as long as the graph says.

    Args:
        graph: the file with the graph.
        weights: the file beside it.
        end: the byte behind the last weight.
    """
    if os.path.isfile(weights):
        if (size := weights.stat().st_size) < end:
            yield unreadable(weights, f"the weights of {graph.name} end at byte {end}, the file at {size}")
    elif not is_there(weights) and not weights.is_symlink():  # `layout` speaks of a broken link
        yield Finding(
            "error",
            "file-missing",
            str(weights),
            f"missing; {graph.name} keeps weights there",
            "the backend opens it when the server starts",
            "copy it too, or build the model again",
        )
