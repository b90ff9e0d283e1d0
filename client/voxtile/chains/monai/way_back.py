"""From scores on a model's grid to labels of the scan, over the whole way of a chain of steps.

`SpreadSink` brings scores back: the planes that were cut away come back as zeros, a `Restorer` resamples and decides,
and the cuts before resampling come back as the label of zeros. `LabelSink` decides first, and brings labels back.
Knows nothing of tiles or servers.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.chains.base import PlaneSink
from voxtile.chains.decision import Decision, decision_of
from voxtile.chains.monai.grid import Grid
from voxtile.chains.monai.invert import Restorer, grid_strips, restore_bytes, takes_nearest
from voxtile.chains.monai.journey import Way
from voxtile.chains.monai.placing import AT_ONCE
from voxtile.chains.monai.resample import all_of, take_nearest, usable_threads
from voxtile.chains.monai.window import place, spread, taken
from voxtile.chains.scores import activator
from voxtile.errors import ModelError
from voxtile.tiling.strips import Strip, whole


@dataclass(frozen=True)
class WayBack:
    """The way of a scan, with what a model's card says of labels.

    Attributes:
        way: how the model's grid came from the scan's.
        grid: what resampling did on it.
        card: the model's card.
        model_mm3: cubic millimetres of a voxel of the model's grid.
        scan_mm3: cubic millimetres of a voxel of the scan.
    """

    way: Way
    grid: Grid
    card: Card
    model_mm3: float
    scan_mm3: float

    def sink(self, keep_scores: bool) -> PlaneSink:
        """Returns a sink for scores on the model's grid.

        Raises:
            ModelError: scores are to be kept, and labels are decided before they are brought back.
        """
        if self.decided_first and keep_scores:
            raise ModelError(
                f"model {self.card.name!r}: its labels are decided before they are brought back to the scan's grid, so "
                "there are no scores on the scan's grid to keep"
            )
        if self.brings_labels and not keep_scores:
            return LabelSink(self)
        return TiltedSink(self, keep_scores) if self.tilted else SpreadSink(self, keep_scores)

    @property
    def tilted(self) -> bool:
        """Whether the scan is skewed, so that the way back cannot go axis by axis."""
        return self.way.back is not None and self.way.back.tilted

    @property
    def brings_labels(self) -> bool:
        """Whether labels are brought back, not scores: where they are decided before, or where it is the same.

        The nearest voxel of a tilted grid depends on all three axes at once, and it takes its label with it.
        """
        tilted = self.way.back is not None and bool(self.way.back.tilt.any())
        return self.decided_first or (tilted and takes_nearest(self.card))

    @property
    def decided_first(self) -> bool:
        """Whether labels are decided on the model's grid."""
        finishing = self.card.finishing
        return finishing is not None and finishing.decided_first

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the model's grid."""
        x, y, z = (window.target for window in self.way.after)
        return x, y, z

    @property
    def spreads(self) -> bool:
        """Whether anything was cut after resampling."""
        return not all(window.identity for window in self.way.after)

    def finish(self, codes: NDArray[Any], decision: Decision, outside: Any) -> NDArray[Any]:
        """Returns the labels [i, j, k] of the scan.

        Args:
            codes: [x, y, z] on the grid before resampling, along the model's axes.
            decision: gives codes their meaning.
            outside: the code of what was cut away before resampling.
        """
        codes = self.way.orientation.undo(spread(codes, self.way.before, outside))
        finishing = self.card.finishing
        cleaned = decision.cleaned(codes, finishing.on_scan_grid if finishing else (), self.scan_mm3)
        return decision.labels(cleaned)

    def strips(self, axis: int, count: int) -> tuple[Strip, ...]:
        """Returns the model's grid in `count` strips; in one where planes are cut or decided as a whole."""
        if self.spreads or self.brings_labels or self.tilted:
            return (whole(self.shape, self.shape),)
        return grid_strips(self.grid, self.card, axis, count)

    def bytes(self, planes: int, strip: Strip, keep_scores: bool) -> int:
        """Returns the bytes of a sink at its peak; arguments are those of `PreparedScan.restore_bytes`."""
        decision, scan = decision_of(self.card), math.prod(self.way.scan)
        after = scan * (2 * decision.dtype.itemsize + (decision.cleaning_bytes if decision.coded else 0))
        if self.brings_labels and not keep_scores:
            model = math.prod(self.shape)
            activated = 2 * 4 * self.card.output.scores * planes * math.prod(self.shape[1:])
            steps = model * (decision.dtype.itemsize + decision.cleaning_bytes)
            moved = decision.dtype.itemsize * (model + 2 * math.prod(self.grid.shape) + math.prod(self.grid.oriented))
            return activated + max(steps, moved + after)
        kept = 4 * self.card.output.scores * (math.prod(self.grid.oriented) + scan) if keep_scores else 0
        if self.tilted:
            whole_scores = 4 * self.card.output.scores * (math.prod(self.shape) + math.prod(self.grid.shape))
            return (
                whole_scores + tilted_bytes(self.card.output.scores, planes * math.prod(self.shape[1:])) + kept + after
            )
        if not self.spreads:
            return restore_bytes(self.grid, self.card, planes, strip=strip) + kept + after
        plane = 4 * self.card.output.scores * math.prod(self.grid.shape[1:])
        inner = restore_bytes(self.grid, self.card, planes, strip=whole(self.grid.shape, self.grid.oriented))
        return inner + 3 * planes * plane + kept + after


def nothing(card: Card, decision: Decision) -> Any:
    """Returns the code of a voxel whose scores are all 0."""
    return decision.decide(np.zeros((card.output.scores, 1, 1, 1), np.float32)).item()


class SpreadSink:
    """Implements `voxtile.chains.base.PlaneSink` for scores that are brought back before they are decided.

    Args:
        back: the way.
        keep_scores: also keep the scores on the scan's own grid.
    """

    def __init__(self, back: WayBack, keep_scores: bool) -> None:
        self._back, self._decision = back, decision_of(back.card)
        self._activate = activator(back.card) if back.spreads else None
        self._restorer = Restorer(
            back.grid, back.card, keep_scores=keep_scores, decision=self._decision, activated=back.spreads
        )
        self._received, self._most = 0, 1

    def start_strip(self, strip: Strip) -> None:
        if not self._back.spreads:
            self._restorer.start_strip(strip)

    def add_planes(self, planes: NDArray[np.float32]) -> None:
        if self._activate is None:
            self._restorer.add_planes(planes)
            return
        after = self._back.way.after
        if self._received == 0:
            self._most = planes.shape[1]
            self._add_zeros(after[0].low)
        first, last = after[0].taken.start, after[0].taken.stop
        here = planes[:, max(first - self._received, 0) : max(last - self._received, 0)]
        self._received += planes.shape[1]
        if here.shape[1]:
            wide = np.zeros((len(here), here.shape[1], *self._back.grid.shape[1:]), np.float32)
            wide[(slice(None), slice(None), *place(after[1:]))] = self._activate(here)[(..., *taken(after[1:]))]
            self._restorer.add_planes(wide)
        if self._received == after[0].target:
            self._add_zeros(after[0].source - after[0].high)

    def _add_zeros(self, count: int) -> None:
        """Scores of the planes that were cut away; as many at once as there come planes."""
        for first in range(0, count, self._most):
            step = min(self._most, count - first)
            shape = (self._back.card.output.scores, step, *self._back.grid.shape[1:])
            self._restorer.add_planes(np.zeros(shape, np.float32))

    def finish(self) -> NDArray[Any]:
        outside = nothing(self._back.card, self._decision)
        return self._back.finish(self._restorer.finish(), self._decision, outside)

    @property
    def scores(self) -> NDArray[np.float32]:
        """The scores [score, i, j, k] on the scan's own grid, 0 where the scan was cut away."""
        kept = spread(self._restorer.scores, self._back.way.before)
        return self._back.way.orientation.undo(kept)


class TiltedSink:
    """Implements `voxtile.chains.base.PlaneSink` for scores of a skewed scan, all of which are kept until the end.

    Args:
        back: the way.
        keep_scores: also keep the scores on the scan's own grid.
    """

    def __init__(self, back: WayBack, keep_scores: bool) -> None:
        self._back, self._decision = back, decision_of(back.card)
        self._activate = activator(back.card)
        self._all = np.empty((back.card.output.scores, *back.shape), np.float32)
        self._kept: NDArray[np.float32] | None = None
        if keep_scores:
            self._kept = np.empty((back.card.output.scores, *back.grid.oriented), np.float32)
        self._received = 0

    def start_strip(self, strip: Strip) -> None:
        """Does nothing: planes are whole."""

    def add_planes(self, planes: NDArray[np.float32]) -> None:
        last = self._received + planes.shape[1]
        self._all[:, self._received : last] = self._activate(planes)
        self._received = last

    def finish(self) -> NDArray[Any]:
        way, place = self._back.way, self._back.way.back
        assert place is not None
        scores = way.turn.undo(spread(self._all, way.after))
        codes = np.empty(place.target, self._decision.dtype)
        kept = None if self._kept is None else way.turn.undo(self._kept)

        def work(voxels: tuple[NDArray[np.intp], ...]) -> None:
            here = place.values(scores, voxels)
            codes[voxels] = self._decision.decide(here)
            if kept is not None:
                everywhere: Any = (slice(None), *voxels)
                kept[everywhere] = here / self._back.card.output.scale

        with ThreadPoolExecutor(usable_threads()) as pool:
            list(pool.map(work, all_of(place.target)))
        return self._back.finish(way.turn.apply(codes), self._decision, nothing(self._back.card, self._decision))

    @property
    def scores(self) -> NDArray[np.float32]:
        """The scores [score, i, j, k] on the scan's own grid, 0 where the scan was cut away."""
        if self._kept is None:
            raise ValueError("scores are kept only with keep_scores=True")
        return self._back.way.orientation.undo(spread(self._kept, self._back.way.before))


def tilted_bytes(scores: int, planes: int) -> int:
    """Returns the bytes of a TiltedSink besides whole volumes; `planes`: voxels that come at once."""
    return 2 * 4 * scores * planes + usable_threads() * AT_ONCE * (2 * 8 * 16 + 3 * 8 * scores)


class LabelSink:
    """Implements `voxtile.chains.base.PlaneSink` for labels that are brought back by their nearest voxels.

    Args:
        back: the way.
    """

    def __init__(self, back: WayBack) -> None:
        self._back, self._decision = back, decision_of(back.card)
        self._activate = activator(back.card)
        self._codes = np.zeros(back.shape, self._decision.dtype)
        self._received = 0

    def start_strip(self, strip: Strip) -> None:
        """Does nothing: planes are whole."""

    def add_planes(self, planes: NDArray[np.float32]) -> None:
        last = self._received + planes.shape[1]
        self._codes[self._received : last] = self._decision.decide(self._activate(planes))
        self._received = last

    def finish(self) -> NDArray[Any]:
        back, way, finishing = self._back, self._back.way, self._back.card.finishing
        codes = self._decision.cleaned(self._codes, finishing.on_model_grid if finishing else (), back.model_mm3)
        outside = 0 if back.decided_first else nothing(back.card, self._decision)
        codes = spread(codes, way.after, outside)
        if way.back is not None:
            codes = way.turn.apply(take_nearest(way.turn.undo(codes), way.back))
        return back.finish(codes, self._decision, outside)

    @property
    def scores(self) -> NDArray[np.float32]:
        raise ValueError("labels are decided before they are brought back, and no scores are kept")
