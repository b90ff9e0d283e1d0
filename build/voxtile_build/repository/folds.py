"""A public model of one network or of several folds of a cross-validation, whose scores the server averages.

Each fold has entries of its own, one an engine. The certificates of all folds together are the certificate of the
public model's engine. Knows neither networks nor engines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from voxtile.card import Certificate
from voxtile_build.spec.spec import Spec

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Fold:
    """One trained network.

    Attributes:
        name: the fold's entries are called NAME_ENGINE.
        load: makes the network with its weights.
        weights_sha256: of the file that the weights come from. Default: the spec's hash, else that of the tensors.
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

    def numbered(self, number: int | None) -> Model:
        """The model with the number of a version that somebody asks for; as it is where nobody does."""
        return self if number is None else replace(self, spec=self.spec.model_copy(update={"version": number}))

    def as_version(self, base: str, number: int) -> Model:
        """The model as a version: its number, and names of entries that begin with `base` and not with its name."""
        name = self.spec.name
        folds = tuple(replace(one, name=base + one.name.removeprefix(name)) for one in self.folds)
        return Model(self.spec.model_copy(update={"name": base, "version": number}), folds)


def aggregate_sha256(digests: Sequence[str]) -> str:
    """One digest for all folds: a single digest as it is, several as the SHA-256 of their lines."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()


def aggregate(certificates: Sequence[Certificate]) -> Certificate:
    """One engine's certificates over all folds as one: the worst of each metric, and one digest."""
    first, labels = certificates[0], (label for one in certificates for label in one.unseen_labels)
    return Certificate(
        sha256=aggregate_sha256([one.sha256 for one in certificates]),
        accepted=all(one.accepted for one in certificates),
        precision=first.precision,
        dice_min=min(one.dice_min for one in certificates),
        changed_fraction=max(one.changed_fraction for one in certificates),
        max_abs_error=max(one.max_abs_error for one in certificates),
        device=first.device,
        device_name=first.device_name,
        serves_on=first.serves_on,
        verified_on=tuple(name for name in first.verified_on if all(name in one.verified_on for one in certificates)),
        unseen_labels=tuple(dict.fromkeys(labels)),
        inputs=first.inputs if all(one.inputs == first.inputs for one in certificates) else (),
    )
