"""The order in which overlapping regions are painted into one mask: from the spec, or proven on scans by inclusion.

A voxel of a mask has one value, so a region that is painted later covers those before it. A region that lies within
another one must come after it, or it is never seen. Knows arrays and specs, not networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from voxtile_build.arrays import Array
from voxtile_build.errors import SpecError
from voxtile_build.spec.spec import Spec

WITHIN = 0.99
"""Share of a region that must lie in another one to count as within it: networks err at borders."""
APART = 0.01
"""Share of the smaller of two regions that may lie in the other one where the two exclude each other."""
FEWEST = 100
"""Voxels of a region below which its place among the others is chance."""


def needs_order(spec: Spec) -> bool:
    """Whether a mask of this model depends on an order that the spec does not give."""
    output = spec.output
    return output.regions and output.scores != "foreground" and len(output.labels) > 1 and output.region_order is None


def require_order(spec: Spec) -> None:
    """Refuse a spec that neither gives the order of its regions nor names scans that could show it.

    Raises:
        SpecError: says what to write.
    """
    if needs_order(spec) and not spec.acceptance.scans:
        raise _refusal(spec, "the spec gives none, and names no scans in acceptance.scans that could show it")


def overlaps(masks: Array) -> Array:
    """How many voxels each two regions share: [region, region] int64; the diagonal holds the regions' own sizes.

    Args:
        masks: of one scan, [region, *spatial] bool.
    """
    return np.array([[int((one & other).sum()) for other in masks] for one in masks], np.int64)


def with_order(spec: Spec, shared: Sequence[Array]) -> Spec:
    """The spec with the order of its regions.

    Args:
        spec: the model.
        shared: what `overlaps` gives for each scan that went through the network.

    Raises:
        SpecError: the scans do not prove an order.
    """
    if not needs_order(spec):
        return spec
    names = [label.name for label in spec.output.labels]
    order = tuple(names[index] for index in _order(spec, np.stack(shared).sum(axis=0)))
    return spec.model_copy(update={"output": spec.output.model_copy(update={"region_order": order})})


def _order(spec: Spec, shared: Array) -> list[int]:
    """Indices of the regions, the largest first: a region that lies within another one is the smaller of the two."""
    names, sizes = [label.name for label in spec.output.labels], np.diag(shared)
    unseen = [name for name, size in zip(names, sizes, strict=True) if size < FEWEST]
    if unseen:
        raise _refusal(spec, f"the scans of acceptance.scans show {', '.join(unseen)} in fewer than {FEWEST} voxels")
    within = shared >= WITHIN * sizes[:, None]
    for one in range(len(names)):
        for other in range(one):
            apart = shared[one, other] <= APART * min(sizes[one], sizes[other])
            if not apart and within[one, other] == within[other, one]:
                how = "are the same" if within[one, other] else "overlap, and neither lies within the other"
                raise _refusal(spec, f"on the scans of acceptance.scans {names[other]} and {names[one]} {how}")
    return sorted(range(len(names)), key=lambda index: -sizes[index])


def _refusal(spec: Spec, reason: str) -> SpecError:
    names = ", ".join(f'"{label.name}"' for label in spec.output.labels)
    return SpecError(
        f"{spec.name}: output.region_order: regions overlap, so that a mask depends on the order in which they are "
        f"painted, and {reason}. Write all of {names} into region_order under [output], the innermost region last (for "
        "a bundle in the file of --settings), or name scans in acceptance.scans that show every region"
    )
