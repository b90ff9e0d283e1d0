"""Writes a spec as the TOML file that reads back as an equal spec, with a comment for each key.

What a key means is taken from the classes of the spec, so the comments say what the refusals say.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import tomlkit
import tomllib
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Comment, Item, Trivia

from voxtile_build.errors import SpecError
from voxtile_build.spec.plain import JsonText, fields_of, key_of, models_in, plain_table, plain_value
from voxtile_build.spec.spec import Spec, parse_spec, with_files_in

COLUMNS = 100
"""Width that comments are wrapped to, and beyond which a list of texts has a line for each."""
OFF = "#"
"""In front of a key without a space, it means that the key would be valid there; comments in words have a space."""


@dataclass(frozen=True)
class Remarks:
    """What a file says besides the keys of its spec.

    Attributes:
        head: comments above everything; a line that begins with # already is a key that is switched off.
        before: the same above a table, by the table's name.
        whole: tables whose other keys are shown too, as comments with their defaults.
    """

    head: Sequence[str] = ()
    before: Mapping[str, Sequence[str]] = field(default_factory=dict)
    whole: Collection[str] = ()


def write_spec(spec: Spec, path: Path, remarks: Remarks | None = None) -> None:
    """Write `spec` as the new file `path`.

    Raises:
        SpecError: there is such a file already, it cannot be written, or TOML cannot say a value.
    """
    content = spec_to_toml(spec, path.resolve().parent, remarks).encode()
    check_new(path)
    try:
        with path.open("xb") as stream:
            try:
                stream.write(content)
                stream.flush()
            except OSError:
                with suppress(OSError):
                    path.unlink()
                raise
    except OSError as error:
        raise SpecError(f"{path}: cannot be written ({error.strerror or error})") from None


def check_new(path: Path) -> None:
    """Refuse the name of a file that exists, or that no file can have.

    Raises:
        SpecError: says which.
    """
    if path.is_symlink() or path.exists():
        raise SpecError(f"{path}: expected the name of a new file, found one that exists; choose another name")
    if not path.parent.is_dir():
        raise SpecError(f"{path}: expected a folder {path.parent} to write into, found none; make it first")


def spec_to_toml(spec: Spec, folder: Path, remarks: Remarks | None = None) -> str:
    """The TOML text of `spec`. Keys with their default are left out.

    Args:
        spec: the spec; relative file names in it are those of the working directory.
        folder: of the file, as an absolute path; files below it are named relative to it.
        remarks: what the file says besides.

    Raises:
        SpecError: TOML cannot say a value, such as a file name that is no Unicode.
    """
    spec = with_files_in(spec, Path.cwd())
    try:
        text = tomlkit.dumps(_document(plain_table(spec, folder), remarks or Remarks()))
        text.encode()
    except (TOMLKitError, UnicodeEncodeError, ValueError) as error:
        raise SpecError(f"{spec.name}: cannot be written as TOML: {error}") from None
    if parse_spec(tomllib.loads(text), spec.name, folder) != spec:
        raise SpecError(f"{spec.name}: cannot be written as TOML: it would read back as another spec")
    return text.lstrip("\n")


class _Lines(Protocol):
    """A document or a table: what lines are added to."""

    def add(self, key: Any, item: Any = None, /) -> Any:
        """Add a key with its value, or a line without a key."""


def _document(values: Mapping[str, Any], remarks: Remarks) -> tomlkit.TOMLDocument:
    document = tomlkit.document()
    _comment(document, remarks.head)
    tables = [key for key, value in values.items() if isinstance(value, Mapping) or _is_tables(value)]
    _add_keys(document, Spec, values, tables, whole=False)
    for name, info in fields_of(Spec):
        key = key_of(name, info)
        if key not in tables and not (key in remarks.whole and _may_be_empty(info)):
            continue
        document.add(tomlkit.nl())
        _comment(document, remarks.before.get(key, ()))
        value = values.get(key, {})
        document.add(key, _tables(value) if isinstance(value, list) else _table(info, value, key in remarks.whole))
    return document


def _may_be_empty(info: FieldInfo) -> bool:
    return not any(inner.is_required() for model in models_in(info.annotation) for _, inner in fields_of(model))


def _add_keys(
    lines: _Lines, model: type[BaseModel] | None, values: Mapping[str, Any], tables: Collection[str], whole: bool
) -> None:
    """Add all keys but `tables`, which come later: TOML has no way back from a table to the keys of the one around."""
    known = {key_of(name, info): info for name, info in fields_of(model)} if model else {}
    for key in dict.fromkeys((*known, *values)):
        if key in values and key not in tables:
            _comment(lines, _meaning(known.get(key)))
            lines.add(key, _item(values[key]))
        elif key not in values and whole:
            _comment(lines, _left_out(key, known[key]))


def _table(info: FieldInfo, values: Mapping[str, Any], whole: bool) -> tomlkit.items.Table:
    """A table, with the tables in it as tables of their own; below those, values stand on one line."""
    table = tomlkit.table()
    tables = [key for key, value in values.items() if isinstance(value, Mapping)]
    _add_keys(table, next(iter(models_in(info.annotation)), None), values, tables, whole)
    for key in tables:
        inner = tomlkit.table()
        for name, value in values[key].items():
            inner.add(name, _item(value))
        table.add(key, inner)
    return table


def _tables(values: Sequence[Mapping[str, Any]]) -> tomlkit.items.AoT:
    tables = tomlkit.aot()
    for one in values:
        table = tomlkit.table()
        for key, value in one.items():
            table.add(key, _item(value))
        tables.append(table)
    return tables


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, Mapping) for one in value)


def _item(value: Any) -> Item:
    if isinstance(value, JsonText):
        return tomlkit.string(value, literal=True, multiline=True)
    if isinstance(value, Mapping):
        table = tomlkit.inline_table()
        for key, one in value.items():
            table.add(key, _item(one))
        return table
    if isinstance(value, list):
        array = tomlkit.array()
        for one in value:
            array.append(_item(one))
        if len(array.as_string()) > COLUMNS and all(isinstance(one, str) for one in value):
            array.multiline(True)
        return array
    item: Item = tomlkit.item(value)
    return item


def _comment(lines: _Lines, texts: Iterable[str]) -> None:
    for text in texts:
        mark = "" if text.startswith(OFF) else f"{OFF} "
        lines.add(Comment(Trivia(comment=f"{mark}{text}")) if text else tomlkit.nl())


def _meaning(info: FieldInfo | None) -> list[str]:
    return textwrap.wrap(info.description, COLUMNS) if info and info.description else []


def _left_out(key: str, info: FieldInfo) -> list[str]:
    """The lines of a key that has its default; none for a table."""
    value = plain_value(info.get_default(call_default_factory=True), Path("/"))
    if isinstance(value, Mapping):
        return []
    return [*_meaning(info), f"{OFF}{key} =" if value is None else f"{OFF}{key} = {_item(value).as_string()}"]
