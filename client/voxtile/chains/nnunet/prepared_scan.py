"""A scan made ready for an nnU-Net model, and the way back: `voxtile.chains.base` filled with nnU-Net's own steps.

nnU-Net's axes are SimpleITK's, (z, y, x): a volume's [channel, i, j, k] transposed. Nothing is reoriented, unless the
model was trained with nnU-Net's reader that turns every scan to RAS.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.chains.nnunet.exporting import LabelExporter, export_bytes, export_probabilities, export_strips
from voxtile.chains.nnunet.postprocessing import postprocess
from voxtile.chains.nnunet.preprocessing import NnunetPlan, Preprocessed, preprocess
from voxtile.chains.nnunet.reader_properties import reader_axes, reader_properties
from voxtile.chains.scores import holds_label
from voxtile.errors import ModelError
from voxtile.io.orientation import Orientation
from voxtile.io.volume import Volume
from voxtile.tensor_types import NUMPY_TYPES
from voxtile.tiling.strips import Strip


class NnunetPreparedScan:
    """data: [channel, *plan's axes] float32, normalised and resampled, a cascade's label channels behind the images.

    previous: [i, j, k], the labels that a cascade's first stage gave. postprocessing: whether the model's learned
    post-processing is applied. Raises InputError for a scan that the plan cannot take, ModelError for a plan that
    this client does not reproduce.
    """

    statistics = None
    input_rounding = 0.0

    def __init__(
        self, volume: Volume, card: Card, previous: NDArray[Any] | None = None, postprocessing: bool = True
    ) -> None:
        self._card = card
        self._fields: dict[str, Any] = dict(card.nnunet or {})
        self._plan = NnunetPlan.from_json(self._fields)
        self._steps = self._fields.get("postprocessing", ()) if postprocessing else ()
        reader = self._fields.get("image_reader_writer", "")
        self._axes = reader_axes(volume, reader)
        self._spacing = self._axes.reorder(volume.header_spacing)
        self._geometry = reader_properties(volume, reader)
        self._ready = self._prepare(volume, previous)
        self.data = self._ready.data
        self.own_bytes = self.data.nbytes

    def _prepare(self, volume: Volume, previous: NDArray[Any] | None) -> Preprocessed:
        labels = None if previous is None else self._axes.apply(previous)
        return preprocess(self._axes.apply(volume.data), self._spacing, self._plan, previous_stage_seg=labels)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres a voxel of `data`, in the plan's axes."""
        first, second, third = self._ready.properties.target_spacing
        return first, second, third

    def encode(self, values: NDArray[Any]) -> NDArray[Any]:
        if self._card.input.dtype == "int16":
            raise ModelError(f"model {self._card.name!r}: normalised values cannot travel as int16; build it with fp32")
        return values.astype(NUMPY_TYPES[self._card.input.dtype], copy=False)

    def as_read(self, values: NDArray[Any]) -> NDArray[Any]:
        """`values` [..., i, j, k] on the scan's own grid as nnU-Net's reader would order them, [..., z, y, x]."""
        return self._axes.apply(values)

    def properties(self) -> dict[str, Any]:
        """What nnU-Net itself knows of a preprocessed case, in its own words and its own axes."""
        grid = self._ready.properties
        return {
            **self._geometry,
            "spacing": list(self._spacing),
            "shape_before_cropping": grid.shape_before_cropping,
            "bbox_used_for_cropping": [list(bounds) for bounds in grid.bbox],
            "shape_after_cropping_and_before_resampling": grid.shape_after_cropping,
        }

    def background_at_most(self, threshold: float) -> list[float]:
        raise ModelError(f"model {self._card.name!r}: nnU-Net's plans have no rule for what is empty")

    def restorer(self, keep_scores: bool) -> NnunetSink:
        return NnunetSink(self._ready, self._plan, self._fields, self._axes, self._steps, keep_scores)

    def strips(self, axis: int, count: int) -> tuple[Strip, ...]:
        return export_strips(self._ready.properties, self._plan, axis, count)

    def restore_bytes(self, planes: int, strip: Strip, keep_scores: bool) -> int:
        grid, scores = self._ready.properties, self._card.output.scores
        scan, small = math.prod(grid.original_shape), self._fields["n_labels"] < 256
        labels = 2 * scan * (1 if small else 2)
        # Logits on the network's grid, and three generations of probabilities on the scan's.
        kept = 4 * scores * (math.prod(grid.shape_after_resampling) + 3 * scan) if keep_scores else 0
        return labels + kept + export_bytes(grid, self._plan, scores, strip)

    def holds_label(self, scores: NDArray[np.float32]) -> bool:
        return holds_label(scores, self._card)


class NnunetSink:
    """Takes logits [class, n, y, x] along axis 0 of the network's grid; gives labels [i, j, k] on the scan's own."""

    def __init__(
        self,
        ready: Preprocessed,
        plan: NnunetPlan,
        fields: dict[str, Any],
        axes: Orientation,
        steps: Any,
        keep_scores: bool,
    ) -> None:
        self._properties, self._plan, self._axes, self._steps = ready.properties, plan, axes, steps
        order = fields.get("regions_class_order")
        self._regions = order is not None
        self._exporter = LabelExporter(
            ready.properties, plan, n_labels=int(fields["n_labels"]), regions_class_order=order
        )
        shape = (int(fields["n_labels"]) if order is None else len(order), *ready.properties.shape_after_resampling)
        self._kept = np.zeros(shape, np.float32) if keep_scores else None
        self._rows: tuple[slice, slice] = (slice(None), slice(None))
        self._fed = 0

    def start_strip(self, strip: Strip) -> None:
        rows = slice(*strip.rows)
        self._rows = (rows, slice(None)) if strip.axis == 1 else (slice(None), rows)
        self._fed = 0
        self._exporter.start_strip(strip)

    def add_planes(self, planes: NDArray[np.float32]) -> None:
        self._exporter.add_planes(planes)
        if self._kept is not None:
            self._kept[(slice(None), slice(self._fed, self._fed + planes.shape[1]), *self._rows)] = planes
        self._fed += planes.shape[1]

    def finish(self) -> NDArray[Any]:
        return self._axes.undo(postprocess(self._exporter.finish(), self._steps))

    @property
    def scores(self) -> NDArray[np.float32]:
        """Probabilities [class, i, j, k] on the scan's own grid, as nnU-Net exports them."""
        if self._kept is None:
            raise ValueError("scores are kept only with keep_scores=True")
        return self._axes.undo(export_probabilities(self._kept, self._properties, self._plan, regions=self._regions))
