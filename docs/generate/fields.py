"""Reads the keys of pydantic classes: name, type in plain words, default, meaning. Knows no class in particular."""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from docs.generate.markdown import code, first_sentence, one_line, table

WORDS = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", Path: "file", Any: "any value"}
BOUNDS = {"gt": "above", "ge": "from", "lt": "below", "le": "to"}
LENGTHS = ("min_length", "max_length")
PLURALS = {"text": "texts", "whole number": "whole numbers", "number": "numbers", "file": "files", "table": "tables"}


@dataclass(frozen=True)
class Key:
    """One key of a table: its name, type, default ("" if it is required) and meaning."""

    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """The keys of one class.

    Attributes:
        path: Where the table stands, such as `input.intensity`; "" for the top.
        chosen: The key and value that choose this class among several, such as `rule = "zscore"`; "" if there is one.
        what: What the class is.
        keys: Its keys.
    """

    path: str
    chosen: str
    what: str
    keys: tuple[Key, ...]

    def as_markdown(self, title: str) -> str:
        """Returns a heading, what the class is, and a table of the keys."""
        rows = [(code(key.name), key.type, key.default or "required", key.meaning) for key in self.keys]
        blocks = [f"## {title}", self.what and f"{self.what}.", table(KEY_COLUMNS, rows)]
        return "\n\n".join(block for block in blocks if block)


TAGS = ("rule", "transform")
"""Keys that choose among several classes where the field does not say which one does: that of a list."""

KEY_COLUMNS = ("key", "type", "default", "meaning")


def sections_of(model: type[BaseModel], path: str = "", chosen: str = "") -> Iterator[Section]:
    """Yields a section for `model` and for each class that its keys hold, depth first."""
    yield Section(path, chosen, one_line(first_sentence(model.__doc__)), tuple(keys_of(model)))
    for name, field in model.model_fields.items():
        inner = [one for one in models_in(field.annotation) if one is not model]  # a report may hold reports
        for one in inner:
            place = f"{path}.{name}" if path else name
            yield from sections_of(one, place, _choice(one, field.discriminator) if len(inner) > 1 else "")


def keys_of(model: type[BaseModel]) -> Iterator[Key]:
    """Yields the keys of one class in order."""
    meanings = meanings_of(model)
    for name, field in model.model_fields.items():
        yield Key(name, type_of(field), default_of(field), meanings.get(name, ""))


def meanings_of(model: type[BaseModel]) -> dict[str, str]:
    """Returns the meaning of each key that has one.

    A meaning is the field's description; else its line in the class's `Attributes:`; else the text under the field;
    else the first sentence of the class that the field holds.
    """
    found: dict[str, str] = {}
    for name, field in model.model_fields.items():
        inner = models_in(field.annotation)
        if len(inner) == 1:
            found[name] = one_line(first_sentence(inner[0].__doc__))
    for base in reversed(model.__mro__):
        if base not in (BaseModel, object) and issubclass(base, BaseModel):
            found |= {name: one_line(text) for name, text in (_texts_under(base) | _attributes(base)).items()}
    described = {name: field.description for name, field in model.model_fields.items()}
    return found | {name: one_line(text) for name, text in described.items() if text}


def _attributes(model: type[BaseModel]) -> dict[str, str]:
    """Returns the entries of the docstring's section `Attributes:`, by name."""
    section = inspect.cleandoc(model.__dict__.get("__doc__") or "").partition("\nAttributes:\n")[2]
    entries = re.split(r"^    (?=\w+(?: \([^)]*\))?: )", section, flags=re.MULTILINE)
    pairs = (entry.partition(": ") for entry in entries if entry.strip())
    return {name.partition(" ")[0]: text for name, _, text in pairs}


def _texts_under(model: type[BaseModel]) -> dict[str, str]:
    """Returns the texts that stand under fields in the class's source, by name; none for a class without a source."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    except OSError:  # pydantic made it from a list of fields
        return {}
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: str(text.value.value)
        for field, text in zip(body.body, body.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Returns the pydantic classes within an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def _choice(model: type[BaseModel], discriminator: Any) -> str:
    """Returns the key and the value that choose `model` among the members of a union."""
    key = str(discriminator or next(name for name in TAGS if name in model.model_fields))
    return f"{key} = {json.dumps(get_args(model.model_fields[key].annotation)[0])}"


def default_of(field: FieldInfo) -> str:
    """Returns the default as TOML and JSON write it; "" if the key is required."""
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its defaults"
    if value is None or value == "":
        return "none"
    if value is PydanticUndefined or (not value and isinstance(value, tuple | dict | list)):
        return "empty"
    return code(json.dumps(value))


def type_of(field: FieldInfo) -> str:
    """Returns a field's type in plain words, with its bounds."""
    return _bounded(_words(field.annotation), tuple(field.metadata))


def _words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    if origin is Annotated:
        return _bounded(_words(arguments[0]), annotation.__metadata__)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(part) for part in arguments if part is not type(None)))
    if origin is Literal:
        return ", ".join(code(json.dumps(value)) for value in arguments)
    if origin in (tuple, list):
        return _list_of(arguments)
    if origin is dict:
        return "table"
    return WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _list_of(arguments: tuple[Any, ...]) -> str:
    if len(arguments) > 1 and arguments[-1] is not Ellipsis:
        return f"{len(arguments)} {_plural(_words(arguments[0]))}"
    return f"list of {_plural(_words(arguments[0]))}"


def _plural(words: str) -> str:
    first = next((one for one in sorted(PLURALS, key=len, reverse=True) if words.startswith(one)), "")
    return PLURALS[first] + words[len(first) :] if first else words.replace("list of", "lists of")


def _bounded(words: str, metadata: tuple[Any, ...]) -> str:
    """Returns `words` with the bounds of a number, or of the length of a list or text."""
    parts = [part for one in metadata for part in (one, *getattr(one, "metadata", ()))]
    keys = (*BOUNDS, *LENGTHS)
    bounds = {key: getattr(part, key) for part in parts for key in keys if getattr(part, key, None) is not None}
    said = [f"{word} {bounds[key]:g}" for key, word in BOUNDS.items() if key in bounds]
    length = [str(bounds[key]) for key in LENGTHS if bounds.get(key)]
    if len(length) == 2:
        said.append(f"({length[0]} to {length[1]})")
    return " ".join([words, ", ".join(said)]) if said else words
