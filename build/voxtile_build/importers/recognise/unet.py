"""Recognises MONAI's UNet: its layers are nested, each in the one above."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from voxtile_build.importers.recognise.guess import AFFINE, Guess, State, count, has, norm_by_weights, plain, sizes

USUAL_STRIDE = 2


def guesses(state: State) -> Iterator[Guess]:
    """UNets that may have these weights: one, or none."""
    downs = _downs(state)
    first, up = sizes(state, _first_conv(state, downs[0])), sizes(state, _up_conv(state))
    if len(downs) < 2 or not first or not up:
        return
    units = count(state, f"{downs[0]}.conv.unit{{}}.")
    strides = [_stride(state, down, units) for down in downs[:-1]]
    layer = _first_conv(state, downs[0]).removesuffix(".conv.weight")
    norm, told = norm_by_weights(state, f"{layer}.adn.N", AFFINE, "instance")
    prelu = f"{layer}.adn.A.weight" in state
    args = {
        "spatial_dims": len(first) - 2,
        "in_channels": first[1],
        "out_channels": up[1],
        "channels": [sizes(state, _first_conv(state, down))[0] for down in downs],
        "strides": strides,
        "kernel_size": plain(first[2:]),
        "up_kernel_size": plain(up[2:]),
        "num_res_units": units,
        "act": "PRELU" if prelu else "RELU",
        "norm": norm,
        "bias": _first_conv(state, downs[0]).replace(".weight", ".bias") in state,
    }
    untold = ("strides", *(() if prelu else ("act",)), *(() if told else ("norm",)), "adn_ordering")
    yield Guess("UNet", args, untold, (prod(strides),) * (len(first) - 2))


def _downs(state: State) -> list[str]:
    """The places of the layers on the way down, the bottom one last."""
    downs, here = [], "model"
    while has(state, f"{here}.0."):
        downs.append(f"{here}.0")
        here = f"{here}.1.submodule"
    return [*downs, here]


def _first_conv(state: State, place: str) -> str:
    names = (f"{place}.conv.unit0.conv.weight", f"{place}.conv.weight")
    return next((name for name in names if name in state), names[0])


def _up_conv(state: State) -> str:
    """The top layer on the way up is followed by a unit where units are residual."""
    return "model.2.0.conv.weight" if "model.2.0.conv.weight" in state else "model.2.conv.weight"


def _stride(state: State, place: str, units: int) -> int:
    """A residual unit that strides has a residual of the kernel's size; any other has one of size 1, or none."""
    return USUAL_STRIDE if units == 0 or prod(sizes(state, f"{place}.residual.weight")[2:]) > 1 else 1
