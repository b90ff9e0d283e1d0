"""Reads how a bundle paints its regions into one mask: a Lambdad of nested `torch.where`, as in MONAI's BraTS bundle.

`lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, 0))` says that region 2 becomes 4 and covers region 0,
which becomes 1. The text is taken apart, and not run; every other function is refused.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

from voxtile_build.importers.bundle.steps import Step

CHOICES = ("torch.where", "np.where", "numpy.where")


@dataclass(frozen=True)
class Painted:
    """A region: the channel of the network, and its value in the mask."""

    channel: int
    value: int


class _NotKnown(Exception):
    """The function does something else."""


def painting_of(step: Step, channels: int) -> list[Painted]:
    """The regions in the order in which they are painted: a later one covers an earlier one.

    Args:
        step: the Lambdad after the threshold.
        channels: how many regions the network has.

    Raises:
        SourceError: the function does anything else, or leaves a region out.
    """
    step.arguments({}, ignored=("keys", "func"))
    text = step.config.followed(step.given.get("func"), step.where)
    try:
        found = _regions(_body(text))[::-1]
    except (_NotKnown, SyntaxError, ValueError, RecursionError, MemoryError):
        raise step.refusal(
            f"expected regions that are painted by nested torch.where(x[[CHANNEL]] > 0, VALUE, …, 0), found {text!r}, "
            "which is not run; if it paints regions, take it out of a copy of the bundle and give the order as "
            "region_order under [output] in the file of --settings"
        ) from None
    if sorted(one.channel for one in found) != list(range(channels)):
        listed = ", ".join(str(one.channel) for one in found)
        raise step.refusal(f"expected each of the network's {channels} regions once, found the channels {listed}")
    return found


def _body(text: Any) -> tuple[ast.expr, str]:
    """What the function gives, and the name of its argument."""
    node = ast.parse(str(text).strip().removeprefix("$").strip(), mode="eval").body if str(text)[:1] == "$" else None
    match node:
        case ast.Lambda(args=ast.arguments(posonlyargs=[], args=[argument], kwonlyargs=[], defaults=[]), body=body):
            return body, argument.arg
    raise _NotKnown


def _regions(found: tuple[ast.expr, str]) -> list[Painted]:
    """The regions from the one on top down."""
    node, argument = found
    match node:
        case ast.Constant(value=0) if type(node.value) is int:
            return []
        case ast.Call(func=function, args=[where, ast.Constant(value=int(value)), rest], keywords=[]) if (
            ast.unparse(function) in CHOICES and type(value) is int and value > 0
        ):
            return [Painted(_channel(where, argument), value), *_regions((rest, argument))]
    raise _NotKnown


def _channel(node: ast.expr, argument: str) -> int:
    """The channel of `x[[2]] > 0` or `x[2:3] > 0.5`: a mask of 0 and 1, one channel of it kept as a channel."""
    match node:
        case ast.Compare(
            left=ast.Subscript(value=ast.Name(id=name), slice=index),
            ops=[operator],
            comparators=[ast.Constant(value=limit)],
        ) if name == argument and (type(operator), limit) in ((ast.Gt, 0), (ast.Gt, 0.5), (ast.Eq, 1), (ast.GtE, 1)):
            match index:
                case ast.List(elts=[ast.Constant(value=int(channel))]) if type(channel) is int:
                    return channel
                case ast.Slice(lower=ast.Constant(value=int(low)), upper=ast.Constant(value=int(high)), step=None) if (
                    high == low + 1
                ):
                    return low
    raise _NotKnown
