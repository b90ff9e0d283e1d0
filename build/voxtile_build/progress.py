"""How a build reports what it is doing. Knows neither terminals nor what is built."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Step = Callable[[str], AbstractContextManager[None]]
"""Called with the name of a step; the context that it returns lasts as long as the step."""


@contextmanager
def silent(_: str) -> Iterator[None]:
    """A step that reports nothing."""
    yield
