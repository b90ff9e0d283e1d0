"""The sizes of a run: full on a GPU, tiny for the rehearsal. Knows nothing of stages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Choice = TypeVar("Choice")
Row = dict[str, Any]
"""One measured line. One that failed has `error`, in one line."""
Known = dict[str, list[Row]]
"""The rows of the stages that have run, by the name of the stage."""

LONGEST_ERROR = 300
"""Characters of an error: the first line of most says what is wrong."""


@dataclass(frozen=True)
class Settings:
    """One run."""

    device: str  # "cuda" or "cpu"
    work: Path  # folder of weights, compiled packages and scans, which later stages take from earlier ones
    tiny: bool = False  # the rehearsal: sizes at which only the program is tested

    @property
    def batches(self) -> tuple[int, ...]:
        """Tiles in one call."""
        return self.pick((1, 2, 4, 8, 16), (1, 2))

    @property
    def scores(self) -> int:
        """Labels that a network tells apart, background included."""
        return self.pick(14, 3)

    @property
    def scan_shape(self) -> tuple[int, int, int]:
        """Voxels of the scan, (x, y, z)."""
        return self.pick((512, 512, 300), (28, 24, 20))

    @property
    def seconds(self) -> float:
        """Seconds for the repetitions of one timing."""
        return self.pick(0.7, 0.02)

    def pick(self, full: Choice, tiny: Choice) -> Choice:
        """Returns the value for the size of this run."""
        return tiny if self.tiny else full


def in_one_line(error: BaseException) -> str:
    """Returns the kind of an error and the first line of its text."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"[:LONGEST_ERROR].removesuffix(": ")
