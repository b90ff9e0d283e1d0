"""Recognises MONAI's UNETR, whose position embeddings tell how many patches a tile has."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from math import prod

from voxtile_build.importers.recognise.guess import AFFINE, Guess, State, norm_by_weights, plain, sizes

PATCH = 16
PROJECTION = "vit.patch_embedding.patch_embeddings"
USUAL_HEADS = 12
MOST_PATCHES = 32
"""Patches along one axis of a tile, of which 512 voxels have 32."""


def guesses(state: State) -> Iterator[Guess]:
    """UNETRs that may have these weights: one for each shape of a tile with as many patches, cubes first."""
    places = sizes(state, "vit.patch_embedding.position_embeddings")
    mlp = sizes(state, "vit.blocks.0.mlp.linear1.weight")
    encoder, out = sizes(state, "encoder1.layer.conv1.conv.weight"), sizes(state, "out.conv.conv.weight")
    if not (places and mlp and encoder and out):
        return
    norm, told = norm_by_weights(state, "encoder1.layer.norm1", AFFINE, "instance")
    hidden = places[2]
    args = {
        "spatial_dims": len(out) - 2,
        "in_channels": encoder[1],
        "out_channels": out[0],
        "feature_size": encoder[0],
        "hidden_size": hidden,
        "mlp_dim": mlp[0],
        "num_heads": next(heads for heads in range(USUAL_HEADS, 0, -1) if hidden % heads == 0),
        "proj_type": "conv" if f"{PROJECTION}.weight" in state else "perceptron",
        "norm_name": norm,
        "res_block": "decoder5.conv_block.conv3.conv.weight" in state,
        "conv_block": "encoder2.blocks.0.1.conv1.conv.weight" in state,
        "qkv_bias": "vit.blocks.0.attn.qkv.bias" in state,
    }
    untold = ("img_size", "num_heads", *(() if told else ("norm_name",)))
    for patches in _shapes(places[1], len(out) - 2):
        tile = tuple(PATCH * number for number in patches)
        yield Guess("UNETR", {**args, "img_size": plain(tile)}, untold, (PATCH,) * len(tile), tile)


def _shapes(patches: int, axes: int) -> Iterator[tuple[int, ...]]:
    """The shapes with so many patches, those with the most equal sides first."""
    sides = [side for side in range(1, MOST_PATCHES + 1) if patches % side == 0]
    found = (shape for shape in itertools.product(sides, repeat=axes) if prod(shape) == patches)
    return iter(sorted(found, key=lambda shape: (len(set(shape)), max(shape) - min(shape), [-one for one in shape])))
