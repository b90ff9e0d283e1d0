"""Takes apart the functions of one argument that bundles write as `$lambda x: …`. Their text is read, and not run."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CASTS = ("float", "int", "long", "bool", "to", "type", "astype", "contiguous", "clone", "float32")
"""Methods that change the type of values alone."""
WHERE = ("torch.where", "np.where", "numpy.where")
LARGER = ("torch.maximum", "np.maximum", "numpy.maximum", "torch.max")
IS_IN = ("torch.isin", "np.isin", "numpy.isin")
COMPARISONS: dict[type[ast.cmpop], str] = {ast.Gt: ">", ast.GtE: ">=", ast.Lt: "<", ast.LtE: "<=", ast.NotEq: "!="}
POSITIVE = ("is_positive", "monai.transforms.utils.is_positive", "monai.transforms.is_positive")


class NotKnownError(Exception):
    """The function does something else than what is known."""


@dataclass(frozen=True)
class Function:
    """`lambda argument: body`."""

    argument: str
    body: ast.expr

    def is_argument(self, node: ast.expr) -> bool:
        """Whether `node` is the argument, of whatever type."""
        bare = without_casts(node)
        return isinstance(bare, ast.Name) and bare.id == self.argument


def function_of(text: Any) -> Function:
    """The function that a text such as `$lambda x: x > 0` writes.

    Raises:
        NotKnownError: it is no function of one argument.
    """
    if not isinstance(text, str) or text[:1] != "$":
        raise NotKnownError
    try:
        node = ast.parse(text[1:].strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise NotKnownError from None
    match node:
        case ast.Lambda(
            args=ast.arguments(posonlyargs=[], args=[argument], vararg=None, kwonlyargs=[], kwarg=None, defaults=[]),
            body=body,
        ):
            return Function(argument.arg, body)
    raise NotKnownError


def without_casts(node: ast.expr) -> ast.expr:
    """What is left of `x.float().to(y)` without its changes of type: `x`."""
    while True:
        match node:
            case ast.Call(func=ast.Attribute(value=inner, attr=name)) if name in CASTS:
                node = inner
            case _:
                return node


def number(node: ast.expr) -> float:
    """A number that is written out.

    Raises:
        NotKnownError: it is none.
    """
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise NotKnownError from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NotKnownError
    return value


def rule_of(text: Any) -> str:
    """What a spec calls a function that selects voxels: `x > 0` of `$lambda y: y > 0`.

    Raises:
        NotKnownError: it selects in another way.
    """
    if isinstance(text, str) and text.removeprefix("$").strip() in POSITIVE:
        return "x > 0"
    function = function_of(text)
    match without_casts(function.body):
        case ast.Compare(left=left, ops=[kind], comparators=[right]) if (
            function.is_argument(left) and type(kind) in COMPARISONS
        ):
            return f"x {COMPARISONS[type(kind)]} {number(right)!r}"
    raise NotKnownError


def scaling_of(text: Any) -> list[dict[str, Any]]:
    """The steps of a spec that do what a pointwise function of an image does: shift, division, limits, or nothing.

    Raises:
        NotKnownError: it does something else.
    """
    function = function_of(text)
    if function.is_argument(function.body):
        return []
    match without_casts(function.body):
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            divisor = number(right)
            match without_casts(left):
                case ast.BinOp(left=inner, op=ast.Sub(), right=shift) if function.is_argument(inner):
                    return [_normalise(number(shift), divisor)]
            if function.is_argument(left):
                return [_normalise(0.0, divisor)]
        case ast.BinOp(left=left, op=ast.Sub(), right=right) if function.is_argument(left):
            return [_normalise(number(right), 1.0)]
        case ast.Call(func=ast.Attribute() as named, args=args, keywords=[]):
            return _limits(function, named, args)
    raise NotKnownError


def _normalise(subtrahend: float, divisor: float) -> dict[str, Any]:
    if not divisor > 0:
        raise NotKnownError
    return {"transform": "NormalizeIntensity", "subtrahend": subtrahend, "divisor": divisor}


def _limits(function: Function, named: ast.Attribute, args: list[ast.expr]) -> list[dict[str, Any]]:
    """`torch.clamp(x, 0, 1)`, `np.clip(x, 0, 1)`, `x.clamp(0, 1)`, `x.clip(0, 1)`."""
    if ast.unparse(named) in ("torch.clamp", "torch.clip", "np.clip", "numpy.clip"):
        values, *limits = args
    elif named.attr in ("clamp", "clip"):
        values, limits = named.value, args
    else:
        raise NotKnownError
    if not function.is_argument(values) or len(limits) != 2:
        raise NotKnownError
    low, high = map(number, limits)
    if not low < high:
        raise NotKnownError
    return [
        {"transform": "ThresholdIntensity", "threshold": low, "above": True, "cval": low},
        {"transform": "ThresholdIntensity", "threshold": high, "above": False, "cval": high},
    ]


def value_of(function: Function, label: int) -> Any:
    """What a pointwise function of labels gives for one label: `torch.where(x == 3, 1, x)` gives 1 for 3.

    Raises:
        NotKnownError: it does something else than to choose, to compare and to count.
    """
    return value_at(function, lambda node: label if function.is_argument(node) else None)


def value_at(function: Function, leaf: Callable[[ast.expr], Any]) -> Any:
    """What a pointwise function gives at one voxel.

    Args:
        function: the function.
        leaf: the value of a part that stands for the voxel, such as the argument itself; None for other parts.

    Raises:
        NotKnownError: it does something else than to choose, to compare and to count.
    """

    def value(node: ast.expr) -> Any:
        node = without_casts(node)
        found = leaf(node)
        if found is not None:
            return found
        match node:
            case ast.Constant():
                return number(node)
            case ast.Call(func=named, args=[test, yes, no], keywords=[]) if ast.unparse(named) in WHERE:
                return value(yes if value(test) else no)
            case ast.Call(func=named, args=[left, right], keywords=[]) if ast.unparse(named) in LARGER:
                return max(value(left), value(right))
            case ast.Call(func=named, args=[values, ast.List(elts=numbers) | ast.Tuple(elts=numbers)], keywords=[]) if (
                ast.unparse(named) in IS_IN
            ):
                return value(values) in [number(one) for one in numbers]
            case ast.Compare(left=left, ops=[kind], comparators=[right]):
                return _compared(kind, value(left), value(right))
            case ast.UnaryOp(op=ast.Invert(), operand=part):
                return not _truth(value(part))
            case ast.BinOp(left=left, op=kind, right=right):
                return _combined(kind, value(left), value(right))
        raise NotKnownError

    return value(function.body)


def _compared(kind: ast.cmpop, left: Any, right: Any) -> bool:
    if isinstance(kind, ast.Eq):
        return bool(left == right)
    known = {">": left > right, ">=": left >= right, "<": left < right, "<=": left <= right, "!=": left != right}
    if type(kind) not in COMPARISONS:
        raise NotKnownError
    return bool(known[COMPARISONS[type(kind)]])


def _combined(kind: ast.operator, left: Any, right: Any) -> Any:
    if isinstance(kind, ast.BitAnd):
        return _truth(left) and _truth(right)
    if isinstance(kind, ast.BitOr):
        return _truth(left) or _truth(right)
    if isinstance(left, bool) and isinstance(right, bool):  # arrays of truth values count in another way
        raise NotKnownError
    if isinstance(kind, ast.Add):
        return left + right
    if isinstance(kind, ast.Sub):
        return left - right
    if isinstance(kind, ast.Mult):
        return left * right
    raise NotKnownError


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise NotKnownError
    return value
