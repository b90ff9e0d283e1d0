"""Says where a PACS is, and what of it is meant: an address of DICOMweb, or of a DICOM node (DIMSE).

What messages call a PACS has neither a path nor a UID: a path may hold a key, and a UID leads back to a patient.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from voxtile.errors import InputError
from voxtile.extras import require

FORMS = "https://HOST/…/dicom-web/studies/UID[/series/UID] or AET@HOST:PORT"
STORE_FORMS = "https://HOST/…/dicom-web or AET@HOST:PORT"

NODE = re.compile(
    r"(?:(?P<scheme>dicom|dicoms)://)?(?P<aet>[^@/\\]+)@(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/@\[\]]+):(?P<port>\d{1,5})"
)
UID = re.compile(r"[0-9]+(\.[0-9]+)+")
LONGEST_UID = 64
LONGEST_AET = 16

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class WebAddress:
    """A service of DICOMweb.

    Attributes:
        base: its address, without a slash at the end.
        secret: whether what is sent there is encrypted, or never leaves this machine.
        name: what messages call it.
    """

    base: str
    secret: bool
    name: str


@dataclass(frozen=True)
class NodeAddress:
    """A DICOM node.

    Attributes:
        aet: its application entity title.
        host: its name or its number.
        port: its port.
        tls: whether the connection is encrypted.
    """

    aet: str
    host: str
    port: int
    tls: bool = False

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.aet}@{self.host}:{self.port}"


Address = WebAddress | NodeAddress


@dataclass(frozen=True)
class Wanted:
    """What is to be fetched: a study, or one series of it."""

    study: str
    series: str | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return "study" if self.series is None else "series"


def parse_source(text: str, study: str | None = None, series: str | None = None) -> tuple[Address, Wanted]:
    """Reads where a scan is fetched from.

    Args:
        text: an address of a study or a series by DICOMweb, or of a node.
        study: the study's UID, where the address does not name it.
        series: the series' UID, where the address does not name it; None for all of the study.

    Raises:
        InputError: it is no such address, or names no study. No UID and no path is repeated.
    """
    address, named = _parse(text, FORMS)
    if study is not None:
        if named is not None:
            raise InputError(f"{address.name}: expected one study, found one in the address and one beside it")
        named = Wanted(_uid(study, "study"))
    if named is None:
        raise InputError(f"{address.name}: expected {FORMS} and the study's UID, found no study; name it with --study")
    if series is not None:
        if named.series is not None and named.series != series:
            raise InputError(f"{address.name}: expected one series, found one in the address and one beside it")
        named = Wanted(named.study, _uid(series, "series"))
    return address, named


def parse_target(text: str) -> Address:
    """Reads where objects are stored.

    Raises:
        InputError: it is no such address.
    """
    address, named = _parse(text, STORE_FORMS)
    if named is not None:
        raise InputError(f"{address.name}: expected {STORE_FORMS} to store in, found a study; end it before /studies")
    return address


def looks_like_address(text: str) -> bool:
    """Whether a text that may name a file is meant as an address. A file that is called as a node is, is a file."""
    if text.lower().startswith(("http://", "https://", "dicom://", "dicoms://")):
        return True
    return NODE.fullmatch(text) is not None and not os.path.lexists(text)


def is_uid(text: str) -> bool:
    """Whether a text is a UID, and no number of a series."""
    return len(text) <= LONGEST_UID and UID.fullmatch(text) is not None


def _uid(text: str, what: str) -> str:
    if not is_uid(text):
        raise InputError(f"expected the UID of a {what}: numbers with dots between them, found something else")
    return text


def _parse(text: str, forms: str) -> tuple[Address, Wanted | None]:
    if text.lower().startswith(("http://", "https://")):
        return _web(text, forms)
    found = NODE.fullmatch(text)
    if found is None:
        raise InputError(f"expected the address of a PACS, {forms}, found something else")
    aet, port = found["aet"].strip(), int(found["port"])
    if not (0 < len(aet) <= LONGEST_AET and aet.isascii() and aet.isprintable()):
        raise InputError(f"expected an AE title of 1 to {LONGEST_AET} characters before the @, found another one")
    if not 0 < port < 65536:
        raise InputError(f"{found['host']}: expected a port from 1 to 65535, found {port}")
    return NodeAddress(aet, found["host"].strip("[]"), port, found["scheme"] == "dicoms"), None


def _web(text: str, forms: str) -> tuple[WebAddress, Wanted | None]:
    require("dicomweb_client", "dicom", "a PACS")
    from dicomweb_client.uri import URI, URISuffix

    parts, name = _split(text, forms)
    if parts.username is not None or parts.password is not None:
        raise InputError(f"{name}: expected no user and no password in an address, found them; put a token into a file")
    if parts.query or parts.fragment or any(char.isspace() for char in text):
        raise InputError(f"{name}: expected {forms}, found something after it")
    path = parts.path.rstrip("/")
    plain = f"{parts.scheme.lower()}://{parts.netloc}{path.removesuffix('/studies')}"
    try:
        uri = URI.from_string(plain)
    except ValueError:  # its text repeats the UIDs
        raise InputError(f"{name}: expected {forms}, found an address that DICOMweb does not have") from None
    if uri.suffix not in (None, URISuffix.METADATA) or uri.sop_instance_uid is not None:
        raise InputError(f"{name}: expected the address of a study or a series, found that of a part of one")
    secret = parts.scheme.lower() == "https" or parts.hostname in LOOPBACK
    wanted = None if uri.study_instance_uid is None else Wanted(uri.study_instance_uid, uri.series_instance_uid)
    return WebAddress(uri.base_url, secret, name), wanted


def _split(text: str, forms: str) -> tuple[SplitResult, str]:
    """The parts of an address, and its name."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise InputError(f"expected the address of a PACS, {forms}, found a host or a port that cannot be") from None
    if not parts.hostname or port == 0:
        raise InputError(f"expected the address of a PACS, {forms}, found no host or no port in it")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return parts, f"{parts.scheme.lower()}://{host}{'' if port is None else f':{port}'}"
