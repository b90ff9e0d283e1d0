"""The template as training data: labels, the held-out block, and where a patch may lie.

Works in voxels of the template, axes (x, y, z) = (right, anterior, superior). Knows nothing of networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

LABELS = ("background", "grey matter", "white matter")
ROI = (64, 64, 64)

Triple = tuple[int, int, int]
Volume = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Box:
    """A box of voxels, `start` inclusive and `stop` exclusive, axes (x, y, z)."""

    start: Triple
    stop: Triple

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        x, y, z = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return x, y, z

    def intersects(self, other: Box) -> bool:
        """Returns whether the two boxes share a voxel."""
        pairs = zip(self.start, self.stop, other.start, other.stop, strict=True)
        return all(a < d and c < b for a, b, c, d in pairs)

    def grown(self, margin: int, within: Triple) -> Box:
        """Returns this box with `margin` voxels more on each side, cut to a volume of shape `within`."""
        x, y, z = (max(a - margin, 0) for a in self.start)
        u, v, w = (min(b + margin, n) for b, n in zip(self.stop, within, strict=True))
        return Box((x, y, z), (u, v, w))


# The template is its own mirror image (x against 196 - x), so a block on one side alone would be seen
# mirrored in training: the held-out block spans both halves, the back of the head above the cerebellum.
HELD_OUT = Box((0, 0, 70), (197, 80, 189))
# No patch comes nearer than this, so that blurring and resizing cannot carry anything over either.
MARGIN = 4


@dataclass(frozen=True)
class Brain:
    """The template: `t1`, `gm` and `wm` as uint8 volumes of one shape (x, y, z)."""

    t1: Volume
    gm: Volume
    wm: Volume

    @property
    def shape(self) -> Triple:
        x, y, z = self.t1.shape
        return x, y, z

    @property
    def labels(self) -> Volume:
        """Labels (x, y, z), uint8: the likeliest of rest (0), grey (1) and white matter (2)."""
        return tissue_labels(self.gm, self.wm)


def tissue_labels(gm: Volume, wm: Volume) -> Volume:
    """Returns the likeliest of rest, grey and white matter, from probabilities of 0 to 255; ties go to the lower."""
    grey, white = gm.astype(np.int16), wm.astype(np.int16)
    labels: Volume = np.stack([255 - grey - white, grey, white]).argmax(axis=0).astype(np.uint8)
    return labels


def load_brain(paths: Mapping[str, Path]) -> Brain:
    """Reads the three files that `fetch_mni152` returns.

    Raises:
        ValueError: a file is not uint8, not stored RAS, or not of the shape of the others.
    """
    volumes = {kind: _read(paths[kind]) for kind in ("t1", "gm", "wm")}
    shapes = {volume.shape for volume in volumes.values()}
    if len(shapes) != 1:
        raise ValueError(f"expected one shape for T1 and tissue maps, found {sorted(shapes)}")
    return Brain(volumes["t1"], volumes["gm"], volumes["wm"])


def _read(path: Path) -> Volume:
    image = nib.load(path)
    axes = "".join(nib.aff2axcodes(image.affine))
    if image.get_data_dtype() != np.uint8 or axes != "RAS":
        raise ValueError(f"{path}: expected uint8 stored RAS, found {image.get_data_dtype()} {axes}")
    return np.asarray(image.dataobj, dtype=np.uint8)


def without_held_out(brain: Brain) -> Brain:
    """Returns the brain with the held-out block and its margin blanked; training is given nothing else."""
    hidden = HELD_OUT.grown(MARGIN, brain.shape).slices
    volumes = {"t1": brain.t1.copy(), "gm": brain.gm.copy(), "wm": brain.wm.copy()}
    for volume in volumes.values():
        volume[hidden] = 0
    return replace(brain, **volumes)


def intensity_histogram(brain: Brain) -> npt.NDArray[np.float64]:
    """Returns how many voxels have each non-zero T1 level: shape (256,), entry 0 is 0."""
    counts = np.bincount(brain.t1.ravel(), minlength=256).astype(np.float64)
    counts[0] = 0
    return counts


CENTRED = 0.5  # default share of the patches that are centred on tissue
OVERSHOOT = 24  # voxels by which the start of any other may miss the volume; it is then moved to the edge


class PatchPlaces:
    """Where training patches may lie: inside the volume, clear of the held-out block and its margin.

    A share of them, `centred`, lies around tissue. The others lie like a tiler's windows: anywhere, most at the
    volume's edges, many nearly empty. A network with instance normalisation must see many of those. Otherwise it
    amplifies the little that is in them and finds tissue in the void.
    """

    def __init__(self, brain: Brain, centred: float = CENTRED) -> None:
        self._shape, self._centred = brain.shape, centred
        self._hidden = HELD_OUT.grown(MARGIN, brain.shape)
        self._tissue = np.flatnonzero(without_held_out(brain).labels)

    def draw(self, rng: np.random.Generator, size: Triple) -> Box:
        """Returns a random box of `size` voxels (x, y, z) that training may read."""
        while True:
            start = self._start(rng, size)
            x, y, z = (a + n for a, n in zip(start, size, strict=True))
            box = Box(start, (x, y, z))
            if not box.intersects(self._hidden):
                return box

    def _start(self, rng: np.random.Generator, size: Triple) -> Triple:
        room = np.subtract(self._shape, size)
        if rng.random() < self._centred:
            # The centre is jittered, or the box's middle voxel would never be background.
            centre = np.unravel_index(self._tissue[rng.integers(self._tissue.size)], self._shape)
            wanted = np.asarray(centre) - np.asarray(size) // 2 + rng.integers(-16, 17, size=3)
        else:
            wanted = rng.integers(-OVERSHOOT, room + OVERSHOOT + 1)
        x, y, z = (int(v) for v in np.clip(wanted, 0, room))
        return x, y, z
