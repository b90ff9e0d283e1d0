"""TensorRT's timing cache in a file: what earlier builds measured of the same layers on this kind of GPU.

The next build takes the same kernels without measuring them again, also where the network has new weights. Knows
nothing of plans.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from voxtile_build.cache import VARIABLE, cache_folder
from voxtile_build.engines.gpu import Gpu


def folder() -> Path:
    """Where the timings of all kinds of GPU lie."""
    return cache_folder() / "tensorrt"


def timings_file(gpu: Gpu, version: str) -> Path:
    """The file of one kind of GPU and one version of TensorRT: timings of others would choose other kernels."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{gpu.name} {gpu.architecture} {version}")
    return folder() / f"{name}.timings"


def attach(config: Any, file: Path) -> bool:
    """Gives a build the timings of earlier ones; returns whether there are any.

    A file that cannot be read, is damaged, or is of another GPU or version counts as none.

    Args:
        config: TensorRT's settings of the build.
        file: of `keep`.
    """
    try:
        stored = file.read_bytes()
    except OSError:
        stored = b""
    for content in dict.fromkeys((stored, b"")):
        cache = config.create_timing_cache(content)
        # False: refuse timings of another device.
        if cache is not None and config.set_timing_cache(cache, False):
            return bool(content)
    return False


def keep(config: Any, file: Path) -> tuple[str, ...]:
    """Keeps the timings of a build that has ended, with those that it was given, in place of `file`.

    Returns:
        A warning where it cannot be written.
    """
    cache = config.get_timing_cache()
    if cache is None:
        return ()
    # Renamed, so that no other build reads half of it. Of two builds at a time the later one's timings stay.
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(bytes(cache.serialize()))
        partial.replace(file)
    except OSError as error:
        return (
            f"the timings of this build cannot be kept in {file.parent} ({error.strerror}), so that the next build "
            f"takes as long; set {VARIABLE} to a folder that can be written",
        )
    return ()
