"""Says what a file format is, and what a reader gets of a file: its content and its first bytes, unpacked.

Knows nothing of particular formats.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from voxtile.errors import InputError
from voxtile.io.formats.packing import MAGIC_BYTES, Packing, first_bytes, packing_of, unpacked
from voxtile.io.stored import Admit, Stored
from voxtile.io.volume import Volume

FIRST_BYTES = 4096
"""Bytes by which a format is told; the longest mark stands in the first few hundred."""


@dataclass(frozen=True)
class Content:
    """The content of a file, or bytes in memory.

    Attributes:
        name: what messages call it.
        size: its bytes as stored, packed ones where it is packed.
        packing: how it is packed; None for a plain file.
        first: its first bytes, unpacked; FIRST_BYTES at most.
        path: the file; None for bytes in memory.
        data: the bytes in memory; None for a file.
    """

    name: str
    size: int
    packing: Packing | None
    first: bytes
    path: Path | None = None
    data: bytes | None = field(default=None, repr=False)

    @classmethod
    def of_file(cls, path: Path, name: str | None = None) -> Content:
        """Looks at a file.

        Raises:
            InputError: it cannot be read, or is packed and damaged at its beginning.
        """
        with reading(str(path)), path.open("rb") as file:
            return cls._looked_at(file, path.stat().st_size, name or str(path), path, None)

    @classmethod
    def of_bytes(cls, data: bytes, name: str) -> Content:
        """Looks at bytes in memory; raises as `of_file` does."""
        return cls._looked_at(io.BytesIO(data), len(data), name, None, data)

    @classmethod
    def _looked_at(cls, file: IO[bytes], size: int, name: str, path: Path | None, data: bytes | None) -> Content:
        packing = packing_of(file.read(MAGIC_BYTES))
        file.seek(0)
        with unpacked(file, packing, name) as stream:
            return cls(name, size, packing, first_bytes(stream, FIRST_BYTES), path, data)

    @contextmanager
    def stream(self) -> Iterator[IO[bytes]]:
        """Yields the unpacked content from its beginning.

        Raises:
            InputError: it cannot be read, in the block too.
        """
        with reading(self.name), self._open() as file, unpacked(file, self.packing, self.name) as stream:
            yield stream

    @contextmanager
    def as_stored(self) -> Iterator[IO[bytes]]:
        """Yields the content from its beginning as it is stored, packed where it is; raises as `stream` does."""
        with reading(self.name), self._open() as file:
            yield file

    def beside(self, name: str) -> Content:
        """Looks at another file of the same folder; raises InputError where there is none, or only bytes in memory."""
        if self.path is None:
            raise InputError(
                f"{self.name}: expected the bytes of a whole scan, found those of a header whose voxels lie in another "
                f"file ({name}); give the path of the header"
            )
        path = self.path.with_name(name)
        if not path.is_file():
            raise InputError(
                f"{self.name}: expected the voxels in {path.name} beside it, found no such file; put it there"
            )
        return Content.of_file(path)

    def _open(self) -> IO[bytes]:
        return io.BytesIO(self.data or b"") if self.path is None else self.path.open("rb")


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Within the block, what the file system or the memory refuses is an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise InputError(f"{name}: its voxels do not fit into this machine's memory") from None


Pieces = Iterator[bytes | memoryview]
"""The bytes of a file that is written, piece by piece."""

Write = Callable[[Any, Volume | None, Path], Iterable[tuple[Path, Pieces]]]
"""Called as write(image, volume, path); gives each file and its bytes, the file of voxels before its header.

`image` is a nibabel NIfTI image of labels or scores on the scan's own grid. `volume` is the scan, whose `native` a
format repeats where it is its own; None for an image that belongs to no scan.
"""


def affine_to_write(image: Any, volume: Volume | None) -> NDArray[np.float64]:
    """Returns [4, 4] from voxels to RAS millimetres of a mask: its scan's, to float64, or else its own."""
    if volume is None:
        return np.asarray(image.affine, np.float64)
    return np.diag([volume.unit] * 3 + [1.0]) @ volume.affine


def _installed(_: Path) -> None:
    """Finds nothing missing."""


def _no_parts(_: Path) -> list[Path]:
    return []


@dataclass(frozen=True)
class FileFormat:
    """A format of files that hold a scan.

    Attributes:
        name: what messages call it.
        suffixes: how the names of its files end, in small letters.
        is_it: whether content is of this format, by its first bytes; its name counts where these leave a doubt.
        read: reads content. It calls the function that it is given with what the file's header claims, before it reads
            or allocates a voxel. Raises InputError, in one line, for whatever is no scan of this format.
        write: writes a mask; None where this format is only read.
        written: the suffixes that a mask may have.
        parts: the further files of a scan of which a file is the header; only those that exist.
        written_parts: the further files that are written with a mask of a name.
        check_installed: raises MissingExtraError, before any work, where a mask of a name needs what is not installed.
        part_suffixes: how the names of such files end; they are no scans of their own.
    """

    name: str
    suffixes: tuple[str, ...]
    is_it: Callable[[Content], bool]
    read: Callable[[Content, Admit], Stored]
    write: Write | None = None
    written: tuple[str, ...] = ()
    parts: Callable[[Path], list[Path]] = _no_parts
    written_parts: Callable[[Path], list[Path]] = _no_parts
    check_installed: Callable[[Path], None] = _installed
    part_suffixes: tuple[str, ...] = ()


def ends_in(name: str, suffixes: Iterable[str]) -> str:
    """The longest of `suffixes` that a name ends in, in capitals or not; empty where it ends in none."""
    low = name.lower()
    return max((suffix for suffix in suffixes if low.endswith(suffix)), key=len, default="")


def without_ending(name: str, suffixes: Iterable[str]) -> str:
    """A name without the longest of `suffixes` that it ends in."""
    return name[: len(name) - len(ends_in(name, suffixes))]
