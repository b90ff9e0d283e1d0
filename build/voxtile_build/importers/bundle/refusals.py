"""Collects every reason for which a bundle cannot be imported, so that a user reads all of them at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from voxtile_build.errors import BuildError, SourceError

LONGEST = 400
"""Letters of one reason, so that a list of 133 labels does not hide the others."""


class Refusals:
    """The reasons, in the order in which they were found.

    Args:
        where: names the bundle.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._found: list[BuildError] = []

    @contextmanager
    def collect(self) -> Iterator[None]:
        """An error inside is kept, and what comes after the block goes on."""
        try:
            yield
        except BuildError as error:
            if str(error) not in map(str, self._found):
                self._found.append(error)

    def __bool__(self) -> bool:
        return bool(self._found)

    def raise_all(self) -> None:
        """Raise what was found, if anything was: one reason as it is, several in one error with a line for each.

        Raises:
            BuildError: the reason.
            SourceError: the reasons.
        """
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            lines = [f"  {_short(str(error).removeprefix(f'{self._where}: '))}" for error in self._found]
            raise SourceError("\n".join([f"{self._where}: {len(lines)} parts of the bundle cannot be taken:", *lines]))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
