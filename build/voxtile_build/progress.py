"""How a build reports what it is doing. Knows neither terminals nor what is built."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

Step = Callable[[str], AbstractContextManager[None]]
"""Called with the name of a step; the context that it returns lasts as long as the step."""

Tell = Callable[[float], None]
"""Called, from any thread, with the share of the running step that is done."""

_teller: ContextVar[Tell] = ContextVar("teller", default=lambda _: None)


@contextmanager
def silent(_: str) -> Iterator[None]:
    """A step that reports nothing."""
    yield


@contextmanager
def listening(tell: Tell) -> Iterator[None]:
    """A step of which `tell` is told how far it is, where that can be known."""
    token = _teller.set(tell)
    try:
        yield
    finally:
        _teller.reset(token)


def teller() -> Tell:
    """Whom to tell how far the running step is; to be asked for in the thread of the step."""
    return _teller.get()
