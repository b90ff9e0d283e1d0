"""What a model expects of the values of a scan, as far as its spec says it. Knows nothing of scans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from voxtile.io.bids import contrast_of
from voxtile_build.spec.input import Intensity, IntensityFixed, IntensityRange
from voxtile_build.spec.preparation import fixed_rule
from voxtile_build.spec.spec import Spec

BELOW, ABOVE = 3, 5
"""Standard deviations around the mean of a rule without limits: tissue is brighter more often than darker."""

HOUNSFIELD_FROM = -20.0
"""A rule that begins here or lower is for CT in Hounsfield units: no other scan that has a fixed scale is negative."""

MR_NAMES = frozenset(
    ("adc", "dwi", "flair", "inplanet2", "mp2rage", "mprage", "mr", "mri", "pd", "swi", "t1", "t1c", "t2", "t2star")
)
"""Names of channels that are MR, as `contrast_of` gives them."""

FIXED, FREE, AS_IT_IS = "fixed", "free", "none"


@dataclass(frozen=True)
class Expected:
    """What is expected of one channel.

    Attributes:
        channel: its name.
        scale: whether values have a fixed scale, any scale, or go to the network as they are.
        low: the lowest value that matters, where the scale is fixed.
        high: the highest one.
        hounsfield: whether it is CT in Hounsfield units by its rule; False where it is known to be something else, None
            where nothing is known.
        rule: the rule in words, for messages.
    """

    channel: str
    scale: str
    low: float = 0.0
    high: float = 0.0
    hounsfield: bool | None = None
    rule: str = ""


def expected_of(spec: Spec) -> tuple[Expected, ...]:
    """What a model expects of each channel of a scan."""
    if spec.nnunet is not None:
        return _by_plan(spec.nnunet, spec.input.channels)
    return tuple(_by_rule(_first_rule(spec), number, name) for number, name in enumerate(spec.input.channels))


def _first_rule(spec: Spec) -> Intensity | None:
    """The rule that the scan's own values go through first; None for one that no rule of the graph is like."""
    steps = spec.preparation.value_steps
    return fixed_rule(steps[0], len(spec.input.channels)) if steps else spec.preparation.intensity


def _by_rule(rule: Intensity | None, number: int, name: str) -> Expected:
    if isinstance(rule, IntensityRange):
        return _fixed(name, rule.a_min, rule.a_max, f"a_min {rule.a_min:g}, a_max {rule.a_max:g}")
    if isinstance(rule, IntensityFixed):
        mean, std = rule.mean[number], rule.std[number]
        said = f"mean {mean:g}, std {std:g}"
        if rule.lower is not None and rule.upper is not None:
            low, high = rule.lower[number], rule.upper[number]
            return _fixed(name, low, high, f"{said}, lower {low:g}, upper {high:g}")
        return Expected(name, FIXED, mean - BELOW * std, mean + ABOVE * std, _named(name), said)
    if rule is not None and rule.rule == "none":
        return Expected(name, AS_IT_IS, hounsfield=_named(name), rule="values as they are")
    return Expected(name, FREE, hounsfield=_named(name), rule="whole scan" if rule is None else rule.rule)


def _fixed(name: str, low: float, high: float, said: str) -> Expected:
    return Expected(name, FIXED, low, high, True if low <= HOUNSFIELD_FROM else _named(name), said)


def _by_plan(plan: Mapping[str, Any], channels: tuple[str, ...]) -> tuple[Expected, ...]:
    found = []
    for number, (scheme, name) in enumerate(zip(plan["normalization_schemes"], channels, strict=False)):
        known = plan["foreground_intensity_properties_per_channel"].get(str(number), {})
        low, high = known.get("percentile_00_5"), known.get("percentile_99_5")
        if low is None or high is None or not high > low:
            found.append(Expected(name, FREE, hounsfield=_named(name), rule=scheme))
            continue
        said = f"{scheme}, 99 % of the foreground trained on within {low:g}..{high:g}"
        if scheme in ("CTNormalization", "NoNormalization"):
            found.append(_fixed(name, low, high, said))
        else:
            found.append(Expected(name, FREE, hounsfield=low <= HOUNSFIELD_FROM, rule=said))
    return tuple(found)


def _named(name: str) -> bool | None:
    """False where a channel's name is one of MR, which is no CT."""
    return False if contrast_of(name) in MR_NAMES else None
