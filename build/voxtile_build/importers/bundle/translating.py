"""Translates a transform of a bundle into a step of a spec: MONAI's name and arguments, checked by the spec's class."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import monai.transforms
from pydantic import ValidationError

from voxtile.transforms.base import Transform
from voxtile_build.errors import SourceError
from voxtile_build.importers.bundle.steps import HARMLESS, REQUIRED, Step, first
from voxtile_build.spec.explain import explain
from voxtile_build.spec.plain import models_in

FLOATS = (None, "float32", "float64", "float")
PER_KEY = {
    *("mode", "padding_mode", "align_corners", "dtype", "recompute_affine", "scale_extent"),
    *("softmax", "sigmoid", "other", "argmax", "threshold", "to_onehot", "rounding", "nearest_interp"),
}
"""Arguments that may be a list with a value for each key; the image's is the first."""
SAME = {"constant_values": "value"}
"""Other names of arguments."""


def classes_of(union: Any) -> dict[str, type[Transform]]:
    """The transforms that a chain of a spec may hold, by name."""
    return {model.__name__: model for model in models_in(union) if issubclass(model, Transform)}


def translated(
    step: Step,
    model: type[Transform],
    *,
    ignored: tuple[str, ...] = (),
    instead: Mapping[str, Any] | None = None,
) -> Transform:
    """The step of a spec that does what `step` does.

    Args:
        step: the bundle's transform.
        model: the class of the spec's step with the same name.
        ignored: arguments that change no result.
        instead: arguments of the spec's step in place of those of the same name.

    Raises:
        SourceError: an argument has a value without counterpart.
    """
    given = dict(instead or {})
    defaults = monai_defaults(step.given_name)
    for key in step.given:
        name = SAME.get(key, key)
        if key in ("keys", *ignored, *(instead or {})):
            continue
        value = step.value(key)
        value = first(value) if key in PER_KEY else value
        if key in HARMLESS and value in HARMLESS[key]:
            continue
        if key == "dtype":
            step.require({"dtype": value}, {"dtype": FLOATS})
        elif name in model.model_fields and name != "transform":
            given[name] = _as(model.model_fields[name].annotation, value)
        elif value != defaults.get(key, REQUIRED):
            raise step.refusal(f"its argument {key} = {value!r} has no counterpart")
    try:
        return model.model_validate({"transform": step.name, **given})
    except ValidationError as error:
        raise SourceError(explain(error, model, step.place)) from None


def monai_defaults(name: str) -> dict[str, Any]:
    """The default values of the arguments of MONAI's transform `name`, tuples as lists."""
    made = getattr(monai.transforms, name, None)
    parameters = inspect.signature(made).parameters if made is not None else {}
    empty = inspect.Parameter.empty
    return {key: _lists(one.default) for key, one in parameters.items() if one.default is not empty}


def _lists(value: Any) -> Any:
    return [_lists(one) for one in value] if isinstance(value, list | tuple) else value


def _as(kind: Any, value: Any) -> Any:
    """A truth value, where MONAI takes whatever is true; None for an argument that must be false is false."""
    if kind is bool or (get_origin(kind) is Literal and get_args(kind) == (False,)):
        return bool(value)
    return value
