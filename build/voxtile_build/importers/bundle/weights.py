"""Finds the file that a bundle itself loads its network's weights from. Reads configurations; runs nothing.

A bundle may hold several networks of one shape, so the file is never guessed where the bundle names one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from voxtile_build.errors import SourceError
from voxtile_build.importers.bundle.config import DISABLED, Config
from voxtile_build.importers.bundle.steps import SPECIAL
from voxtile_build.importers.bundle.targets import HANDLERS, TARGET, monai_name
from voxtile_build.networks.fetched import require_fetched
from voxtile_build.networks.weights import container_of, read_entries, read_state, same_tensors

WEIGHTS = ("models/model.safetensors", "models/model.pt")
"""Where MONAI's own commands look in a bundle that names no file."""
LOADER = "CheckpointLoader"
KNOWN = {"load_path", "load_dict", "name", "map_location", "strict", "strict_shape", "weights_only"}
"""Arguments of the loader. The first two choose the weights; the others do not: a file must fit the network whole."""
DEVICE = r"(?:@\w*device\w*|torch\.device\([^()]*\)|['\"](?:cpu|cuda)[:\d]*['\"])"
MOVED = re.compile(rf"\$\s*(@[\w:#]+)(?:\.(?:to\({DEVICE}\)|eval\(\)|cpu\(\)|cuda\(\)))*")
"""A network as it is, on whatever device."""
LOADING = re.compile(r"load\w*_state_dict|copy_model_state|(?:torch|jit)\.load\b|\bload_file\b")
"""Python that puts weights into a network, or reads them."""
LISTS = ("large_files.yml", "large_files.yaml", "large_files.json")
"""Where a bundle states the hashes of its files."""


def weights_of(config: Config, folder: Path, network: Mapping[str, Any]) -> Path:
    """The file with the weights of `network`, a part of the configuration.

    Raises:
        SourceError: the bundle loads weights in a way that is not known, from several files, from a file that is not
            there or not in the bundle, or from one with another hash than the bundle states.
    """
    _refuse_loading_by_python(config)
    named = {key: loaded for key, loaded in _named(config, folder, network).items() if loaded is not None}
    if len({path for path, _ in named.values()}) > 1:
        listed = ", ".join(f"{key} {path}" for key, (path, _) in named.items())
        raise SourceError(f"{config.where}: expected one file with the network's weights, found several: {listed}")
    if named:
        key, (path, entry) = next(iter(named.items()))
        _check_named(config, folder, path, key)
        require_fetched(path)
        _check_entry(path, entry, f"{config.where}: {key}::load_dict")
    else:
        path = _usual(folder)
    require_fetched(path)
    check_hash(folder, path)
    return path


def _named(config: Config, folder: Path, network: Mapping[str, Any]) -> dict[str, tuple[Path, str] | None]:
    """What each loader of the configuration loads into the network: the file, and the entry in it; None: nothing."""
    return {key: _loaded(config, folder, network, key, part) for key, part in _loaders(config.content, "")}


def _loaders(value: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every loader of checkpoints with its id, wherever it stands; without those that are switched off."""
    if isinstance(value, Mapping):
        if str(value.get(TARGET, "")).rpartition(".")[2] == LOADER:
            if str(value.get(DISABLED, "")).strip().lower() != "true":
                yield key, value
            return
        parts: Any = value.items()
    elif isinstance(value, list):
        parts = enumerate(value)
    else:
        return
    for name, part in parts:
        yield from _loaders(part, f"{key}::{name}" if key else str(name))


def _loaded(
    config: Config, folder: Path, network: Mapping[str, Any], key: str, part: Mapping[str, Any]
) -> tuple[Path, str] | None:
    monai_name(part, HANDLERS, f"{config.where}: {key}")
    unknown = [name for name in part if not SPECIAL.fullmatch(name) and name not in KNOWN]
    if unknown:
        raise SourceError(f"{config.where}: {key}: its argument {unknown[0]} has no counterpart")
    targets = config.followed(part.get("load_dict"), f"{key}::load_dict")
    if not isinstance(targets, Mapping) or not targets:
        raise SourceError(f"{config.where}: {key}::load_dict: expected a name and a network, found {targets!r}")
    entries = [name for name, value in targets.items() if network_part(config, value, f"{key}::load_dict") is network]
    if not entries:
        return None
    return _path(config, folder, key, part.get("load_path")), str(entries[0])


def network_part(config: Config, value: Any, where: str) -> Any:
    """The part of the configuration that `value` is a network of: `@network`, or `$@network_def.to(@device)`.

    Raises:
        SourceError: it is other Python.
    """
    value = config.followed(value, where)
    if isinstance(value, str) and value.startswith("$"):
        moved = MOVED.fullmatch(value.strip())
        if moved is None:
            raise SourceError(
                f"{config.where}: {where}: expected the network as it is, such as '@network_def' or "
                f"'$@network_def.to(@device)', found {value!r}, which may change it and is not run"
            )
        return network_part(config, moved[1], where)
    return value


def _path(config: Config, folder: Path, key: str, given: Any) -> Path:
    """The file that `load_path` names; a relative one lies in the bundle, from where MONAI's commands are started."""
    try:
        named = config.plain(given, f"{key}::load_path")
        if not isinstance(named, str) or not named:
            raise SourceError(f"{config.where}: {key}::load_path: expected the name of a file, found {named!r}")
    except SourceError as error:
        usual = [str(folder / name) for name in WEIGHTS if (folder / name).is_file()]
        raise SourceError(
            f"{error}; the weights are in the file that it names, which may be another than {' or '.join(usual)}"
            if usual
            else str(error)
        ) from None
    return Path(os.path.normpath(folder / named))


def _check_named(config: Config, folder: Path, path: Path, key: str) -> None:
    root = Path(os.path.normpath(folder))
    if not path.is_relative_to(root):
        raise SourceError(
            f"{config.where}: {key}::load_path: expected a file in the bundle {folder}, found {path}; copy it to "
            f"{folder / 'models'} and name it there"
        )
    if not os.path.isfile(path):  # also for a name that no file can have
        others = [str(folder / name) for name in WEIGHTS if (folder / name).is_file()]
        found = f"; {' and '.join(others)} may be another network and is not taken for it" if others else ""
        raise SourceError(
            f"{config.where}: {key}::load_path: expected the weights in {path}, found no such file{found}; fetch it, "
            "or name the right file there"
        )


def _check_entry(path: Path, entry: str, where: str) -> None:
    """Refuse a file in which MONAI takes the entry `entry`, and Voxtile would take another one."""
    content = read_entries(path)
    if entry in content and isinstance(content[entry], Mapping):
        taken = container_of(content, path)
        if taken != entry:
            raise SourceError(
                f"{where}: {path} holds several entries; the bundle loads {entry!r}, where {taken or 'the whole file'} "
                "would be read; save that entry alone: torch.save(network.state_dict(), …)"
            )


def _usual(folder: Path) -> Path:
    """The weights of a bundle that names no file."""
    found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not found:
        raise SourceError(
            f"{folder}: expected weights in {' or '.join(WEIGHTS)}, found neither; fetch the bundle again"
        )
    if len(found) > 1 and not same_tensors(*map(read_state, found)):
        raise SourceError(
            f"{folder}: expected one network, found different weights in {' and '.join(map(str, found))}, and no "
            "checkpointloader in the configuration says which are meant; remove one, or name it by load_path"
        )
    return found[0]


def _refuse_loading_by_python(config: Config) -> None:
    for key, text in _texts(config.content, ""):
        if text.startswith("$") and LOADING.search(text):
            raise SourceError(
                f"{config.where}: {key}: loads weights by Python, {text!r}, which is not run; if it does not concern "
                "the network, take it out of a copy of the bundle, else let a CheckpointLoader name the file by "
                "load_path"
            )


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    parts: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        place = f"{key}::{name}" if key else str(name)
        if isinstance(part, str):
            yield place, part.strip()
        else:
            yield from _texts(part, place)


def check_hash(folder: Path, path: Path) -> None:
    """Refuse a file with another hash than the bundle's list of large files states.

    Raises:
        SourceError: names both hashes; or the list cannot be read.
    """
    for stated in (folder / name for name in LISTS if (folder / name).is_file()):
        try:
            files = (yaml.safe_load(stated.read_text(encoding="utf-8")) or {}).get("large_files") or []
            wanted = [entry for entry in files if _place(folder, entry) == path]
        except (OSError, ValueError, AttributeError, RecursionError, yaml.YAMLError) as error:
            raise SourceError(f"{stated}: cannot be read: {str(error).splitlines()[0]}") from None
        for entry in wanted:
            kind, value = str(entry.get("hash_type") or ""), str(entry.get("hash_val") or "").lower()
            if value and kind in ("md5", "sha1", "sha256", "sha512") and _digest(path, kind) != value:
                raise SourceError(
                    f"{path}: expected {kind} {value}, as {stated} states, found {_digest(path, kind)}; fetch the file "
                    f"again, or correct {stated.name} if you trained it yourself"
                )


def _place(folder: Path, entry: Mapping[str, Any]) -> Path:
    return Path(os.path.normpath(folder / str(entry.get("path", ""))))


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, kind).hexdigest()
