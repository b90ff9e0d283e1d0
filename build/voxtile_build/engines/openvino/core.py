"""OpenVINO's core, one for the process."""

from __future__ import annotations

import functools
import os

import openvino as ov


def core() -> ov.Core:
    """The core of this process; a child that was forked has its own.

    One, because of a fault of OpenVINO 2026.4: while a core that has compiled something lives, the thread that compiled
    has a stack for signals that belongs to it. Of two cores that do not end in the reverse order of their beginning,
    the last one leaves the thread with the stack of one that is gone. Then the next signal, such as Ctrl-C, is a
    segmentation fault.
    """
    return _core_of(os.getpid())


@functools.cache
def _core_of(process: int) -> ov.Core:
    return ov.Core()
