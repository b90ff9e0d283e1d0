"""Keeps what pydicom and highdicom say of odd values to themselves: they repeat them, which may name a patient."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator

_LOCK = threading.Lock()
_inside = 0
_undo = contextlib.ExitStack()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Within the block, both neither warn nor log, and pydicom takes values as they are. Threads may share it."""
    global _inside, _undo
    with _LOCK:
        if _inside == 0:
            _undo = _silenced()
        _inside += 1
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if _inside == 0:
                _undo.close()


def _silenced() -> contextlib.ExitStack:
    """Silences both; closing what is returned undoes it."""
    from pydicom import config

    with contextlib.ExitStack() as undo:
        undo.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        undo.enter_context(config.disable_value_validation())
        for name in ("pydicom", "highdicom"):  # modules of both have loggers below these, which inherit the level
            logger = logging.getLogger(name)
            undo.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL + 1)
        return undo.pop_all()
