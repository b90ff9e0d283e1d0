"""A model version to load, and how its `parameters` are read. A copy lies beside each backend's `model.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from voxtile_server.backends.batching import ConfigError, InGraph, Run
else:  # in the stub the shared files lie in the backend's own folder
    from batching import ConfigError

Key = TypeVar("Key")
Value = TypeVar("Value")
FLAGS = {"1": True, "true": True, "0": False, "false": False}


@dataclass(frozen=True)
class Entry:
    """A model's config (Triton's JSON form), its version folder, and where this instance shall run."""

    config: Mapping[str, Any]
    folder: Path
    on_gpu: bool = False
    device_id: int = 0

    @property
    def parameters(self) -> dict[str, str]:
        """`parameters` of config.pbtxt as plain strings."""
        return {key: value["string_value"] for key, value in self.config.get("parameters", {}).items()}

    def model_file(self, default: str) -> Path:
        """`default_model_filename`, or the backend's own default, in the version folder.

        Raises:
            ConfigError: there is no such file.
        """
        path = self.folder / (self.config.get("default_model_filename") or default)
        if not path.is_file():
            raise ConfigError(f"model file {path} is missing; build the entry again")
        return path


@dataclass(frozen=True)
class Loaded:
    """An engine in memory: how to run it, and the tensors that its graph really has."""

    run: Run
    inputs: Sequence[InGraph]
    outputs: Sequence[InGraph]


def one_of(known: Mapping[Key, Value], value: Key, where: str) -> Value:
    """What `value` stands for, or a ConfigError that lists what is known."""
    if value not in known:
        raise ConfigError(f"{where}: {value!r} is not known; use one of {', '.join(map(str, known))}")
    return known[value]


def count(parameters: Mapping[str, str], key: str, default: int) -> int:
    """A parameter that is a whole number from 0."""
    value = parameters.get(key, str(default)).strip()
    if not value.isdigit():
        raise ConfigError(f"parameter {key}: expected a whole number from 0, got {value!r}")
    return int(value)


def flag(parameters: Mapping[str, str], key: str, default: bool) -> bool:
    """A parameter that is 1, true, 0 or false."""
    return one_of(FLAGS, parameters.get(key, str(int(default))).strip().lower(), f"parameter {key}")
