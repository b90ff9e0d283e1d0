"""Reads a table of text: separators and encodings that spreadsheets write, or one line that says what is wrong.

Knows nothing of what the columns mean.
"""

from __future__ import annotations

import codecs
import csv
import io
from dataclasses import dataclass
from pathlib import Path

from voxtile.errors import InputError

SEPARATORS = (",", ";", "\t")
LARGEST_BYTES = 256 << 20
"""Of a table; a million cases have less."""

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with that of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""What a file begins with, and its encoding; without a mark it is UTF-8."""


@dataclass(frozen=True)
class Table:
    """The cells of a table.

    Attributes:
        head: the cells of the first row.
        rows: the other rows that are not empty, each with its number in a spreadsheet; the first row is 1.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]


def read_table(data: bytes, name: str, first_column: str) -> Table:
    """Reads a table.

    Args:
        data: the content of its file.
        name: what messages call it.
        first_column: a column that it has; it tells the separator.

    Raises:
        InputError: it is no such table; the message says in which row.
    """
    text = _decoded(data, name)
    if not text.strip():
        raise InputError(f"{name}: expected a table whose first row names its columns, found an empty file")
    if "\0" in text:
        raise InputError(f"{name}: expected a table in UTF-8, found what is no text; save it as CSV in UTF-8")
    separator = _separator(text, first_column)
    if separator is None:
        first = text.splitlines()[0][:100]
        raise InputError(
            f"{name}: row 1: expected the names of columns, {first_column!r} among them, between commas, semicolons "
            f"or tabs, found {first!r}"
        )
    head, *rows = _parsed(text, separator, name)
    return Table(_without_empty_end(head), tuple((n, cells) for n, cells in enumerate(rows, 2) if any(cells)))


def read_bytes(path: Path) -> bytes:
    """The content of a table's file. Raises InputError."""
    try:
        if path.is_dir():
            raise InputError(f"{path}: expected a table (CSV), found a folder; make one of it with voxtile manifest")
        if path.stat().st_size > LARGEST_BYTES:
            raise InputError(
                f"{path}: expected a table (CSV) of at most {LARGEST_BYTES >> 20} MiB, found a larger file"
            )
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: the table cannot be read ({error.strerror or error})") from None


def _decoded(data: bytes, name: str) -> str:
    encoding = next((encoding for mark, encoding in MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{name}: row {row}: expected text in UTF-8, found the byte 0x{data[error.start]:02x}; save it so"
        ) from None


def _separator(text: str, column: str) -> str | None:
    """The separator with which the first row has the column; of several, that of the most columns."""
    found = []
    for separator in SEPARATORS:
        try:
            head = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])
        except csv.Error:
            continue
        if column in (cell.strip().casefold() for cell in head):
            found.append((len(head), separator))
    return max(found)[1] if found else None


def _parsed(text: str, separator: str, name: str) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    try:
        for cells in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True):
            rows.append(tuple(cells))
    except csv.Error as error:
        raise InputError(
            f"{name}: row {len(rows) + 1}: expected cells, in quotes where they hold quotes, found another form "
            f"({error}); is a quote open?"
        ) from None
    return rows


def _without_empty_end(cells: tuple[str, ...]) -> tuple[str, ...]:
    """Without the empty cells at the end, which spreadsheets add."""
    count = max((place for place, cell in enumerate(cells, 1) if cell.strip()), default=0)
    return tuple(cell.strip() for cell in cells[:count])
