"""Recognises MONAI's DynUNet, whose kernels and upsampling steps are in the shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod

from voxtile_build.importers.recognise.guess import AFFINE, Guess, State, count, norm_by_weights, plain, sizes

NESTED_UP = re.compile(r"skip_layers\.((?:next_layer\.)*)upsample\.(.*)")


def guesses(state: State) -> Iterator[Guess]:
    """DynUNets that may have these weights: one, or none."""
    state = _with_ups(state)
    places = ["input_block", *(f"downsamples.{i}" for i in range(count(state, "downsamples.{}."))), "bottleneck"]
    convs = [sizes(state, f"{place}.conv1.conv.weight") for place in places]
    out = sizes(state, "output_block.conv.conv.weight")
    ups = [sizes(state, f"upsamples.{i}.transp_conv.conv.weight") for i in range(len(places) - 1)]
    if not all((*convs, *ups, out)):
        return
    steps = [plain(up[2:]) for up in reversed(ups)]
    heads = count(state, "deep_supervision_heads.{}.")
    norm, told = norm_by_weights(state, "input_block.norm1", AFFINE, "instance")
    args = {
        "spatial_dims": len(out) - 2,
        "in_channels": convs[0][1],
        "out_channels": out[0],
        "kernel_size": [plain(conv[2:]) for conv in convs],
        # As nnU-Net plans it: the first layer does not stride, each step down is that of the step up beside it.
        "strides": [1, *steps],
        "upsample_kernel_size": steps,
        "filters": [conv[0] for conv in convs],
        "norm_name": norm,
        "res_block": "input_block.conv3.conv.weight" in state or "bottleneck.conv3.conv.weight" in state,
        "trans_bias": "upsamples.0.transp_conv.conv.bias" in state,
        **({"deep_supervision": True, "deep_supr_num": heads} if heads else {}),
    }
    divisors = tuple(prod(up[2 + axis] for up in ups) for axis in range(len(out) - 2))
    yield Guess("DynUNet", args, ("strides", "act_name", *(() if told else ("norm_name",))), divisors)


def _with_ups(state: State) -> State:
    """With the names of the way up, which the nested layers repeat: safetensors may keep the nested names alone."""
    nested = {key: found for key in state if (found := NESTED_UP.fullmatch(key))}
    deepest = max((found[1].count("next_layer.") for found in nested.values()), default=0)
    ups = {f"upsamples.{deepest - found[1].count('next_layer.')}.{found[2]}": key for key, found in nested.items()}
    return {**{up: state[key] for up, key in ups.items()}, **state}
