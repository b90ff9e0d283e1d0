"""Which calls of tritonserver need a key, and the options that say so. Knows nothing of processes or files.

Whoever may register shared memory, load a model, or name the file of a log or trace, can make a server read and write
what is not theirs. Nothing that segments a scan needs any of it, except the shared memory of this machine's clients.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence

CALLS = ("shared-memory", "model-repository", "trace", "logging")
"""The groups of calls that need the key, in Triton's words. Lists of models are of model-repository as well."""

NAME = "voxtile"
HEADER = f"triton-grpc-protocol-{NAME}"
"""What a call by gRPC carries the key in; by HTTP it is `voxtile`."""

GRPC, HTTP = "--grpc-restricted-protocol", "--http-restricted-api"

CLOSED = tuple(group for group in CALLS if group != "shared-memory")
"""The groups that are closed in a container, where an option of its own closes shared memory."""


def new_key() -> str:
    """A key that nobody can guess."""
    return secrets.token_hex(16)


def restriction_options(key: str, *, http: bool, given: Sequence[str] = ()) -> list[str]:
    """Options of tritonserver that restrict `CALLS`.

    Args:
        key: what a call must carry.
        http: whether HTTP is on.
        given: further options of tritonserver. What they restrict themselves keeps their key: Triton takes one a group.
    """
    return [
        f"{option}={','.join(groups)}:{NAME}={key}"
        for option in ([GRPC, HTTP] if http else [GRPC])
        if (groups := [group for group in CALLS if group not in _restricted_by(option, given)])
    ]


def _restricted_by(option: str, given: Iterable[str]) -> set[str]:
    """The groups that `given` names with `option`, as one word or as two."""
    values = re.findall(rf"(?:^|\0){option}[=\0]([^:\0]*):", "\0".join(given))
    return {group for value in values for group in value.split(",")}


def container_command() -> list[str]:
    """What a container runs before the options of `triton_options`: tritonserver, with a key that nobody learns."""
    limits = f"{','.join(CLOSED)}:{NAME}=$key"
    run = f'exec tritonserver "$@" {GRPC}={limits} {HTTP}={limits}'
    return ["sh", "-ec", f"read -r key < /proc/sys/kernel/random/uuid; {run}", "tritonserver"]
