"""Turns pydantic's errors for a spec into sentences with the path and the meaning of the key. Knows no key."""

from __future__ import annotations

import difflib
import typing
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

SHOWN = 20
"""Lines of an error at most: one list of a thousand wrong entries should not fill the screen."""


def explain(error: ValidationError, model: type[BaseModel], where: str) -> str:
    """A line for every fault: `FILE: key.path: what is wrong, what was found (what the key means)`.

    Args:
        error: pydantic's error.
        model: the class that was validated.
        where: names the file.
    """
    faults = [f"{where}: {_fault(details, model)}" for details in error.errors(include_url=False)]
    more = [f"{where}: {len(faults) - SHOWN} more faults"] if len(faults) > SHOWN else []
    return "\n".join([*faults[:SHOWN], *more])


def _fault(details: ErrorDetails, model: type[BaseModel]) -> str:
    path, parent, meaning = _walk(details["loc"], model)
    key = ".".join(path)
    if details["type"] == "extra_forbidden":
        return f"{key}: unknown key{_nearest(path[-1], parent)}; {_known(path[:-1], parent)}"
    if details["type"] == "missing":
        return f"{key}: missing{meaning}"
    message = details["msg"].removeprefix("Value error, ")
    found = "" if details["type"] == "value_error" else f", found {_short(details['input'])}"
    return f"{key + ': ' if key else ''}{message[0].lower() + message[1:]}{found}{meaning}"


def _walk(loc: tuple[int | str, ...], model: type[BaseModel]) -> tuple[list[str], type[BaseModel] | None, str]:
    """The path of the key, the class that the last key belongs to, and the meaning of the last known key."""
    path: list[str] = []
    here: list[type[BaseModel]] = [model]
    parent: type[BaseModel] | None = model
    meaning = ""
    for step in loc:
        tagged = [candidate for candidate in here if len(here) > 1 and step in _tags(candidate)]
        if tagged:
            here = parent_of = tagged
            parent = parent_of[0]
            continue
        fields = [candidate.model_fields[str(step)] for candidate in here if str(step) in candidate.model_fields]
        if isinstance(step, int):
            path[-1] += f"[{step}]"
        elif fields or here:
            parent = here[0] if here else None
            path.append(step)
        if fields:
            meaning = f" ({path[-1]}: {fields[0].description})"
            here = _models(fields[0].annotation)
        elif not isinstance(step, int):
            here = []
    return path, parent, meaning


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    rule = model.model_fields.get("rule")
    return typing.get_args(rule.annotation) if rule is not None else ()


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models(part)]


def _nearest(key: str, parent: type[BaseModel] | None) -> str:
    near = difflib.get_close_matches(key, parent.model_fields if parent else (), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _known(path: list[str], parent: type[BaseModel] | None) -> str:
    place = f"[{'.'.join(path)}]" if path else "the top of the file"
    return f"{place} takes {', '.join(parent.model_fields if parent else ())}"


def _short(value: Any) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)  # TOML knows arrays, not tuples
    return text if len(text) <= 60 else text[:57] + "…"
