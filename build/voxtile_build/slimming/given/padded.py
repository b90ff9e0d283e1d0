"""Notes which scans are smaller than a tile, so that the user is told. Knows nothing of teachers and students."""

from __future__ import annotations

from collections.abc import Callable

from voxtile_build.evaluation.samples import Scan
from voxtile_build.spec.spec import Spec


def is_padded(scan: Scan, spec: Spec) -> bool:
    """Whether a prepared scan is smaller than a tile along an axis, so that its tiles are padded."""
    if spec.tiling.multiple is not None:  # its slices are sent whole
        return False
    sizes = [size for axis, size in enumerate(scan.volume.shape[1:]) if axis != spec.tiling.slice_axis]
    return any(size < side for size, side in zip(sizes, spec.tiling.roi_size, strict=True))


class Padded:
    """The names of scans that were read and are smaller than a tile.

    Args:
        spec: whose tiles they are.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec, self._names = spec, list[str]()

    def noting(self, read: Callable[[], Scan]) -> Callable[[], Scan]:
        """`read`, which notes what it has read."""

        def noted() -> Scan:
            scan = read()
            if is_padded(scan, self._spec) and scan.name not in self._names:
                self._names.append(scan.name)
            return scan

        return noted

    def tell(self, told: Callable[[str], None]) -> None:
        """A line on all of them; none where there are none."""
        if not self._names:
            return
        more = f" and {len(self._names) - 1} more" if len(self._names) > 1 else ""
        roi = " × ".join(map(str, self._spec.tiling.roi_size))
        told(f"{self._names[0]}{more}: smaller than a tile of {roi} voxels; padded, as the client pads")
