"""Loads weights into a network. Only tensors are unpickled, and a file with another SHA-256 is refused."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from voxtile_build import hashing
from voxtile_build.errors import WeightsError

# Training frameworks store the state dict under one of these keys, beside optimiser and epoch.
CONTAINERS = ("state_dict", "model_state_dict", "network_weights", "model", "net")
SHOWN = 3


def load_weights(network: nn.Module, path: Path, sha256: str) -> None:
    """Load the tensors of a file into `network`, cast to its types (fp16 to fp32, int16 to int64).

    Args:
        network: the network.
        path: safetensors, or a state dict of torch.save.
        sha256: of the file.

    Raises:
        WeightsError: the file is missing, is damaged or has another SHA-256; it is a pickle of more than tensors; keys
            or shapes do not fit (the first few are named); or a tensor is not finite.
    """
    check_sha256(path, sha256)
    state = read_state(path)
    check_fit(state, network.state_dict(), path, "check network.name and network.args")
    network.load_state_dict(dict(state), strict=True)


def check_sha256(path: Path, expected: str, table: str = "weights") -> None:
    """Refuse a file with another SHA-256.

    Args:
        path: the file.
        expected: its SHA-256.
        table: the table of the spec that names the file, for errors.

    Raises:
        WeightsError: the file cannot be read, or has another SHA-256.
    """
    found = sha256_of_file(path, table)
    if found != expected:
        raise WeightsError(
            f"{path}: expected sha256 {expected}, found {found}; fetch the file again, or correct {table}.sha256 "
            "if this is the file that you mean"
        )


def sha256_of_file(path: Path, table: str = "weights") -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        WeightsError: the file cannot be read.
    """
    try:
        return hashing.file_sha256(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); {table}.file must be a {table} file") from None


def read_state(path: Path) -> Mapping[str, Tensor]:
    """The state dict in a safetensors file or in a file of torch.save.

    Raises:
        WeightsError: the file is damaged, or holds more than tensors.
    """
    return _read_safetensors(path) if path.suffix == ".safetensors" else _unwrap(_read_torch(path), path)


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        state: Mapping[str, Tensor] = load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a whole safetensors file ({error}); fetch it again") from None
    return state


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # PyTorch warns of the pickle's protocol; a file that cannot be read is an error anyway.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).replace("\n", " ")
        named = reason.partition("Unsupported global: ")[2].partition(" was not")[0].removeprefix("GLOBAL ")
        what = f" ({named})" if named else ""
        raise WeightsError(
            f"{path}: expected tensors only, found a pickle with other Python objects{what}, which could run code; "
            "save the state dict alone: torch.save(network.state_dict(), …) or safetensors"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: expected a state dict, found a file that PyTorch cannot read: {error}") from None


def read_entries(path: Path) -> Mapping[str, Any]:
    """Whatever a checkpoint of torch.save holds by name; nothing of a safetensors file, which holds tensors alone.

    Raises:
        WeightsError: the file is damaged, or holds more than tensors and plain values.
    """
    loaded = None if path.suffix == ".safetensors" else _read_torch(path)
    return loaded if isinstance(loaded, Mapping) else {}


def container_of(loaded: Mapping[str, Any], path: Path) -> str | None:
    """The entry of a checkpoint that holds the state dict; None where the checkpoint is the state dict.

    Raises:
        WeightsError: several entries hold different state dicts, and nothing says which is meant.
    """
    maps = [key for key in CONTAINERS if isinstance(loaded.get(key), Mapping)]
    states = [key for key in maps if loaded[key] and all(isinstance(value, Tensor) for value in loaded[key].values())]
    if any(not same_tensors(loaded[states[0]], loaded[key]) for key in states[1:]):
        raise WeightsError(
            f"{path}: expected one state dict, found different ones under {' and '.join(states)}; save the one that "
            "you mean alone: torch.save(network.state_dict(), …)"
        )
    return next(iter(states or maps), None)


def same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts have the same names and values."""
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def _unwrap(loaded: Any, path: Path) -> Mapping[str, Tensor]:
    container = container_of(loaded, path) if isinstance(loaded, Mapping) else None
    if container is not None:
        loaded = loaded[container]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise WeightsError(
            f"{path}: expected a state dict (names and tensors, also under {', '.join(CONTAINERS)}), "
            f"found {type(loaded).__name__}"
        )
    return _without_prefix(loaded)


def _without_prefix(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Without the `module.` that DataParallel puts before every name."""
    if state and all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): value for key, value in state.items()}
    return state


def check_fit(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path, hint: str) -> None:
    """Refuse weights whose names, shapes or types are not those of a network, or that are not finite.

    Args:
        state: the weights.
        wanted: the network's own state dict.
        path: names the file in errors.
        hint: the end of the message; says what may be wrong.

    Raises:
        WeightsError: names what does not fit.
    """
    shapes = [
        f"{key} (expected {list(wanted[key].shape)}, found {list(state[key].shape)})"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    types = [
        f"{key} (expected {wanted[key].dtype}, found {state[key].dtype})"
        for key in wanted
        if key in state and not torch.can_cast(state[key].dtype, wanted[key].dtype)
    ]
    faults = {
        "missing": [key for key in wanted if key not in state],
        "unexpected": [key for key in state if key not in wanted],
        "of another shape": shapes,
        "of another type": types,
    }
    if any(faults.values()):
        listed = "; ".join(f"{len(keys)} {what}: {_first(keys)}" for what, keys in faults.items() if keys)
        raise WeightsError(f"{path}: the weights do not fit the network. {listed}; {hint}")
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise WeightsError(f"{path}: expected finite weights, found NaN or infinity in {_first(broken)}")


def _first(keys: Iterable[str]) -> str:
    keys = list(keys)
    return ", ".join(keys[:SHOWN]) + (", …" if len(keys) > SHOWN else "")
