"""Unpacks and packs files: gzip, bzip2, xz and Zstandard, told by their first bytes and not by their names.

Nothing is unpacked further than it is asked for. Knows nothing of what is in a file.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from voxtile.errors import InputError, MissingExtraError

READ_BYTES = 1 << 20
"""Bytes read, or unpacked, at a time."""

TRAILING_BYTES = 1 << 26
"""How far a packed stream is read beyond the voxels, to reach the checksum at its end."""

GZIP_LEVEL = 1
"""Masks are runs of equal bytes: with run lengths alone (Z_RLE), this level packs them smaller than level 3 does."""

AGAIN = "fetch or write the file again"
"""What to do with a file that is cut off or damaged."""

NO_MEMBER = "Not a gzipped file"
"""How Python's gzip begins its message where another member should begin and something else does."""


@dataclass(frozen=True)
class Packing:
    """A way to pack a file.

    Attributes:
        name: what messages call it.
        ending: how names of such files end.
        magic: their first bytes.
        limit: the most bytes that one byte can become.
        open: unpacks a stream.
        packer: packs a stream; its argument says whether the content is labels, which are runs of equal bytes.
        errors: what unpacking raises on a damaged stream.
    """

    name: str
    ending: str
    magic: bytes
    limit: int
    open: Callable[[IO[bytes]], Any]
    packer: Callable[[bool], Any]
    errors: Callable[[], tuple[type[Exception], ...]]


def _gzip_packer(labels: bool) -> Any:
    """A gzip stream without a time or a name in it, so that equal masks are equal files."""
    strategy = zlib.Z_RLE if labels else zlib.Z_DEFAULT_STRATEGY
    return zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31, zlib.DEF_MEM_LEVEL, strategy)


def _zstd() -> Any:
    """Python's own module from 3.14 on; before, the same module as a package of its own."""
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        try:
            from backports import zstd
        except ImportError:
            raise MissingExtraError(
                "a Zstandard file needs backports.zstd, which is not installed: pip install 'voxtile[formats]'"
            ) from None
    return zstd


def _zstd_packer(_: bool) -> Any:
    """A Zstandard stream with a checksum, as the other packings have one."""
    zstd = _zstd()
    return zstd.ZstdCompressor(options={zstd.CompressionParameter.checksum_flag: 1})


def _gzip_file(file: IO[bytes]) -> Any:
    return gzip.GzipFile(fileobj=file, mode="rb")


GZIP = Packing("gzip", ".gz", b"\x1f\x8b", 1032, _gzip_file, _gzip_packer, lambda: (zlib.error, gzip.BadGzipFile))
"""Deflate never turns one byte into more than 1032 (zlib's technical notes); gzip adds to that, never less."""

BZIP2 = Packing("bzip2", ".bz2", b"BZh", 2_000_000, bz2.BZ2File, lambda _: bz2.BZ2Compressor(), lambda: (OSError,))
"""A block of 900 kB holds run lengths, five bytes for 255 equal ones, and takes no less than 30 bytes itself."""

XZ = Packing(
    "xz", ".xz", b"\xfd7zXZ\0", 8000, lzma.LZMAFile, lambda _: lzma.LZMACompressor(), lambda: (lzma.LZMAError,)
)
"""A match of 273 bytes takes no less than a third of a bit; measured on zeros: 6,850."""

ZSTD = Packing(
    "Zstandard",
    ".zst",
    b"\x28\xb5\x2f\xfd",
    1 << 15,
    lambda file: _zstd().ZstdFile(file),
    _zstd_packer,
    lambda: (_zstd().ZstdError,),
)
"""A block of equal bytes takes four bytes and stands for 128 KiB at most."""

PACKINGS = (GZIP, BZIP2, XZ, ZSTD)

MAGIC_BYTES = max(len(one.magic) for one in PACKINGS)


def packing_of(first: bytes) -> Packing | None:
    """The packing of a file that begins with these bytes; None for a plain one."""
    return next((one for one in PACKINGS if first.startswith(one.magic)), None)


def packing_for(name: str) -> Packing | None:
    """The packing that the ending of a name asks for; None for a plain file."""
    return next((one for one in PACKINGS if name.lower().endswith(one.ending)), None)


def check_packing(path: Path) -> None:
    """Raises MissingExtraError where what packs a file of this name is not installed."""
    if packing_for(path.name) is ZSTD:
        _zstd()


def packed(pieces: Iterator[bytes | memoryview], packing: Packing, *, labels: bool) -> Iterator[bytes | memoryview]:
    """Yields the stream of `pieces`, packed."""
    packer = packing.packer(labels)
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()


@contextmanager
def unpacked(file: IO[bytes], packing: Packing | None, name: str) -> Iterator[IO[bytes]]:
    """Yields the unpacked stream of a file; what goes wrong in unpacking, in the block too, is one error.

    Raises:
        InputError: the stream is cut off or damaged.
        MissingExtraError: it needs a package that is not installed.
    """
    if packing is None:
        yield file
        return
    try:
        with packing.open(file) as stream:
            yield stream
    except EOFError:
        cut_off = f"truncated {packing.name}: the file ends before the compressed stream does"
        raise InputError(f"{name}: {cut_off}; {AGAIN}") from None
    except packing.errors() as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the file itself cannot be read
        raise InputError(f"{name}: damaged {packing.name} stream ({error}); {AGAIN}") from None


def first_bytes(stream: IO[bytes], most: int) -> bytes:
    """Returns up to `most` bytes from the beginning of an unpacked stream; other bytes behind it do no harm."""
    found, source = b"", cast("io.BufferedReader", stream)
    try:
        while len(found) < most and (chunk := source.read1(most - len(found))):
            found += chunk
    except EOFError:  # what is there may be enough to tell; whoever reads on is told that the rest is missing
        if not found:
            raise
    except gzip.BadGzipFile as error:
        if not str(error).startswith(NO_MEMBER) or not found:
            raise
    return found


def ends_in_other_bytes(stream: IO[bytes]) -> bool:
    """Reads on to the end of an unpacked stream, where its checksum is verified; not beyond TRAILING_BYTES.

    Returns:
        Whether bytes follow a gzip stream that are neither another member nor padding with zeros. bzip2 and xz skip
        such bytes without a word.
    """
    try:
        for _ in range(TRAILING_BYTES // READ_BYTES):
            if not stream.read(READ_BYTES):
                break
    except gzip.BadGzipFile as error:
        if str(error).startswith(NO_MEMBER):
            return True
        raise
    return False


class ZlibStream(io.RawIOBase):
    """Reads a zlib or gzip stream of one member, without unpacking more than it is asked for."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: zlib or gzip, told by its first bytes

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        view = memoryview(target).cast("B")
        while len(view) and not self._unpacker.eof:
            data = self._unpacker.unconsumed_tail or self._file.read(READ_BYTES)
            got = self._unpacker.decompress(data, len(view))
            if got:
                view[: len(got)] = got
                return len(got)
            if not data:
                raise EOFError
        return 0
