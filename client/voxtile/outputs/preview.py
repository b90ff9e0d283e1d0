"""Draws one picture that shows whether a mask lies where it should: three slices with the labels over them.

Slices are anatomical (Left on the left, or on the right as radiologists see it; Anterior and Superior up or to the
right), in true proportions, and go through the largest cross-sections of the mask. matplotlib is imported only here,
and only when a picture is drawn. Knows nothing of models beyond their labels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card, Label
from voxtile.chains.monai.intensity import percentiles
from voxtile.extras import require
from voxtile.io.atomic import atomic_file
from voxtile.io.scaling import chunks
from voxtile.io.volume import Volume
from voxtile.outputs.base import Output, Result
from voxtile.outputs.palette import palette_of

HEIGHT = 4.6
"""Inches of the row of slices: 690 pixels, which show an isotropic head at about three pixels for each millimetre."""

WIDEST = 2.5
"""Width of a slice's panel in heights, at most; a flatter slice, such as one across a single plane, has black above
and below it. So a picture is never wider than 5,200 pixels."""

NARROWEST = 0.25
"""Width of a slice's panel in heights, at least."""

MOST_PIXELS = 2048
"""Voxels of a slice that are drawn along each of its axes, at most: more than a panel has pixels."""

DPI = 150

OPACITY = 0.45
"""Of the labels: their colours differ visibly, and the anatomy under them is still seen."""

MOST_NAMES = 14
"""Labels named in the legend, the largest first; the text of more would be too small to read."""

WINDOW = (1.0, 99.0)
"""Percentiles of the voxels other than 0 that become black and white; one bright vessel then darkens nothing."""

SAMPLES = 2_000_000
"""Voxels that the window is computed from, evenly spread."""

VIEWS = ((1, 2, "sagittal"), (0, 2, "coronal"), (0, 1, "axial"))
"""For each axis that is cut: which of the axes R, A, S run to the right and up, and the name of the slice."""

LETTERS = ("LR", "PA", "IS")
"""For each of the axes R, A, S: the letters at its lower and its upper end."""


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice through the scan.

    Attributes:
        grey: [across, up] values of the scan.
        labels: [across, up] labels.
        spacing: millimetres between voxels, across and up.
        axis: which of the axes R, A, S is cut.
        index: the plane along that axis.
    """

    grey: NDArray[Any]
    labels: NDArray[Any]
    spacing: tuple[float, float]
    axis: int
    index: int

    @property
    def size(self) -> tuple[float, float]:
        """Millimetres across and up."""
        return self.grey.shape[0] * self.spacing[0], self.grey.shape[1] * self.spacing[1]


def draw_preview(volume: Volume, labels: NDArray[Any], card_labels: Sequence[Label], path: str | Path) -> None:
    """Draws labels over the first channel of a scan and writes the picture atomically.

    Args:
        volume: the scan.
        labels: [i, j, k] on the scan's own grid.
        card_labels: names and values; 0 is background and not drawn.
        path: the PNG file.

    Raises:
        OutputError: the file cannot be written.
    """
    buffer = io.BytesIO()
    # matplotlib's name and version are left out: the same mask, the same bytes.
    _canvas(volume, labels, card_labels, radiological=False).print_png(buffer, metadata={"Software": None})
    with atomic_file(path) as file:
        file.write(buffer.getvalue())


def picture(volume: Volume, labels: NDArray[Any], card_labels: Sequence[Label]) -> NDArray[np.uint8]:
    """Returns the preview as [row, column, 3] red, green, blue, the patient's left on the right as radiologists see it.

    Args:
        volume: the scan.
        labels: [i, j, k] on the scan's own grid.
        card_labels: names and values; 0 is background and not drawn.
    """
    canvas = _canvas(volume, labels, card_labels, radiological=True)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def choose_slices(volume: Volume, labels: NDArray[Any]) -> list[Slice]:
    """Returns a sagittal, a coronal and an axial slice, each where most voxels are labelled, else in the middle."""
    to_ras = volume.towards("RAS")
    grey, turned, spacing = to_ras.apply(volume.data[0]), to_ras.apply(labels), to_ras.reorder(volume.spacing)
    return [_cut(grey, turned, spacing, axis) for axis in range(3)]


def grey_window(values: NDArray[Any]) -> tuple[float, float]:
    """Returns the values that become black and white: percentiles of the voxels other than 0.

    The two differ also where all voxels are the same.
    """
    step = max(round((values.size / SAMPLES) ** (1 / 3)), 1)
    some = values[::step, ::step, ::step]
    if not some.any():
        return 0.0, 1.0
    low, high = percentiles(some, WINDOW, nonzero=True)
    return (low, high) if high > low else (min(low, 0.0), max(low, 0.0))


def _cut(grey: NDArray[Any], labels: NDArray[Any], spacing: Sequence[float], axis: int) -> Slice:
    across, up, _ = VIEWS[axis]
    filled = np.array([np.count_nonzero(plane) for plane in np.moveaxis(labels, axis, 0)])
    index = int(np.argmax(filled)) if filled.any() else len(filled) // 2
    steps = [-(-size // MOST_PIXELS) for size in grey.shape]
    plane = tuple(index if other == axis else slice(None, None, step) for other, step in enumerate(steps))
    apart = steps[across] * float(spacing[across]), steps[up] * float(spacing[up])
    return Slice(grey[plane], labels[plane], apart, axis, index)


def _millilitres(labels: NDArray[Any], shown: Sequence[Label], volume: Volume) -> list[float]:
    values = 1 + max((int(labels.max(initial=0)), *(label.value for label in shown)))
    # In pieces, because bincount makes int64 of what it is given.
    counts = np.sum([np.bincount(part, minlength=values) for part in chunks(labels)], axis=0)
    return [float(counts[label.value]) * volume.voxel_ml for label in shown]


def _canvas(volume: Volume, labels: NDArray[Any], card_labels: Sequence[Label], *, radiological: bool) -> Any:
    """The picture, on a canvas of matplotlib; `radiological` shows the patient's left on the right."""
    slices = choose_slices(volume, labels)
    shown = [label for label in card_labels if label.value != 0]
    return _drawn(slices, grey_window(volume.data[0]), shown, _millilitres(labels, shown, volume), radiological)


def _drawn(
    slices: Sequence[Slice],
    window: tuple[float, float],
    shown: Sequence[Label],
    amounts: Sequence[float],
    radiological: bool,
) -> Any:
    """The picture by matplotlib's objects: pyplot would keep state and look for a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    named = sorted(range(len(shown)), key=lambda index: -amounts[index])[:MOST_NAMES]
    rows = -(-len(named) // 4)
    widths = [float(np.clip(cut.size[0] / cut.size[1], NARROWEST, WIDEST)) for cut in slices]
    legend = 0.32 * rows + (0.15 if rows else 0.0)
    figure = Figure((max(HEIGHT * sum(widths), 6.0), HEIGHT + legend + 0.3), dpi=DPI, facecolor="black")
    grid = figure.add_gridspec(
        1, 3, width_ratios=widths, wspace=0.02, left=0.01, right=0.99,
        bottom=(legend + 0.02) / figure.get_figheight(), top=1 - 0.3 / figure.get_figheight(),
    )  # fmt: skip
    palette = palette_of(shown)
    for column, cut in enumerate(slices):
        _show(figure.add_subplot(grid[0, column]), cut, window, palette, radiological)
    _legend(figure, [shown[index] for index in named], [amounts[index] for index in named], palette, len(shown))
    return FigureCanvasAgg(figure)


def _show(
    axes: Any,
    cut: Slice,
    window: tuple[float, float],
    palette: dict[int, tuple[float, float, float]],
    radiological: bool,
) -> None:
    from matplotlib.patheffects import withStroke

    place = {"origin": "lower", "extent": (0, cut.size[0], 0, cut.size[1]), "aspect": "equal"}
    low, high = window
    axes.imshow(cut.grey.T, cmap="gray", vmin=low, vmax=high, interpolation="bilinear", **place)
    axes.imshow(_tinted(cut.labels.T, palette), interpolation="nearest", **place)
    across, up, name = VIEWS[cut.axis]
    left, right, bottom, top = (*LETTERS[across], *LETTERS[up])
    if radiological and across == 0:
        axes.invert_xaxis()
        left, right = right, left
    for x, y, letter in ((0.02, 0.5, left), (0.98, 0.5, right), (0.5, 0.02, bottom), (0.5, 0.98, top)):
        side = {0.02: "left", 0.98: "right"}.get(x, "center")
        level = {0.02: "bottom", 0.98: "top"}.get(y, "center")
        text = axes.text(x, y, letter, color="white", fontsize=11, ha=side, va=level, transform=axes.transAxes)
        text.set_path_effects([withStroke(linewidth=2.5, foreground="black")])
    axes.set_title(name, color="white", fontsize=11, pad=4)
    axes.set_axis_off()


def _tinted(labels: NDArray[Any], palette: dict[int, tuple[float, float, float]]) -> NDArray[np.float32]:
    """[up, across, 4] red, green, blue and opacity of each voxel."""
    result = np.zeros((*labels.shape, 4), np.float32)
    for value, colour in palette.items():
        result[labels == value] = (*colour, OPACITY)
    return result


def _legend(
    figure: Any,
    labels: Sequence[Label],
    amounts: Sequence[float],
    palette: dict[int, tuple[float, float, float]],
    total: int,
) -> None:
    from matplotlib.patches import Patch

    if not labels:
        return
    entries = [
        Patch(color=palette[label.value], label=f"{label.name}  {amount:,.1f} ml")
        for label, amount in zip(labels, amounts, strict=True)
    ]
    title = f"the largest {len(labels)} of {total} labels" if total > len(labels) else None
    legend = figure.legend(handles=entries, loc="lower center", ncols=4, frameon=False, fontsize=10, title=title)
    for text in (*legend.get_texts(), legend.get_title()):
        text.set_color("white")


def _write(result: Result, path: Path) -> None:
    draw_preview(result.volume, result.labels, result.card.labels, path)


def _check_model(_: Card) -> None:
    require("matplotlib", "preview", "--preview")


PREVIEW = Output("preview", ".png", "Draw the mask over three slices.", _write, _check_model)
