"""A spec as the plain values that TOML knows: tables, arrays, texts, numbers. Knows no comments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from voxtile_build.spec.table import Table

TAGS = ("rule", "transform")
"""Keys that say which of several tables one is."""


class JsonText(str):
    """JSON of several lines without an apostrophe: it can stand in a literal text of TOML, where nothing is escaped."""


def plain_table(table: BaseModel, folder: Path) -> dict[str, Any]:
    """The keys of a table that do not have their default; reading them gives an equal table.

    Args:
        table: a spec, or a part of one.
        folder: of the file, as an absolute path; files below it are named relative to it.
    """
    said = {key_of(name, info): _said(table, name) for name, info in fields_of(table) if is_said(table, name, info)}
    return {key: plain_value(value, folder) for key, value in said.items() if value is not None}


def fields_of(table: BaseModel | type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    """The fields of a class by name, in order."""
    model = table if isinstance(table, type) else type(table)
    return list(model.model_fields.items())


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The classes of tables within the type of a key."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def key_of(name: str, info: FieldInfo) -> str:
    """What a field is called in a file."""
    return info.serialization_alias or name


def is_said(table: BaseModel, name: str, info: FieldInfo) -> bool:
    """Whether a key is written: it must be given, differs from its default, or says which of several tables this is."""
    return name in TAGS or info.is_required() or getattr(table, name) != info.get_default(call_default_factory=True)


def plain_value(value: Any, folder: Path) -> Any:
    """One value, as TOML knows it. A table that holds a null, which TOML has not, becomes JSON text."""
    if isinstance(value, BaseModel):
        return plain_table(value, folder)
    if isinstance(value, Path):
        return str(value.relative_to(folder) if value.is_relative_to(folder) else value)
    if isinstance(value, Mapping):
        return _as_json(value) if holds_null(value) else {key: plain_value(one, folder) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(one, folder) for one in value]
    return value


def holds_null(value: Any) -> bool:
    """Whether there is a null anywhere in a value of JSON."""
    if isinstance(value, Mapping):
        return any(holds_null(one) for one in value.values())
    return value is None or (isinstance(value, list | tuple) and any(holds_null(one) for one in value))


def _said(table: BaseModel, name: str) -> Any:
    return table.said(name) if isinstance(table, Table) else getattr(table, name)


def _as_json(value: Mapping[str, Any]) -> JsonText:
    return JsonText(json.dumps(value, indent=1).replace("'", "\\u0027") + "\n")
