"""The steps before and after the network, in words: what each does, where it runs, and what the scan is afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from voxtile.transforms.base import Transform
from voxtile.transforms.postprocessing import Invert
from voxtile.transforms.preprocessing import MOVING, Orientation, Spacing
from voxtile_build.spec.plain import TAGS
from voxtile_build.spec.spec import Spec

GridAfter = Callable[[dict[str, Any]], tuple[int, ...]]
"""From the fields of a card that say some steps to the voxels along each axis after them."""
CLIENT, GRAPH = "client", "graph"
STATISTICS = ("zscore", "percentile")


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        what: in words.
        where: `client`, or `graph`: on the server, inside the network's own graph.
        shape: voxels along each axis afterwards; empty where they stay the same.
    """

    what: str
    where: str
    shape: tuple[int, ...] = ()


def preparing_steps(spec: Spec, grid_after: GridAfter) -> Iterator[Step]:
    """What happens before the network, in order.

    Args:
        spec: the spec.
        grid_after: gives the scan's shape after some of the steps.
    """
    preparation = spec.preparation
    if spec.nnunet is not None:
        yield Step("nnU-Net's own preparation: transposed, cropped, normalised, resampled", CLIENT, grid_after({}))
        return
    fields: dict[str, Any]
    if preparation.orientation is not None:
        fields = {"orientation": preparation.orientation}
        yield Step(sentence(Orientation(axcodes=preparation.orientation)), CLIENT, grid_after(fields))
    if preparation.spacing is not None:
        fields = {"orientation": preparation.orientation, "spacing": preparation.spacing}
        yield Step(sentence(Spacing(pixdim=preparation.spacing)), CLIENT, grid_after(fields))
    for number, step in enumerate(preparation.client, 1):
        moves = isinstance(step, (Orientation, Spacing, *MOVING))
        shape = grid_after({"preprocessing": preparation.client[:number]}) if moves else ()
        yield Step(sentence(step), CLIENT, shape)
    rule = preparation.intensity
    if rule.rule in STATISTICS:
        yield Step(f"statistics of the whole scan for {rule.rule}, which travel with every tile", CLIENT)
    if rule.rule != "none":
        yield Step(sentence(rule), GRAPH)
    yield from (Step(sentence(step), GRAPH) for step in preparation.graph)


def finishing_steps(spec: Spec, shape: Sequence[int]) -> Iterator[Step]:
    """What happens after the network, in order; all of it in the client.

    Args:
        spec: the spec.
        shape: voxels of the scan along each axis.
    """
    output = spec.output
    yield Step(f"tiles are blended ({spec.tiling.mode}) into scores on the model's grid", CLIENT)
    if spec.postprocessing is not None:
        for step in spec.postprocessing:
            yield Step(sentence(step), CLIENT, tuple(shape) if isinstance(step, Invert) else ())
        return
    if spec.nnunet is None and output.activation != "none":
        yield Step(f"{output.activation} of the scores", CLIENT)
    if output.scores == "labels":
        yield Step("each voxel of the scan takes the label of the nearest one", CLIENT, tuple(shape))
        return
    yield Step("scores are brought back to the scan's own grid", CLIENT, tuple(shape))
    if output.regions:
        yield Step("a voxel belongs to each region whose probability is at least 0.5; regions are painted", CLIENT)
    elif output.foreground is not None:
        yield Step(f"a voxel is {output.foreground} where its probability is at least 0.5", CLIENT)
    else:
        yield Step("the label of the largest score is taken", CLIENT)


def sentence(step: BaseModel) -> str:
    """What a step does: its name, its meaning, and the arguments that it was given."""
    info = type(step).model_fields
    tag = next(key for key in TAGS if key in info)
    meaning = (type(step).__doc__ or "").partition("\n")[0] if isinstance(step, Transform) else info[tag].description
    said = ", ".join(f"{key} = {_plain(value)}" for key, value in step if key != tag and value != info[key].default)
    text = f"{getattr(step, tag)}: {(meaning or '').rstrip('.')}"
    return f"{text} ({said})" if said else text


def _plain(value: Any) -> str:
    return json.dumps(value)
