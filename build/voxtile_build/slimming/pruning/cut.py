"""How many channels of each group stay, if a network is cut down to a narrower one. Knows no values of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Size

from voxtile_build.errors import NetworkError, SlimmingError
from voxtile_build.networks import find_network
from voxtile_build.slimming.arguments import arguments_of, other_arguments
from voxtile_build.slimming.pruning.channels import Channels, channels_of
from voxtile_build.slimming.skeleton import CHANNELS, CLASSES, OWN_STUDENT, first_names, shapes, skeleton


@dataclass(frozen=True)
class Cut:
    """From one network to a narrower one.

    Attributes:
        channels: of the wide network.
        counts: how many channels stay, by group.
        before: the shapes of the wide network's tensors, by name.
    """

    channels: Channels
    counts: Mapping[int, int]
    before: Mapping[str, Size]


def can_prune(name: str, teacher_args: Mapping[str, Any], student_args: Mapping[str, Any]) -> bool:
    """Whether a network can be cut down to one of the same class with other arguments."""
    try:
        cut_between(name, teacher_args, student_args)
    except (SlimmingError, NetworkError):
        return False
    return True


def cut_between(
    name: str,
    args: Mapping[str, Any],
    student_args: Mapping[str, Any],
    channels: int = CHANNELS,
    classes: int = CLASSES,
) -> Cut:
    """What is cut to get from one network to another.

    Args:
        name: of both networks.
        args: of the wide one.
        student_args: of the narrow one.
        channels: of the input, where the arguments do not say it.
        classes: of the output, where the arguments do not say it.

    Raises:
        SlimmingError: the one cannot be cut down to the other.
        NetworkError: a constructor refuses its arguments.
    """
    arguments_of(name)
    wide = skeleton(name, args, channels, classes)
    before, after = shapes(wide), shapes(skeleton(name, student_args, channels, classes))
    ours, theirs = other_arguments(name, args), other_arguments(name, student_args)
    other = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if other:
        raise _other(name, f"equal arguments but for the widths, found others for {', '.join(other)}")
    if before.keys() != after.keys():
        key = sorted(before.keys() ^ after.keys())[0]
        raise _other(name, f"the same layers, found {key} in one of the two only")
    found = channels_of(wide, int(args.get(find_network(name).in_channels or "", channels)))
    counts = _counts(name, found, after)
    _check_shapes(name, found, counts, {first: before[first] for first in first_names(wide).values()}, after)
    return Cut(found, counts, before)


def _counts(name: str, channels: Channels, after: Mapping[str, Size]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for axis in channels.axes:
        if len(axis.groups) == 1:
            (group,), size = axis.groups, after[axis.tensor][axis.axis]
            if counts.setdefault(group, size) != size:
                raise _other(name, f"{counts[group]} channels along {axis.tensor}, found {size}")
            if size > channels.sizes[group]:
                raise _other(name, f"at most {channels.sizes[group]} channels along {axis.tensor}, found {size}")
    return counts


def _check_shapes(
    name: str, channels: Channels, counts: Mapping[int, int], before: Mapping[str, Size], after: Mapping[str, Size]
) -> None:
    """Cutting must give the shapes of the narrow network, also of tensors that no image goes through."""
    expected = {tensor: list(shape) for tensor, shape in before.items()}
    for axis in channels.axes:
        expected[axis.tensor][axis.axis] = sum(counts[group] for group in axis.groups)
    for tensor, shape in expected.items():
        if shape != list(after[tensor]):
            raise _other(name, f"{tensor} of the shape {shape}, found {list(after[tensor])}")


def _other(name: str, what: str) -> SlimmingError:
    return SlimmingError(f"{name}: the student cannot be cut out of the teacher: expected {what}; {OWN_STUDENT}")
