"""Turns pydantic's errors for a spec into sentences with the path and the meaning of the key. Knows no key."""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from voxtile_build.spec.words import (
    AN_ARGUMENT,
    ANYWHERE,
    OF_A_STEP,
    OF_INPUT,
    OTHER_TRANSFORMS,
    PATTERNS,
    PLAIN,
)

SHOWN = 20
"""Lines of an error at most: one list of a thousand wrong entries should not fill the screen."""
MUCH_ALIKE = 0.8
"""From this likeness on, a key is taken for a slip of the pen: of a key of another table, of a word."""
STEP = re.compile(r"(preprocessing|postprocessing)\[(\d+)\]")
OF_STEPS, OF_INPUTS, OF_NETWORKS = "transform", "channels", "args"
"""Keys that only steps of a chain have, only [input], and only [network]."""


def explain(error: ValidationError, model: type[BaseModel], where: str, words: Mapping[str, str] | None = None) -> str:
    """A line for every fault: `FILE: key.path: what is wrong, what was found (what the key means)`.

    Args:
        error: pydantic's error.
        model: the class that was validated.
        where: names the file.
        words: for tables that the file calls by another name, that name.
    """
    found = [details for details in error.errors(include_url=False) if not _follows(details)]
    faults = list(dict.fromkeys(f"{where}: {_in_words(_fault(one, model), words or {})}" for one in found))
    more = [f"{where}: {len(faults) - SHOWN} more faults"] if len(faults) > SHOWN else []
    return "\n".join([*faults[:SHOWN], *more])


def _follows(details: ErrorDetails) -> bool:
    """Whether a fault follows from another one: a list counts as too short once its wrong entries are left out."""
    least = details.get("ctx", {}).get("min_length", 0)
    return details["type"] == "too_short" and len(details["input"]) >= least


def _in_words(fault: str, words: Mapping[str, str]) -> str:
    for name, other in words.items():
        fault = re.sub(rf"(?<![\w.])(\[?){name}(?=[.:\]])", rf"\g<1>{other}", fault)
    return fault


def _fault(details: ErrorDetails, model: type[BaseModel]) -> str:
    path, parent, meaning = _walk(details["loc"], model)
    key, place = _place(path), _place(path[:-1])
    if details["type"] == "union_tag_invalid":
        return f"{key}: {_wrong_tag(details['ctx'])}"
    if details["type"] == "union_tag_not_found":
        return f"{key}: expected the key {details['ctx']['discriminator']}, which says what it is, found none{meaning}"
    if details["type"] == "extra_forbidden":
        hint = _hint(path, parent, model)
        return f"{key}: unknown key{hint}; {_known(place, parent)}"
    if details["type"] == "missing" and not isinstance(details["loc"][-1], int):
        return f"{key}: missing{meaning}"
    if isinstance(details["input"], list | tuple) and details["type"] in ("missing", "too_long", "too_short"):
        key = key.rpartition("[")[0] if details["type"] == "missing" else key
        return f"{key}: {_wrong_count(details, model)}, found {_short(details['input'])}{meaning}"
    message = _message(details)
    if details["type"] in ("tuple_type", "list_type"):
        message = _wrong_list(details["input"], key, _field(details["loc"], model))
    if STEP.fullmatch(path[-1] if path else "") and not isinstance(details["input"], dict):
        message = 'expected a table with its transform, such as transform = "Orientation"'
    found = "" if details["type"] == "value_error" else f", found {_short(details['input'])}{_meant(details)}"
    if isinstance(details["input"], list | tuple) and OF_STEPS in _keys(parent):
        meaning += "; a chain is for the image alone: give its value alone"
    return f"{key + ': ' if key else ''}{message[0].lower() + message[1:]}{found}{meaning}"


def _message(details: ErrorDetails) -> str:
    """What is wrong, as a sentence without its end."""
    if details["type"] == "string_pattern_mismatch":
        return next((words for part, words in PATTERNS if part in details["ctx"]["pattern"]), details["msg"])
    return PLAIN.get(details["type"], details["msg"].removeprefix("Value error, "))


def _meant(details: ErrorDetails) -> str:
    """Which of several words a text may have meant; nothing where none is near."""
    if details["type"] != "literal_error" or not isinstance(details["input"], str):
        return ""
    known = {one.lower(): one for one in re.findall(r"'([^']*)'", details["ctx"]["expected"])}
    near = difflib.get_close_matches(details["input"].lower(), known, 1, MUCH_ALIKE)
    return f" (did you mean {known[near[0]]!r}?)" if near else ""


def _wrong_list(value: Any, key: str, info: FieldInfo | None) -> str:
    """What was expected in place of a value that is no list."""
    if isinstance(value, dict):
        return f"expected a [[{key}]] for each step, with two brackets"
    numbers = info is not None and not {int, float}.isdisjoint(_leaves(info.annotation))
    return (
        PLAIN["list_type"]
        if numbers or not isinstance(value, str)
        else f"expected a list, such as [{json.dumps(value)}]"
    )


def _leaves(annotation: Any) -> set[Any]:
    """The types that a type is made of."""
    return set().union(*map(_leaves, typing.get_args(annotation))) if typing.get_args(annotation) else {annotation}


def _place(path: Sequence[str]) -> str:
    """A path in words: a step of a chain by its number from 1, all else by its keys."""
    if not path:
        return ""
    step = STEP.fullmatch(path[0])
    if step is None:
        return ".".join(path)
    first = f"the {ordinal(int(step[2]) + 1)} [[{step[1]}]]"
    return f"{first}: {'.'.join(path[1:])}" if path[1:] else first


def ordinal(number: int) -> str:
    """A number as people count: 1st, 2nd, 3rd, 4th."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _wrong_count(details: ErrorDetails, model: type[BaseModel]) -> str:
    """How many values were expected of a list."""
    loc = details["loc"][:-1] if details["type"] == "missing" else details["loc"]
    least, most = _counts(_field(loc, model))
    if details["type"] == "missing":  # pydantic names the first one that is missing
        least = max(least, len(details["input"]) + 1)
    least = max(least, details.get("ctx", {}).get("min_length", 0))
    most = details.get("ctx", {}).get("max_length", most)
    if most is None:
        return f"expected at least {least} value{'s'[: least != 1]}"
    numbers = " or ".join(map(str, range(least, most + 1))) if most - least <= 1 else f"{least} to {most}"
    return f"expected {numbers} value{'s'[: most != 1]}"


def _counts(info: FieldInfo | None) -> tuple[int, int | None]:
    """The least and the largest number of values that the list of a key may have."""
    if info is None:
        return 0, None
    found = [_counts_of(annotation) for annotation in (info.annotation, *typing.get_args(info.annotation))]
    bounds = [bound for bound in found if bound is not None]
    limits = {
        name: getattr(one, name) for one in info.metadata for name in ("min_length", "max_length") if hasattr(one, name)
    }
    least, most = bounds[0] if bounds else (0, None)
    return limits.get("min_length", least), limits.get("max_length", most)


def _counts_of(annotation: Any) -> tuple[int, int | None] | None:
    """The same of one type; None for a type that is no list of a fixed length."""
    if typing.get_origin(annotation) is Annotated:
        return _counts_of(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is not tuple or ... in typing.get_args(annotation):
        return None
    return (len(typing.get_args(annotation)),) * 2


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


def _field(loc: Sequence[int | str], model: type[BaseModel]) -> FieldInfo | None:
    """The field that a place belongs to; tags and indices on the way are passed over."""
    here, found = [model], None
    for step in loc:
        fields = [one.model_fields[str(step)] for one in here if str(step) in one.model_fields]
        if fields:
            found, here = fields[0], _models(fields[0].annotation)
    return found


def _wrong_tag(context: Mapping[str, Any]) -> str:
    """What is wrong with the key that chooses among several tables."""
    key, found = context["discriminator"].strip("'"), str(context["tag"])
    known = re.findall(r"'([^']*)'", context["expected_tags"])
    hint = OTHER_TRANSFORMS.get(_base_name(found), "") if key == "transform" else ""
    near = difflib.get_close_matches(_base_name(found), known, 1)
    mean = f" (did you mean {near[0]!r}?)" if near and not hint else ""
    return f"expected {key} to be one of {', '.join(known)}, found {found!r}{mean}{'; ' if hint else ''}{hint}"


def _base_name(name: str) -> str:
    """The name of a transform without its dictionary ending: `Spacing` for `Spacingd`."""
    return re.sub(r"(d|D|Dict)$", "", name)


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    tag = model.model_fields.get("rule") or model.model_fields.get("transform")
    return typing.get_args(tag.annotation) if tag is not None else ()


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models(part)]


def _hint(path: Sequence[str], parent: type[BaseModel] | None, model: type[BaseModel]) -> str:
    """What an unknown key may have meant: a word for something else, a key of another table, or a slip of the pen."""
    key, own = path[-1], _keys(parent)
    words = OF_A_STEP if OF_STEPS in own else OF_INPUT if OF_INPUTS in own else {}
    near = difflib.get_close_matches(key, own, 1)
    if key in words or (key in ANYWHERE and OF_STEPS not in own):
        return f" ({words.get(key) or ANYWHERE[key]})"
    if OF_NETWORKS in own and not near:
        return f" ({AN_ARGUMENT})"
    other = [table for table, keys in _tables(model) if key in keys and len(path) <= 2 and OF_STEPS not in own]
    if other:
        return f" (it is a key of {' and of '.join(other)})"
    if near:
        return f" (did you mean {near[0]!r}?)"
    for table, keys in _tables(model):
        if len(path) <= 2 and (found := difflib.get_close_matches(key, keys, 1, MUCH_ALIKE)):
            return f" (did you mean {found[0]!r} of {table}?)"
    return ""


def _tables(model: type[BaseModel]) -> Iterator[tuple[str, Sequence[str]]]:
    """The tables of a file and the keys of each; the top of the file comes first."""
    yield "the top of the file", _keys(model)
    for name, info in model.model_fields.items():
        inner = _models(info.annotation)
        if len(inner) == 1 and typing.get_origin(info.annotation) is not tuple:
            yield f"[{info.serialization_alias or name}]", _keys(inner[0])


def _keys(model: type[BaseModel] | None) -> list[str]:
    """The keys of a table, as they are called today."""
    return [info.serialization_alias or name for name, info in model.model_fields.items()] if model else []


def _known(place: str, parent: type[BaseModel] | None) -> str:
    table = (f"[{place}]" if "[" not in place or place.endswith(".") else place) if place else "the top of the file"
    name = parent.__name__ if parent and OF_STEPS in _keys(parent) else table
    return f"{name} takes {', '.join(_keys(parent))}"


def _short(value: Any) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)  # TOML knows arrays, not tuples
    return text if len(text) <= 60 else text[:57] + "…"
