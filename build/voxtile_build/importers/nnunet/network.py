"""Makes the network that nnU-Net's plan describes, from dynamic_network_architectures.

A plan names classes by their dotted paths. Only the U-Nets of that package, and building blocks of it and of torch.nn,
are looked up; nothing else that a plan names is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from voxtile_build.errors import NetworkError
from voxtile_build.importers.nnunet.old_plans import ARCHITECTURES
from voxtile_build.networks.building_blocks import PACKAGE, find_block, import_module, module_class, within

TAKEN = ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet")
"""The networks whose served result was compared with nnU-Net's. The package's other networks are classifiers and
transformers (Primus), which nnU-Net's own planners do not choose."""
SEARCHED = "unet"
"""Module of relocated networks: older plans name other modules."""


def network_of(configuration: Mapping[str, Any], channels: int, heads: int, where: str) -> nn.Module:
    """The untrained network of a configuration, without deep supervision.

    Args:
        configuration: of the plans.
        channels: input channels.
        heads: output channels.
        where: names the plan in errors.

    Raises:
        NetworkError: the class is not known, it refuses the arguments, or dynamic_network_architectures is not
            installed.
    """
    architecture = configuration["architecture"]
    network_class = find_network(str(architecture.get("network_class_name")), where)
    arguments = dict(architecture.get("arch_kwargs") or {})
    for key in architecture.get("_kw_requires_import") or ():
        if arguments.get(key) is not None:
            arguments[key] = find_block(str(arguments[key]), f"{where}: arch_kwargs.{key}")
    if "deep_supervision" in inspect.signature(network_class).parameters:
        arguments["deep_supervision"] = False
    try:
        network: nn.Module = network_class(input_channels=channels, num_classes=heads, **arguments)
    except Exception as error:  # constructors raise many kinds of errors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NetworkError(f"{where}: {network_class.__name__} refuses the plan's arch_kwargs: {reason}") from error
    return network.eval()


def find_network(name: str, where: str) -> type[nn.Module]:
    """The network class with a dotted path; one that has moved since is found by the last part of the path.

    Raises:
        NetworkError: the class is not known.
    """
    import_module(PACKAGE, where)
    package, _, attribute = name.rpartition(".")
    homes = [package] if within(package, (ARCHITECTURES,)) else []
    if name.split(".")[0] == PACKAGE:
        homes.append(f"{ARCHITECTURES}.{SEARCHED}")
    for home in homes if attribute in TAKEN else ():
        found = module_class(home, attribute, where)
        if found is not None:
            return found
    raise NetworkError(
        f"{where}: network_class_name: expected a network of {ARCHITECTURES} ({', '.join(TAKEN)}), found {name!r}, "
        "which is not known here: its result has not been compared with nnU-Net's; train one of these"
    )
