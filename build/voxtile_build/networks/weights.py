"""Loads weights into a network. Only tensors and plain values are unpickled; a file with another SHA-256 is refused."""

from __future__ import annotations

import argparse
import codecs
import importlib
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from voxtile_build import hashing
from voxtile_build.errors import WeightsError, reason_of
from voxtile_build.networks.fetched import require_fetched

# Training frameworks store the state dict under one of these keys, beside optimiser and epoch.
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes of DataParallel and torch.compile."""
REFUSED_OBJECT = re.compile(r"GLOBAL ([\w.]+)")
"""The dotted name of what PyTorch refuses: in all of its messages it comes after the word GLOBAL."""
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
    wanted = network.state_dict()
    state = with_shared(without_prefix(read_state(path), wanted), wanted)
    check_fit(state, wanted, path, "check network.name and network.args")
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
    if path.exists() and not path.is_file():  # a pipe that nobody writes to would be waited for
        raise WeightsError(f"{path}: expected a plain file, found a folder, a pipe or a device; check {table}.file")
    try:
        return hashing.file_sha256(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); check {table}.file") from None


def read_state(path: Path) -> Mapping[str, Tensor]:
    """The state dict in a safetensors file or in a file of torch.save.

    Raises:
        WeightsError: the file is damaged, or holds more than tensors and plain values.
    """
    require_fetched(path)
    return _read_safetensors(path) if path.suffix == ".safetensors" else _unwrap(read_torch(path), path)


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        state: Mapping[str, Tensor] = load_file(path)
    except Exception as error:  # damaged headers raise many kinds of errors
        raise WeightsError(f"{path}: not a whole safetensors file ({reason_of(error)}); fetch it again") from None
    return state


def read_torch(path: Path) -> Any:
    """What a file of torch.save holds: tensors, plain values and NumPy numbers. No code of it is run.

    Raises:
        WeightsError: the file is damaged, unpacks to more than it could hold, or is a pickle of other objects.
    """
    try:
        _check_size(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(_allowed())):
            # PyTorch warns of the pickle's protocol; a file that cannot be read is an error anyway.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # damaged pickles raise many kinds of errors
        if isinstance(error, pickle.UnpicklingError):
            named = REFUSED_OBJECT.search(str(error))
            raise WeightsError(
                f"{path}: expected tensors only, found a pickle with other Python objects"
                f"{f' ({named[1]})' if named else ''}, which could run code; nothing of it was run. Save the state "
                "dict alone: torch.save(network.state_dict(), …) or safetensors. Do not use this file unless you know "
                "who wrote it and why"
            ) from None
        raise WeightsError(
            f"{path}: expected a state dict, found a file that PyTorch cannot read: {reason_of(error)}; fetch or "
            "save it again"
        ) from None


def _check_size(path: Path) -> None:
    """PyTorch compresses nothing in such a file, so its members are no larger than the file."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                raise WeightsError(
                    f"{path}: expected a file of torch.save, found one that unpacks to more than it holds"
                )


def _allowed() -> Iterator[Any]:
    """What training leaves beside the tensors: NumPy numbers and arrays of numbers, settings, paths."""
    core: Any = importlib.import_module("numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray")
    for attribute in ("scalar", "_reconstruct"):
        for package in ("_core", "core"):  # NumPy 2 writes the one, NumPy 1 the other
            yield getattr(core, attribute), f"numpy.{package}.multiarray.{attribute}"
    yield from (np.dtype, np.ndarray, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"})
    yield codecs.encode, "_codecs.encode"
    yield from (argparse.Namespace, pathlib.PurePosixPath, (pathlib.PurePosixPath, "pathlib.PosixPath"))
    # Lightning's dictionary of hyperparameters; a plain one stands for it.
    for module in ("lightning_fabric.utilities.data", "pytorch_lightning.utilities.parsing"):
        yield Settings, f"{module}.AttributeDict"


class Settings(dict[str, Any]):
    """Stands for a dictionary of hyperparameters, which nothing here reads."""


def read_entries(path: Path) -> Mapping[str, Any]:
    """Whatever a checkpoint of torch.save holds by name; nothing of a safetensors file, which holds tensors alone.

    Raises:
        WeightsError: the file is damaged, or holds more than tensors and plain values.
    """
    loaded = None if path.suffix == ".safetensors" else read_torch(path)
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
    return one.keys() == other.keys() and all(
        value.dtype == other[key].dtype and torch.equal(value, other[key]) for key, value in one.items()
    )


def _unwrap(loaded: Any, path: Path) -> Mapping[str, Tensor]:
    container = container_of(loaded, path) if isinstance(loaded, Mapping) else None
    if container is not None:
        loaded = loaded[container]
    if not is_state(loaded):
        raise WeightsError(
            f"{path}: expected a state dict (names and tensors, also under {', '.join(CONTAINERS)}), "
            f"found {type(loaded).__name__}"
        )
    return without_wrappers(loaded)


def is_state(value: Any) -> bool:
    """Whether a value is a state dict: names and tensors."""
    return isinstance(value, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def without_wrappers(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Without what DataParallel and torch.compile put before every name, whichever was around the other."""
    while prefix := next((one for one in WRAPPERS if state and all(key.startswith(one) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def without_prefix(state: Mapping[str, Tensor], wanted: Iterable[str]) -> Mapping[str, Tensor]:
    """Without the names of objects that hold the network, such as Lightning's `_model.`.

    Nothing is guessed: what every name begins with is taken off only if exactly the wanted names remain.
    """
    names, inner = set(wanted), dict(state)
    while set(inner) != names:
        if not inner or len({key.partition(".")[0] for key in inner}) > 1 or not all("." in key for key in inner):
            return state
        inner = {key.partition(".")[2]: value for key, value in inner.items()}
    return inner


def with_shared(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """With every name of a tensor that a network has under several, as DynUNet does; safetensors keeps one of them.

    Args:
        state: the weights.
        wanted: the network's own state dict.
    """
    places: dict[tuple[int, torch.Size], list[str]] = {}
    for key, value in wanted.items():
        if value.numel():
            places.setdefault((value.data_ptr(), value.shape), []).append(key)
    filled = dict(state)
    for names in places.values():
        given = next((name for name in names if name in state), None)
        if given is not None:
            filled |= {name: state[given] for name in names if name not in state}
    return filled


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
