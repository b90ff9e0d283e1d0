"""Finds the networks that a spec can name and that take some weights, by loading the weights into each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from voxtile_build.errors import BuildError, WeightsError
from voxtile_build.importers.recognise import (
    attention_unet,
    basic_unet,
    dynunet,
    segresnet,
    swin_unetr,
    unet,
    unetr,
)
from voxtile_build.importers.recognise.guess import Guess, State
from voxtile_build.networks import make_network
from voxtile_build.networks.weights import check_fit, with_shared

RECOGNISERS = (unet, attention_unet, basic_unet, segresnet, dynunet, swin_unetr, unetr)
MOST = 8
"""Guesses that are tried; a UNETR of 216 patches has 34 shapes, of which the cube is the usual one."""


def candidates(state: State, path: Path) -> tuple[tuple[Guess, ...], Sequence[str]]:
    """The networks that take these weights, the most usual first, and why others that look like it do not.

    Args:
        state: names and tensors.
        path: of the file, for errors.
    """
    fit, refused = [], []
    for guess in _guesses(state):
        try:
            _check(guess, state, path)
        except BuildError as error:
            refused.append(f"{guess.network}: {error}")
        else:
            fit.append(guess)
    return tuple(fit), refused


def inner_states(state: State) -> Iterator[State]:
    """The state, and what is left of it when the objects around the network are taken off every name, one by one."""
    while state:
        yield state
        outer = {key.partition(".")[0] for key in state}
        if len(outer) > 1 or not all("." in key for key in state):
            return
        state = {key.partition(".")[2]: value for key, value in state.items()}


def _guesses(state: State) -> Iterator[Guess]:
    for recogniser in RECOGNISERS:
        for number, guess in enumerate(recogniser.guesses(state)):
            if number < MOST:
                yield guess


def _check(guess: Guess, state: State, path: Path) -> None:
    """Refuse a guess whose network does not take the weights, or counts its places in another order than they do."""
    network = make_network(
        guess.network, guess.args, guess.channels, guess.classes
    )  # kept, so that tensors of one place stay in one place
    wanted = network.state_dict()
    state = with_shared(state, wanted)
    check_fit(state, wanted, path, "other arguments may fit")
    other = [key for key, value in wanted.items() if _is_index(value) and not torch.equal(value, state[key].long())]
    if other:
        raise WeightsError(f"{path}: {other[0]} has other values than the network gives it")


def _is_index(value: Tensor) -> bool:
    """Whether a tensor follows from the arguments: an index of places. A counter of batches does not."""
    return value.ndim > 0 and not value.is_floating_point()
