"""Networks that cannot be served at any height and width, and what to do instead. Knows no graphs and no engines."""

from __future__ import annotations

from voxtile_build.errors import SpecError
from voxtile_build.networks import find_network
from voxtile_build.spec.spec import Spec

KEEP_THE_ROI = "leave out inferer.multiple, and the scan goes through in tiles of roi_size"


def require_free_sizes(spec: Spec) -> None:
    """Checks that the network takes slices of any size, if `tiling.multiple` asks for that.

    Raises:
        SpecError: it takes one size only.
    """
    if spec.tiling.multiple is None:
        return
    if spec.network.file is not None:
        raise SpecError(
            f"{spec.name}: inferer.multiple: {spec.network.title} is a graph traced at one size; give the network by "
            f"name, with args and weights, or {KEEP_THE_ROI}"
        )
    if not find_network(spec.network.name).any_size:
        raise SpecError(
            f"{spec.name}: inferer.multiple: {spec.network.name} is built for one size of input, its attention windows "
            f"or patches are fixed; {KEEP_THE_ROI}"
        )
