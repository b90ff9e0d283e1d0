"""Turns pydantic's errors for a spec into sentences with the path and the meaning of the key. Knows no key."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

SHOWN = 20
"""Lines of an error at most: one list of a thousand wrong entries should not fill the screen."""

_NOT_NEEDED = "leave it out: the client reads the scan, and sends it in the right type"
OTHER_TRANSFORMS = {
    **dict.fromkeys(
        ("LoadImage", "EnsureChannelFirst", "AddChannel", "EnsureType", "CastToType", "ToTensor", "ToDevice"),
        _NOT_NEEDED,
    ),
    "SaveImage": "leave it out: the client writes the mask",
    "Resize": "its size differs from scan to scan, and it has no exact inverse; use Spacing with the voxel size that "
    "the network was trained with, or ResizeWithPadOrCrop",
    "Lambda": "Python is not run; use the transform that it stands for, such as MapLabelValue",
}
"""Transforms of MONAI that a chain cannot hold, and what to do."""

PLAIN = {
    "model_type": "expected a table",
    "model_attributes_type": 'expected a table, such as { rule = "range", … }',
    "dict_type": "expected a table",
    "tuple_type": "expected a list, such as [1, 2, 3]",
    "list_type": "expected a list, such as [1, 2, 3]",
    "string_type": "expected text",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
    "none_required": "expected nothing",
    "finite_number": "expected a finite number",
}
"""Pydantic's kinds of faults, in words of the file."""

_RULE = 'of a rule: intensity = { rule = "range", a_min = …, a_max = … }, or a step of [[preprocessing]]'
WORDS_OF_INPUT = {
    "pixdim": "MONAI's word for spacing; or write Spacing as a step of [[preprocessing]]",
    "axcodes": "MONAI's word for orientation; or write Orientation as a step of [[preprocessing]]",
    **dict.fromkeys(("a_min", "a_max", "b_min", "b_max", "clip"), _RULE),
    **dict.fromkeys(("lower", "upper", "mean", "std", "nonzero", "channel_wise", "subtrahend", "divisor"), _RULE),
}
"""Words that people write into [input], and where they belong."""


def explain(error: ValidationError, model: type[BaseModel], where: str, words: Mapping[str, str] | None = None) -> str:
    """A line for every fault: `FILE: key.path: what is wrong, what was found (what the key means)`.

    Args:
        error: pydantic's error.
        model: the class that was validated.
        where: names the file.
        words: for tables that the file calls by another name, that name.
    """
    found = [details for details in error.errors(include_url=False) if not _follows(details)]
    faults = [f"{where}: {_in_words(_fault(details, model), words or {})}" for details in found]
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
    key = ".".join(path)
    if details["type"] == "union_tag_invalid":
        return f"{key}: {_wrong_tag(details['ctx'])}"
    if details["type"] == "union_tag_not_found":
        return f"{key}: expected the key {details['ctx']['discriminator']}, which says what it is, found none{meaning}"
    if details["type"] == "extra_forbidden":
        hint = _elsewhere(path[-1], parent) or _nearest(path[-1], parent)
        return f"{key}: unknown key{hint}; {_known(path[:-1], parent)}"
    if details["type"] == "missing" and not isinstance(details["loc"][-1], int):
        return f"{key}: missing{meaning}"
    if isinstance(details["input"], list | tuple) and details["type"] in ("missing", "too_long"):
        key = key.rpartition("[")[0] if details["type"] == "missing" else key
        return f"{key}: {_wrong_count(details)}, found {_short(details['input'])}{meaning}"
    message = PLAIN.get(details["type"], details["msg"].removeprefix("Value error, "))
    found = "" if details["type"] == "value_error" else f", found {_short(details['input'])}"
    return f"{key + ': ' if key else ''}{message[0].lower() + message[1:]}{found}{meaning}"


def _wrong_count(details: ErrorDetails) -> str:
    """What is wrong with the number of values of a list. Pydantic names the first one that is missing."""
    if details["type"] == "too_long":
        return f"expected {details['ctx']['max_length']} values at most"
    return f"expected more than {len(details['input'])} values"


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


def _nearest(key: str, parent: type[BaseModel] | None) -> str:
    near = difflib.get_close_matches(key, parent.model_fields if parent else (), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _elsewhere(key: str, parent: type[BaseModel] | None) -> str:
    """Where a word of MONAI's belongs that is written into [input]."""
    if parent is None or "channels" not in parent.model_fields:
        return ""
    place = WORDS_OF_INPUT.get(key)
    return f" ({place})" if place else ""


def _known(path: list[str], parent: type[BaseModel] | None) -> str:
    place = f"[{'.'.join(path)}]" if path else "the top of the file"
    return f"{place} takes {', '.join(parent.model_fields if parent else ())}"


def _short(value: Any) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)  # TOML knows arrays, not tuples
    return text if len(text) <= 60 else text[:57] + "…"
