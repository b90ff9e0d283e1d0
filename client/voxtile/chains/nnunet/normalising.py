"""nnU-Net's intensity normalisation schemes, one channel at a time.

Means and standard deviations are computed in float32, with NumPy's own summation on an array of nnU-Net's memory layout
(a cropped, transposed view of the channel as read), so that they are the same bit for bit. Knows nothing of plans.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.errors import InputError, ModelError

SMALLEST_SPREAD = 1e-8
"""nnU-Net's floor under a standard deviation or range."""
CT_PROPERTIES = ("mean", "std", "percentile_00_5", "percentile_99_5")
Image = NDArray[np.float32]
Mask = NDArray[np.bool_]


def _ct(image: NDArray[Any], out: Image, properties: Mapping[str, float], mask: Mask | None) -> None:
    mean, spread, lowest, highest = (float(properties[key]) for key in CT_PROPERTIES)
    _none(image, out, properties, mask)
    np.clip(out, lowest, highest, out=out)
    out -= mean
    out /= max(spread, SMALLEST_SPREAD)


def _zscore(image: NDArray[Any], out: Image, properties: Mapping[str, float], mask: Mask | None) -> None:
    if mask is None:
        mean, spread = image.mean(), image.std()
        np.subtract(image, mean, out=out)
        out /= max(spread, SMALLEST_SPREAD)
        return
    _none(image, out, properties, mask)
    inside = out[mask]
    if inside.size:
        mean, spread = inside.mean(), inside.std()
        inside -= mean
        inside /= max(spread, SMALLEST_SPREAD)
        out[mask] = inside


def _none(image: NDArray[Any], out: Image, properties: Mapping[str, float], mask: Mask | None) -> None:
    np.copyto(out, image, casting="unsafe")


def _rescale(image: NDArray[Any], out: Image, properties: Mapping[str, float], mask: Mask | None) -> None:
    _none(image, out, properties, mask)
    out -= out.min()
    out /= np.clip(out.max(), SMALLEST_SPREAD, None)


def _rgb(image: NDArray[Any], out: Image, properties: Mapping[str, float], mask: Mask | None) -> None:
    _none(image, out, properties, mask)
    lowest, highest = float(out.min()), float(out.max())
    if lowest < 0 or highest > 255:
        raise InputError(
            f"expected intensities of 0 … 255, as the model takes RGB images, found {lowest:g} … {highest:g}; "
            "check that this is the scan that the model was trained for"
        )
    out /= 255.0


SCHEMES = {
    "CTNormalization": _ct,
    "ZScoreNormalization": _zscore,
    "NoNormalization": _none,
    "RescaleTo01Normalization": _rescale,
    "RGBTo01Normalization": _rgb,
}


def check_scheme(scheme: str, properties: Mapping[str, Any], channel: int) -> None:
    """Checks a channel's normalisation scheme.

    Args:
        scheme: its name.
        properties: statistics of the training set for this channel.
        channel: the channel's number, for messages.

    Raises:
        ModelError: the scheme is unknown, or the statistics that CTNormalization needs are missing.
    """
    if scheme not in SCHEMES:
        raise ModelError(
            f"normalization_schemes of channel {channel}: expected one of {', '.join(SCHEMES)}, found {scheme!r}, "
            "which is unknown here"
        )
    missing = [key for key in CT_PROPERTIES if key not in properties] if scheme == "CTNormalization" else []
    if missing:
        raise ModelError(
            f"foreground_intensity_properties_per_channel of channel {channel}: CTNormalization needs "
            f"{', '.join(CT_PROPERTIES)}; missing: {', '.join(missing)}"
        )


def needs_layout(scheme: str, mask: Mask | None) -> bool:
    """Returns whether `normalise` sums over the image, which then has to be float32 in nnU-Net's memory layout."""
    return scheme == "ZScoreNormalization" and mask is None


def normalise(image: NDArray[Any], out: Image, scheme: str, properties: Mapping[str, float], mask: Mask | None) -> None:
    """Writes the normalised image into `out`.

    Args:
        image: [z, y, x], of any type where `needs_layout` is False.
        out: [z, y, x] float32.
        scheme: the name of the scheme.
        properties: statistics of the training set for this channel.
        mask: [z, y, x] the voxels that ZScoreNormalization is limited to; None for the whole image.

    Raises:
        InputError: RGBTo01Normalization finds intensities outside 0 … 255.
    """
    SCHEMES[scheme](image, out, properties, mask)
