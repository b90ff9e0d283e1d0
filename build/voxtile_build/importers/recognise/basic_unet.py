"""Recognises MONAI's BasicUNet, which has five widths on the way down and one at the end."""

from __future__ import annotations

from collections.abc import Iterator

from voxtile_build.importers.recognise.guess import AFFINE, Guess, State, norm_by_weights, sizes

WIDTHS = (
    "conv_0.conv_0.conv.weight",
    *(f"down_{level}.convs.conv_0.conv.weight" for level in (1, 2, 3, 4)),
    "upcat_1.convs.conv_0.conv.weight",
)
SHRINKS = 16
"""Four times it halves the size."""


def guesses(state: State) -> Iterator[Guess]:
    """BasicUNet that may have these weights: one, or none."""
    first, out = sizes(state, WIDTHS[0]), sizes(state, "final_conv.weight")
    if not first or not out or any(key not in state for key in WIDTHS):
        return
    norm, told = norm_by_weights(state, "conv_0.conv_0.adn.N", AFFINE, "instance")
    args = {
        "spatial_dims": len(first) - 2,
        "in_channels": first[1],
        "out_channels": out[0],
        "features": [sizes(state, key)[0] for key in WIDTHS],
        "norm": norm,
        "bias": "conv_0.conv_0.conv.bias" in state,
        "upsample": "deconv" if "upcat_1.upsample.deconv.weight" in state else "nontrainable",
    }
    if "upcat_1.upsample.pixelshuffle.conv_block.weight" in state:
        args["upsample"] = "pixelshuffle"
    untold = ("act", *(() if told else ("norm",)))
    yield Guess("BasicUNet", args, untold, (SHRINKS,) * (len(first) - 2))
