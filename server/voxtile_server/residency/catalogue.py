"""What a repository on disk offers: its public entries, and the engines behind them. Knows nothing of Triton."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Offer:
    """A public entry of the repository.

    Attributes:
        name: its name.
        version: its newest version.
        card: its card, as the entry has it.
    """

    name: str
    version: str
    card: str


Stamp = tuple[int, int, int]
"""Tells a file from one that took its place, without opening it: its number, its time in ns, its bytes."""


class Catalogue:
    """The entries of a repository, read anew with each question: a build may add one meanwhile.

    Args:
        folder: the repository.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def offers(self) -> list[Offer]:
        """The public entries, by name; one that cannot be read is left out, and Triton says why if it is asked for."""
        found = (self.offer(entry.name) for entry in sorted(self._folder.iterdir()))
        return [offer for offer in found if offer is not None]

    def offer(self, name: str) -> Offer | None:
        """A public entry; None where there is none of that name. Engines behind public names carry no card."""
        config = self._config(name)
        if config is None or "card" not in config.parameters:
            return None
        versions = [int(one.name) for one in (self._folder / name).iterdir() if one.name.isdecimal()]
        return Offer(name, str(max(versions, default="")), config.parameters["card"].string_value)

    def has(self, name: str) -> bool:
        """Whether the repository has an entry of that name, be it whole or not; files beside entries are none."""
        return name in {entry.name for entry in self._folder.iterdir() if entry.is_dir()}

    def readable(self, name: str) -> bool:
        """Whether the entry's configuration can be read."""
        return self._config(name) is not None

    def stamp(self, name: str) -> Stamp | None:
        """The stamp of an entry's configuration; None where there is none. It changes with every change of it."""
        try:
            found = (self._folder / name / "config.pbtxt").stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def engines(self, name: str) -> frozenset[str]:
        """The entries that an entry needs, and those that they need."""
        return frozenset(self._steps(name, set()))

    def _steps(self, name: str, seen: set[str]) -> Iterator[str]:
        config = self._config(name)
        for step in [] if config is None else config.ensemble_scheduling.step:
            if step.model_name not in seen:
                seen.add(step.model_name)
                yield step.model_name
                yield from self._steps(step.model_name, seen)

    def _config(self, name: str) -> Any:  # a ModelConfig, of protobuf, which has no types
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2

        if not self.has(name):  # a name may not lead out of the repository
            return None
        try:
            text = (self._folder / name / "config.pbtxt").read_text(encoding="utf-8")
            return text_format.Parse(text, model_config_pb2.ModelConfig())
        except (OSError, UnicodeDecodeError, text_format.ParseError):
            return None
