"""Drafts a spec of weights alone: the network is recognised, and what weights do not tell is to be confirmed."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit

from voxtile_build.errors import SourceError
from voxtile_build.importers.initial.draft import Draft, draft_of, in_words
from voxtile_build.importers.recognise.candidates import candidates, inner_states
from voxtile_build.importers.recognise.guess import Guess, State
from voxtile_build.networks import NETWORKS, constructor_of, find_network
from voxtile_build.networks.weights import read_entries, read_state, sha256_of_file

ALWAYS = ("spatial_dims", "in_channels", "out_channels")
"""Arguments that are written although they may have their defaults."""
USUAL = 96
"""Voxels along each axis of a tile that most networks in 3D were trained with."""
USUAL_2D = 256
SHOWN = 3
FILE = "give the network with its weights as one file (.onnx, TorchScript or .pt2)"


def draft(path: Path, name: str, folder: Path) -> Draft:
    """The spec of a file of weights.

    Args:
        path: safetensors, or a file of torch.save.
        name: the public name.
        folder: of the spec.

    Raises:
        SourceError: no network that a spec can name has such weights.
        WeightsError: the file cannot be read.
    """
    if "trainer_name" in read_entries(path):
        raise SourceError(
            f"{path}: a checkpoint of nnU-Net; give the folder that holds its plans.json and fold_*: "
            "voxtile-build nnunet FOLDER --name NAME --repository DIR"
        )
    state = read_state(path)
    found = _recognised(state, path)
    guess, others = found[0], found[1:]
    fields = {
        "network": {"name": guess.network, "args": _short(guess)},
        "weights": {"file": str(path.resolve()), "sha256": sha256_of_file(path)},
        "inferer": {"roi_size": list(_roi_size(guess))},
    }
    todo = [_untold(guess)] if guess.untold else []
    if others:
        todo.append(f"network.args: the weights also fit {_difference(guess, others)}; keep what training used")
    if not guess.roi_size:
        todo.append(
            f"inferer.roi_size: {list(_roi_size(guess))} is only usual; give the size of training's patches, in "
            f"multiples of {_plain(guess.divisors)}"
        )
    what = f"{path}: {len(state)} tensors, those of {guess.network} ({_counts(guess)})"
    return draft_of(name, folder, what, fields, guess.channels, guess.classes, todo)


def _recognised(state: State, path: Path) -> tuple[Guess, ...]:
    refused: list[str] = []
    for inner in inner_states(state):
        found, reasons = candidates(inner, path)
        refused += reasons
        if found:
            return found
    _refuse_neighbours(state, path)
    if refused:
        raise SourceError(f"{refused[0]}. This looks like {refused[0].partition(':')[0]} and is not; {FILE}")
    known = [one.name for one in NETWORKS if one.in_channels and not one.blocks]  # nnU-Net's come with their plans
    raise SourceError(
        f"{path}: expected the weights of {', '.join(known)}, found "
        f"{len(state)} tensors of another network ({', '.join(list(state)[:SHOWN])}…); {FILE}"
    )


def _refuse_neighbours(state: State, path: Path) -> None:
    """Refuse a state dict that holds a network beside other things, such as the weights of a loss."""
    for outer in dict.fromkeys(key.partition(".")[0] for key in state):
        prefix = f"{outer}."
        inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if len(inside) < len(state) and candidates(inside, path)[0]:
            beside = [key for key in state if not key.startswith(prefix)]
            raise SourceError(
                f"{path}: expected a network alone, found one under {prefix!r} beside {len(beside)} other tensors "
                f"({', '.join(beside[:SHOWN])}); save the tensors whose names begin with {prefix!r} to a file of their "
                "own: safetensors.torch.save_file or torch.save"
            )


def _short(guess: Guess) -> dict[str, Any]:
    """The arguments without those that have their default and are not to be confirmed."""
    return {
        key: value
        for key, value in guess.args.items()
        if key in (*ALWAYS, *guess.untold) or _plain(value) != _plain(_default(guess.network, key))
    }


def _default(network: str, key: str) -> Any:
    return inspect.signature(constructor_of(find_network(network))).parameters[key].default


def _untold(guess: Guess) -> str:
    values = [f"{key} = {_toml(guess.args.get(key, _default(guess.network, key)))}" for key in guess.untold]
    return (
        f"network.args: the weights do not tell {', '.join(values)}: these are only usual; compare them with the code "
        "of training, because other values load without an error and give other masks"
    )


def _difference(guess: Guess, others: tuple[Guess, ...]) -> str:
    """What else the weights fit: the arguments in which the others differ."""
    said = []
    for other in others[:SHOWN]:
        keys = [key for key in other.args if other.args[key] != guess.args.get(key)]
        said.append(f"{other.network} with {', '.join(f'{key} = {_plain(other.args[key])}' for key in keys)}")
    return "; or ".join(said)


def _roi_size(guess: Guess) -> tuple[int, ...]:
    """The only tile, or one near the usual size: no smaller than two of what each axis must be a multiple of."""
    usual = USUAL if len(guess.divisors) == 3 else USUAL_2D
    return guess.roi_size or tuple(max(2, round(usual / one)) * one for one in guess.divisors)


def _counts(guess: Guess) -> str:
    return in_words(int(guess.args["spatial_dims"]), guess.channels, guess.classes)


def _plain(value: Any) -> str:
    return json.dumps(value, default=lambda other: dict(other) if isinstance(other, Mapping) else str(other))


def _toml(value: Any) -> str:
    """A value as it is written behind a key of a spec."""
    plain = json.loads(_plain(value))
    if not isinstance(plain, dict):
        return _plain(value) if plain is None else str(tomlkit.item(plain).as_string())
    return f"{{ {', '.join(f'{key} = {_toml(one)}' for key, one in plain.items())} }}"
