"""The table [output]: the scores that the network's graph gives, and the labels that they stand for."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from voxtile import card
from voxtile_build.spec.table import Table


class Label(card.Label, Table):
    """A label as `{ name = "bone", value = 7 }`."""


class Output(Table):
    """What the network gives."""

    scores: card.ScoreKind = Field(
        default="logits", description="what comes back: logits, probabilities, foreground or labels"
    )
    dtype: card.OutputDtype = Field(
        default="fp32", description="data type in which scores come back: fp32, fp16 or uint8"
    )
    labels: Annotated[tuple[Label, ...], Field(min_length=1)] = Field(
        description="the network's output channels in order: names (value = index, or index + 1 for regions) "
        "or { name, value, code }"
    )
    foreground: str | None = Field(default=None, description="the label that scores = 'foreground' returns")
    regions: bool = Field(default=False, description="channels overlap: sigmoid each instead of softmax over all")
    region_order: tuple[str, ...] | None = Field(
        default=None,
        description="names of the regions in the order in which they are painted into the mask: a later one covers an "
        "earlier one, so the innermost comes last; left out: by inclusion, where acceptance.scans prove it",
    )
    activation: card.Activation = Field(
        default="none",
        description="what the client applies to stitched logits before it resamples them to the scan's grid",
    )

    @model_validator(mode="before")
    @classmethod
    def _values_of_names(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("labels"), list | tuple):
            return data
        first = _first_value(data.get("regions") is True)
        labels = tuple(
            {"name": label, "value": index} if isinstance(label, str) else label
            for index, label in enumerate(data["labels"], first)
        )
        return {**data, "labels": labels}

    @model_validator(mode="after")
    def _consistent(self) -> Output:
        names = [label.name for label in self.labels]
        if len(set(names)) < len(names):
            raise ValueError(f"expected every label's name and value once, found {names}")
        if (self.scores == "foreground") != (self.foreground is not None):
            raise ValueError("scores = 'foreground' and the key foreground go together")
        if self.foreground is not None and self.foreground not in names:
            raise ValueError(f"expected foreground to be one of {names}, found {self.foreground!r}")
        if self.region_order is not None and (not self.regions or sorted(self.region_order) != sorted(names)):
            raise ValueError(
                f"expected region_order with each of {names} once, and regions = true, found {list(self.region_order)}"
            )
        self._check_types()
        return self

    def _check_types(self) -> None:
        if self.activation != "none" and self.scores != "logits":
            raise ValueError(f"activation {self.activation!r} is for logits, found scores = {self.scores!r}")
        if self.activation == ("softmax" if self.regions else "sigmoid"):
            raise ValueError("regions overlap and take sigmoid, labels that exclude one another take softmax")
        if self.scores == "logits" and self.dtype == "uint8":
            raise ValueError("logits have no fixed range and cannot be sent as uint8; use probabilities or fp16")
        if self.scores == "labels" and self.dtype != "uint8":
            raise ValueError(f"labels are sent as uint8, found dtype {self.dtype!r}")
        if self.scores == "labels" and self.regions:
            raise ValueError("overlapping regions have no one label a voxel; use probabilities")
        if self.scores == "labels" and len(self.labels) > 256:
            raise ValueError(f"uint8 holds 256 labels, found {len(self.labels)}; use probabilities")

    def said(self, key: str) -> Any:
        """The labels as their names alone, where that says all: no codes, and the values that names get."""
        first = _first_value(self.regions)
        if key == "labels" and all(
            label.value == natural and label.code is None for natural, label in enumerate(self.labels, first)
        ):
            return tuple(label.name for label in self.labels)
        return super().said(key)

    @property
    def foreground_index(self) -> int:
        """Index among the labels of the class that is returned alone."""
        return [label.name for label in self.labels].index(str(self.foreground))

    @property
    def score_count(self) -> int:
        """How many channels the tensor `scores` has."""
        return 1 if self.scores in ("foreground", "labels") else len(self.labels)

    @property
    def scale(self) -> float:
        """The stored value of probability 1."""
        return 255.0 if self.dtype == "uint8" and self.scores != "labels" else 1.0


def _first_value(regions: bool) -> int:
    """The value of the first label that is a name alone: labels begin with the background, regions do not."""
    return 1 if regions else 0
