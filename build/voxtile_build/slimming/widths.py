"""Makes the arguments of a narrower network of the same class: a uniform share of all channels. Knows no weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from voxtile_build.errors import SlimmingError
from voxtile_build.slimming.arguments import arguments_of, with_sizes
from voxtile_build.slimming.pruning.cut import cut_between
from voxtile_build.slimming.skeleton import skeleton

STEPS = (16, 8, 4, 2, 1)
"""Widths are multiples of the first of these that fits: 16 channels fill the vectors of every CPU that serves."""
NEAR = 1 / 8
"""A multiple fits that differs from the wanted width by at most this share of it; else the network is not what was
asked for: 24 channels of 32 are ¾, and neither 16 nor 32 are."""


def narrower(name: str, args: Mapping[str, Any], width: float) -> dict[str, Any]:
    """The arguments of the same class with `width` times the channels; input and output channels stay.

    Each width becomes a multiple of 16 if one is near enough, else of 8, of 4, of 2, else the nearest number of
    channels. A group norm's groups divide it. Widths that differ still differ afterwards: where they do not, the
    network would have other layers, and smaller steps are taken.

    Args:
        name: of the network.
        args: of the constructor.
        width: share of the channels that stay, above 0 and below 1.

    Raises:
        SlimmingError: the channels of this class cannot be cut; the width is no such share, leaves no channel
            somewhere, or changes nothing.
        NetworkError: the constructor refuses the arguments.
    """
    kinds = arguments_of(name)
    if not 0 < width < 1:  # also NaN
        raise SlimmingError(f"width: expected a share of the channels above 0 and below 1, found {width}; 0.5 is usual")
    full = with_widths(name, args)
    reasons = []
    for steps in (STEPS[start:] for start in range(len(STEPS))):
        change = partial(_narrowed, share=width, steps=steps, groups=_groups(full, kinds.options))
        student = copy.deepcopy(full)
        student |= {key: _each(full[key], change) for key in kinds.widths if full.get(key) is not None}
        student |= {key: with_sizes(full[key], change) for key in kinds.options if key in full}
        if all(_listed(student[key]) == _listed(full[key]) for key in kinds.widths if key in full):
            raise SlimmingError(f"width: {width} changes none of the {name}'s widths; choose a smaller one")
        try:
            cut_between(name, full, student)
        except SlimmingError as error:
            reasons.append(error)
        else:
            return student
    raise reasons[-1]


def with_widths(name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with the widths that a DynUNet has where none are given.

    Raises:
        NetworkError: the constructor refuses the arguments.
    """
    network: Any = skeleton(name, args)
    # A DynUNet ignores filters beyond its last layer.
    return {**args, "filters": list(network.filters)} if name == "DynUNet" else dict(args)


def _narrowed(size: int, share: float, steps: tuple[int, ...], groups: int) -> int:
    wanted = size * share
    for multiple in (math.lcm(step, groups) for step in steps):
        near = _nearest(wanted, multiple)
        if 0 < near < size and abs(near - wanted) <= NEAR * wanted:
            return near
    near = _nearest(wanted, groups)
    if near == 0:
        least = f", of which the {groups} groups of a norm need {groups} or more" if groups > 1 else ""
        raise SlimmingError(f"width: {share} leaves no channel of a layer that has {size}{least}; choose a larger one")
    return near


def _nearest(wanted: float, multiple: int) -> int:
    return math.floor(wanted / multiple + 0.5) * multiple


def _each(widths: Any, change: Callable[[int], int]) -> Any:
    """One width, or a list of them in which some may be left out."""
    if isinstance(widths, list | tuple):
        return [_each(one, change) for one in widths]
    return None if widths is None else change(widths)


def _listed(widths: Any) -> Any:
    return list(widths) if isinstance(widths, tuple) else widths


def _groups(args: Mapping[str, Any], options: tuple[str, ...]) -> int:
    """What every width must be a multiple of: the number of groups of a group norm; 1 without one."""
    return math.lcm(*(count for key in options for count in _group_counts(args.get(key))))


def _group_counts(options: Any) -> list[int]:
    if isinstance(options, list | tuple):
        return [count for one in options for count in _group_counts(one)]
    if isinstance(options, Mapping):
        return [value for key, value in options.items() if key == "num_groups" and isinstance(value, int)]
    return []
