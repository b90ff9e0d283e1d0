"""Recognises MONAI's BasicUNet and BasicUNetPlusPlus: five widths on the way down, and one at the end.

Both have the same arguments, and differ in the names of their parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from voxtile_build.importers.recognise.guess import AFFINE, Guess, State, norm_by_weights, sizes

SHRINKS = 16
"""Four times it halves the size."""


@dataclass(frozen=True)
class _Names:
    """What the parts of one of the two are called: its first block, those further down, its end and a step up."""

    network: str
    first: str
    down: str
    last_up: str
    end: str
    up: str

    @property
    def widths(self) -> tuple[str, ...]:
        """The weights whose first axis are the network's `features`."""
        down = (f"{self.down.format(level)}.convs.conv_0.conv.weight" for level in (1, 2, 3, 4))
        return (f"{self.first}.conv_0.conv.weight", *down, f"{self.last_up}.convs.conv_0.conv.weight")


KINDS = (
    _Names("BasicUNet", "conv_0", "down_{}", "upcat_1", "final_conv", "upcat_1"),
    _Names("BasicUNetPlusPlus", "conv_0_0", "conv_{}_0", "upcat_0_4", "final_conv_0_4", "upcat_0_1"),
)


def guesses(state: State) -> Iterator[Guess]:
    """The networks that may have these weights: one, or none."""
    for names in KINDS:
        first, out = sizes(state, names.widths[0]), sizes(state, f"{names.end}.weight")
        if first and out and all(key in state for key in names.widths):
            yield _guess(state, names, first, out)


def _guess(state: State, names: _Names, first: tuple[int, ...], out: tuple[int, ...]) -> Guess:
    norm, told = norm_by_weights(state, f"{names.first}.conv_0.adn.N", AFFINE, "instance")
    args = {
        "spatial_dims": len(first) - 2,
        "in_channels": first[1],
        "out_channels": out[0],
        "features": [sizes(state, key)[0] for key in names.widths],
        "norm": norm,
        "bias": f"{names.first}.conv_0.conv.bias" in state,
        "upsample": "deconv" if f"{names.up}.upsample.deconv.weight" in state else "nontrainable",
    }
    if f"{names.up}.upsample.pixelshuffle.conv_block.weight" in state:
        args["upsample"] = "pixelshuffle"
    untold = ("act", *(() if told else ("norm",)))
    return Guess(names.network, args, untold, (SHRINKS,) * (len(first) - 2))
