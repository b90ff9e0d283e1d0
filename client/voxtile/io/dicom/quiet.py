"""Keeps what pydicom says of odd values to itself: its warnings and its log repeat them, which may name a patient."""

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
    """Within the block, pydicom neither warns nor logs, and takes values as they are. Several threads may be inside."""
    global _inside, _undo
    with _LOCK:
        _inside += 1
        if _inside == 1:
            _undo = _silenced()
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if _inside == 0:
                _undo.close()


def _silenced() -> contextlib.ExitStack:
    """Silences pydicom; closing what is returned undoes it."""
    from pydicom import config

    undo = contextlib.ExitStack()
    undo.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    undo.enter_context(config.disable_value_validation())
    logger = logging.getLogger("pydicom")
    undo.callback(setattr, logger, "disabled", logger.disabled)
    logger.disabled = True
    return undo
