"""Says what an output beside the mask is: its option, what it needs, and how its file is checked and written.

Knows nothing of particular outputs; `voxtile.outputs.all` lists them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.chains.base import PreparedScan
from voxtile.errors import OutputError, VoxtileError
from voxtile.io.atomic import check_writable
from voxtile.io.volume import Volume
from voxtile.outputs.report import Report


@dataclass(frozen=True)
class Result:
    """What an output is made from.

    Attributes:
        volume: the scan.
        prepared: the scan on the model's grid; None for a set of models.
        card: the model's card.
        labels: [i, j, k] the labels on the scan's own grid.
        scores: [score, i, j, k] float32 on the scan's own grid, where an output needs them.
        report: what was done; None where nobody tells it.
        show_patient: whether an output may name the patient.
    """

    volume: Volume
    prepared: PreparedScan | None
    card: Card
    labels: NDArray[Any]
    scores: NDArray[np.float32] | None = None
    report: Report | None = None
    show_patient: bool = False


def _any_model(_: Card) -> None:
    """Accepts every model."""


@dataclass(frozen=True)
class Output:
    """One kind of file that can be written beside a mask.

    Attributes:
        name: the option of the commands, without its dashes.
        suffix: how the file's name ends.
        help: what the option's help says.
        write: writes the file, whole or not at all. Raises VoxtileError.
        check_model: raises VoxtileError, before any work, for a model that cannot have this output.
        needs_scores: whether it needs the scores on the scan's own grid.
        companions: the endings of further files that are written under the same name.
    """

    name: str
    suffix: str
    help: str
    write: Callable[[Result, Path], None]
    check_model: Callable[[Card], None] = _any_model
    needs_scores: bool = False
    companions: tuple[str, ...] = ()

    def check(self, path: Path) -> None:
        """Checks, before any work, that `path` can be written and has the right ending.

        Raises:
            OutputError: it has another ending, or the place cannot be written to.
        """
        for file in self.files(path):
            check_writable(file)

    def files(self, path: Path) -> list[Path]:
        """All files that are written where `path` is asked for: itself and its companions.

        Raises:
            OutputError: `path` has another ending.
        """
        stem = path.name.removesuffix(self.suffix)
        if stem in ("", path.name):
            raise OutputError(f"{path}: expected a name that ends in {self.suffix} for --{self.name}")
        return [path.with_name(stem + suffix) for suffix in (self.suffix, *self.companions)]

    def save(self, result: Result, path: Path) -> None:
        """Writes the file; whatever goes wrong in making it ends in one error that names the output.

        Raises:
            OutputError: it cannot be made or written.
            VoxtileError: what `write` itself says.
        """
        try:
            self.write(result, path)
        except VoxtileError:
            raise
        except Exception as error:  # a library's failure in drawing or packing must read as this output's
            raise OutputError(f"{path}: the file of --{self.name} could not be made: {error}") from error
