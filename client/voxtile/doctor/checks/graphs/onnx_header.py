"""Reads what stands at the head of an ONNX file: versions, and the graph's tensors. Weights are skipped, never read.

An ONNX file is a protobuf message (ModelProto of onnx.proto). Only the fields named here are read, so that neither the
package onnx nor the memory of the weights is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
LONGEST_VARINT = 10
"""Bytes of the longest varint of protobuf."""

MOST_TEXT = 1 << 16
"""Bytes of the longest name that is read; no tensor has a longer one."""


@dataclass(frozen=True)
class OnnxTensor:
    """An input or output of a graph.

    Attributes:
        name: its name.
        dtype: ONNX's number of its type; 0 where it has none.
        dims: extents, -1 where free; None where the file tells no shape.
    """

    name: str
    dtype: int
    dims: tuple[int, ...] | None


@dataclass(frozen=True)
class OnnxHeader:
    """The head of an ONNX file.

    Attributes:
        ir: the IR version.
        opset: the opset of ai.onnx; None where the graph uses none.
        inputs: of the graph, without its weights.
        outputs: of the graph.
        imported: domains of operators of which the file names a version; ai.onnx is the empty one.
        domains: those whose operators the graph uses, without the file's own functions.
        weights: by the name of each file with weights beside this one, the byte behind the last of them.
    """

    ir: int
    opset: int | None
    inputs: tuple[OnnxTensor, ...]
    outputs: tuple[OnnxTensor, ...]
    imported: frozenset[str] = frozenset()
    domains: frozenset[str] = frozenset()
    weights: Mapping[str, int] = field(default_factory=dict)


def read_header(path: Path) -> OnnxHeader:
    """Reads the head of an ONNX file.

    Raises:
        ValueError: it is none.
        OSError: it cannot be read.
    """
    ir, graph = 0, None
    opsets: dict[str, int] = {}
    functions: set[str] = set()
    with path.open("rb") as file:
        for number, wire, start, value in _fields(file, 0, path.stat().st_size):
            if number == 1 and wire == VARINT:
                ir = value
            elif number == 7 and wire == BYTES:
                graph = (start, value)
            elif number == 8 and wire == BYTES:
                domain, version = _opset(file, start, value)
                opsets[_plain(domain)] = version
            elif number == 25 and wire == BYTES:  # a function, whose domain is field 10
                functions.add(_plain(_text_of(file, start, value, 10)))
        if not ir or graph is None:
            raise ValueError("no ONNX model: it has no IR version or no graph")
        inputs, outputs, domains, weights = _graph(file, *graph)
    return OnnxHeader(
        ir,
        opsets.get("") or None,
        inputs,
        outputs,
        frozenset(name for name, version in opsets.items() if version),
        frozenset(domains) - functions,
        weights,
    )


def _graph(
    file: BinaryIO, start: int, size: int
) -> tuple[tuple[OnnxTensor, ...], tuple[OnnxTensor, ...], set[str], dict[str, int]]:
    inputs: list[OnnxTensor] = []
    outputs: list[OnnxTensor] = []
    initialised: set[str] = set()
    domains: set[str] = set()
    weights: dict[str, int] = {}
    for number, wire, place, value in _fields(file, start, start + size):
        if wire == BYTES and number == 1:  # a node, whose domain is field 7
            domains.add(_plain(_text_of(file, place, value, 7)))
        elif wire == BYTES and number == 5:  # a weight, whose name is field 8; older files name it as an input too
            initialised.add(_text_of(file, place, value, 8))
            if outside := _outside(file, place, value):
                weights[outside[0]] = max(outside[1], weights.get(outside[0], 0))
        elif wire == BYTES and number in (11, 12):
            (inputs if number == 11 else outputs).append(_tensor(file, place, value))
    given = tuple(tensor for tensor in inputs if tensor.name not in initialised)
    return given, tuple(outputs), domains, weights


def _outside(file: BinaryIO, start: int, size: int) -> tuple[str, int] | None:
    """The file beside the graph that a weight lies in, and the byte behind it; None for one in the graph itself."""
    entries: dict[str, str] = {}
    for number, wire, place, value in _fields(file, start, start + size):
        if wire == BYTES and number == 13:  # a key and its value: location, offset, length
            entries[_text_of(file, place, value, 1)] = _text_of(file, place, value, 2)
    if not entries.get("location"):
        return None
    numbers = [int(text) if (text := entries.get(key, "0")).isdecimal() else 0 for key in ("offset", "length")]
    return entries["location"], sum(numbers)


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _tensor(file: BinaryIO, start: int, size: int) -> OnnxTensor:
    name, dtype, dims = "", 0, None
    for number, wire, place, value in _fields(file, start, start + size):
        if number == 1 and wire == BYTES:
            name = _text(file, place, value)
        elif number == 2 and wire == BYTES:
            dtype, dims = _type(file, place, value)
    return OnnxTensor(name, dtype, dims)


def _type(file: BinaryIO, start: int, size: int) -> tuple[int, tuple[int, ...] | None]:
    dtype, dims = 0, None
    for number, wire, place, value in _fields(file, start, start + size):
        if number == 1 and wire == BYTES:  # a plain tensor; sequences and maps are other fields
            for inner, kind, inside, found in _fields(file, place, place + value):
                if inner == 1 and kind == VARINT:
                    dtype = found
                elif inner == 2 and kind == BYTES:
                    shape = _fields(file, inside, inside + found)
                    dims = tuple(_extent(file, a, n) for one, _, a, n in shape if one == 1)
    return dtype, dims


def _extent(file: BinaryIO, start: int, size: int) -> int:
    for number, wire, _, value in _fields(file, start, start + size):
        if number == 1 and wire == VARINT:
            return value
    return -1


def _opset(file: BinaryIO, start: int, size: int) -> tuple[str, int]:
    domain, version = "", 0
    for number, wire, place, value in _fields(file, start, start + size):
        if number == 1 and wire == BYTES:
            domain = _text(file, place, value)
        elif number == 2 and wire == VARINT:
            version = value
    return domain, version


def _text_of(file: BinaryIO, start: int, size: int, wanted: int) -> str:
    for number, wire, place, value in _fields(file, start, start + size):
        if number == wanted and wire == BYTES:
            return _text(file, place, value)
    return ""


def _text(file: BinaryIO, start: int, size: int) -> str:
    if size > MOST_TEXT:
        raise ValueError(f"no ONNX model: a name of {size} bytes")
    file.seek(start)
    return file.read(size).decode("utf-8", "replace")


def _fields(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Fields of a message: number, wire type, place of the content, and the value or the content's size."""
    place = start
    while place < end:
        file.seek(place)
        key = _varint(file)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            content, value = file.tell(), _varint(file)
            place = file.tell()
        elif wire == BYTES:
            value = _varint(file)
            content = file.tell()
            place = content + value
        elif wire in (FIXED32, FIXED64):
            content, value = file.tell(), 4 if wire == FIXED32 else 8
            place = content + value
        else:
            raise ValueError("no ONNX model: it is no protobuf message")
        if place > end or not number:
            raise ValueError("no ONNX model: it ends in the middle, or is no protobuf message")
        yield number, wire, content, value


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(LONGEST_VARINT):
        byte = file.read(1)
        if not byte:
            raise ValueError("no ONNX model: it ends in the middle")
        value |= (byte[0] & 0x7F) << (7 * shift)
        if not byte[0] & 0x80:
            return value
    raise ValueError("no ONNX model: it is no protobuf message")
