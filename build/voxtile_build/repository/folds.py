"""A public model of one network or of several: folds of a cross-validation, whose scores are averaged on the server.

Each network has entries of its own, one an engine; their certificates together are the certificate of the public
model's engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from voxtile_build.hashing import bytes_sha256
from voxtile_build.spec.spec import Spec

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Fold:
    """name: what its entries are called, before the engine. load: makes the network with its weights.

    weights_sha256: of the file that the weights come from; left out: of the spec's, or of the tensors themselves.
    """

    name: str
    load: Callable[[], nn.Module]
    weights_sha256: str | None = None


@dataclass(frozen=True)
class Model:
    """What one public name stands for: a spec, and the networks that it describes."""

    spec: Spec
    folds: tuple[Fold, ...]

    def spec_of(self, fold: Fold) -> Spec:
        """The spec of one fold: the model's, under the fold's name."""
        return self.spec.model_copy(update={"name": fold.name})


def aggregate_sha256(digests: Sequence[str]) -> str:
    """One digest for several: of a single one it is that one, else the SHA-256 of all of them, a line each."""
    if len(digests) == 1:
        return digests[0]
    return bytes_sha256("".join(f"{digest}\n" for digest in digests).encode())


def aggregate(certificates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The short form of one engine's certificates over all folds: the worst of each figure, one digest."""
    first = certificates[0]
    return {
        "sha256": aggregate_sha256([one["sha256"] for one in certificates]),
        "accepted": all(one["accepted"] for one in certificates),
        "precision": first["precision"],
        "dice_min": min(one["dice_min"] for one in certificates),
        "changed_fraction": max(one["changed_fraction"] for one in certificates),
        "max_abs_error": max(one["max_abs_error"] for one in certificates),
    }
