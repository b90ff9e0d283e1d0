"""What one run of the benchmark is: how much of it, where to, on which device."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

SECTIONS = (
    "unet", "swinunetr", "nnunet", "transport", "parts", "resampling", "memory", "engines",
)  # fmt: skip
"""In the order in which they run: what cannot be had otherwise first, so that a run that is cut off still tells it."""
QUICK_SECTIONS = tuple(name for name in SECTIONS if name not in ("swinunetr", "engines"))
"""Of a quick run that names none: building for the other two takes as long as all of these."""


@dataclass(frozen=True)
class Settings:
    """out: folder of the results. quick: small scans and few repetitions. budgets in seconds of wall clock.

    device: of the PyTorch rows and, where it is "cuda", of the entries that are built. tiny: sizes at which the
    machinery itself is tested; its figures mean nothing.
    """

    out: Path
    quick: bool = False
    tiny: bool = False
    device: str = "cpu"
    with_compile: bool = False
    sections: tuple[str, ...] = SECTIONS
    left_out: list[dict[str, str]] = field(default_factory=list)

    @property
    def data(self) -> Path:
        """Scans, weights and model folders; kept from run to run."""
        return self._folder(self.out / "data")

    @property
    def work(self) -> Path:
        """Masks, logs and whatever else one run leaves behind."""
        return self._folder(self.out / "work")

    @property
    def repository(self) -> Path:
        return self._folder(self.out / "model_repository")

    @property
    def repetitions(self) -> int:
        return 2 if self.tiny else 3 if self.quick else 5

    def budget_s(self, full: float) -> float:
        """Seconds for the repetitions of one table; quick runs take an eighth."""
        return full / 8 if self.quick or self.tiny else full

    def leave_out(self, where: str, what: str, why: str) -> None:
        """Says that something is not in the tables, and why; the run goes on."""
        self.left_out.append({"where": where, "row": what, "reason": why})
        say(f"left out: {where}: {what}: {why}")

    @staticmethod
    def _folder(path: Path) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        return path


def say(text: str) -> None:
    """Progress, for whoever waits."""
    sys.stderr.write(f"bench: {text}\n")
    sys.stderr.flush()
