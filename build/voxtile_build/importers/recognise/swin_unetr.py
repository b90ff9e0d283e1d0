"""Recognises MONAI's SwinUNETR by its windows, heads and depths."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from math import prod

from voxtile_build.importers.recognise.guess import AFFINE, Guess, State, count, norm_by_weights, plain, sizes

STAGES = (1, 2, 3, 4)
ATTENTION = "swinViT.layers{}.0.blocks.0.attn"
HALVINGS = 5
LARGEST_WINDOW = 32


def guesses(state: State) -> Iterator[Guess]:
    """SwinUNETRs that may have these weights: one for each shape that the attention windows may have."""
    embedding, out = sizes(state, "swinViT.patch_embed.proj.weight"), sizes(state, "out.conv.conv.weight")
    tables = [sizes(state, f"{ATTENTION.format(stage)}.relative_position_bias_table") for stage in STAGES]
    hidden = sizes(state, "swinViT.layers1.0.blocks.0.mlp.linear1.weight")
    if not (embedding and out and hidden and all(tables)):
        return
    axes, patch = len(embedding) - 2, embedding[2]
    norm, told = norm_by_weights(state, "encoder1.layer.norm1", AFFINE, "instance")
    args = {
        "spatial_dims": axes,
        "in_channels": embedding[1],
        "out_channels": out[0],
        "feature_size": embedding[0],
        "patch_size": patch,
        "depths": [count(state, f"swinViT.layers{stage}.0.blocks.{{}}.") for stage in STAGES],
        "num_heads": [table[1] for table in tables],
        "mlp_ratio": hidden[0] / hidden[1],
        "qkv_bias": f"{ATTENTION.format(1)}.qkv.bias" in state,
        "patch_norm": "swinViT.patch_embed.norm.weight" in state,
        "use_v2": "swinViT.layers1c.0.layer.conv1.conv.weight" in state,
        "norm_name": norm,
    }
    untold = ("downsample", "normalize", *(() if told else ("norm_name",)))
    tokens = sizes(state, f"{ATTENTION.format(1)}.relative_position_index")
    for window in _windows(tables[0][0], tokens[0] if tokens else 0, axes):
        yield Guess("SwinUNETR", {**args, "window_size": plain(window)}, untold, (patch**HALVINGS,) * axes)


def _windows(offsets: int, tokens: int, axes: int) -> Iterator[tuple[int, ...]]:
    """The windows with so many offsets between two of their tokens, and so many tokens; equal sides first."""
    sides = [side for side in range(1, LARGEST_WINDOW + 1) if offsets % (2 * side - 1) == 0]
    found = (
        window
        for window in itertools.product(sides, repeat=axes)
        if prod(2 * side - 1 for side in window) == offsets and tokens in (0, prod(window))
    )
    return iter(sorted(found, key=lambda window: (len(set(window)), window)))
