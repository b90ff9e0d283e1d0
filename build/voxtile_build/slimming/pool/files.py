"""Stores patches in two files, images and targets, one after the other. Knows neither scans nor teachers.

Patches are read, not mapped: a file that was cut short is then an error, and no signal that kills the process.
"""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voxtile_build.arrays import Array
from voxtile_build.errors import SlimmingError
from voxtile_build.slimming.pool.layout import Layout

IMAGES, TARGETS = "images.bin", "targets.bin"

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class PatchFiles:
    """The files of a pool.

    Attributes:
        folder: that they lie in.
        layout: of a patch.
    """

    folder: Path
    layout: Layout

    def write(self, patch: int, image: Array, target: Array) -> str:
        """Store a patch [channel, *roi] and its target [class, *roi]; returns the digest of their bytes.

        Raises:
            OSError: the disk is full or fails.
        """
        parts = image.astype(self.layout.image_dtype).tobytes(), target.astype(np.float16).tobytes()
        for name, part in zip((IMAGES, TARGETS), parts, strict=True):
            _put(self.folder / name, patch * len(part), part)
        return _digest(parts)

    def digest(self, patch: int) -> str | None:
        """Of what is stored of a patch; None where that is not all."""
        try:
            return _digest(self._parts(patch))
        except (OSError, EOFError):
            return None

    def read(self, patch: int) -> tuple[Array, Array]:
        """A patch [channel, *roi] and its target [class, *roi], as they are stored.

        Raises:
            OSError: it cannot be read.
            EOFError: the files end before it.
        """
        image, target = self._parts(patch)
        return (
            np.frombuffer(image, self.layout.image_dtype).reshape(self.layout.image),
            np.frombuffer(target, np.float16).reshape(self.layout.target),
        )

    def remove(self) -> None:
        """Remove the files."""
        for name in (IMAGES, TARGETS):
            (self.folder / name).unlink(missing_ok=True)

    def _parts(self, patch: int) -> tuple[bytes, bytes]:
        images, targets = self.layout.image_bytes, self.layout.target_bytes
        return (
            _get(self.folder / IMAGES, patch * images, images),
            _get(self.folder / TARGETS, patch * targets, targets),
        )


def unusable(folder: Path, error: OSError | EOFError) -> SlimmingError:
    """What a user is told of a pool that cannot be written or read."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return SlimmingError(
            f"{folder}: the disk is full ({error.strerror}); what is labelled stays: free some, and go on with --resume"
        )
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return SlimmingError(f"{folder}: the pool of patches cannot be used: {reason}; --resume makes it whole again")


def _digest(parts: tuple[bytes, bytes]) -> str:
    digest = hashlib.sha256(parts[0])
    digest.update(parts[1])
    return digest.hexdigest()


def _put(path: Path, offset: int, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        view = memoryview(content)
        while view:  # a disk that fills up takes a part
            written = os.pwrite(handle, view, offset)
            view, offset = view[written:], offset + written
    finally:
        os.close(handle)


def _get(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(offset)
        content = stream.read(size)
    if len(content) < size:
        raise EOFError(f"{path.name} ends after {offset + len(content)} bytes")
    return content
