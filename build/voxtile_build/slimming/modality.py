"""Refuses scans that a teacher was not made for, before anything is trained: by their values, and by its answers.

Any rule of thumb can be wrong, so each has a wide margin, says its figures, and can be overruled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voxtile.errors import VoxtileError
from voxtile.io.intensities import most_frequent
from voxtile.io.scan import open_scan
from voxtile_build.arrays import Array
from voxtile_build.errors import SlimmingError
from voxtile_build.evaluation.metrics import masks, probabilities
from voxtile_build.slimming.given.expected import AS_IT_IS, FIXED, Expected, expected_of
from voxtile_build.slimming.given.values import Values, values_of
from voxtile_build.slimming.scans import Told, TrainingScan
from voxtile_build.spec.output import Label, Output
from voxtile_build.spec.spec import Spec

OVERRULE = "--any-modality"
"""The option that takes scans all the same."""

FLAT = 0.8
"""Equal neighbours, as a share: masks have 0.95 and more; of scans, those enlarged four times without interpolation
have 0.75."""

FEW_LEVELS = 8
"""Different values of all voxels: a mask of a few lesions has two, and few neighbours that are equal."""

NARROW = 0.05
"""Spread of the values, as a share of what the rule spans."""

NARROW_UNITS = 10.0
"""And in units of the scan: noise alone spreads further in a CT that is cut out of one organ, and in an MR."""

MOST_ABOVE = 0.6
"""Share of the foreground above the rule's end: bone in a head CT with the narrow window of a brain has 0.35."""

LEAST_INSIDE = 0.005
"""Share of the foreground that the rule does not cut off."""

HOUNSFIELD = (-1100.0, -20.0)
"""Between air and fat, where every CT of a body has voxels and no other scan of a fixed scale has."""

LEAST_NEGATIVE = 0.002
"""Share of voxels there that a CT has at least."""

AIR = (-1100.0, -200.0)
MUCH_AIR = 0.05
"""Share of voxels there by which a scan is taken for a CT."""

SOFT_TISSUE = (-20.0, 300.0)
"""A CT cut out of one organ has these values alone, and no background."""

ONE_TISSUE = 0.4
"""Half of its voxels spread over less than this share of what 98 % spread over: 0.29 in a normal distribution, and 0.5
and more where there are air and tissue."""

FACTOR = 10.0
"""Where values go to the network as they are, scans differ by less than this from those of the certificate."""

MOST_DOUBT = 0.2
"""Mean probability that the foreground which the teacher found is something else: from here on it may be guessing."""

TIMES_AS_MUCH = 2.0
"""And so many times that of the scans of its certificate: patches are changed at random, which makes it less sure."""

LOOKED_AT = 256
"""Answers that are looked at, at even distances."""

NAMED = 3
"""Scans that a message names at most."""


@dataclass(frozen=True)
class Fault:
    """Why a scan is far from what the teacher was made for.

    Attributes:
        scan: its name.
        channel: the channel's name.
        reason: what was expected and what was found.
    """

    scan: str
    channel: str
    reason: str


def check_scans(scans: Sequence[TrainingScan], spec: Spec) -> None:
    """Check that the values of scans are such as the teacher was made for.

    Args:
        scans: as `find_scans` gives them.
        spec: the teacher's.

    Raises:
        SlimmingError: they are far from it: what was expected and found, in which scans, and what to do.
    """
    faults = value_faults(scans, spec)
    if not faults:
        return
    names = list(dict.fromkeys(fault.scan for fault in faults))
    first = faults[0]
    others = f"; also {', '.join(names[1:NAMED])}" if len(names) > 1 else ""
    more = ", …" if len(names) > NAMED else ""
    raise SlimmingError(
        f"{len(names)} of {len(scans)} scans are far from what {spec.name} was made for: {first.scan}, channel "
        f"{first.channel}: {first.reason}{others}{more}; take them out of the folder, give scans of the right kind and "
        f"unit, or {OVERRULE} if the teacher is right about them"
    )


def check_answers(
    answers: Sequence[Array], spec: Spec, kind: str, certified: Sequence[Array] = (), told: Told = lambda _: None
) -> None:
    """Check that a teacher finds something in the patches that were labelled, and is about as sure as it should be.

    Args:
        answers: [class, *roi] each, of patches.
        spec: the teacher's.
        kind: what they are, `logits` or `probabilities`.
        certified: answers to the scans of its certificate, without which nobody knows how sure it should be.
        told: gets a line where labels were never found.

    Raises:
        SlimmingError: it finds nothing but background, or is far less sure than in the scans of its certificate.
    """
    output = spec.output.model_copy(update={"scores": kind, "dtype": "fp32"})
    chosen = [answers[index] for index in range(0, len(answers), max(1, len(answers) // LOOKED_AT))]
    voxels, doubt = _found(chosen, output)
    names = [label.name for label in spec.output.labels]
    missing = [name for name, count in zip(names, voxels, strict=True) if not count]
    wanted = [label.name for label in spec.output.labels if _is_structure(label, output)]
    if set(missing) >= set(wanted):
        raise SlimmingError(
            f"{spec.name}: expected a teacher that finds {', '.join(wanted[:NAMED])} in these scans, found nothing but "
            f"background in {len(chosen)} patches; give scans that show what it segments, or {OVERRULE}"
        )
    known = _found(certified, output)[1] if certified else doubt
    if doubt > max(MOST_DOUBT, TIMES_AS_MUCH * known):
        raise SlimmingError(
            f"{spec.name}: expected a teacher that is as sure as in the scans of its certificate, where the foreground "
            f"has a mean probability of {1 - known:.2f}, found {1 - doubt:.2f} in {len(chosen)} patches of these; "
            f"give scans of the kind that it was trained on, or {OVERRULE}"
        )
    if missing:
        told(f"{spec.name}: the teacher never found {', '.join(missing)} in {len(chosen)} patches that were looked at")


def _found(answers: Sequence[Array], output: Output) -> tuple[list[int], float]:
    """Voxels of each label, and the mean probability that the foreground is something else; 0 without any."""
    structures = [_is_structure(label, output) for label in output.labels]
    counts = np.zeros(len(output.labels), int)
    doubt, seen = 0.0, 0
    for scores in answers:
        won, likely = masks(scores, output), probabilities(scores, output)
        counts += won.reshape(len(won), -1).sum(1)
        foreground = won[structures]
        doubt += float((1 - likely[structures][foreground]).sum(dtype=np.float64))
        seen += int(foreground.sum())
    return counts.tolist(), doubt / max(seen, 1)


def _is_structure(label: Label, output: Output) -> bool:
    """Whether it is more than background: every region is, and every label that a mask shows."""
    return output.regions or label.value != 0


def value_faults(scans: Sequence[TrainingScan], spec: Spec) -> list[Fault]:
    """What is wrong with the values of each scan, a fault a channel at most."""
    found = []
    references = _references(spec)
    for number, expected in enumerate(expected_of(spec)):
        of_channel = [(scan, scan.values[number]) for scan in scans if number < len(scan.values)]
        own = [values[number] for values in references]
        ct_is_odd = _ct_is_odd(expected, [values for _, values in of_channel], own)
        for scan, values in of_channel:
            reason = reason_against(values, expected, own, ct_is_odd=ct_is_odd)
            if reason:
                found.append(Fault(scan.name, expected.channel, reason))
    return sorted(found, key=lambda fault: [scan.name for scan in scans].index(fault.scan))


def reason_against(
    values: Values, expected: Expected, references: Sequence[Values] = (), *, ct_is_odd: bool = False
) -> str:
    """Why a channel is far from what is expected of it, with the figures; empty where it is not.

    Args:
        values: of the channel.
        expected: of it.
        references: values of scans that the model is certified on.
        ct_is_odd: whether a CT is known to be something else than the model takes.
    """
    if values.is_constant:
        return f"expected a scan, found the value {values.lowest:g} in every voxel"
    if values.flat > FLAT or values.levels <= FEW_LEVELS:
        return (
            f"expected a scan, found what looks like a mask: {values.levels} different values of {values.lowest:g} to "
            f"{values.highest:g}, and {values.flat:.0%} of neighbouring voxels are equal"
        )
    if expected.hounsfield and _lacks_air_and_fat(values):
        return (
            f"expected CT in Hounsfield units ({expected.rule}), which has fat near -100 and air near -1000, found "
            f"{_in_words(values)}, {values.share(*HOUNSFIELD):.1%} of it between {HOUNSFIELD[0]:g} and "
            f"{HOUNSFIELD[1]:g}; CT of another unit lacks its slope and intercept"
        )
    if ct_is_odd and _looks_like_ct(values):
        return (
            f"expected no CT (channel {expected.channel}, {expected.rule}), found {_in_words(values)}, "
            f"{values.share(*AIR):.0%} of it between {AIR[0]:g} and {AIR[1]:g} as air in Hounsfield units has"
        )
    if expected.scale == FIXED:
        return _outside(values, expected)
    return _of_another_scale(values, references) if expected.scale == AS_IT_IS else ""


def _outside(values: Values, expected: Expected) -> str:
    """For a rule of a fixed scale. Air and fat have shown already that a CT has the right unit."""
    low, high = expected.low, expected.high
    wanted = f"expected values as of {expected.rule}"
    seen = values.foreground
    inside, above = ((seen >= low) & (seen <= high)).mean(), (seen > high).mean()
    if values.spread < min(NARROW * (high - low), NARROW_UNITS):
        return f"{wanted}, found {_in_words(values)}: a spread of {values.spread:g} where the rule spans {high - low:g}"
    if not expected.hounsfield and above > MOST_ABOVE * (inside + above):
        return f"{wanted}, found {_in_words(values)}: {above:.0%} of the foreground lie above {high:g}"
    if inside < LEAST_INSIDE:
        return f"{wanted}, found {_in_words(values)}: {inside:.1%} of the foreground lie within {low:g}..{high:g}"
    return ""


def _of_another_scale(values: Values, references: Sequence[Values]) -> str:
    if not references:
        return ""
    spreads = [reference.spread for reference in references]
    if min(spreads) / FACTOR <= values.spread <= max(spreads) * FACTOR:
        return ""
    return (
        f"expected values as in the scans of acceptance.scans, which spread over {min(spreads):g}..{max(spreads):g}, "
        f"because they go to the network as they are, found {_in_words(values)}"
    )


def _lacks_air_and_fat(values: Values) -> bool:
    if values.share(*HOUNSFIELD) >= LEAST_NEGATIVE:
        return False
    low, one, other, high = np.quantile(values.quantiles, (0.01, 0.25, 0.75, 0.99))
    is_soft = low >= SOFT_TISSUE[0] and high <= SOFT_TISSUE[1] and other - one < ONE_TISSUE * (high - low)
    return most_frequent(values.quantiles) is not None or not is_soft


def _looks_like_ct(values: Values) -> bool:
    return values.share(*AIR) >= MUCH_AIR and values.lowest <= AIR[1]


def _ct_is_odd(expected: Expected, found: Sequence[Values], references: Sequence[Values]) -> bool:
    """Whether a CT would be another kind of scan: by the spec, by the scans of the certificate, or by most others."""
    if expected.hounsfield is not None:
        return not expected.hounsfield
    if references:
        return not any(map(_looks_like_ct, references))
    return 2 * sum(map(_looks_like_ct, found)) < len(found)


def _references(spec: Spec) -> list[list[Values]]:
    """The values of the scans that the model is certified on; those of nnU-Net are normalised already."""
    if spec.nnunet is not None:
        return []
    found = []
    for files in spec.acceptance.scans:
        try:
            data = open_scan(list(files), spec.input.channels).data
        except VoxtileError:
            continue  # the build says so
        found.append([values_of(channel) for channel in data])
    return found


def _in_words(values: Values) -> str:
    low, middle, high = np.quantile(values.foreground, (0.01, 0.5, 0.99))
    return f"{low:.4g} to {high:.4g} (half below {middle:.4g})"
