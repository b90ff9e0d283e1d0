"""Functions and constants by name whose values an expression of a configuration may use. None runs foreign code.

Values are texts, numbers, truth values, None, lists and mappings.
"""

from __future__ import annotations

import importlib
import math
import os
import re
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from voxtile_build.importers.bundle.targets import TARGET

MOST = 1_000_000
"""Parts of a list, or letters of a text, at most."""
DTYPE = re.compile(r"(?:torch|np|numpy)\.(float32|float64|float16|int8|int16|int32|int64|uint8)")
ENUM = re.compile(r"(monai(?:\.[a-z_]\w*)+)\.([A-Z]\w*)\.([A-Za-z_]\w*)")
"""A constant of one of MONAI's enumerations, such as monai.utils.CommonKeys.IMAGE."""
NUMBERS = {"math.pi": math.pi, "np.pi": math.pi, "numpy.pi": math.pi, "math.inf": math.inf, "np.inf": math.inf}
METHODS = ("lower", "upper", "strip", "replace", "split", "join", "format", "startswith", "endswith")
"""Methods of texts."""
SIMPLE_FIELD = re.compile(r"[^{}]*(?:\{\d*\}[^{}]*)*")
"""A text for `format` whose fields are numbers or empty."""


class NotFoldable(Exception):
    """The expression is more than what is known here."""


def plain(value: Any) -> Any:
    """`value`, which is no component: MONAI makes an object of it, whose parts and size are others."""
    if isinstance(value, Mapping) and TARGET in value:
        raise NotFoldable(TARGET)
    return value


def is_number(value: Any) -> bool:
    """Whether Python counts with it."""
    return isinstance(value, int | float)


def text(value: Any) -> str:
    """What str() gives of a text or a number."""
    if not isinstance(value, str | int | float | bool):
        raise NotFoldable(repr(value))
    return str(value)


def as_list(value: Any) -> list[Any]:
    """The parts of a list; a text is none here."""
    if not isinstance(value, list):
        raise NotFoldable(repr(value))
    return value


def constant(name: str) -> Any:
    """The value of a dotted name: `torch.float32` is the text float32.

    Raises:
        NotFoldable: it is not known.
    """
    dtype, member = DTYPE.fullmatch(name), ENUM.fullmatch(name)
    if dtype:
        return dtype[1]
    if name in NUMBERS:
        return NUMBERS[name]
    if member:
        found = _enum(member[1], member[2])
        if member[3] in found.__members__ and isinstance(found[member[3]].value, str | int | float):
            return found[member[3]].value
    raise NotFoldable(name)


def _enum(module: str, name: str) -> type[Enum]:
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        found = None
    if isinstance(found, type) and issubclass(found, Enum):
        return found
    raise NotFoldable(f"{module}.{name}")


def method(receiver: str, name: str, args: list[Any]) -> Any:
    """The result of a text's method."""
    if name == "format":
        if not SIMPLE_FIELD.fullmatch(receiver) or len(receiver) * sum(len(text(value)) for value in args) > MOST:
            raise NotFoldable(receiver)
        return receiver.format(*map(text, args))
    if name == "join":
        (parts,) = map(as_list, args)
        if len(receiver) * len(parts) > MOST:
            raise NotFoldable(receiver)
        return receiver.join(parts)
    if not all(isinstance(value, str | int) for value in args):
        raise NotFoldable(name)
    if len(receiver) * max([1, *(len(value) for value in args if isinstance(value, str))]) > MOST:
        raise NotFoldable(name)
    return getattr(receiver, name)(*args)


def _range(*args: int) -> list[int]:
    found = range(*args)
    if len(found) > MOST:
        raise NotFoldable("range")
    return list(found)


def _sized(value: Any) -> Any:
    if not isinstance(value, str | list | Mapping):
        raise NotFoldable(repr(value))
    return plain(value)


def _numbers(values: tuple[Any, ...]) -> list[Any]:
    found = as_list(values[0]) if len(values) == 1 else list(values)
    if not all(map(is_number, found)):
        raise NotFoldable(repr(found))
    return found


def _device(name: Any, index: Any = None) -> str:
    return text(name) if index is None else f"{text(name)}:{text(index)}"


def _as_number(kind: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: kind(value if is_number(value) else text(value))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "len": lambda value: len(_sized(value)),
    "int": _as_number(int),
    "float": _as_number(float),
    "str": text,
    "bool": lambda value: bool(plain(value)),
    "list": lambda value: list(as_list(value)),
    "tuple": lambda value: list(as_list(value)),
    "sorted": lambda value: sorted(as_list(value)),
    "range": _range,
    "min": lambda *values: min(_numbers(values)),
    "max": lambda *values: max(_numbers(values)),
    "sum": lambda values: sum(_numbers((as_list(values),))),
    "abs": lambda value: abs(_numbers((value, 0))[0]),
    "round": lambda value, digits=None: round(_numbers((value, 0))[0], digits),
    "math.ceil": lambda value: math.ceil(_numbers((value, 0))[0]),
    "math.floor": lambda value: math.floor(_numbers((value, 0))[0]),
    "math.prod": lambda values: math.prod(_numbers((as_list(values),))),
    "torch.device": _device,
    "os.path.join": lambda *parts: os.path.join(*map(_only_text, parts)),
    "os.path.basename": lambda path: os.path.basename(_only_text(path)),
    "os.path.dirname": lambda path: os.path.dirname(_only_text(path)),
    "os.path.abspath": lambda path: os.path.normpath(_only_text(path)),
    "os.path.normpath": lambda path: os.path.normpath(_only_text(path)),
    "os.path.exists": lambda path: os.path.exists(_only_text(path)),
    "os.path.isfile": lambda path: os.path.isfile(_only_text(path)),
}
"""The functions by their names."""
for _name in ("Path", "pathlib.Path"):
    FUNCTIONS[_name] = FUNCTIONS["os.path.join"]


def _only_text(value: Any) -> str:
    if not isinstance(value, str):
        raise NotFoldable(repr(value))
    return value


def call(name: str, args: list[Any]) -> Any:
    """The result of a function.

    Raises:
        NotFoldable: it is not known, or does not take these arguments.
    """
    if name not in FUNCTIONS:
        raise NotFoldable(name)
    return FUNCTIONS[name](*args)
