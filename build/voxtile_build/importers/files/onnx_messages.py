"""Looks through everything that an ONNX file holds. Knows no network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from google.protobuf.message import Message
from onnx import ModelProto, NodeProto

Kind = TypeVar("Kind", bound=Message)


def messages(message: Message, kind: type[Kind]) -> Iterator[Kind]:
    """Every part of this kind, wherever it lies: in graphs, subgraphs, functions and attributes."""
    if isinstance(message, kind):
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                if isinstance(part, Message):
                    yield from messages(part, kind)


def unfolded_nodes(model: ModelProto) -> float:
    """How many nodes the graph has once its functions are written out; infinite where functions call themselves."""
    functions = {(function.domain, function.name): function for function in model.functions}
    counted: dict[tuple[str, str], float] = {}

    def count(message: Any) -> float:
        return sum(1 + called((node.domain, node.op_type)) for node in messages(message, NodeProto))

    def called(key: tuple[str, str]) -> float:
        if key not in functions:
            return 0
        if key not in counted:
            counted[key] = float("inf")  # while it is being counted: a call of itself
            counted[key] = count(functions[key])
        return counted[key]

    return count(model.graph)
