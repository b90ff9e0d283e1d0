"""nnU-Net's learned post-processing: keep only the largest component of some labels.

Equal to ``remove_all_but_largest_component_from_segmentation`` of nnunetv2 2.8.1, step after step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.errors import ModelError


def largest_components(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest component of ``mask`` (26 neighbours in 3D); of several equally large ones, all."""
    from scipy.ndimage import label

    components, count = label(mask, structure=np.ones((3,) * mask.ndim, bool))
    if count == 0:
        return mask
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    kept: NDArray[np.bool_] = (sizes == sizes.max())[components]
    return kept


def keep_largest(seg: NDArray[Any], labels: Sequence[int], background: int = 0) -> NDArray[Any]:
    """A copy of ``seg`` whose voxels of ``labels``, taken together, are background outside their largest component."""
    mask = np.isin(seg, np.asarray(labels, dtype=np.int64))
    result: NDArray[Any] = seg.copy()
    result[mask & ~largest_components(mask)] = background
    return result


def _check_step(step: Mapping[str, Any], number: int) -> Sequence[int]:
    if step.get("op") != "keep_largest":
        raise ModelError(f"post-processing step {number}: expected op 'keep_largest', found {step.get('op')!r}")
    labels = step.get("labels")
    if not isinstance(labels, Sequence) or not labels or not all(type(label) is int for label in labels):
        raise ModelError(f"post-processing step {number}: expected labels to be a list of integers, found {labels!r}")
    return labels


def postprocess(seg: NDArray[Any], steps: Sequence[Mapping[str, Any]]) -> NDArray[Any]:
    """Apply ``steps``, each ``{"op": "keep_largest", "labels": [1, 2], "background": 0}``, to a label map.

    ``background`` may be left out. ``seg`` itself is not changed. Raises ModelError for a step of another form.
    """
    for number, step in enumerate(steps, 1):
        seg = keep_largest(seg, _check_step(step, number), int(step.get("background", 0)))
    return seg
