"""What one run of the benchmark is: its sections, its size, its device and its folders."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import voxtile_build
from voxtile_build.machine import versions

Choice = TypeVar("Choice")

SECTIONS = ("unet", "swinunetr", "nnunet", "transport", "resampling", "memory", "engines")
"""In the order in which they run. The most important ones come first, in case a run is cut off."""
QUICK_SECTIONS = tuple(name for name in SECTIONS if name not in ("swinunetr", "engines"))
"""The sections of a quick run. The other two take as long to build as all of these together."""


@dataclass(frozen=True)
class Settings:
    """One run of the benchmark."""

    out: Path  # of the results
    quick: bool = False  # small scans and few repetitions
    tiny: bool = False  # sizes at which only the program is tested; the figures then mean nothing
    device: str = "cpu"  # or "cuda": where the PyTorch rows run, and what the entries are built for
    with_compile: bool = False  # measure torch.compile too
    sections: tuple[str, ...] = SECTIONS
    left_out: list[dict[str, str]] = field(default_factory=list)  # what could not be measured, and why

    @property
    def data(self) -> Path:
        """The folder of scans, weights and nnU-Net folders; the next run uses them again."""
        return self._folder("data")

    @property
    def work(self) -> Path:
        """The folder of masks and logs."""
        return self._folder("work")

    @cached_property
    def repository(self) -> Path:
        """The model repository; a run of the same size, device, sources and versions uses its entries again."""
        digest = hashlib.sha256(repr((self.quick, self.tiny, self.device, versions())).encode())
        for package in (Path(__file__).parent, Path(voxtile_build.__file__).parent):
            for file in sorted(package.rglob("*.py")):
                digest.update(file.read_bytes())
        return self._folder(f"model_repository-{digest.hexdigest()[:8]}")

    @property
    def repetitions(self) -> int:
        """How often each way is run at most."""
        return self.pick(5, 3, 2)

    def pick(self, full: Choice, quick: Choice, tiny: Choice) -> Choice:
        """Returns the value for the size of this run."""
        return tiny if self.tiny else quick if self.quick else full

    def budget_s(self, full: float) -> float:
        """Returns the seconds for the repetitions of one table; a quick run takes an eighth of `full`."""
        return self.pick(full, full / 8, full / 8)

    def leave_out(self, where: str, what: str, why: str) -> None:
        """Records that a row is missing, and why; the run goes on."""
        why = " ".join(why.split())[:300]
        self.left_out.append({"where": where, "row": what, "reason": why})
        say(f"left out: {where}: {what}: {why}")

    def _folder(self, name: str) -> Path:
        path = self.out / name
        path.mkdir(parents=True, exist_ok=True)
        return path


def say(text: str) -> None:
    """Writes a line of progress to standard error."""
    sys.stderr.write(f"bench: {text}\n")
    sys.stderr.flush()
