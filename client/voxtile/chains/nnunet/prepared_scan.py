"""A scan prepared by nnU-Net's own steps, and the way from its logits back to labels on the scan's grid.

nnU-Net's axes are SimpleITK's, (z, y, x): a volume's [channel, i, j, k] transposed. Nothing is reoriented, unless the
model was trained with nnU-Net's reader that turns every scan to RAS.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.chains.grid_limit import GridLimit, check_unit
from voxtile.chains.nnunet.exporting import LabelExporter, export_bytes, export_probabilities, export_strips
from voxtile.chains.nnunet.plan import KeepLargest, NnunetModel
from voxtile.chains.nnunet.postprocessing import postprocess
from voxtile.chains.nnunet.preprocessing import Preprocessed, preprocess
from voxtile.chains.nnunet.reader_properties import reader_axes, reader_properties, reader_spacing
from voxtile.chains.scores import holds_label
from voxtile.errors import InputError, ModelError
from voxtile.io.orientation import Orientation
from voxtile.io.volume import Volume
from voxtile.tensor_types import NUMPY_TYPES
from voxtile.tiling.strips import Strip


class NnunetPreparedScan:
    """Implements `voxtile.chains.base.PreparedScan` for an nnU-Net model.

    `data` is [channel, *plan's axes] float32, normalised and resampled; the label channels of a cascade follow the
    images.

    Args:
        volume: the scan.
        card: the model's card.
        previous: [i, j, k] the labels of a cascade's first stage.
        postprocessing: whether the model's learned post-processing is applied.
        max_bytes: limit for what preparing takes; None for the machine's own memory.

    Raises:
        InputError: the plan cannot take the scan, or its values do not fit the model's input type.
        ModelError: this client does not reproduce the plan.
        MemoryLimitError: preparing needs more than `max_bytes`.
    """

    statistics = None
    input_rounding = 0.0

    def __init__(
        self,
        volume: Volume,
        card: Card,
        previous: NDArray[Any] | None = None,
        postprocessing: bool = True,
        max_bytes: int | None = None,
    ) -> None:
        self._card = card
        self._model = NnunetModel.parse(card.nnunet or {})
        self._steps = self._model.postprocessing if postprocessing else ()
        self._axes = reader_axes(volume, self._model.image_reader_writer)
        self._spacing = self._axes.reorder(reader_spacing(volume, self._model.image_reader_writer))
        self._geometry = reader_properties(volume, self._model.image_reader_writer)
        self._ready = self._prepare(volume, previous, max_bytes)
        self.data = self._ready.data
        self.own_bytes = self.data.nbytes
        _check_input_type(self.data, card, volume.names[0])

    def _prepare(self, volume: Volume, previous: NDArray[Any] | None, max_bytes: int | None) -> Preprocessed:
        found = self._model.forward(self._spacing)
        check_unit(volume, found, self._model.target_spacing(found))
        labels = None if previous is None else self._axes.apply(previous)
        limit = GridLimit(volume.names[0], max_bytes)
        scan = self._axes.apply(volume.data)
        return preprocess(scan, self._spacing, self._model, previous_stage_seg=labels, limit=limit)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxels of `data`, in the plan's axes."""
        return self._ready.properties.target_spacing

    def encode(self, values: NDArray[Any]) -> NDArray[Any]:
        return values.astype(NUMPY_TYPES[self._card.input.dtype], copy=False)

    def as_read(self, values: NDArray[Any]) -> NDArray[Any]:
        """Returns `values` [..., i, j, k] on the scan's own grid in the order of nnU-Net's reader, [..., z, y, x]."""
        return self._axes.apply(values)

    def properties(self) -> dict[str, Any]:
        """Returns what nnU-Net itself knows of a preprocessed scan, by its own keys and in its own axes."""
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
        return NnunetSink(self._ready, self._model, self._axes, self._steps, keep_scores)

    def strips(self, axis: int, count: int) -> tuple[Strip, ...]:
        return export_strips(self._ready.properties, self._model, axis, count)

    def restore_bytes(self, planes: int, strip: Strip, keep_scores: bool) -> int:
        grid, scores = self._ready.properties, self._card.output.scores
        scan, small = math.prod(grid.original_shape), self._model.n_labels < 256
        labels = 2 * scan * (1 if small else 2)
        # Logits on the network's grid, and three generations of probabilities on the scan's.
        kept = 4 * scores * (math.prod(grid.shape_after_resampling) + 3 * scan) if keep_scores else 0
        return labels + kept + export_bytes(grid, self._model, scores, strip)

    def holds_label(self, scores: NDArray[np.float32]) -> bool:
        return holds_label(scores, self._card)


class NnunetSink:
    """Implements `voxtile.chains.base.PlaneSink` for logits [class, n, y, x] in planes of the network's grid.

    Args:
        ready: the prepared scan.
        model: the plan, and what the card says about the labels.
        axes: from the scan's axes to those of nnU-Net's reader.
        steps: the learned post-processing to apply.
        keep_scores: also keep the logits, for `scores`.
    """

    def __init__(
        self,
        ready: Preprocessed,
        model: NnunetModel,
        axes: Orientation,
        steps: Sequence[KeepLargest],
        keep_scores: bool,
    ) -> None:
        self._properties, self._model, self._axes, self._steps = ready.properties, model, axes, steps
        self._exporter = LabelExporter(
            ready.properties, model, n_labels=model.n_labels, regions_class_order=model.regions_class_order
        )
        shape = (model.scores, *ready.properties.shape_after_resampling)
        self._kept = np.zeros(shape, np.float32) if keep_scores else None
        self._rows: tuple[slice, slice] = (slice(None), slice(None))
        self._received = 0

    def start_strip(self, strip: Strip) -> None:
        rows = slice(*strip.rows)
        self._rows = (rows, slice(None)) if strip.axis == 1 else (slice(None), rows)
        self._received = 0
        self._exporter.start_strip(strip)

    def add_planes(self, planes: NDArray[np.float32]) -> None:
        self._exporter.add_planes(planes)
        last = self._received + planes.shape[1]
        if self._kept is not None:
            self._kept[(slice(None), slice(self._received, last), *self._rows)] = planes
        self._received = last

    def finish(self) -> NDArray[Any]:
        return self._axes.undo(postprocess(self._exporter.finish(), self._steps))

    @property
    def scores(self) -> NDArray[np.float32]:
        """Probabilities [class, i, j, k] on the scan's own grid, as nnU-Net exports them."""
        if self._kept is None:
            raise ValueError("scores are kept only with keep_scores=True")
        regions = self._model.regions_class_order is not None
        return self._axes.undo(export_probabilities(self._kept, self._properties, self._model, regions=regions))


def _check_input_type(data: NDArray[np.float32], card: Card, name: str) -> None:
    """Raises ModelError or InputError where the input type of `card` cannot hold normalised values, or not these."""
    if card.input.dtype == "int16":
        raise ModelError(f"model {card.name!r}: normalised values cannot be sent as int16; build it with fp32")
    if card.input.dtype == "fp16":
        limit, largest = float(np.finfo(np.float16).max), float(max(-data.min(), data.max()))
        if largest >= limit:  # the lowest value marks padding
            raise InputError(
                f"{name}: expected normalised values between ±{limit:g}, which this model's input type fp16 can hold, "
                f"found one of {largest:g}; build the model with input type fp32"
            )
