"""Tells a server that loads by hand what has changed in its repository. Changes no file."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from voxtile.errors import VoxtileError
from voxtile.triton.connection import ConnectionConfig, connect, control_headers
from voxtile.triton.endpoint import CONTROL_TIMEOUT_S, Endpoint
from voxtile.triton.on_demand import ENTRY
from voxtile_build.errors import RepositoryError
from voxtile_build.repository.entries import version_of
from voxtile_build.repository.versions import public_version, versions_of
from voxtile_build.repository.volume import volume_names

LOADING_S = 600.0
"""Seconds that a server may take to load one entry with its engines."""


def check_server(url: str, connection: ConnectionConfig) -> None:
    """Refuse a server that does not answer, before anything changes.

    Args:
        url: HOST:PORT of its gRPC service.
        connection: how to reach it.

    Raises:
        RepositoryError: no server can have this address, or none answers there.
    """
    try:
        with contextlib.closing(Endpoint(url, connection)) as endpoint:
            endpoint.check_live()
    except VoxtileError as error:
        raise RepositoryError(f"--url: {error}; the repository is as it was") from None


def load_at(url: str, name: str, repository: Path, connection: ConnectionConfig | None = None) -> tuple[str, ...]:
    """Let a Triton in the mode explicit load a model whose name has moved.

    First the own entries of the version that the name stands for, of the one that it stood for on the server (scans on
    their way go on there), and of those that the server has; then the name, and then the entries for whole scans that
    the server has. One that does not load stops no other.

    Args:
        url: HOST:PORT of its gRPC service.
        name: the public name.
        repository: what it serves.
        connection: how to reach it; None for without TLS and headers.

    Returns:
        The entries that it has loaded; none where it loads models on demand, and sees by itself what has changed.

    Raises:
        RepositoryError: it does not answer, or does not load one; the repository stays as it is.
    """
    from tritonclient.utils import InferenceServerException

    kept = {one.entry: one.number for one in versions_of(name, repository).values() if one.entry != name}
    connection = connection or ConnectionConfig()
    client, headers = connect(url, connection), control_headers(url, connection)
    loaded, refused = list[str](), dict[str, str]()
    try:
        index = client.get_model_repository_index(headers=headers, client_timeout=CONTROL_TIMEOUT_S).models
        ready = {one.name for one in index if one.state == "READY"}
        if ENTRY in ready:
            return ()
        wanted = {public_version(name, repository)}
        if name in ready:
            before = client.get_model_config(name, headers=headers, client_timeout=CONTROL_TIMEOUT_S).config
            wanted.add(version_of(before))
        own = [entry for entry, number in kept.items() if entry in ready or number in wanted]
        for entry in (*own, name, *(one for one in volume_names(name) if one in ready)):
            try:
                client.load_model(entry, headers=headers, client_timeout=LOADING_S)
                loaded.append(entry)
            except InferenceServerException as error:
                refused[entry] = error.message() or error.status()
    except InferenceServerException as error:
        refused[name] = error.message() or error.status()
    finally:
        client.close()
    if refused:
        reasons = "; ".join(f"{entry}: {reason}" for entry, reason in refused.items())
        raise RepositoryError(
            f"{url}: the repository has changed, but the server does not load {reasons}; it has loaded "
            f"{', '.join(loaded) or 'nothing'}; a server in the mode poll loads all by itself, and one in the mode "
            "none when it is started again"
        )
    return tuple(loaded)


def unload_at(url: str, entries: Sequence[str], connection: ConnectionConfig) -> tuple[str, ...]:
    """Let a Triton in the mode explicit unload entries that were removed from its repository.

    Args:
        url: HOST:PORT of its gRPC service.
        entries: the entries, those that others refer to last.
        connection: how to reach it.

    Returns:
        Those that it had loaded; none where it loads models on demand, and unloads them by itself.

    Raises:
        RepositoryError: it does not answer, or does not unload one; the repository stays as it is.
    """
    from tritonclient.utils import InferenceServerException

    client, headers = connect(url, connection), control_headers(url, connection)
    try:
        # The list of the repository leaves out what is loaded and not in the repository any more.
        on_demand = client.is_model_ready(ENTRY, headers=headers, client_timeout=CONTROL_TIMEOUT_S)
        loaded = tuple(
            one
            for one in entries
            if not on_demand and client.is_model_ready(one, headers=headers, client_timeout=CONTROL_TIMEOUT_S)
        )
        for entry in loaded:
            client.unload_model(entry, headers=headers, client_timeout=CONTROL_TIMEOUT_S)
    except InferenceServerException as error:
        raise RepositoryError(
            f"{url}: the repository has changed, but the server does not unload what is gone: "
            f"{error.message() or error.status()}; a server in the mode poll unloads it by itself, and one in the mode "
            "none when it is started again"
        ) from None
    finally:
        client.close()
    return loaded
