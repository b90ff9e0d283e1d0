"""The result of verifying one entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Verdict:
    """Whether an entry is what its certificate says.

    Attributes:
        entry: its name.
        faults: what does not hold, a sentence each.
        metrics: what was measured; nothing where the files are not the certified ones.
        certified: the metrics of the certificate.
        unseen_labels: labels that the stored samples hardly show.
        device_kind: the kind of device that a server ran it on, `cpu` or `gpu`; empty if no server did.
        device: the name of that device.
    """

    entry: str
    faults: tuple[str, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    certified: Mapping[str, float] = field(default_factory=dict)
    unseen_labels: tuple[str, ...] = ()
    device_kind: str = ""
    device: str = ""

    @property
    def holds(self) -> bool:
        """Whether there are no faults."""
        return not self.faults

    def as_line(self) -> str:
        """The verdict in one line."""
        if not self.holds:
            return f"{self.entry}: does not hold: {'; '.join(self.faults)}"
        known = {name: f" (certified {value:g})" for name, value in self.certified.items()}
        shown = (f"{name} {value:g}{known.get(name, '')}" for name, value in self.metrics.items())
        place = f" (on {self.device})" if self.device else ""
        unseen = f"; labels hardly seen: {', '.join(self.unseen_labels)}" if self.unseen_labels else ""
        return f"{self.entry}: holds{': ' if self.metrics else ''}{', '.join(shown)}{place}{unseen}"
