"""Histograms of what goes in and comes out, by model and certificate: label volumes, intensities, and how far these lie
from those that the certificate was measured on.

The number of series is bounded: labels of a model, channels, and certificates of a model that was replaced.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Histogram

from voxtile.card import Card, InputRange
from voxtile.io.intensities import InputStatistics
from voxtile.outputs.report import Report, names_by_value

ML = (0.0, *(value * 10.0**power for power in range(-2, 4) for value in (1, 3)))
"""Bounds of volumes: 0 for a structure that is not there, then from 0.01 ml to 30 litres in steps of about three."""

_UP = tuple(value * 10.0**power for power in range(-1, 4) for value in (1, 2, 5))
INTENSITIES = (*(-bound for bound in reversed(_UP)), 0.0, *_UP)
"""Bounds of intensities: 0.1 to 5000 on both sides of 0, since units are Hounsfield's, a scanner's, or none."""

DISTANCES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
FARTHEST = 1e6
"""Distances are cut here, so that one that has no end does not make their sum endless."""

FIGURES = tuple(InputStatistics.model_fields)

MOST_LABELS = 128
MOST_CHANNELS = 16
MOST_CERTIFICATES = 4
"""Of one model; the one that was unused for longest is forgotten first. Callers may ask for several versions by turns,
and a series that is forgotten and comes back counts from 0 each time."""

SHORT = 12
"""Characters of a digest that tell certificates apart."""


class Drift:
    """What the scans of a gateway look like over time. Several threads may use it.

    Args:
        registry: where the histograms are found.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        model = ["model", "certificate"]
        self._ml = Histogram(
            "voxtile_label_ml", "Volumes of structures in masks, in ml", [*model, "label"],
            buckets=ML, registry=registry,
        )  # fmt: skip
        self._input = Histogram(
            "voxtile_input", "Intensities of scans' bodies, as the model gets them", [*model, "channel", "statistic"],
            buckets=INTENSITIES, registry=registry,
        )  # fmt: skip
        self._distance = Histogram(
            "voxtile_input_distance", "How far they lie outside those that the certificate saw, in its deviations",
            [*model, "channel", "statistic"], buckets=DISTANCES, registry=registry,
        )  # fmt: skip
        self._known: dict[str, dict[str, set[tuple[Histogram, tuple[str, ...]]]]] = {}
        self._lock = threading.Lock()

    def saw(self, report: Report, card: Card) -> None:
        """A scan is segmented.

        Args:
            report: of the scan.
            card: of the model.
        """
        certificate = short(str(report.certificate.get("sha256", "")))
        ranges = {one.channel: one for one in inputs_of(card)}
        with self._lock:
            self._begin(report.model, certificate)
            for label in _structures(card)[:MOST_LABELS]:
                self._observe(self._ml, report.labels[label].ml, report.model, certificate, label)
            for channel, found in list(report.inputs.items())[:MOST_CHANNELS]:
                self._saw_channel((report.model, certificate, channel), found, ranges.get(channel))

    def _saw_channel(self, labels: tuple[str, str, str], found: InputStatistics, seen: InputRange | None) -> None:
        for figure in FIGURES:
            self._observe(self._input, getattr(found, figure), *labels, figure)
            if seen is not None:
                self._observe(self._distance, distance(figure, found, seen), *labels, figure)

    def _observe(self, histogram: Histogram, value: float, model: str, certificate: str, *labels: str) -> None:
        self._known[model][certificate].add((histogram, (model, certificate, *labels)))
        histogram.labels(model, certificate, *labels).observe(value)

    def _begin(self, model: str, certificate: str) -> None:
        """Makes the certificate the last one that was used, and room for it."""
        known = self._known.setdefault(model, {})
        known[certificate] = known.pop(certificate, set())
        while len(known) > MOST_CERTIFICATES:
            for histogram, labels in known.pop(next(iter(known))):
                histogram.remove(*labels)


def distance(figure: str, found: InputStatistics, seen: InputRange) -> float:
    """How far a figure of a scan lies outside what the certificate saw; 0 inside.

    Args:
        figure: `std` is compared as a ratio: 1 for twice the largest or half of the smallest. The others are compared
            in standard deviations of what the certificate saw.
        found: of the scan.
        seen: by the certificate.
    """
    value, (lowest, highest) = getattr(found, figure), getattr(seen, figure)
    if lowest <= value <= highest:
        return 0.0
    if figure == "std":  # a channel without any contrast may have been among those of the certificate
        nearest = lowest if value < lowest else highest
        apart = abs(math.log2(value / nearest)) if value > 0 < nearest else FARTHEST
    else:
        apart = max(lowest - value, value - highest) / (seen.std[1] or 1.0)
    return min(apart, FARTHEST)


def inputs_of(card: Card) -> Sequence[InputRange]:
    """What the certificate of the engine behind the public name saw."""
    certificate = card.certificates.get(card.engine)
    return () if certificate is None else certificate.inputs


def short(sha256: str) -> str:
    """What tells a certificate from others."""
    return sha256[:SHORT] or "none"


def _structures(card: Card) -> list[str]:
    """The labels of a mask without its background, as reports name them."""
    named: Mapping[int, list[str]] = names_by_value(card)
    return [" + ".join(names) for value, names in named.items() if value != 0]
