"""What a chain of post-processing amounts to: which activation, which decision, and what happens on which grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from voxtile.transforms.base import Transform
from voxtile.transforms.postprocessing import (
    Activations,
    AsDiscrete,
    FillHoles,
    Invert,
    KeepLargestConnectedComponent,
    LabelFilter,
    MapLabelValue,
    RemoveSmallObjects,
)

CLEANING = (KeepLargestConnectedComponent, FillHoles, RemoveSmallObjects, LabelFilter)
"""Transforms of decided labels."""


@dataclass(frozen=True)
class Finishing:
    """A chain of post-processing in the one order that it can have.

    Attributes:
        before: activation of the scores before they are brought back to the scan's grid.
        after: activation of the scores afterwards.
        threshold: score from which a voxel belongs to a region; None where the largest score decides.
        nearest: whether voxels are brought back by their nearest neighbours.
        on_model_grid: steps for labels before they are brought back. They are decided there if there is any, or if
            they are to be brought back as labels.
        decided_first: whether labels are decided before they are brought back.
        on_scan_grid: steps for labels on the scan's own grid.
        values: what label numbers become in the mask; those that are missing stay.
    """

    before: Literal["none", "softmax", "sigmoid"]
    after: Literal["none", "softmax", "sigmoid"]
    threshold: float | None
    nearest: bool
    decided_first: bool
    on_model_grid: tuple[Transform, ...]
    on_scan_grid: tuple[Transform, ...]
    values: dict[int, int]

    @property
    def activation(self) -> Literal["none", "softmax", "sigmoid"]:
        """The activation, wherever it stands."""
        return self.before if self.before != "none" else self.after

    @property
    def cleans(self) -> bool:
        """Whether any step changes decided labels."""
        return bool(self.on_model_grid or self.on_scan_grid)


def finishing_of(steps: Sequence[Transform]) -> Finishing:
    """Returns what `steps` amount to. Without Invert, scores are brought back linearly just before AsDiscrete.

    Raises:
        ValueError: the steps are in an order that gives no mask.
    """
    decision = _place(steps, AsDiscrete)
    if decision is None:
        raise ValueError(
            "expected AsDiscrete with argmax = true or a threshold, found none: nothing decides the labels"
        )
    activation, inverse, mapped = _place(steps, Activations), _place(steps, Invert), _place(steps, MapLabelValue)
    if activation is not None and activation > decision:
        raise ValueError("Activations comes after AsDiscrete; it is for scores, so let it come before")
    early = [step for step in steps[:decision] if isinstance(step, (*CLEANING, MapLabelValue))]
    if early:
        raise ValueError(f"{_name(early[0])} comes before AsDiscrete; it is for labels, so let it come after")
    late = [step for step in steps[mapped + 1 :] if not isinstance(step, Invert)] if mapped is not None else []
    if late:
        raise ValueError(f"{_name(late[0])} comes after MapLabelValue; let MapLabelValue come last")
    return _in_order(steps, decision, activation, decision if inverse is None else inverse, inverse is not None)


def _in_order(
    steps: Sequence[Transform], decision: int, activation: int | None, inverse: int, explicit: bool
) -> Finishing:
    decide, invert = steps[decision], steps[inverse]
    assert isinstance(decide, AsDiscrete)
    kind = _kind(steps, activation, decide)
    early = activation is not None and (activation < inverse)
    first = inverse > decision
    cleaning = [(place, step) for place, step in enumerate(steps) if isinstance(step, CLEANING)]
    mapping = next((step for step in steps if isinstance(step, MapLabelValue)), None)
    return Finishing(
        before=kind if early else "none",
        after="none" if early else kind,
        threshold=decide.threshold,
        nearest=explicit and isinstance(invert, Invert) and invert.nearest_interp,
        decided_first=first,
        on_model_grid=tuple(step for place, step in cleaning if first and place < inverse),
        on_scan_grid=tuple(step for place, step in cleaning if not first or place > inverse),
        values=dict(zip(mapping.orig_labels, mapping.target_labels, strict=True)) if mapping else {},
    )


def _kind(
    steps: Sequence[Transform], activation: int | None, decide: AsDiscrete
) -> Literal["none", "softmax", "sigmoid"]:
    if activation is None:
        return "none"
    chosen = steps[activation]
    assert isinstance(chosen, Activations)
    if chosen.softmax != decide.argmax:
        raise ValueError("expected softmax with argmax = true, or sigmoid with a threshold, found them crossed")
    return "softmax" if chosen.softmax else "sigmoid"


def _place(steps: Sequence[Transform], kind: type[Transform]) -> int | None:
    """The index of the one step of a kind; None where there is none."""
    places = [place for place, step in enumerate(steps) if isinstance(step, kind)]
    if len(places) > 1:
        raise ValueError(f"expected {kind.__name__} once, found it {len(places)} times")
    return places[0] if places else None


def _name(step: Transform) -> str:
    return type(step).__name__
