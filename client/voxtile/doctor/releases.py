"""What is known of each release of Triton: versions, the ONNX that it reads, its backends.

The figures and their sources stand in releases.json. What is not known is None; nobody guesses it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from voxtile.errors import InputError

EMBEDDED = "embedded"
"""The server that `voxtile-server` starts: its core is that of a release, its engines are packages of PyPI."""

NUMBER = re.compile(r"\d\d\.(0[1-9]|1[0-2])")


@dataclass(frozen=True)
class Release:
    """A release of Triton.

    Attributes:
        name: of NVIDIA's container, such as 26.07, or `embedded`.
        core: the release of the server itself; for a container its own name.
        known: whether anything is known of it.
        backends: that its images have, or the embedded server lays out.
        triton: the server's own version.
        onnxruntime: the version of ONNX Runtime; None where it is not known, as all below.
        openvino: of OpenVINO.
        tensorrt: of TensorRT.
        python: of Python.
        cuda: of CUDA.
        opset: the newest opset of ai.onnx that its ONNX Runtime takes.
        ir: the newest IR version of ONNX that it takes.
    """

    name: str
    core: str
    known: bool
    backends: tuple[str, ...]
    triton: str | None = None
    onnxruntime: str | None = None
    openvino: str | None = None
    tensorrt: str | None = None
    python: str | None = None
    cuda: str | None = None
    opset: int | None = None
    ir: int | None = None

    @property
    def embedded(self) -> bool:
        """Whether it is the embedded server."""
        return self.name == EMBEDDED

    @property
    def title(self) -> str:
        """What to call it in a sentence."""
        return f"the embedded server ({self.core})" if self.embedded else f"release {self.name}"

    def before(self, other: str) -> bool:
        """Whether the server itself is of an older release than `other`."""
        return _number(self.core) < _number(other)


def release_named(name: str) -> Release:
    """The release of a name.

    Args:
        name: `embedded`, or the number of a container, such as 26.07.

    Raises:
        InputError: it is neither.
    """
    table = _table()
    if name == EMBEDDED:
        return _release(EMBEDDED, dict(table[EMBEDDED]))
    if not NUMBER.fullmatch(name):
        raise InputError(
            f"--for: expected {EMBEDDED} or the number of a Triton container, such as {table['floor']}, found {name!r}"
        )
    return _release(name, table["releases"].get(name))


def release_of_server(version: str) -> Release | None:
    """The release whose server has a version, such as 2.71.0; None where no such release is known."""
    found = [name for name, one in _table()["releases"].items() if one["triton"] == version]
    return release_named(found[0]) if found else None


def security_floor() -> str:
    """The oldest release in which every published fault is mended that this project has seen."""
    return str(_table()["floor"])


def _release(name: str, fields: dict[str, Any] | None) -> Release:
    table = _table()
    if fields is None:
        return Release(name, name, False, tuple(table["backends"]))
    fields = {"core": name, "backends": table["backends"], **fields}
    fields["backends"] = tuple(fields["backends"])
    series = ".".join(fields["onnxruntime"].split(".")[:2])
    return Release(name=name, known=True, **fields, **table["onnxruntime"].get(series, {}))


def _number(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")))


@cache
def _table() -> dict[str, Any]:
    text = resources.files("voxtile.doctor").joinpath("releases.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
