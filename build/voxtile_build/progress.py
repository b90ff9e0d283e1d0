"""How a build reports what it is doing. Knows neither terminals nor what is built."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

from voxtile_build.arrays import Array, Feed, Runner

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


def counted(run: Runner, total: int) -> Runner:
    """The same runner; after each run it tells which share of `total` tiles it has been given so far."""
    done, tell = 0, teller()

    def running(feed: Feed) -> Array:
        nonlocal done
        scores = run(feed)
        done += len(feed["roi"])
        tell(min(done / total, 1.0))
        return scores

    return running
