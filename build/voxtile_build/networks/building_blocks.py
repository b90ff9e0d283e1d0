"""Finds the classes that a network is built of by their dotted paths, in torch.nn and dynamic_network_architectures.

Nothing else that a file names is imported. Knows no specs and no plans.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from voxtile_build.errors import NetworkError

PACKAGE = "dynamic_network_architectures"
"""Brings nnU-Net's networks. Optional: the networks of MONAI need it not."""
BLOCKS = ("torch.nn", PACKAGE)


def find_block(name: str, where: str) -> type[nn.Module]:
    """The class with a dotted path in torch.nn or dynamic_network_architectures, which a network uses as a block.

    Args:
        name: the dotted path.
        where: names the place that it stands in, in errors.

    Raises:
        NetworkError: the class is not known.
    """
    package, _, attribute = name.rpartition(".")
    found = module_class(package, attribute, where) if within(package, BLOCKS) else None
    if found is None:
        raise NetworkError(
            f"{where}: expected a class of {' or '.join(BLOCKS)}, found {name!r}, which is not known here"
        )
    return found


def within(module: str, packages: tuple[str, ...]) -> bool:
    """Whether a module is one of some packages, or lies in one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def module_class(module: str, attribute: str, where: str) -> type[nn.Module] | None:
    """A class of network layers; None where the module holds none of that name.

    Raises:
        NetworkError: the module needs a package that is not installed.
    """
    found = getattr(import_module(module, where), attribute, None)
    return found if isinstance(found, type) and issubclass(found, nn.Module) else None


def import_module(module: str, where: str) -> Any:
    """The module; None where a file names one that does not exist.

    Raises:
        NetworkError: its package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if module.startswith(missing) and missing != PACKAGE:
            return None
        raise NetworkError(
            f"{where}: {module} needs the package {missing}, which is not installed; "
            f"pip install {missing.replace('_', '-')}"
        ) from None
