"""What a package says of itself: its tensors, and the CPU that it needs. PyTorch checks neither when it runs one.

Needs no PyTorch. The server's backend reads the same text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from voxtile_build.errors import EngineError

KEY = "voxtile"
"""Of the text in the package's metadata."""

FREE = -1
"""Size of a free axis."""

INPUTS = {"roi": "INPUT__0", "intensity": "INPUT__1"}
NAMES = {**INPUTS, "scores": "OUTPUT__0"}
"""Triton's `torch_aoti` names tensors by their place; the ensemble's maps give them the public names again."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of the package: Triton's name, Triton's word for its type, and its sizes with the batch."""

    name: str
    type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Interface:
    """What a package takes, what it gives, and what it needs.

    Attributes:
        inputs: in their order.
        outputs: in their order.
        instructions: features that the CPU must have, in the words of /proc/cpuinfo.
        torch: the version of PyTorch that compiled it.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    instructions: tuple[str, ...]
    torch: str

    def as_text(self) -> str:
        """JSON, the same for the same interface."""
        return json.dumps(asdict(self), sort_keys=True)


def interface_of(metadata: Mapping[str, str], where: str) -> Interface:
    """The interface in a package's metadata.

    Args:
        metadata: of the package.
        where: the file, for errors.

    Raises:
        EngineError: the package holds none.
    """
    try:
        fields: dict[str, Any] = json.loads(metadata[KEY])
        inputs, outputs = (
            tuple(Tensor(one["name"], one["type"], tuple(one["dims"])) for one in fields[key])
            for key in ("inputs", "outputs")
        )
        return Interface(inputs, outputs, tuple(fields["instructions"]), str(fields["torch"]))
    except (KeyError, TypeError, ValueError):
        raise EngineError(
            f"{where}: expected a package of voxtile-build, found one that does not describe its tensors; build the "
            "entry again"
        ) from None
