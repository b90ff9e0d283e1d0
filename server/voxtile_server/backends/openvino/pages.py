"""Gives memory back to the system that compiling a model leaves behind; knows nothing of OpenVINO."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

MAPS = Path("/proc/self/maps")
# Linux's own number; `mmap.MADV_DONTNEED` is for mappings that Python made.
DONTNEED = 4


def forget_pages(file: Path) -> int:
    """Drop this process's resident pages of a file where they are mapped read-only.

    A page that is read again comes from the file, so that nothing can be lost.

    Returns:
        The size of those mappings in bytes; 0 where the system has no /proc/self/maps.
    """
    libc = ctypes.CDLL(None)
    done = 0
    for first, last in _read_only(str(file.resolve())):
        if libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), DONTNEED) == 0:
            done += last - first
    return done


def return_freed() -> None:
    """Return to the system what this process has freed and glibc still keeps."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # only glibc has it
        trim(ctypes.c_size_t(0))


def _read_only(path: str) -> Iterator[tuple[int, int]]:
    """The first and the last address of each mapping of the file that cannot be written to."""
    if not MAPS.exists():
        return
    for line in MAPS.read_text().splitlines():
        fields = line.split(maxsplit=5)  # first-last r--s offset device inode path
        if len(fields) == 6 and fields[5] == path and fields[1].startswith("r-"):
            first, last = (int(address, 16) for address in fields[0].split("-"))
            yield first, last
