"""Teachers whose answers are known, and scans for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tests.support.specs import spec
from voxtile_build.evaluation.samples import Scan, intensity_statistics
from voxtile_build.graph.wrapper import Wrapper
from voxtile_build.spec.spec import Spec

Array = NDArray[Any]


class FunctionTeacher:
    """Answers `function(image)` [batch, class, *roi]; counts what it is asked."""

    def __init__(self, given: Spec, function: Callable[[Array], Array]) -> None:
        self.asked, self._inputs = 0, 1 + given.whole_scan_intensity
        self._function, self._wrapper = function, Wrapper(nn.Identity(), given)

    def image(self, rois: Array, statistics: Array) -> Array:
        with torch.inference_mode():
            given = [torch.from_numpy(rois.copy()), torch.from_numpy(statistics)]
            image: Array = self._wrapper.image(*given[: self._inputs]).numpy()
        return image

    def scores(self, rois: Array, statistics: Array) -> Array:
        self.asked += len(rois)
        return self._function(self.image(rois, statistics))


def by_brightness(image: Array) -> Array:
    """Three classes by the image's value: a teacher without a side."""
    first = image[:, :1]
    return np.concatenate([-4 * first, 2 - 8 * abs(first - 0.5), 4 * first - 4], axis=1).astype(np.float32)


def by_side(axis: int) -> Callable[[Array], Array]:
    """What is bright is class 1 in the first half of the patch along `axis`, and class 2 in the second."""

    def answer(image: Array) -> Array:
        first, size = image[:, :1], image.shape[axis + 2]
        shape = [1] * image.ndim
        shape[axis + 2] = size
        side = np.where(np.arange(size) < size // 2, 1.0, -1.0).reshape(shape)
        bright = 4 * first - 2
        return np.concatenate([-bright, bright + side, bright - side], axis=1).astype(np.float32)

    return answer


def model(**changes: dict[str, Any] | Any) -> Spec:
    """A small spec with whole-scan z-scores of int16 values."""
    given = {"input": {"channels": ["T1"], "dtype": "int16", "intensity": {"rule": "zscore", "mask": "nonzero"}}}
    return spec(**{**given, **changes})


def head(given: Spec, shape: tuple[int, ...] = (24, 18, 20), seed: int = 1, background: float = 0) -> Scan:
    """A lopsided body of smooth noise with `background` exactly around it."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*((np.arange(size) + 0.5) / size - 0.45 for size in shape), indexing="ij")
    inside = sum((axis / half) ** 2 for axis, half in zip(grid, (0.42, 0.36, 0.3), strict=True)) < 1
    channels = []
    for number in range(len(given.input.channels)):
        values = 500 + 200 * number + 300 * grid[0] + 150 * np.sin(9 * grid[1]) + rng.normal(0, 20, shape)
        channels.append(np.where(inside, np.rint(values), background))
    volume = np.stack(channels).astype(given_type(given))
    return Scan(f"head {seed}", volume, intensity_statistics(volume.astype(np.float64), given))


def given_type(given: Spec) -> Any:
    """The NumPy type of the spec's input."""
    return {"int16": np.int16, "fp16": np.float16, "fp32": np.float32}[given.input.dtype]
