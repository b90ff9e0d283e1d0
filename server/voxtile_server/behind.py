"""How a service in front of Triton reaches it: certificates and headers, as the command line says.

Knows nothing of what the service itself offers.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from voxtile.triton.connection import ConnectionConfig


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to a service's parser."""
    add = parser.add_argument
    add("--triton-tls", action="store_true", help="encrypt what is sent to Triton; the system's authorities count")
    add("--triton-ca", type=Path, metavar="FILE", help="PEM: the authorities that count instead; encrypts")
    add("--triton-certificate", type=Path, metavar="FILE", help="PEM: what is shown to Triton; encrypts")
    add("--triton-key", type=Path, metavar="FILE", help="PEM: its private key")
    add("--triton-header", action="append", default=[], metavar="NAME:VALUE", help="sent to Triton with every call")


def connection(parsed: argparse.Namespace, urls: Sequence[str]) -> ConnectionConfig:
    """The connection that the options describe; its files are read once, so that a wrong one is told at the start.

    Raises:
        InputError: a file or an address cannot be used, or a header cannot be sent.
        ValueError: a header is not NAME:VALUE.
    """
    from voxtile.triton.connection import ConnectionConfig, TlsConfig, connect

    files = (parsed.triton_ca, parsed.triton_certificate, parsed.triton_key)
    tls = TlsConfig(*files) if parsed.triton_tls or any(files) else None
    config = ConnectionConfig(tls=tls, headers=dict(map(_header, parsed.triton_header)))
    for url in urls:
        with contextlib.closing(connect(url, config)):
            pass
    return config


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not name or not colon:
        raise ValueError("--triton-header: expected NAME:VALUE, found no colon, or no name before it")
    return name.strip().lower(), value.strip()
