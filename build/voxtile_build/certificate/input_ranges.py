"""What the scans of a certificate hold, for comparison with what a server is sent later. Knows nothing of engines."""

from __future__ import annotations

import math
from collections.abc import Sequence

from voxtile.card import Bounds, InputRange
from voxtile.io.intensities import InputStatistics, input_statistics, thinned
from voxtile_build.evaluation.samples import Scan
from voxtile_build.spec.spec import Spec

SIGNIFICANT = 4
"""Digits of a standard deviation that are kept: the last bits of a sum depend on the machine and prove nothing."""


def input_ranges(spec: Spec, scans: Sequence[Scan]) -> tuple[InputRange, ...]:
    """Of each channel that a scan brings, the lowest and the highest of each figure over all scans.

    Args:
        spec: the model.
        scans: those that its certificate is measured on.

    Returns:
        Nothing where the spec names no scans: what a generated one holds says nothing of real ones.
    """
    if not spec.acceptance.scans:
        return ()
    made = len((spec.nnunet or {}).get("label_channels") or ())
    names = spec.input.channels[: len(spec.input.channels) - made]
    found = [input_statistics(thinned(scan.volume), scan.statistics) for scan in scans]
    return tuple(_range(name, [one[number] for one in found]) for number, name in enumerate(names))


def _range(channel: str, found: Sequence[InputStatistics]) -> InputRange:
    digits = SIGNIFICANT - 1 - math.floor(math.log10(max(one.std for one in found) or 1.0))

    def bounds(figure: str) -> Bounds:
        values = [round(float(getattr(one, figure)), digits) + 0.0 for one in found]  # -0 is 0
        return min(values), max(values)

    return InputRange(channel=channel, **{figure: bounds(figure) for figure in InputStatistics.model_fields})
