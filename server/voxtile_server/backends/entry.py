"""A model version to load, and its `parameters`.

It knows no engine, and nothing of Triton's Python interface.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .batching import Run
from .contract import ConfigError, InGraph

Key = TypeVar("Key")
Value = TypeVar("Value")
FLAGS = {"1": True, "true": True, "0": False, "false": False}
THREADS = "VOXTILE_ENGINE_THREADS"  # the environment variable that EmbeddedServer sets from its option `threads`


@dataclass(frozen=True)
class Entry:
    """A model version, and where this instance of it runs.

    Attributes:
        config: config.pbtxt in its JSON form.
        folder: the version's folder.
        on_gpu: whether the config insists on a GPU.
        device_id: the GPU's number.
    """

    config: Mapping[str, Any]
    folder: Path
    on_gpu: bool = False
    device_id: int = 0

    @property
    def parameters(self) -> dict[str, str]:
        """`parameters` of config.pbtxt as plain strings."""
        return {key: value["string_value"] for key, value in self.config.get("parameters", {}).items()}

    def model_file(self, default: str) -> Path:
        """The model's file in the version folder.

        Args:
            default: its name where the config has no `default_model_filename`.

        Raises:
            ConfigError: there is no such file.
        """
        path = self.folder / (self.config.get("default_model_filename") or default)
        if not path.is_file():
            raise ConfigError(f"model file {path} is missing; build the entry again")
        return path


@dataclass(frozen=True)
class Loaded:
    """An engine in memory.

    Attributes:
        run: runs it.
        inputs: the inputs that its graph has.
        outputs: the outputs that its graph has.
    """

    run: Run
    inputs: Sequence[InGraph]
    outputs: Sequence[InGraph]


def one_of(known: Mapping[Key, Value], value: Key, where: str) -> Value:
    """The meaning of `value`.

    Args:
        known: meanings by value.
        value: what the config says.
        where: the place in the config, for the message.

    Raises:
        ConfigError: the value is not known; the text lists those that are.
    """
    if value not in known:
        raise ConfigError(f"{where}: {value!r} is not known; use one of {', '.join(map(str, known))}")
    return known[value]


def count(parameters: Mapping[str, str], key: str, default: int) -> int:
    """A parameter that is a whole number from 0.

    Raises:
        ConfigError: it is something else.
    """
    value = parameters.get(key, str(default)).strip()
    if not value.isdigit():
        raise ConfigError(f"parameter {key}: expected a whole number from 0, got {value!r}")
    return int(value)


def threads(parameters: Mapping[str, str], key: str) -> int:
    """The number of CPU threads: the parameter, else the server's own setting, else 0 (the engine decides).

    Raises:
        ConfigError: it is not a whole number from 0.
    """
    return count(parameters, key, int(os.environ.get(THREADS, "0")))


def flag(parameters: Mapping[str, str], key: str, default: bool) -> bool:
    """A parameter that is 1, true, 0 or false.

    Raises:
        ConfigError: it is something else.
    """
    return one_of(FLAGS, parameters.get(key, str(int(default))).strip().lower(), f"parameter {key}")
