"""Folds the Python expressions of a configuration whose value follows from their text. Nothing is run.

Known are literals, references, arithmetic, joined texts and lists, choices by a flag, parts of a list, comparisons, the
functions in `functions`, and MONAI's constants. Everything else is left to the caller.
"""

from __future__ import annotations

import ast
import operator
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from voxtile_build.importers.bundle.expressions import functions
from voxtile_build.importers.bundle.expressions.functions import MOST, NotFoldable, is_number

REFERENCE = re.compile(r"@(\w+(?:(?:::|#)\w+)*)")
"""MONAI's references; `#` is an older form of `::`."""
PLACEHOLDER = "_reference_{}"
OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Sub: operator.sub,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}
LARGEST_POWER, LARGEST_BASE = 64, 10**6


def fold(text: str, refer: Callable[[str], Any]) -> Any:
    """The value of an expression, such as `@bundle_root + '/models/model.pt'` or `[1, 1] if @fine else [3, 3]`.

    Args:
        text: the expression, without its `$`.
        refer: gives the value of an id, such as `inferer::roi_size`.

    Raises:
        NotFoldable: it is another expression.
    """
    ids: dict[str, str] = {}

    def placeholder(match: re.Match[str]) -> str:
        name = PLACEHOLDER.format(len(ids))
        ids[name] = match[1].replace("#", "::")
        return name

    try:
        tree = ast.parse(REFERENCE.sub(placeholder, text).strip(), mode="eval").body
        return _Folding(refer, ids, {}, [MOST]).value(tree)
    except (ValueError, TypeError, LookupError, ArithmeticError, SyntaxError, MemoryError, RecursionError):
        raise NotFoldable(text) from None


@dataclass(frozen=True)
class _Folding:
    """One expression.

    Attributes:
        refer: gives the value of an id.
        ids: by the names that stand for references in the tree.
        names: values of the names that a comprehension gives.
        left: how many parts of lists and letters may still be made; a few words can ask for billions.
    """

    refer: Callable[[str], Any]
    ids: Mapping[str, str]
    names: Mapping[str, Any]
    left: list[int]

    def value(self, node: ast.expr) -> Any:
        found = self._value(node)
        self.left[0] -= len(found) if isinstance(found, str | list) else 1
        if self.left[0] < 0:
            raise NotFoldable("too large")
        return found

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value):
                return self._constant(value)
            case ast.Name(id=name):
                return self.names[name] if name in self.names else self.refer(self.ids[name])
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                return self._parts(parts)
            case ast.Dict(keys=keys, values=values):
                return {self._key(key): self.value(part) for key, part in zip(keys, values, strict=True)}
            case ast.IfExp(test=test, body=body, orelse=other):
                return self.value(body) if self._flag(test) else self.value(other)
            case ast.JoinedStr(values=parts):
                return "".join(self._text_part(part) for part in parts)
            case ast.ListComp(elt=part, generators=[one]):
                return self._comprehension(part, one)
            case ast.Subscript(value=values, slice=index):
                return self._item(functions.plain(self.value(values)), index)
            case ast.Attribute():
                return functions.constant(ast.unparse(node))
            case ast.Call(func=function, args=args, keywords=[]):
                return self._call(function, args)
        return self._operation(node)

    def _operation(self, node: ast.expr) -> Any:
        match node:
            case ast.UnaryOp(op=ast.Not(), operand=part):
                return not self._flag(part)
            case ast.UnaryOp(op=ast.USub(), operand=part):
                return -_number(self.value(part))
            case ast.UnaryOp(op=ast.UAdd(), operand=part):
                return _number(self.value(part))
            case ast.BoolOp(op=kind, values=parts):
                return self._either(isinstance(kind, ast.Or), parts)
            case ast.Compare(left=left, ops=[kind], comparators=[right]) if type(kind) in COMPARISONS:
                return COMPARISONS[type(kind)](functions.plain(self.value(left)), functions.plain(self.value(right)))
            case ast.BinOp(left=left, op=kind, right=right):
                return _combined(kind, functions.plain(self.value(left)), functions.plain(self.value(right)))
        raise NotFoldable(ast.dump(node))

    def _constant(self, value: Any) -> Any:
        """A literal; MONAI replaces references also in a text inside an expression, which has no use."""
        if isinstance(value, str) and any(name in value for name in self.ids):
            raise NotFoldable(value)
        if not isinstance(value, str | int | float | bool | None):
            raise NotFoldable(repr(value))
        return value

    def _parts(self, parts: list[ast.expr]) -> list[Any]:
        found: list[Any] = []
        for part in parts:
            if isinstance(part, ast.Starred):
                found += functions.as_list(self.value(part.value))
            else:
                found.append(self.value(part))
        return found

    def _key(self, node: ast.expr | None) -> Any:
        if node is None:
            raise NotFoldable("**")
        return self.value(node)

    def _flag(self, node: ast.expr) -> bool:
        return bool(functions.plain(self.value(node)))

    def _either(self, first_true: bool, parts: list[ast.expr]) -> Any:
        """`a or b`, `a and b`: the first part that decides, else the last."""
        for part in parts[:-1]:
            value = functions.plain(self.value(part))
            if bool(value) == first_true:
                return value
        return self.value(parts[-1])

    def _text_part(self, node: ast.expr) -> str:
        """A part of an f-string; a format of its own is not known."""
        if not isinstance(node, ast.FormattedValue):
            return functions.text(self.value(node))
        if node.conversion != -1 or node.format_spec is not None:
            raise NotFoldable(ast.unparse(node))
        return functions.text(self.value(node.value))

    def _comprehension(self, part: ast.expr, one: ast.comprehension) -> list[Any]:
        if not isinstance(one.target, ast.Name) or one.is_async:
            raise NotFoldable(ast.unparse(one))
        found = []
        for value in functions.as_list(self.value(one.iter)):
            inner = replace(self, names={**self.names, one.target.id: value})
            if all(inner._flag(test) for test in one.ifs):
                found.append(inner.value(part))
        return found

    def _item(self, values: Any, index: ast.expr) -> Any:
        if isinstance(index, ast.Slice):
            bounds = (self.value(part) if part else None for part in (index.lower, index.upper, index.step))
            return values[slice(*bounds)]
        return values[functions.plain(self.value(index))]

    def _call(self, function: ast.expr, args: list[ast.expr]) -> Any:
        values = self._parts(args)
        if isinstance(function, ast.Attribute) and function.attr in functions.METHODS:
            receiver: Any = None
            with suppress(LookupError, NotFoldable):  # a module, such as os.path in os.path.join
                receiver = self.value(function.value)
            if isinstance(receiver, str):
                return functions.method(receiver, function.attr, values)
        return functions.call(ast.unparse(function), values)


def _number(value: Any) -> Any:
    if not is_number(value):
        raise NotFoldable(repr(value))
    return value


def _combined(kind: ast.operator, left: Any, right: Any) -> Any:
    """Of numbers, sums and so on; of texts and lists, what is joined or repeated."""
    if isinstance(kind, ast.Add) and all(isinstance(value, str) for value in (left, right)):
        return left + right
    if isinstance(kind, ast.Add) and all(isinstance(value, list) for value in (left, right)):
        return left + right
    if isinstance(kind, ast.Div) and all(isinstance(value, str) for value in (left, right)):
        return os.path.join(left, right)  # of pathlib; Python divides no texts
    if isinstance(kind, ast.Mult) and isinstance(left, int) and isinstance(right, str | list):
        left, right = right, left
    if isinstance(kind, ast.Mult) and isinstance(left, str | list) and isinstance(right, int):
        return left * _at_most(right, MOST // max(1, len(left)))
    if isinstance(kind, ast.Add):
        return _number(left) + _number(right)
    if isinstance(kind, ast.Mult):
        return _number(left) * _number(right)
    if isinstance(kind, ast.Pow):
        return _at_most(_number(left), LARGEST_BASE) ** _at_most(_number(right), LARGEST_POWER)
    return OPERATORS[type(kind)](_number(left), _number(right))


def _at_most(value: Any, limit: int) -> Any:
    if not abs(value) <= limit:
        raise NotFoldable(repr(value))
    return value
