"""Whether this machine and this interpreter can run the embedded server; knows nothing of models or ports."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from voxtile_server.errors import ServerError

GLIBC_NEEDED = (2, 35)  # the wheel is tagged manylinux_2_35
# ONNX Runtime 1.31 has no wheels for an older Python, and NumPy 1.26, the last that the stub can use, for no newer one.
PYTHONS = ((3, 11), (3, 12))
CONTAINER = "use the official container instead (server/README.md)"


@dataclass(frozen=True)
class Machine:
    """What the checks look at.

    Attributes:
        system: the operating system, such as "Linux".
        architecture: the processor's, such as "x86_64".
        libc: the C library with its version, such as "glibc 2.36"; empty where it is not GNU's.
        python: the interpreter's version, such as (3, 11).
        libraries: folders where libpython may lie.
    """

    system: str
    architecture: str
    libc: str
    python: tuple[int, int]
    libraries: tuple[Path, ...]

    @classmethod
    def here(cls) -> Machine:
        """This machine and this interpreter."""
        return cls(platform.system(), platform.machine(), _libc(), sys.version_info[:2], _library_folders())


def check(machine: Machine) -> Path:
    """Refuse a machine that cannot run the server.

    Returns:
        The folder of its libpython.

    Raises:
        ServerError: wrong system, glibc or Python version, or an interpreter without a shared library.
    """
    _check_system(machine)
    _check_glibc(machine.libc)
    _check_python(machine.python)
    return _libpython_folder(machine)


def _check_system(machine: Machine) -> None:
    if (machine.system, machine.architecture) != ("Linux", "x86_64"):
        raise ServerError(
            f"the embedded server runs on Linux x86_64, this is {machine.system} {machine.architecture}; {CONTAINER}"
        )


def _check_glibc(libc: str) -> None:
    name, _, version = libc.partition(" ")
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    if name != "glibc" or tuple(numbers) < GLIBC_NEEDED:
        raise ServerError(
            f"the embedded server needs glibc {'.'.join(map(str, GLIBC_NEEDED))} or newer "
            f"(Ubuntu 22.04, Debian 12), found {libc or 'another C library'}; {CONTAINER}"
        )


def _check_python(version: tuple[int, int]) -> None:
    if version not in PYTHONS:
        known = ", ".join(_dotted(python) for python in PYTHONS)
        raise ServerError(
            f"the embedded server needs Python {known} (NumPy 1.26 and ONNX Runtime 1.31 have no wheels "
            f"for others), found {_dotted(version)}; start it with one of these"
        )


def _libpython_folder(machine: Machine) -> Path:
    name = f"libpython{_dotted(machine.python)}.so.1.0"
    for folder in machine.libraries:
        if (folder / name).is_file():
            return folder
    raise ServerError(
        f"{name} is in none of {', '.join(map(str, machine.libraries))}: this interpreter is static, "
        "and Triton's stub needs a shared one; install it (Debian, Ubuntu: "
        f"apt install libpython{_dotted(machine.python)}) or use a Python built with --enable-shared"
    )


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def _libc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        return ""


def _library_folders() -> tuple[Path, ...]:
    variables = sysconfig.get_config_vars("LIBDIR", "LIBPL", "MULTIARCH")
    folders = [variables[0], str(Path(sys.base_prefix, "lib")), variables[1], f"/usr/lib/{variables[2]}"]
    return tuple(dict.fromkeys(Path(folder) for folder in folders if folder))
