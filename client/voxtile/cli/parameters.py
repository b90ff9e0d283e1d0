"""Lets a command take a dataclass of options: each of its fields becomes an option of the command.

Knows nothing of Voxtile's options.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_type_hints


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """Makes typer see the fields of a command's dataclass parameters as parameters of the command.

    Args:
        command: a function. Each parameter that is annotated with a dataclass, whose fields are annotated as typer
            expects it of parameters, is replaced by these fields; the others stay as they are.

    Returns:
        A function that takes the fields as keywords and calls `command` with the dataclasses.

    Raises:
        ValueError: two fields have the same name.
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        name: one.annotation for name, one in signature.parameters.items() if is_dataclass(one.annotation)
    }
    parameters = [
        parameter
        for name, one in signature.parameters.items()
        for parameter in (_expanded(groups[name]) if name in groups else [one.replace(kind=one.KEYWORD_ONLY)])
    ]

    def call(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    vars(call)["__signature__"] = inspect.Signature(parameters)
    return call


def _expanded(group: Any) -> Iterator[inspect.Parameter]:
    """The fields of a dataclass as keyword parameters."""
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        kind = inspect.Parameter.KEYWORD_ONLY
        yield inspect.Parameter(field.name, kind, default=_default(field), annotation=hints[field.name])


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is MISSING else field.default
