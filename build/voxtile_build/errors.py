"""Every error that the build raises on purpose.

BuildError               exit code
├── SpecError            2   models/NAME.toml cannot be used
├── NetworkError         2   the network cannot be made, or does not fit the spec
├── WeightsError         2   the weights file cannot be used
├── SourceError          2   a trained model of another framework cannot be imported
├── ScanError            2   a scan for acceptance or calibration cannot be used
├── SlimmingError        2   a student cannot be made of this teacher, or not of these scans
├── RepositoryError      2   the model repository cannot be written, or does not hold what was asked for
├── ExportError          3   the network cannot be written as ONNX
├── EngineError          3   an engine cannot be made of the ONNX file, or does not run
│   └── ContainerNeeded      this machine lacks what builds the engine, and a container has it
├── VerificationError    1   an entry cannot be verified, or does not hold
└── AcceptanceError      4   an engine or a student violates a limit of the spec

A build of several engines publishes those that pass, and ends with the code of the first one that was refused (3 or 4).

Each message says what was expected, what was found, where, and what to do.
"""

from collections.abc import Sequence
from pathlib import Path

from voxtile.errors import shortened


class BuildError(Exception):
    """Base of all errors meant for the user; `exit_code` is what the command ends with."""

    exit_code = 2

    def __str__(self) -> str:
        return shortened(super().__str__())


class SpecError(BuildError):
    """models/NAME.toml cannot be used."""


class NetworkError(BuildError):
    """The network cannot be made, or does not fit the spec."""


class WeightsError(BuildError):
    """The weights file cannot be used."""


class SourceError(BuildError):
    """A trained model of another framework cannot be imported."""


class ScanError(BuildError):
    """A scan for acceptance or calibration cannot be used."""


class SlimmingError(BuildError):
    """A student cannot be made of this teacher, or not of these scans."""


class RepositoryError(BuildError):
    """The model repository cannot be written, or does not hold what was asked for."""


class ExportError(BuildError):
    """The network cannot be written as ONNX."""

    exit_code = 3


class EngineError(BuildError):
    """An engine cannot be made of the ONNX file, or does not run."""

    exit_code = 3


class ContainerNeeded(EngineError):
    """This machine lacks what builds the engine, and a container has it.

    Attributes:
        image: of the container.
        files: what the build reads.
        cache: of the variable VOXTILE_CACHE there: what the build keeps for the next one; None if it keeps nothing.
    """

    def __init__(self, message: str, image: str, files: Sequence[Path], cache: Path | None = None) -> None:
        super().__init__(message)
        self.image, self.files, self.cache = image, tuple(files), cache


class VerificationError(BuildError):
    """An entry cannot be verified, or is not what its certificate says."""

    exit_code = 1


class AcceptanceError(BuildError):
    """An engine or a student violates a limit of the spec, and is not published."""

    exit_code = 4


LONGEST_REASON = 300
"""Characters of another library's message; some quote a whole graph."""
TORCHSCRIPT = "The following operation failed in the TorchScript interpreter"


def reason_of(error: BaseException | None) -> str:
    """One line of what another library says: the first, or the last of TorchScript's, which begin with a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = lines[-1] if lines[0].startswith(TORCHSCRIPT) else lines[0]
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}…"
