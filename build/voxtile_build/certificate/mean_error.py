"""Compares the entry that averages folds with NumPy's mean. Needs neither PyTorch nor the networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2 as pb

from voxtile_build.arrays import Runner

Array = NDArray[Any]
NUMPY_TYPES: dict[int, type[np.generic]] = {pb.TYPE_FP32: np.float32, pb.TYPE_FP16: np.float16, pb.TYPE_UINT8: np.uint8}
ROUNDING: dict[type[np.generic], float] = {np.float32: 1e-6, np.float16: 1e-3}
"""Limits as a share of the largest score: a few roundings of the type itself."""
HALF_A_STEP = 0.5
"""The limit for uint8, whatever the scores."""
FREE_SIZE = 24
"""Size of an axis that takes any size: the mean is taken voxel by voxel, so every size will do."""
SEED = 7


def mean_error(config: pb.ModelConfig, run: Runner) -> tuple[float, float]:
    """The largest error of the averaging entry at its largest batch, and the limit that rounding sets.

    The scores are random and always the same; the expected mean is computed in float64.

    Args:
        config: of the entry.
        run: what runs the entry.
    """
    scores = _random_scores(config)
    return error_of(run(scores), list(scores.values()))


def error_of(found: Array, scores: Sequence[Array]) -> tuple[float, float]:
    """The largest error of `found` as the mean of `scores`, and the limit that rounding in their type sets."""
    expected = np.mean(np.stack(scores), axis=0, dtype=np.float64)
    error = float(np.abs(found - expected).max())
    rounding = ROUNDING.get(scores[0].dtype.type)
    return error, HALF_A_STEP if rounding is None else rounding * float(np.abs(expected).max())


def _random_scores(config: pb.ModelConfig) -> Mapping[str, Array]:
    rng = np.random.default_rng(SEED)
    batch = config.max_batch_size
    return {
        tensor.name: _random(rng, (batch, *(size if size > 0 else FREE_SIZE for size in tensor.dims)), tensor.data_type)
        for tensor in config.input
    }


def _random(rng: np.random.Generator, shape: tuple[int, ...], data_type: int) -> Array:
    kind = NUMPY_TYPES[data_type]
    if kind is np.uint8:
        return rng.integers(0, 256, shape, np.uint8)
    return rng.normal(0, 10, shape).astype(kind)
