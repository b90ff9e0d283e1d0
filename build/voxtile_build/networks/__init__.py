"""Makes the networks that a spec can name, and checks their arguments. Knows neither specs nor weights."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from voxtile_build.errors import NetworkError
from voxtile_build.networks.building_blocks import find_block, import_module
from voxtile_build.networks.refusals import why_refused


@dataclass(frozen=True)
class NetworkSpec:
    """A network that a spec can name.

    Attributes:
        name: in the spec.
        module: the module that holds its class.
        attribute: the class in that module.
        in_channels: the constructor's argument for the number of input channels; None if there is none.
        out_channels: the same for output channels.
        any_size: whether the network takes inputs of any size that its strides divide.
        blocks: arguments that are classes, which a spec gives by dotted paths. Only nnU-Net's networks have them. The
            plans that describe these have neither channels nor classes, so that both are taken from the spec.
    """

    name: str
    module: str
    attribute: str
    in_channels: str | None = "in_channels"
    out_channels: str | None = "out_channels"
    any_size: bool = True
    blocks: tuple[str, ...] = ()


MONAI = "monai.networks.nets"
NNUNET = "dynamic_network_architectures.architectures.unet"
NNUNET_BLOCKS = ("conv_op", "norm_op", "dropout_op", "nonlin", "block")

NETWORKS = (
    NetworkSpec("SwinUNETR", MONAI, "SwinUNETR", any_size=False),
    NetworkSpec("UNet", MONAI, "UNet"),
    NetworkSpec("AttentionUnet", MONAI, "AttentionUnet"),
    NetworkSpec("BasicUNet", MONAI, "BasicUNet"),
    NetworkSpec("BasicUNetPlusPlus", MONAI, "BasicUNetPlusPlus"),
    NetworkSpec("SegResNet", MONAI, "SegResNet"),
    NetworkSpec("DynUNet", MONAI, "DynUNet"),
    NetworkSpec("UNETR", MONAI, "UNETR", any_size=False),
    *(
        NetworkSpec(name, NNUNET, name, "input_channels", "num_classes", blocks=NNUNET_BLOCKS)
        for name in ("PlainConvUNet", "ResidualEncoderUNet")
    ),
    # Returns its input: tiling and transport are tested with it, to the last bit.
    NetworkSpec("Identity", "torch.nn", "Identity", in_channels=None, out_channels=None),
)


def make_network(name: str, arguments: Mapping[str, Any], channels: int, classes: int) -> nn.Module:
    """The untrained network in evaluation mode.

    Args:
        name: the network's name.
        arguments: of the constructor.
        channels: the number of input channels in the spec.
        classes: the number of labels in the spec.

    Raises:
        NetworkError: the name is not known; an argument is not known, is missing, or contradicts the spec; or the
            constructor refuses the arguments.
    """
    spec = find_network(name)
    constructor = constructor_of(spec)
    if spec.blocks:
        arguments = {spec.in_channels or "": channels, spec.out_channels or "": classes, **arguments}
    _check_names(spec, constructor, arguments)
    _check_count(spec, spec.in_channels, arguments, channels, "input.channels")
    _check_count(spec, spec.out_channels, arguments, classes, "output.labels")
    found = _with_blocks(spec, arguments)
    try:
        network: nn.Module = constructor(**found)
    except Exception as error:  # constructors raise many kinds of errors
        raise NetworkError(why_refused(name, arguments, error)) from error
    return network.eval()


MUCH_ALIKE = 0.8
"""From this likeness on, another name is taken for a slip of the pen: VNet is no UNet."""


def find_network(name: str) -> NetworkSpec:
    """The network with this name.

    Raises:
        NetworkError: there is none; lists the names of all networks.
    """
    for spec in NETWORKS:
        if spec.name == name:
            return spec
    names = {spec.name.lower(): spec.name for spec in NETWORKS}
    near = difflib.get_close_matches(name.lower(), names, 1, MUCH_ALIKE)
    mean = f" (did you mean {names[near[0]]!r}?)" if near else ""
    raise NetworkError(
        f"network.name: expected one of {', '.join(names.values())}, found {name!r}{mean}; any other network is given "
        "by network.file: TorchScript, torch.export or ONNX"
    )


def constructor_of(spec: NetworkSpec) -> Any:
    """The class of a network.

    Raises:
        NetworkError: its package is not installed, or is another version of it.
    """
    found = getattr(import_module(spec.module, f"network.name: {spec.name}"), spec.attribute, None)
    if found is None:
        raise NetworkError(f"network.name: expected {spec.name} in {spec.module}, found none; install another version")
    return found


def _check_names(spec: NetworkSpec, constructor: Any, arguments: Mapping[str, Any]) -> None:
    if spec.name == "Identity":
        known: dict[str, inspect.Parameter] = {}  # torch's constructor takes any argument and ignores it
    else:
        known = dict(inspect.signature(constructor).parameters)
    for key in arguments:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise NetworkError(
                f"network.args.{key}: {spec.name} has no such argument{hint}; it takes {', '.join(known) or 'none'}"
            )
    needed = [key for key, parameter in known.items() if parameter.default is inspect.Parameter.empty]
    missing = [key for key in needed if key not in arguments]
    if missing:
        raise NetworkError(f"network.args: {spec.name} needs {', '.join(missing)}; found {list(arguments)}")


def _check_count(spec: NetworkSpec, key: str | None, arguments: Mapping[str, Any], expected: int, where: str) -> None:
    if key is not None and arguments.get(key, expected) != expected:
        raise NetworkError(
            f"network.args.{key} of {spec.name} is {arguments[key]}, but {where} has {expected} entries; "
            "one of the two is wrong"
        )


def _with_blocks(spec: NetworkSpec, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with the classes that some of them name."""
    if spec.blocks and arguments.get("deep_supervision"):
        raise NetworkError(
            f"network.args.deep_supervision: expected false, found {arguments['deep_supervision']!r}; leave it out: "
            f"weights of a {spec.name} trained with it fit all the same"
        )
    named = {key: arguments[key] for key in spec.blocks if arguments.get(key) is not None}
    return {**arguments, **{key: find_block(str(value), f"network.args.{key}") for key, value in named.items()}}
