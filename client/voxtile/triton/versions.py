"""Finds a certain version of a model on a server: under the public name while that stands for it, else under its own.

A version N of the model NAME that stands beside others has an entry of its own, NAME.vN, which never changes hands;
the public entry is a copy of one of them. Knows nothing of requests.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Protocol

from voxtile.errors import InputError, ModelError
from voxtile.triton.types import ServedModel

MARK = "@"
"""Stands between a model's name and the version that is asked for."""
NUMBER = re.compile(r"[1-9][0-9]{0,8}")
VERSION_ENTRY = re.compile(rf"(.+)\.v({NUMBER.pattern})")
"""The entry of one version, by its name; a public name has no dot."""


class Offers(Protocol):
    """What is asked of a server."""

    url: str

    def model(self, name: str) -> ServedModel:
        """See `Endpoint.model`."""
        ...

    def card_text(self, name: str) -> str:
        """See `Endpoint.card_text`."""
        ...


def version_entry(name: str, version: str) -> str:
    """The entry of one version."""
    return f"{name}.v{version}"


def split_version(model: str) -> tuple[str, str]:
    """The name and the version of NAME@VERSION; the version is empty where none is asked for.

    Raises:
        InputError: what stands after the @ is no version.
    """
    name, mark, version = model.partition(MARK)
    if mark and not (name and NUMBER.fullmatch(version)):
        raise InputError(f"expected NAME or NAME{MARK}VERSION, such as brain{MARK}2, found {model!r}")
    return name, version


def offered(server: Offers, model: str) -> ServedModel:
    """The model as a server offers it.

    Args:
        server: the server.
        model: its public name, or NAME@VERSION for a certain version.

    Raises:
        InputError: what stands after the @ is no version.
        ModelError: the server does not offer the model, or not in this version.
        As `Endpoint.model` does.
    """
    name, version = split_version(model)
    if not version:
        return server.model(name)
    # Its own entry first: a server that loads on demand has room for one of the two, perhaps.
    with contextlib.suppress(ModelError):
        return server.model(version_entry(name, version))
    public = server.model(name)
    if public.version == version:
        return public
    raise ModelError(
        f"model {name!r}: {server.url} serves no version {version}; {name} is version {public.version} there, and "
        "`voxtile models --versions` lists all"
    )


def same_build(server: Offers, model: ServedModel) -> ServedModel | None:
    """Where the very build is that `model` was: under the entry that was asked, or under its version's own.

    Args:
        server: the server.
        model: a model as a server offered it before.

    Returns:
        The model, with the entry to ask; None where the server has only other builds.

    Raises:
        ModelError: the server offers nothing under the name; it may be about to load it.
        As `Endpoint.model` does.
    """
    for entry in _entries(server, model):
        found = server.model(entry)  # a server that loads on demand has loaded nothing for the question before
        if found.card_text == model.card_text:
            return found
    return None


def has_build(server: Offers, model: ServedModel) -> bool:
    """Whether a server has the very build still; raises as `same_build` does, and for an entry without a card."""
    return next(_entries(server, model), None) is not None


def _entries(server: Offers, model: ServedModel) -> Iterator[str]:
    """Those of the entry that was asked and its version's own that have the very build; raises as `same_build` does."""
    if server.card_text(model.served_as) == model.card_text:
        yield model.served_as
    own = version_entry(model.card.name, model.version)
    with contextlib.suppress(ModelError):
        if own != model.served_as and server.card_text(own) == model.card_text:
            yield own
