"""What a PACS asks of its callers: a token, certificates, a name; and how often a call that fails is made again."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from voxtile.errors import InputError
from voxtile.triton.connection import TlsConfig

PAUSES_S = (1.0, 2.0, 4.0)
"""Seconds before each further try: a PACS that is started again is back within some."""

OUR_AET = "VOXTILE"

SOURCE_TOKEN, TARGET_TOKEN = "VOXTILE_FROM_TOKEN", "VOXTILE_TO_TOKEN"
"""Environment variables with the token for the PACS that a scan comes from, and for that which objects go to."""

LONGEST_TOKEN = 1 << 16
"""Bytes of a file that may hold a token; one that is larger is another file."""


@dataclass(frozen=True)
class Access:
    """How to call a PACS.

    Attributes:
        token: sent as `Authorization` with each call of DICOMweb, never shown; None for none.
        tls: which certificates are trusted and shown.
        aet: this program's application entity title.
        pauses_s: seconds before each further try of what may pass.
    """

    token: str | None = field(default=None, repr=False)
    tls: TlsConfig = field(default_factory=TlsConfig)
    aet: str = OUR_AET
    pauses_s: tuple[float, ...] = PAUSES_S


def token_of(file: Path | None, variable: str) -> str | None:
    """Returns the token in a file or, without one, in an environment variable; None where there is none.

    Raises:
        InputError: the file cannot be read, or what it holds is no token. It is not repeated.
    """
    if file is None:
        found, place = os.environ.get(variable), f"the environment variable {variable}"
    else:
        found, place = _text_in(file), str(file)
    if found is None:
        return None
    token = found.strip()
    if not token or not token.isascii() or not token.isprintable():
        raise InputError(f"{place}: expected a token in printable ASCII, alone on one line, found something else")
    return token


def authorization_of(token: str) -> str:
    """The header for a token: a bearer's, unless it says that it is of another kind, such as `Basic …`."""
    return token if " " in token else f"Bearer {token}"


def tls_context(tls: TlsConfig) -> ssl.SSLContext:
    """The context of an encrypted connection.

    Raises:
        InputError: a file is not what it is given as.
    """
    tls.check_files()
    try:
        context = ssl.create_default_context(cafile=None if tls.ca is None else str(tls.ca))
    except (OSError, ValueError):
        raise InputError(f"{tls.ca}: expected the certificates of authorities as PEM, found none") from None
    if tls.certificate is not None:
        try:
            context.load_cert_chain(tls.certificate, tls.key, password="")  # no question on the terminal
        except (OSError, ValueError):
            raise InputError(
                f"{tls.certificate}, {tls.key}: expected a certificate and its private key without a password, both "
                "as PEM, found something else"
            ) from None
    return context


def _text_in(file: Path) -> str:
    """The text of a file. Raises InputError where it cannot be read, or is longer than a token can be."""
    try:
        with file.open("rb") as stream:
            content = stream.read(LONGEST_TOKEN + 1)
    except OSError as error:
        raise InputError(f"{file}: a token cannot be read from it ({error.strerror or error})") from None
    if len(content) > LONGEST_TOKEN:
        raise InputError(f"{file}: expected a token, found a file of more than {LONGEST_TOKEN:,} bytes")
    return content.decode("utf-8", "replace")
