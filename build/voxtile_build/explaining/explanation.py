"""What a spec does to one scan, step by step, with shapes and sizes: all of them by the client's own code."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtile.budget import MemoryEstimate, fitting_schedule, predicted_bytes
from voxtile.card import Card, IntensityNone, Provenance
from voxtile.chains.base import PreparedScan
from voxtile.chains.prepare import prepare_scan
from voxtile.chains.scores import label_type
from voxtile.errors import VoxtileError
from voxtile.io.volume import Volume
from voxtile.options import Options
from voxtile.tensor_types import itemsize
from voxtile.tiling.extract import tta_flips
from voxtile.tiling.plan import TilePlan, plan_tiles, tile_shape
from voxtile.tiling.schedule import Schedule, at_once, schedules
from voxtile_build.checks import check_spec
from voxtile_build.errors import ScanError
from voxtile_build.explaining.scans import made_up_scan, read_scan
from voxtile_build.explaining.steps import Step, finishing_steps, preparing_steps
from voxtile_build.repository.card import card_of
from voxtile_build.spec.spec import Spec

NO_RULE = IntensityNone()


@dataclass(frozen=True)
class Tiles:
    """How the scan goes through the network.

    Attributes:
        roi: voxels of a tile along each axis of the prepared scan.
        count: tiles of the scan.
        flips: times that each tile goes through the network, once for each way of mirroring it.
        sent: bytes of one tile on its way to the server.
        received: bytes of its scores.
        batch: tiles in one request.
        in_flight: requests on their way at the same time.
        strips: parts that the scan is worked through in, to save memory.
    """

    roi: tuple[int, ...]
    count: int
    flips: int
    sent: int
    received: int
    batch: int
    in_flight: int
    strips: int


@dataclass(frozen=True)
class Explanation:
    """What happens to one scan.

    Attributes:
        spec: the model's name.
        todo: what the spec says is still to be done.
        unchecked: what a build would check, and could not be checked here.
        scan: what the scan is called.
        shape: voxels of the scan.
        spacing: in mm.
        stored: bytes of the scan in memory.
        preparing: the steps before the network.
        prepared: voxels of the scan on the model's grid.
        tiles: how it goes through the network.
        engines: what is built, and which of them answers, in words.
        finishing: the steps after the network.
        mask: type of the mask's voxels.
        labels: name and value of each label.
        memory: bytes of each large buffer of the client, by name, and `in all`.
    """

    spec: str
    todo: tuple[str, ...]
    unchecked: tuple[str, ...]
    scan: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    stored: int
    preparing: tuple[Step, ...]
    prepared: tuple[int, ...]
    tiles: Tiles
    engines: tuple[str, ...]
    finishing: tuple[Step, ...]
    mask: str
    labels: dict[str, int]
    memory: dict[str, int]


def explain_spec(
    spec: Spec,
    files: Sequence[Path],
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
) -> Explanation:
    """What `spec` does to a scan, once it is checked as a build checks it. Nothing is built.

    Args:
        spec: the spec.
        files: a scan, one file for each channel; none for a made-up one.
        shape: voxels of the made-up scan.
        spacing: of the made-up scan, in mm.

    Raises:
        ScanError: the scan does not fit the model, or needs more memory than there is.
        BuildError: a build would refuse the spec; the error is the build's.
    """
    unchecked = check_spec(spec)
    engine = spec.serving.default_engine or spec.serving.engines[0]
    card = card_of(spec, engine, {}, Provenance(network=spec.network.title, weights_sha256="", onnx_sha256=""))
    try:
        volume = read_scan(files, card) if files else made_up_scan(shape, spacing, card)
        return _followed(spec, card, volume, unchecked)
    except VoxtileError as error:
        raise ScanError(str(error)) from None


def _followed(spec: Spec, card: Card, volume: Volume, unchecked: tuple[str, ...]) -> Explanation:
    prepared = prepare_scan(volume, card)
    grid = prepared.data.shape[1:]
    plan = plan_tiles(grid, tile_shape(card, grid), card.tiling)
    memory = MemoryEstimate(
        volume=volume, prepared=prepared, card=card, plan=plan, servers=1, keep_scores=False, searched=False
    )
    schedule = _schedule(memory, prepared, spec.serving.max_batch_size)
    components = memory.components(schedule)
    return Explanation(
        spec=spec.name,
        todo=spec.todo,
        unchecked=unchecked,
        scan=volume.names[0],
        shape=volume.shape,
        spacing=volume.spacing,
        stored=volume.nbytes,
        preparing=tuple(preparing_steps(spec, lambda done: _grid_after(volume, card, done))),
        prepared=grid,
        tiles=_tiles(card, plan, schedule),
        engines=tuple(_engines(spec, card)),
        finishing=tuple(finishing_steps(spec, volume.shape)),
        mask=str(label_type(card)),
        labels={label.name: label.value for label in card.labels},
        memory={**components, "in all": predicted_bytes(components)},
    )


def _schedule(memory: MemoryEstimate, prepared: PreparedScan, most: int) -> Schedule:
    """The schedule that the client chooses with its default options."""
    options = Options()
    in_flight, batch = at_once(options.in_flight, most, memory.tile_bytes)
    possible = schedules(in_flight, batch, memory.plan, prepared.strips)
    return fitting_schedule(memory, possible, options.max_ram_bytes, half_allowed=options.half_scores)


def _tiles(card: Card, plan: TilePlan, schedule: Schedule) -> Tiles:
    voxels = math.prod(plan.roi)
    return Tiles(
        roi=plan.roi,
        count=len(plan),
        flips=len(tta_flips(card.mirror_axes)),
        sent=voxels * len(card.channels) * itemsize(card.input.dtype),
        received=voxels * card.output.scores * itemsize(card.output.dtype),
        batch=schedule.batch,
        in_flight=schedule.in_flight,
        strips=len(schedule.strips),
    )


def _grid_after(volume: Volume, card: Card, done: dict[str, Any]) -> tuple[int, ...]:
    """Voxels along each axis after some steps alone: the fields of the card that say them."""
    shortened = card.model_copy(update={"intensity": NO_RULE, "orientation": None, "spacing": None, **done})
    return prepare_scan(volume, shortened).data.shape[1:]


def _engines(spec: Spec, card: Card) -> Iterator[str]:
    for engine in spec.serving.engines:
        chosen = f", which {spec.name} stands for" if engine == card.engine else ""
        yield f"{spec.name}_{engine} in {spec.precision.of(engine)}{chosen}"
