"""Recognises MONAI's AttentionUnet: its layers are nested, each in the one above."""

from __future__ import annotations

from collections.abc import Iterator

from voxtile_build.importers.recognise.guess import Guess, State, plain, sizes

USUAL_STRIDE = 2


def guesses(state: State) -> Iterator[Guess]:
    """AttentionUnets that may have these weights: one, or none."""
    first, up, out = (
        sizes(state, key)
        for key in ("model.0.conv.0.conv.weight", "model.1.upconv.up.conv.weight", "model.2.conv.weight")
    )
    if not (first and up and out):
        return
    widths = [first[0], *_widths(state)]
    args = {
        "spatial_dims": len(first) - 2,
        "in_channels": first[1],
        "out_channels": out[0],
        "channels": widths,
        "strides": [USUAL_STRIDE] * (len(widths) - 1),
        "kernel_size": plain(first[2:]),
        "up_kernel_size": plain(up[2:]),
    }
    yield Guess("AttentionUnet", args, ("strides",), (USUAL_STRIDE ** (len(widths) - 1),) * (len(first) - 2))


def _widths(state: State) -> Iterator[int]:
    here = "model.1.submodule"
    while f"{here}.0.conv.0.conv.weight" in state:
        yield sizes(state, f"{here}.0.conv.0.conv.weight")[0]
        here = f"{here}.1.submodule"
    if f"{here}.conv.0.conv.weight" in state:
        yield sizes(state, f"{here}.conv.0.conv.weight")[0]
