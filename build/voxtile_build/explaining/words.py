"""An explanation as text for people, and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence

from voxtile.cli.printable import escaped
from voxtile_build.explaining.explanation import Explanation
from voxtile_build.explaining.scans import MADE_UP
from voxtile_build.explaining.steps import CLIENT, GRAPH, Step

MIB = 2**20
PLACES = {CLIENT: "client", GRAPH: "graph "}


def as_json(explanation: Explanation) -> str:
    """The explanation as JSON; sizes in voxels and bytes."""
    return json.dumps(dataclasses.asdict(explanation), indent=2)


def as_text(explanation: Explanation) -> str:
    """The explanation for people; names in the spec may hold anything, and none makes a line."""
    return "\n".join(map(escaped, _lines(explanation)))


def _lines(found: Explanation) -> Iterator[str]:
    yield from (f"to do: {line}" for line in found.todo)
    yield f"{found.spec}: what happens to {found.scan}"
    yield f"  scan    {_sizes(found.shape)} voxels of {_sizes(found.spacing)} mm, {_mib(found.stored)} in memory"
    if found.scan == MADE_UP:
        yield "          (give a scan after the spec, or --shape and --spacing, for yours)"
    yield "before the network:"
    yield from _steps(found.preparing, "the values as they are stored")
    yield f"  the network sees {_sizes(found.prepared)} voxels"
    yield "through the network:"
    yield from _tiles(found)
    yield "after the network:"
    yield from _steps(found.finishing, "nothing")
    labels = ", ".join(f"{value} {name}" for name, value in found.labels.items())
    yield f"  mask    {_sizes(found.shape)} voxels of {found.mask}: {labels}"
    yield f"memory of the client: about {_mib(found.memory['in all'])}"
    largest = sorted(((size, name) for name, size in found.memory.items() if name != "in all" and size), reverse=True)
    yield from (f"  {_mib(size):>10}  {name}" for size, name in largest)
    yield from (f"not checked: {line}" for line in found.unchecked)


def _steps(steps: Sequence[Step], otherwise: str) -> Iterator[str]:
    if not steps:
        yield f"  {otherwise}"
    for number, step in enumerate(steps, 1):
        shape = f" → {_sizes(step.shape)} voxels" if step.shape else ""
        yield f"  {number}. {PLACES[step.where]}  {step.what}{shape}"


def _tiles(found: Explanation) -> Iterator[str]:
    tiles = found.tiles
    total = tiles.count * tiles.flips
    mirrored = f", each {tiles.flips} times (mirrored)" if tiles.flips > 1 else ""
    yield f"  tiles   {tiles.count} of {_sizes(tiles.roi)} voxels{mirrored}"
    yield (
        f"  up      {_mib(tiles.sent)} a tile, {_mib(total * tiles.sent)} in all; down {_mib(tiles.received)} a tile, "
        f"{_mib(total * tiles.received)} in all"
    )
    strips = f", in {tiles.strips} strips to save memory" if tiles.strips > 1 else ""
    yield f"  at once {tiles.batch} tiles a request, {tiles.in_flight} requests in flight{strips}"
    yield f"  engines {'; '.join(found.engines)}"


def _sizes(values: Sequence[float]) -> str:
    return " × ".join(f"{value:.4g}" for value in values)


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"
