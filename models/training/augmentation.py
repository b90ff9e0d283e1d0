"""One template made into many scans: contrast, resolution, noise, bias, size and orientation.

Takes a patch of uint8 intensities and tissue maps; gives a normalised patch and its labels, as torch
tensors of shape (x, y, z). Knows nothing of where the patch lies or which network sees it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from models.training.brain_data import ROI, Triple, Volume

Histogram = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Contrast:
    """A new intensity for each of the 256 levels, with the whole scan's mean and deviation after that change."""

    levels: npt.NDArray[np.float32]
    mean: float
    std: float


def zscore_statistics(levels: npt.NDArray[np.floating], histogram: Histogram) -> tuple[float, float]:
    """Returns mean and population standard deviation over the non-zero voxels, in float64.

    Args:
        levels: the intensity of each level, shape (256,).
        histogram: the voxels of each level, shape (256,), none at level 0.
    """
    values = levels.astype(np.float64)
    mean = float(np.average(values, weights=histogram))
    return mean, float(np.sqrt(np.average((values - mean) ** 2, weights=histogram)))


def plain_contrast(histogram: Histogram) -> Contrast:
    """Returns the template's own contrast."""
    levels = (np.arange(256) / 255).astype(np.float32)
    return Contrast(levels, *zscore_statistics(levels, histogram))


def random_contrast(rng: np.random.Generator, histogram: Histogram) -> Contrast:
    """Returns a random contrast of gamma, S-curve and offset; level 0 stays 0, and the levels keep their order."""
    base = np.linspace(0, 1, 256) ** np.exp(rng.uniform(-0.4, 0.4))
    # x + a·sin(2πx)/2π has slope 1 + a·cos(2πx) > 0 for |a| < 1: monotonic.
    curved = base + rng.uniform(-0.5, 0.5) * np.sin(2 * np.pi * base) / (2 * np.pi)
    levels = (curved + rng.uniform(0, 0.25)).astype(np.float32)
    levels[0] = 0
    return Contrast(levels, *zscore_statistics(levels, histogram))


def random_size(rng: np.random.Generator) -> Triple:
    """Returns how many template voxels (x, y, z) a patch shows: 0.85 to 1.2 times the ROI, ± 5 % an axis."""
    scale = rng.uniform(0.85, 1.2) * rng.uniform(0.95, 1.05, size=3)
    x, y, z = (round(n * s) for n, s in zip(ROI, scale.tolist(), strict=True))
    return x, y, z


def random_void(rng: np.random.Generator, t1: Volume, gm: Volume, wm: Volume) -> tuple[Volume, Volume, Volume]:
    """Returns a patch (x, y, z) and its maps emptied; sometimes a slab of up to 16 voxels at one side is kept.

    The windows around a head look like this in a scan with a large field of view. The networks normalise each instance
    and see only relative intensities, so they must learn such windows apart.
    """
    keep = 0 if rng.random() < 0.4 else int(rng.integers(1, 17))
    axis, first = int(rng.integers(3)), rng.random() < 0.5
    kept = [slice(None)] * 3
    kept[axis] = slice(0, keep) if first else slice(t1.shape[axis] - keep, None)
    slab = np.zeros(t1.shape, dtype=np.uint8)
    slab[tuple(kept)] = 1
    return t1 * slab, gm * slab, wm * slab


def augment(
    rng: np.random.Generator, t1: Volume, gm: Volume, wm: Volume, histogram: Histogram
) -> tuple[Tensor, Tensor]:
    """Makes one training example from a patch of any size.

    Returns:
        The patch (64, 64, 64) float32, z-scored as the service does it (with mean and
        deviation of the whole scan's non-zero voxels, here jittered), and its labels (64, 64, 64) int64.
    """
    contrast = random_contrast(rng, histogram) if rng.random() < 0.8 else plain_contrast(histogram)
    stack = torch.from_numpy(np.stack([contrast.levels[t1], gm, wm]).astype(np.float32))
    stack = functional.interpolate(stack[None], size=ROI, mode="trilinear", align_corners=False)[0]
    image, labels = stack[0], _labels(stack[1], stack[2])
    image = degrade(rng, image, contrast.std)
    mean = contrast.mean + rng.uniform(-0.2, 0.2) * contrast.std
    std = contrast.std * np.exp(rng.uniform(-0.15, 0.15))
    image, labels = random_orientation(rng, (image - mean) / std, labels)
    return random_padding(rng, image, labels)


def _labels(gm: Tensor, wm: Tensor) -> Tensor:
    return torch.stack([255 - gm - wm, gm, wm]).argmax(dim=0)


def degrade(rng: np.random.Generator, image: Tensor, std: float) -> Tensor:
    """Changes resolution, sharpness, bias field and noise, each at random; what is exactly 0 around the head stays 0.

    Args:
        rng: draws the changes.
        image: intensities of at least 0, (x, y, z).
        std: the scan's own deviation, the unit of the noise.
    """
    head = image > 0
    if rng.random() < 0.3:
        image = lower_resolution(rng, image)
    elif rng.random() < 0.35:
        image = sharpen(image, rng.uniform(0.3, 2.0))
    if rng.random() < 0.5:
        image = image * bias_field(rng, image.shape, strength=rng.uniform(0, 0.2))
    if rng.random() < 0.6:
        image = image + gaussian(rng, image.shape) * (rng.uniform(0, 0.35) * std)
    # Sharpening and noise go below 0, which no magnitude image does.
    return image.clamp(min=0) * head


def gaussian(rng: np.random.Generator, shape: torch.Size) -> Tensor:
    """Returns standard normal noise of `shape`, float32."""
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))


def lower_resolution(rng: np.random.Generator, image: Tensor) -> Tensor:
    """Samples the image (x, y, z) more coarsely, by 1 to 2.5 along each axis, and brings it back to its own grid."""
    coarse = [max(round(n / f), 1) for n, f in zip(image.shape, rng.uniform(1, 2.5, size=3), strict=True)]
    small = functional.interpolate(image[None, None], size=coarse, mode="trilinear", align_corners=False)
    back = functional.interpolate(small, size=list(image.shape), mode="trilinear", align_corners=False)
    return back[0, 0]


def sharpen(image: Tensor, amount: float) -> Tensor:
    """Sharpens by unsharp masking with a 3³ mean: the template, an average of 152 heads, is softer than any one."""
    mean = functional.avg_pool3d(image[None, None], 3, stride=1, padding=1, count_include_pad=False)[0, 0]
    return image + amount * (image - mean)


def bias_field(rng: np.random.Generator, shape: torch.Size, strength: float) -> Tensor:
    """Returns a smooth positive factor for each voxel of `shape`: exp of a 3³ random grid, interpolated."""
    grid = gaussian(rng, torch.Size((1, 1, 3, 3, 3))) * strength
    return functional.interpolate(grid, size=list(shape), mode="trilinear", align_corners=True)[0, 0].exp()


def random_orientation(rng: np.random.Generator, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Permutes and flips the axes in one of 48 ways, the same for both; half of the time it flips x at most."""
    axes, flips = (0, 1, 2), [0] if rng.random() < 0.5 else []
    if rng.random() < 0.5:
        x, y, z = rng.permutation(3).tolist()
        axes, flips = (x, y, z), [axis for axis in range(3) if rng.random() < 0.5]
    return image.permute(axes).flip(flips).contiguous(), labels.permute(axes).flip(flips).contiguous()


def random_padding(rng: np.random.Generator, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Now and then sets a side of the patch to 0 *after* normalisation, as a tiler does that pads a small volume."""
    if rng.random() < 0.12:
        axis, width = int(rng.integers(3)), int(rng.integers(2, 25))
        start = 0 if rng.random() < 0.5 else image.shape[axis] - width
        image.narrow(axis, start, width).zero_()
        labels.narrow(axis, start, width).zero_()
    return image, labels
