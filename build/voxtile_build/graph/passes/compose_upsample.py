"""Graph pass: a transposed convolution and the convolution after it become one transposed convolution.

It is done where that needs fewer multiplications. The decoders of U-Nets upsample by blocks that do not overlap,
concatenate the skipped values, and convolve. If only a concatenation lies between the two, they are one linear map.
Each voxel of the finer grid is then made from the few voxels of the coarse grid that the kernel reaches (2 along an
axis instead of 3), and the upsampled tensor is never written. The convolution of a concatenation is the sum of the
convolutions of its parts:

    conv(cat(up(x), skip), [K, L])  =  up'(x) + conv(skip, L),    up'[k] = sum of up[p] · K[t] over p - t + q - 1 = k

The kernels have the sizes s (`up`), q (`conv`) and s + q - 1 (`up'`). The bias of `up` becomes the weights of an input
of ones, because the bias is zero outside the grid, where the kernel reaches it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from voxtile_build.graph.passes.matching import Array, Writer, constant, without_unused

ONES = 2
"""Channels of ones beside the input. A bias is the sum of two weights: bf16 then keeps 16 bits of it, 8 in each."""


@dataclass(frozen=True)
class _Upsampling:
    """A transposed convolution. weights: [channel in, channel, *stride]; bias: [channel]."""

    node: ir.Node
    weights: Array
    bias: Array

    @property
    def stride(self) -> tuple[int, ...]:
        return self.weights.shape[2:]


@dataclass(frozen=True)
class _Reader:
    """A convolution of the upsampled values.

    Attributes:
        node: the convolution.
        weights: [channel out, channel in, *kernel].
        own: which of its input channels are upsampled.
        beside: the other values that are concatenated.
    """

    node: ir.Node
    weights: Array
    own: slice
    beside: tuple[ir.Value, ...]

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.weights.shape[2:]


def compose_upsample(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph with the same scores except for rounding; `model` itself if it has no upsampling of this form."""
    changed = ir.from_proto(model)
    count = 0
    for node in list(changed.graph):
        up = _upsampling(node)
        readers = [] if up is None else _readers(up)
        if up is not None and readers and _products(up, readers) < _products_apart(up, readers):
            _compose(changed.graph, up, readers)
            count += 1
    result: onnx.ModelProto = without_unused(changed) if count else model
    return result


def _upsampling(node: ir.Node) -> _Upsampling | None:
    if node.op_type != "ConvTranspose" or node.domain:
        return None
    weights = constant(node.inputs[1])
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if weights is None or (bias is None and len(node.inputs) > 2 and node.inputs[2] is not None):
        return None
    axes = weights.ndim - 2
    plain = _ints(node, "strides", axes, 1) == weights.shape[2:] and not any(_ints(node, "pads", 2 * axes, 0))
    apart = not any(_ints(node, "output_padding", axes, 0)) and "output_shape" not in node.attributes
    if not (plain and apart and _simple(node, axes)):
        return None
    return _Upsampling(node, weights, np.zeros(weights.shape[1], np.float32) if bias is None else bias)


def _readers(up: _Upsampling) -> list[_Reader]:
    """All nodes that read the upsampled values; none if one of them is not a convolution of the right form."""
    found: list[_Reader] = []
    value = up.node.outputs[0]
    for use in value.uses():
        if use.node.op_type == "Concat":
            inputs, out = use.node.inputs, use.node.outputs[0]
            first = _channels(inputs[: use.idx])
            if first is None or use.node.attributes.get_int("axis", 0) != 1 or inputs.count(value) != 1:
                return []
            beside = tuple(one for one in inputs if one is not None and one is not value)
            users = [] if out.is_graph_output() else [one.node for one in out.uses()]
            readers = [_reader(user, slice(first, first + len(up.bias)), beside) for user in users]
        else:
            readers = [_reader(use.node, slice(0, len(up.bias)), ())]
        if not readers or any(reader is None for reader in readers):
            return []
        found += [reader for reader in readers if reader is not None]
    return [] if value.is_graph_output() else found


def _reader(node: ir.Node, own: slice, beside: tuple[ir.Value, ...]) -> _Reader | None:
    weights = constant(node.inputs[1]) if node.op_type == "Conv" and not node.domain else None
    if weights is None or node.outputs[0].is_graph_output() or any(size % 2 == 0 for size in weights.shape[2:]):
        return None
    axes = weights.ndim - 2
    pads = tuple(size // 2 for size in weights.shape[2:])
    same = _ints(node, "pads", 2 * axes, 0) == pads * 2 and _ints(node, "strides", axes, 1) == (1,) * axes
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    known = bias is None or constant(bias) is not None
    return _Reader(node, weights, own, beside) if same and known and _simple(node, axes) else None


def _simple(node: ir.Node, axes: int) -> bool:
    """Whether it is neither grouped, nor dilated, nor padded by a rule."""
    dilated = _ints(node, "dilations", axes, 1) != (1,) * axes
    by_rule = node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
    return not dilated and not by_rule and node.attributes.get_int("group", 1) == 1


def _ints(node: ir.Node, name: str, count: int, otherwise: int) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return (otherwise,) * count if attribute is None else tuple(attribute.as_ints())


def _channels(values: Sequence[ir.Value | None]) -> int | None:
    """How many channels these values have together; None if that is not known."""
    sizes = [value.shape[1] if value is not None and value.shape is not None else None for value in values]
    return sum(size for size in sizes if isinstance(size, int)) if all(isinstance(s, int) for s in sizes) else None


def _products(up: _Upsampling, readers: Sequence[_Reader]) -> float:
    """Multiplications for each voxel of the finer grid, if both are one."""
    channels = up.weights.shape[0]
    taps = [np.prod([(s + q - 1) / s for s, q in zip(up.stride, one.kernel, strict=True)]) for one in readers]
    return float(sum(channels * one.weights.shape[0] * tap for one, tap in zip(readers, taps, strict=True)))


def _products_apart(up: _Upsampling, readers: Sequence[_Reader]) -> float:
    """Multiplications for each voxel of the finer grid, one after the other."""
    channels, between = up.weights.shape[:2]
    return float(between * (channels + sum(one.weights.shape[0] * np.prod(one.kernel) for one in readers)))


def _compose(graph: ir.Graph, up: _Upsampling, readers: Sequence[_Reader]) -> None:
    writer = Writer(f"{up.node.name}/composed")
    source = up.node.inputs[0]
    assert source is not None  # a transposed convolution has an input
    with_ones = source
    if up.bias.any() and any(_reaches_out(reader) for reader in readers):
        none = [0] * up.weights.ndim
        pads, one = writer.shape(*none, 0, ONES, *none[2:]), writer.constant(np.array(1, up.weights.dtype))
        with_ones = writer.node("Pad", source, pads, one)
    writer.insert(graph, up.node, [])
    for reader in readers:
        _replace(graph, up, reader, with_ones if _reaches_out(reader) else source)


def _reaches_out(reader: _Reader) -> bool:
    """Whether its kernel reaches outside the grid."""
    return any(size > 1 for size in reader.kernel)


def _replace(graph: ir.Graph, up: _Upsampling, reader: _Reader, source: ir.Value) -> None:
    writer = Writer(f"{reader.node.name}/upsampled")
    own = reader.weights[:, reader.own]
    weights = composed(up.weights, own)
    bias = constant(reader.node.inputs[2]) if len(reader.node.inputs) > 2 else None
    if source is not up.node.inputs[0]:
        ones = np.broadcast_to(up.bias.reshape(1, -1, *[1] * len(up.stride)), (1, *up.weights.shape[1:]))
        weights = np.concatenate([weights, _in_two(composed(ones, own))])
    elif up.bias.any():
        everywhere = own.reshape(*own.shape[:2]) @ up.bias
        bias = everywhere if bias is None else bias + everywhere
    biases = [] if bias is None else [writer.constant(bias.astype(reader.weights.dtype))]
    pads = [size // 2 for size in reader.kernel] * 2
    inputs = [source, writer.constant(weights)]
    value = writer.node(
        "ConvTranspose", *inputs, *([] if reader.beside else biases), strides=list(up.stride), pads=pads
    )
    if reader.beside:
        beside = reader.beside[0] if len(reader.beside) == 1 else writer.node("Concat", *reader.beside, axis=1)
        rest = np.delete(reader.weights, reader.own, axis=1)
        skipped = writer.node("Conv", beside, writer.constant(rest), *biases, pads=pads)
        node = skipped.producer()
        assert node is not None  # made above
        node.name = reader.node.name  # precision names layers by the network's own names
        value = writer.node("Add", skipped, value)
    writer.insert(graph, reader.node, [(reader.node.outputs[0], value)])
    graph.remove(reader.node, safe=True)


def composed(up: Array, convolution: Array) -> Array:
    """The weights of one transposed convolution in place of two convolutions; summed in fp64.

    Args:
        up: of a transposed convolution of stride s, [channel in, channel, *s].
        convolution: of the convolution after it, [channel out, channel, *q].

    Returns:
        [channel in, channel out, *(s + q - 1)].
    """
    stride, kernel = up.shape[2:], convolution.shape[2:]
    sizes = [s + q - 1 for s, q in zip(stride, kernel, strict=True)]
    result = np.zeros((up.shape[0], convolution.shape[0], *sizes))
    mirrored = np.flip(convolution, axis=tuple(range(2, convolution.ndim))).astype(np.float64)
    taps = np.moveaxis(mirrored.reshape(*mirrored.shape[:2], -1), -1, 0)  # [tap, out, channel]
    for place, tap in zip(itertools.product(*map(range, kernel)), taps, strict=True):
        made = np.moveaxis(np.tensordot(up.astype(np.float64), tap, axes=([1], [1])), -1, 1)  # [in, out, *stride]
        where = (slice(first, first + size) for first, size in zip(place, stride, strict=True))
        result[(slice(None), slice(None), *where)] += made
    return result.astype(convolution.dtype)


def _in_two(weights: Array) -> Array:
    """[1, ...] as [2, ...] with the same sum; the first has only bits that bf16 has."""
    high = (weights.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.concatenate([high, weights - high]).astype(weights.dtype)
