"""Recognises MONAI's SegResNet by the numbers of its blocks and by what brings its scores up."""

from __future__ import annotations

from collections.abc import Iterator

from voxtile_build.importers.recognise.guess import Guess, State, count, norm_by_weights, sizes

GROUPS = (8, 4, 2, 1)
"""Numbers of groups that are tried: 8 is MONAI's default, and groups must divide the first width."""


def guesses(state: State) -> Iterator[Guess]:
    """SegResNets that may have these weights: one, or none."""
    first = sizes(state, "convInit.conv.weight")
    levels = count(state, "down_layers.{}.")
    if not first or not levels:
        return
    groups = next(one for one in GROUPS if first[0] % one == 0)
    usual = ["group", {"num_groups": groups}]
    norm, told = norm_by_weights(state, "down_layers.0.1.norm1", usual, "instance")
    final = sizes(state, "conv_final.2.conv.weight")
    args = {
        "spatial_dims": len(first) - 2,
        "init_filters": first[0],
        "in_channels": first[1],
        "out_channels": final[0] if final else first[0],
        "blocks_down": [count(state, f"down_layers.{level}.{{}}.", 1) for level in range(levels)],
        "blocks_up": [count(state, f"up_layers.{level}.{{}}.") for level in range(levels - 1)],
        "norm": norm,
        "upsample_mode": _upsampling(state),
    }
    if not final:
        args["use_conv_final"] = False
    yield Guess("SegResNet", args, ("act", *(() if told else ("norm",))), (2 ** (levels - 1),) * (len(first) - 2))


def _upsampling(state: State) -> str:
    if "up_samples.0.1.deconv.weight" in state:
        return "deconv"
    return "pixelshuffle" if "up_samples.0.1.pixelshuffle.conv_block.weight" in state else "nontrainable"
