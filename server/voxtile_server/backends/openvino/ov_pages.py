"""Gives memory back that compiling a model leaves behind: its weights file, mapped and repacked, and what was freed."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

MAPS = Path("/proc/self/maps")
# Linux's own number; `mmap.MADV_DONTNEED` is for mappings that Python made.
DONTNEED = 4


def forget_pages(file: Path) -> int:
    """Drop this process's resident pages of `file` where they are mapped read-only; returns how many bytes of mappings.

    Whoever reads them again gets them from the file, so that nothing can be lost; 0 where the system has no such maps.
    """
    libc = ctypes.CDLL(None)
    done = 0
    for first, last in _read_only(str(file.resolve())):
        if libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), DONTNEED) == 0:
            done += last - first
    return done


def return_freed() -> None:
    """Returns to the system what this process has freed and glibc keeps, in holes between what is in use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # another C library has none
        trim(ctypes.c_size_t(0))


def _read_only(path: str) -> Iterator[tuple[int, int]]:
    """First and last address of each of the file's mappings that cannot be written to: `first-last r--s … path`."""
    if not MAPS.exists():
        return
    for line in MAPS.read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == path and fields[1].startswith("r-"):
            first, last = (int(address, 16) for address in fields[0].split("-"))
            yield first, last
