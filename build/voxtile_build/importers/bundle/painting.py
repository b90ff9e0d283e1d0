"""Reads how a bundle paints its regions into one mask: a Lambdad after the threshold, as in MONAI's BraTS bundle.

`lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, 0))` says that region 2 becomes 4 and covers region 0,
which becomes 1. However it is written, its text is not run: it is worked out for each combination of regions.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import combinations

from voxtile_build.importers.bundle.lambdas import Function, NotKnownError, function_of, value_at
from voxtile_build.importers.bundle.steps import Step

MOST_REGIONS = 10
"""Regions at most: two to this power combinations are worked out."""
ADVICE = (
    "if it paints regions, take it out of a copy of the bundle and give the order as region_order under [output] in "
    "the file of --settings"
)


@dataclass(frozen=True)
class Painted:
    """A region: the channel of the network, and its value in the mask."""

    channel: int
    value: int


def painting_of(step: Step, channels: int) -> list[Painted]:
    """The regions in the order in which they are painted: a later one covers an earlier one.

    Args:
        step: the Lambdad after the threshold.
        channels: how many regions the network has.

    Raises:
        SourceError: the function does anything else, or leaves a region out.
    """
    step.arguments({"overwrite": True, "track_meta": True}, ignored=("keys", "func", "inv_func"))
    text = step.config.followed(step.given.get("func"), step.where)
    if channels > MOST_REGIONS:
        raise step.refusal(f"expected at most {MOST_REGIONS} regions in a function that paints them, found {channels}")
    try:
        values = _values(function_of(text), channels)
    except (NotKnownError, ArithmeticError):
        raise step.refusal(
            f"expected regions that are painted, such as nested torch.where(x[[CHANNEL]] > 0, VALUE, …, 0), found "
            f"{text!r}, which is not run; {ADVICE}"
        ) from None
    alone = [values[frozenset({channel})] for channel in range(channels)]
    if values[frozenset()] != 0 or min(alone) <= 0:
        raise step.refusal(
            f"expected each of the network's {channels} regions with a value above 0, and 0 elsewhere, found {alone} "
            f"and {values[frozenset()]}; {ADVICE}"
        )
    order = _order(values, alone)
    if order is None:
        raise step.refusal(f"expected regions of which later ones cover earlier ones, found {text!r}; {ADVICE}")
    return [Painted(channel, alone[channel]) for channel in order]


Values = Mapping[frozenset[int], int]
"""The value of a voxel in the mask by the regions that it lies in."""


def _values(function: Function, channels: int) -> Values:
    found = {}
    for count in range(channels + 1):
        for regions in combinations(range(channels), count):
            inside = frozenset(regions)
            value = value_at(function, lambda node, inside=inside: _in_region(function, node, inside))  # type: ignore[misc]
            if int(value) != value:
                raise NotKnownError
            found[inside] = int(value)
    return found


def _in_region(function: Function, node: ast.expr, inside: frozenset[int]) -> int | None:
    """1 or 0 for `x[[2]]`, `x[2:3]` and `x[2]`: one region of a voxel. None for anything else."""
    match node:
        case ast.Subscript(value=ast.Name(id=name), slice=index) if name == function.argument:
            return int(_channel(index) in inside)
    return None


def _channel(index: ast.expr) -> int:
    match index:
        case ast.List(elts=[ast.Constant(value=int(channel))]) | ast.Constant(value=int(channel)) if (
            type(channel) is int
        ):
            return channel
        case ast.Slice(lower=ast.Constant(value=int(low)), upper=ast.Constant(value=int(high)), step=None) if (
            high == low + 1
        ):
            return low
    raise NotKnownError


def _order(values: Values, alone: Sequence[int]) -> list[int] | None:
    """The order that gives `values`; None where none does."""
    after: TopologicalSorter[int] = TopologicalSorter()
    for first, second in combinations(range(len(alone)), 2):
        both = values[frozenset({first, second})]
        after.add(first)
        if alone[first] != alone[second] and both in (alone[first], alone[second]):
            after.add(*((second, first) if both == alone[second] else (first, second)))
    after.add(0)
    try:
        order = list(after.static_order())
    except CycleError:
        return None
    painted = {inside: next((alone[one] for one in reversed(order) if one in inside), 0) for inside in values}
    return order if painted == dict(values) else None
