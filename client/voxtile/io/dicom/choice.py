"""Says which series of several a scan is, and what is done where its slices form no plain grid.

Knows nothing of files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from voxtile.errors import InputError

Gaps = Literal["refuse", "fill"]
Tilt = Literal["refuse", "straighten"]


@dataclass(frozen=True)
class SeriesChoice:
    """What is said of DICOM beside what its objects say.

    Attributes:
        series: which series, by its number or its UID (SeriesInstanceUID); "3:2" is the second stack of series 3. Of a
            model with several channels, one for each, in their order. None for the one with the most slices.
        modality: only series of this modality, such as "CT".
        description: only series whose description matches this pattern, such as "*venous*", in capitals or not.
        gaps: whether slices that are missing are filled in between their neighbours, or the scan is refused.
        tilt: whether what a tilted gantry sheared is straightened, or the scan is refused.

    Raises:
        InputError: a value that is not among those.
    """

    series: tuple[str, ...] = ()
    modality: str | None = None
    description: str | None = None
    gaps: Gaps = "refuse"
    tilt: Tilt = "refuse"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("gaps", self.gaps, ("refuse", "fill")),
            ("tilt", self.tilt, ("refuse", "straighten")),
        ):
            if value not in known:
                raise InputError(f"expected {' or '.join(known)} for --{name}, found {value!r}")

    @property
    def in_words(self) -> list[str]:
        """What is said, in words; neither a UID nor a description, which may name a patient."""
        said = ["series as asked for"] if self.series or self.modality or self.description else []
        said += [f"gaps {self.gaps}"] if self.gaps != "refuse" else []
        return said + ([f"tilt {self.tilt}"] if self.tilt != "refuse" else [])


ANY_SERIES = SeriesChoice()
