"""Which arguments of a network's constructor say how wide it is, for the networks whose channels can be cut.

Knows no weights and no layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from voxtile_build.errors import SlimmingError
from voxtile_build.networks import constructor_of, find_network
from voxtile_build.networks.building_blocks import find_block
from voxtile_build.slimming.skeleton import OWN_STUDENT

SIZES = ("num_parameters", "num_channels", "num_features")
"""Options of an activation or a norm that repeat the number of channels, such as PReLU's; 1 is one for all channels."""


@dataclass(frozen=True)
class Arguments:
    """Arguments of a constructor, by what they say.

    Attributes:
        widths: numbers of channels.
        options: of activations and norms, which may repeat a number of channels.
        dropout: without meaning for the weights.
    """

    widths: tuple[str, ...]
    options: tuple[str, ...]
    dropout: tuple[str, ...]


_NNUNET = Arguments(
    ("features_per_stage", "bottleneck_channels", "stem_channels"),
    ("norm_op_kwargs", "nonlin_kwargs"),
    ("dropout_op", "dropout_op_kwargs"),
)
ARGUMENTS = {
    "UNet": Arguments(("channels",), ("act", "norm"), ("dropout",)),
    "DynUNet": Arguments(("filters",), ("act_name", "norm_name"), ("dropout",)),
    "PlainConvUNet": _NNUNET,
    "ResidualEncoderUNet": _NNUNET,
}
PRUNABLE = tuple(ARGUMENTS)


def arguments_of(name: str) -> Arguments:
    """What the arguments of a network mean.

    Raises:
        SlimmingError: the channels of this network cannot be cut.
    """
    if name not in ARGUMENTS:
        raise SlimmingError(
            f"network: expected one whose channels can be cut ({', '.join(PRUNABLE)}), found "
            f"{name or 'one in a file'}; {OWN_STUDENT}"
        )
    return ARGUMENTS[name]


def with_sizes(options: Any, change: Callable[[int], int]) -> Any:
    """The options of an activation or a norm with other numbers of channels."""
    if isinstance(options, Mapping):
        return {
            key: change(value) if key in SIZES and isinstance(value, int) and value > 1 else with_sizes(value, change)
            for key, value in options.items()
        }
    return [with_sizes(one, change) for one in options] if isinstance(options, list | tuple) else options


def other_arguments(name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments but those that say how wide the network is, in a form that equal ones have in common.

    Args:
        name: one of PRUNABLE.
        args: of the constructor.
    """
    spec, kinds = find_network(name), arguments_of(name)
    known = inspect.signature(constructor_of(spec)).parameters.values()
    full = {one.name: one.default for one in known if one.default is not inspect.Parameter.empty} | dict(args)
    full |= {key: _lowered(with_sizes(full[key], lambda _: 0)) for key in kinds.options if key in full}
    full |= {key: find_block(full[key], key) for key in spec.blocks if isinstance(full.get(key), str)}
    return {key: _plain(value) for key, value in full.items() if key not in (*kinds.widths, *kinds.dropout)}


def _lowered(options: Any) -> Any:
    """MONAI's names of activations and norms are the same in capitals."""
    if isinstance(options, list | tuple):
        return [_lowered(one) for one in options]
    return options.lower() if isinstance(options, str) else options


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return {key: _plain(one) for key, one in value.items()} if isinstance(value, Mapping) else value


def widths_of(name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that say how wide a network is, and are given."""
    return {key: args[key] for key in arguments_of(name).widths if args.get(key) is not None}
