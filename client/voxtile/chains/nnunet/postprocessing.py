"""nnU-Net's learned post-processing: keep only the largest component of some labels.

Equal to `remove_all_but_largest_component_from_segmentation` of nnunetv2 2.8.1, step after step. Knows nothing of
scores or grids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.chains.nnunet.plan import KeepLargest


def postprocess(seg: NDArray[Any], steps: Sequence[KeepLargest]) -> NDArray[Any]:
    """Returns the label map `seg` after all steps; `seg` itself is not changed."""
    for step in steps:
        seg = keep_largest(seg, step)
    return seg


def keep_largest(seg: NDArray[Any], step: KeepLargest) -> NDArray[Any]:
    """Returns a copy of `seg` in which voxels of the step's labels, outside their largest component, are background."""
    mask = np.isin(seg, step.labels)
    result: NDArray[Any] = seg.copy()
    result[mask & ~largest_components(mask)] = step.background
    return result


def largest_components(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns the largest component of `mask` (26 neighbours in 3D); if several are equally large, all of them."""
    from scipy.ndimage import label

    components, count = label(mask, structure=np.ones((3,) * mask.ndim))
    if count == 0:
        return mask
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    kept: NDArray[np.bool_] = (sizes == sizes.max())[components]
    return kept
