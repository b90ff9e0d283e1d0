"""How a chain of pre-processing is carried out: what the client does, and what the graph does.

The classic chain, an orientation, a spacing and one rule of intensities, becomes what the short keys of [input] say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from voxtile.transforms.base import Transform, per_axis
from voxtile.transforms.preprocessing import (
    MOVING,
    NormalizeIntensity,
    Orientation,
    ScaleIntensity,
    ScaleIntensityRange,
    ScaleIntensityRangePercentiles,
    Spacing,
    is_pointwise,
)
from voxtile_build.spec.input import (
    Intensity,
    IntensityFixed,
    IntensityNone,
    IntensityPercentile,
    IntensityRange,
    IntensityZscore,
)

NO_RULE = IntensityNone()


@dataclass(frozen=True)
class Preparation:
    """What happens to a scan before the network, in this order.

    Attributes:
        orientation: axis codes of the model's grid; None for the scan's own.
        spacing: voxel size of the model's grid in mm; None for the scan's own.
        client: steps that the client carries out in place of an orientation and a spacing.
        intensity: the rule that the graph applies first; where it takes statistics, the client sends them.
        graph: steps that the graph applies afterwards, each to every value alone.
    """

    orientation: str | None = None
    spacing: tuple[float, float, float] | None = None
    client: tuple[Transform, ...] = ()
    intensity: Intensity = NO_RULE
    graph: tuple[Transform, ...] = ()

    @property
    def value_steps(self) -> tuple[Transform, ...]:
        """The steps of the client that change values; the others only move voxels."""
        return tuple(step for step in self.client if not isinstance(step, MOVING))


def preparation_of(steps: Sequence[Transform], channels: int) -> Preparation:
    """How `steps` are carried out for a scan of `channels` channels.

    What comes after the last step that moves voxels or looks at the whole scan runs in the graph. So does that step
    itself if it is a rule of intensities that the graph has: then the client sends its statistics alone.
    """
    last = max((index for index, step in enumerate(steps) if not is_pointwise(step)), default=-1)
    before, after = tuple(steps[: last + 1]), tuple(steps[last + 1 :])
    rule = _statistical_rule(before[-1], channels) if before else None
    if rule is not None:
        before = before[:-1]
    elif after and (rule := fixed_rule(after[0], channels)) is not None:
        after = after[1:]
    intensity = rule or NO_RULE
    grid = _grid(before)
    if grid is None:
        return Preparation(client=before, intensity=intensity, graph=after)
    return Preparation(grid[0], grid[1], intensity=intensity, graph=after)


def _grid(steps: tuple[Transform, ...]) -> tuple[str | None, tuple[float, float, float] | None] | None:
    """Orientation and spacing, if `steps` are nothing else, and in this order."""
    kinds = [type(step) for step in steps]
    if kinds not in ([], [Orientation], [Spacing], [Orientation, Spacing]):
        return None
    orientation = next((step.axcodes for step in steps if isinstance(step, Orientation)), None)
    spacing = next((per_axis(step.pixdim) for step in steps if isinstance(step, Spacing)), None)
    return orientation, spacing


def _statistical_rule(step: Transform, channels: int) -> Intensity | None:
    """The rule of the graph with statistics of the whole scan that is the same as `step`; None without one."""
    if not getattr(step, "channel_wise", False) and channels > 1:
        return None
    if isinstance(step, NormalizeIntensity) and step.subtrahend is None and step.divisor is None:
        return IntensityZscore(mask="nonzero" if step.nonzero else "all", keep_zero=step.nonzero)
    if isinstance(step, ScaleIntensity) and (step.minv, step.maxv) == (0, 1):
        return IntensityPercentile(lower=0.0, upper=100.0)
    if isinstance(step, ScaleIntensityRangePercentiles) and (step.b_min, step.b_max, step.relative) == (0, 1, False):
        return IntensityPercentile(lower=step.lower, upper=step.upper, clip=step.clip)
    return None


def fixed_rule(step: Transform, channels: int) -> Intensity | None:
    """The rule of the graph with numbers of its own that is the same as `step`; None without one."""
    if not is_pointwise(step):
        return None
    if isinstance(step, ScaleIntensityRange) and step.a_max > step.a_min:
        if step.b_min is None or step.b_max is None:
            return IntensityRange(a_min=step.a_min, a_max=step.a_max, clip=False)
        return IntensityRange(a_min=step.a_min, a_max=step.a_max, b_min=step.b_min, b_max=step.b_max, clip=step.clip)
    if isinstance(step, NormalizeIntensity) and not step.nonzero:
        assert step.subtrahend is not None
        assert step.divisor is not None
        mean, std = (
            value if isinstance(value, tuple) else (value,) * channels for value in (step.subtrahend, step.divisor)
        )
        return IntensityFixed(mean=mean, std=std)
    return None
