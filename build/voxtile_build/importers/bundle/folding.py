"""Folds the few Python expressions of a configuration whose value follows from their text. Nothing is run.

Known are literals, references, texts that are joined, and a choice by a flag. Everything else is left to the caller.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable
from typing import Any

REFERENCE = re.compile(r"[@%](\w+(?:(?:::|#)\w+)*)")
"""MONAI's references; `#` is an older form of `::`."""
PLACEHOLDER = "_reference_{}"


class NotFoldable(Exception):
    """The expression is more than what is known here."""


def fold(text: str, refer: Callable[[str], Any]) -> Any:
    """The value of an expression, such as `@bundle_root + '/models/model.pt'` or `[1, 1] if @fine else [3, 3]`.

    Args:
        text: the expression, without its `$`.
        refer: gives the plain value of an id, such as `inferer::roi_size`.

    Raises:
        NotFoldable: it is another expression.
    """
    ids: list[str] = []

    def placeholder(match: re.Match[str]) -> str:
        ids.append(match[1].replace("#", "::"))
        return PLACEHOLDER.format(len(ids) - 1)

    try:
        tree = ast.parse(REFERENCE.sub(placeholder, text).strip(), mode="eval").body
        return _value(tree, {PLACEHOLDER.format(index): key for index, key in enumerate(ids)}, refer)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise NotFoldable(text) from None


def _value(node: ast.expr, ids: dict[str, str], refer: Callable[[str], Any]) -> Any:
    def value(part: ast.expr) -> Any:
        return _value(part, ids, refer)

    match node:
        case ast.Name(id=name) if name in ids:
            return refer(ids[name])
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [value(part) for part in parts]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(value(left)) + _text(value(right))
        case ast.IfExp(test=test, body=body, orelse=other):
            return value(body) if _flag(value(test)) else value(other)
        case ast.JoinedStr(values=parts):
            return "".join(_part(part, value) for part in parts)
        case ast.Call(func=function, args=parts, keywords=[]) if ast.unparse(function) == "os.path.join" and parts:
            return os.path.join(*(_text(value(part)) for part in parts))
        case ast.Call(func=ast.Name(id="str"), args=[part], keywords=[]):
            return _text(value(part))
    return ast.literal_eval(node)


def _part(node: ast.expr, value: Callable[[ast.expr], Any]) -> str:
    """A part of an f-string; a format of its own is not known."""
    if isinstance(node, ast.FormattedValue):
        if node.conversion != -1 or node.format_spec is not None:
            raise NotFoldable(ast.unparse(node))
        return _text(value(node.value))
    return _text(value(node))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise NotFoldable(repr(value))
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise NotFoldable(repr(value))
    return value
