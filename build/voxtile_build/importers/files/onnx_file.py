"""Opens a network in an ONNX file: checks it, runs it with ONNX Runtime, and gives its graph in another opset."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import GraphProto, ModelProto, TensorProto, TensorShapeProto, ValueInfoProto
from onnx.inliner import inline_local_functions
from torch import Tensor

from voxtile_build.errors import NetworkError, reason_of
from voxtile_build.importers.files.onnx_messages import messages, unfolded_nodes
from voxtile_build.importers.files.onnx_opset import at_opset
from voxtile_build.networks.file_network import IMAGE, LOGITS, Source
from voxtile_build.networks.heads import choose_index
from voxtile_build.sessions import open_session

STANDARD = ("", "ai.onnx")
MOST_NODES = 1_000_000
MOST_VALUES = 2**33
"""32 GiB in float32: more than a tile's largest tensor in any network that can be served."""


def open_onnx(path: Path, content: bytes) -> Source:
    """The network in an ONNX file, of one input and one or several outputs, all float32.

    Args:
        path: names the file in errors.
        content: its bytes.

    Raises:
        NetworkError: the file is damaged, has operators outside the standard or weights in other files, or its inputs
            and outputs are not those of a network.
    """
    model = _parsed(path, content)
    image = _image_of(path, model.graph)
    try:
        session = open_session(content)
    except Exception as error:  # ONNX Runtime's kinds have no common base
        raise NetworkError(f"{path}: ONNX Runtime cannot load the network: {reason_of(error)}") from error

    def run(values: Tensor) -> Any:
        check_shape(image, values.shape[1:], str(path))
        try:
            outputs = session.run(None, {image.name: np.ascontiguousarray(values.numpy())})
        except Exception as error:  # ONNX Runtime's kinds have no common base
            raise RuntimeError(f"{path}: {reason_of(error)}") from error
        return [torch.from_numpy(np.ascontiguousarray(output)) for output in outputs]

    def to_onnx(shape: Sequence[int], opset: int, head: int | None) -> ModelProto:
        return between(at_opset(model, opset, str(path), _example(path, image, shape)), shape, head, str(path))

    first = image.type.tensor_type.shape.dim[0]
    return Source(run, to_onnx, first.dim_value or None)


def between(model: ModelProto, shape: Sequence[int], head: int | None, where: str) -> ModelProto:
    """A graph from `image` [batch, *shape] to `logits`; the weights are unchanged.

    Args:
        model: the graph in the file.
        shape: [channel, *spatial] of the image.
        head: which output becomes `logits`.
        where: names the file in errors.

    Raises:
        NetworkError: the graph does not take such an image, or has no such output.
    """
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    (image,) = _inputs(graph)
    check_shape(image, shape, where)
    logits = graph.output[choose_index(len(graph.output), head)]
    _rename(graph, {image.name: IMAGE, logits.name: LOGITS})
    for axis, size in zip(image.type.tensor_type.shape.dim, ("batch", *shape), strict=True):
        axis.Clear()
        if isinstance(size, str):
            axis.dim_param = size
        else:
            axis.dim_value = size
    chosen, given = ValueInfoProto(), ValueInfoProto()
    chosen.CopyFrom(logits)
    given.CopyFrom(image)
    # Only the number of axes is kept: their sizes are inferred again, for this ROI.
    chosen.type.tensor_type.shape.CopyFrom(TensorShapeProto(dim=[TensorShapeProto.Dimension() for _ in (0, *shape)]))
    del graph.output[:], graph.value_info[:], graph.input[:]  # of other sizes; and weights listed as inputs
    graph.output.append(chosen)
    graph.input.append(given)
    return result


def check_shape(image: ValueInfoProto, shape: Sequence[int], where: str) -> None:
    """Refuse an image [channel, *spatial] that does not have the fixed sizes of the file.

    Raises:
        NetworkError: says which sizes the file takes.
    """
    axes = [axis.dim_value or None for axis in image.type.tensor_type.shape.dim][1:]
    shown = [axis or "any" for axis in axes]
    if len(axes) != len(shape):
        raise NetworkError(
            f"{where}: expected an input of [batch, channel, *spatial] with {len(shape) - 1} spatial axes as "
            f"inferer.roi_size has, found [batch, {', '.join(map(str, shown))}]"
        )
    if axes[0] not in (None, shape[0]):
        raise NetworkError(f"{where}: the network takes {axes[0]} channels, but input.channels names {shape[0]}")
    if any(axis not in (None, size) for axis, size in zip(axes[1:], shape[1:], strict=True)):
        raise NetworkError(f"{where}: inferer.roi_size: the network takes {shown[1:]} voxels, found {list(shape[1:])}")


def _parsed(path: Path, content: bytes) -> ModelProto:
    model = ModelProto()
    try:
        model.ParseFromString(content)
        _refuse_external(path, model)
        _refuse_bombs(path, model)
        onnx.checker.check_model(model)
        model = inline_local_functions(model) if model.functions else model
    except NetworkError:
        raise
    except Exception as error:  # onnx raises many kinds of errors for damaged files
        raise NetworkError(
            f"{path}: expected a whole ONNX file, found a damaged one ({reason_of(error)}); fetch it again"
        ) from None
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in _nodes_of(model.graph.node) if _is_foreign(node)})
    if foreign:
        raise NetworkError(
            f"{path}: expected operators of the ONNX standard alone, found {', '.join(foreign)}, which other engines "
            "and servers do not know; export the network without fusing or custom operators"
        )
    return model


def _is_foreign(node: onnx.NodeProto) -> bool:
    return node.domain not in STANDARD


def _nodes_of(nodes: Any) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes_of(graph.node)


def _refuse_external(path: Path, model: ModelProto) -> None:
    """No tensor may lie in another file: in no graph, function or attribute."""
    outside = [
        tensor.name
        for tensor in messages(model, TensorProto)
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data
    ]
    if outside:
        raise NetworkError(
            f"{path}: expected one file with the weights inside, which its sha256 covers, found {len(outside)} tensors "
            "in another file; save it with onnx.save(onnx.load(file), file, save_as_external_data=False)"
        )


def _refuse_bombs(path: Path, model: ModelProto) -> None:
    """A small file may unfold to any size: by functions that call functions, or by constants of shapes."""
    nodes = unfolded_nodes(model)
    if nodes > MOST_NODES:
        raise NetworkError(
            f"{path}: expected a network of at most {MOST_NODES:,} operators, found functions that unfold to more, or "
            "that call themselves; export it again"
        )
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for value in messages(inferred, ValueInfoProto):
        sizes = [axis.dim_value for axis in value.type.tensor_type.shape.dim if axis.dim_value > 0]
        if math.prod(sizes) > MOST_VALUES:
            raise NetworkError(
                f"{path}: expected tensors of at most {MOST_VALUES:,} values, found {value.name!r} of {sizes}; "
                "export it again"
            )


def _inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """The inputs without weights, which older files list among them."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def _image_of(path: Path, graph: GraphProto) -> ValueInfoProto:
    inputs = _inputs(graph)
    if len(inputs) != 1:
        raise NetworkError(f"{path}: expected one input, the image, found {[value.name for value in inputs]}")
    for value in (*inputs, *graph.output):
        kind = value.type.tensor_type.elem_type
        if kind != TensorProto.FLOAT:
            raise NetworkError(
                f"{path}: expected input and outputs of type float (fp32), found {value.name!r} of type "
                f"{TensorProto.DataType.Name(kind).lower()}; export the network in fp32"
            )
    if len(inputs[0].type.tensor_type.shape.dim) < 4:
        raise NetworkError(
            f"{path}: expected an input [batch, channel, *spatial] of 4 or 5 axes, found {inputs[0].name!r}"
        )
    return inputs[0]


def _example(path: Path, image: ValueInfoProto, shape: Sequence[int]) -> dict[str, Any]:
    """An input of the network, to compare two forms of the graph with."""
    check_shape(image, shape, str(path))
    values = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
    return {image.name: values}


def _rename(graph: GraphProto, names: dict[str, str]) -> None:
    """Give values other names, in subgraphs too. A value that already has one of the new names is renamed as well."""
    taken = {name for node in _nodes_of(graph.node) for name in (*node.input, *node.output)}
    taken |= {tensor.name for tensor in graph.initializer}
    for wanted in names.values():
        if wanted in taken and wanted not in names:
            _rename(graph, {wanted: f"{wanted}_inside"})
    for node in _nodes_of(graph.node):
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = names.get(value.name, value.name)
