"""Who can reach a server, and what they could do: its release, its options, its address. Sends no scan."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

from voxtile.doctor.checks.config import check_batching
from voxtile.doctor.finding import Finding
from voxtile.doctor.releases import Release, release_of_server, security_floor
from voxtile.errors import InputError, VoxtileError
from voxtile.triton.connection import ConnectionConfig, connect, is_local
from voxtile.triton.endpoint import CONTROL_TIMEOUT_S, Endpoint

GROUPS = ("model-repository", "trace", "logging", "shared-memory")
"""Calls that change a server, or make it read and write files; nothing that segments a scan needs them."""

CLIENT_MEMORY = "26.04"
"""The release from which clients' shared memory is off unless an option turns it on."""

LIMITED = "25.06"
"""The release from which bodies of HTTP are limited to 64 MB unless an option says more."""

LIMITED_BYTES = 64 << 20
LOOPBACK = ("127.", "localhost", "::1", "[::1]")
DOORS = (("grpc", "--grpc-restricted-protocol"), ("http", "--http-restricted-api"))
SECURE_PAGE = "see the page on security (docs/how-to/secure.md)"


def check_release(release: Release) -> Iterator[Finding]:
    """A release with published faults, or one of which nothing is known."""
    if not release.embedded and release.before(security_floor()):
        yield Finding(
            "warning",
            "security-floor",
            release.title,
            f"older than {security_floor()}",
            "its faults are published: whoever reaches it can end it, and worse",
            f"serve with {security_floor()} or newer; {SECURE_PAGE}",
        )
    if not release.known:
        yield Finding(
            "note",
            "release-unknown",
            release.title,
            "not known to this version of voxtile",
            "the versions of its engines are not compared",
            "",
        )


def check_options(text: str, release: Release, *, whole_scans: bool) -> Iterator[Finding]:
    """What tritonserver's options leave open, or forbid.

    Args:
        text: the options, as on a command line.
        release: that gets them.
        whole_scans: whether entries for whole scans are served.

    Raises:
        InputError: the text is no command line.
    """
    options = _options(text)
    for door, restricted in DOORS:
        if not _is_on(options, f"--allow-{door}", by_itself=True):
            continue
        address = options.get(f"--{door}-address", ["0.0.0.0"])[-1]
        closed = {group for value in options.get(restricted, []) for group in value.partition(":")[0].split(",")}
        groups = [group for group in GROUPS if group not in closed and _offered(group, options, release)]
        if groups and not address.startswith(LOOPBACK):
            yield Finding(
                "warning",
                "open-control",
                f"--{door}-address={address}",
                f"{', '.join(groups)} need no key",
                "whoever reaches it can change the server, or make it read and write files",
                f"add {restricted}={','.join(groups)}:NAME=SECRET, or listen on 127.0.0.1; {SECURE_PAGE}",
            )
    if whole_scans and not release.before(LIMITED) and _is_on(options, "--allow-http", by_itself=True):
        most = options.get("--http-max-input-size", [str(LIMITED_BYTES)])[-1]
        if not most.isdecimal() or int(most) <= LIMITED_BYTES:
            yield Finding(
                "warning",
                "http-limit",
                f"--http-max-input-size={most}",
                f"bodies of HTTP up to {LIMITED_BYTES >> 20} MiB",
                f"from {LIMITED} on, larger scans are refused by HTTP",
                "add --http-max-input-size=2147483647",
            )


def check_served(endpoint: Endpoint, connection: ConnectionConfig, names: Sequence[str]) -> Iterator[Finding]:
    """What a running server shows of itself.

    Args:
        endpoint: the server.
        connection: how it is reached.
        names: of the models that are ready.

    Raises:
        ServerUnavailable: it stops answering.
    """
    url = endpoint.url
    if not is_local(url):
        release = release_of_server(endpoint.server_version())
        yield from check_release(release) if release is not None else ()
        if connection.tls is None:
            yield Finding(
                "warning",
                "open-endpoint",
                url,
                "gRPC without encryption on an address that others reach",
                "scans and masks travel in the clear, and everybody may send some",
                f"give it a certificate; {SECURE_PAGE}",
            )
        if _lists_models(url, connection):
            yield Finding(
                "warning",
                "open-control",
                url,
                "its model repository is listed without a key",
                "whoever reaches it may be able to load models, or change logs and traces",
                f"start it with --grpc-restricted-protocol; {SECURE_PAGE}",
            )
    for name in names:
        yield from check_batching(endpoint.config(name), f"{name} at {url}")


def _lists_models(url: str, connection: ConnectionConfig) -> bool:
    """Whether the server answers without a key to what only its owner should ask."""
    from tritonclient.utils import InferenceServerException

    client = connect(url, connection)
    try:
        client.get_model_repository_index(client_timeout=CONTROL_TIMEOUT_S)
        return True
    except (InferenceServerException, VoxtileError):
        return False
    finally:
        client.close()


def _offered(group: str, options: dict[str, list[str]], release: Release) -> bool:
    """Whether a server has a group of calls at all."""
    if group == "shared-memory" and not release.before(CLIENT_MEMORY):
        return _is_on(options, "--allow-client-shm", by_itself=False)
    return True


def _is_on(options: dict[str, list[str]], name: str, *, by_itself: bool) -> bool:
    """Whether an option that is true or false is on; Triton takes 1 and 0 too, and capitals."""
    value = options[name][-1].lower() if name in options else ""
    return value in ("true", "1") or (by_itself and value not in ("false", "0"))


def _options(text: str) -> dict[str, list[str]]:
    """Options with their values, as `--name=value` or `--name value`."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"--server-options: expected a command line, found {text!r} ({error})") from None
    found: dict[str, list[str]] = {}
    for index, word in enumerate(words):
        if re.match(r"--[a-z]", word):
            name, equals, value = word.partition("=")
            following = words[index + 1] if index + 1 < len(words) else ""
            found.setdefault(name, []).append(value if equals else following)
    return found
