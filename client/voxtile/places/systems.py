"""Makes what reads and writes each scheme, of fsspec, and puts what it says of a file into one form.

fsspec is imported at the first use of an address, and never without one.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from voxtile.places.address import Address
from voxtile.places.spool import Spool

NEEDS = {"s3": "s3fs", "gs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
"""The module that reads each scheme."""

SILENT_S = 60.0
"""Seconds without a byte after which a server of the web is given up; a transfer may take any time."""

SAFE_IN_URL = "%/:=&?~#+!$,;'@()*[]"


@dataclass(frozen=True)
class Found:
    """What a store says of a file.

    Attributes:
        size: its bytes; None where it does not say.
        tag: what changes with the content: the ETag, or else the time of the last change. Empty where it says neither.
        md5: the MD5 of its content in hexadecimal digits, where the store may have given it.
    """

    size: int | None
    tag: str = ""
    md5: str = ""

    @property
    def state(self) -> str:
        """Equal for two states of a file that have the same content; empty where the store says too little."""
        return f"{self.size} {self.tag}" if self.tag and self.size is not None else ""


def system_for(scheme: str) -> Any:
    """What reads and writes a scheme."""
    import fsspec

    own: Mapping[str, Any] = {}
    if NEEDS[scheme] == "aiohttp":
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENT_S, sock_read=SILENT_S)
        headers = {"Accept-Encoding": "identity"}  # else what comes is unpacked on the way
        own = {"client_kwargs": {"timeout": timeout, "headers": headers, "trust_env": True}, "encoded": True}
    return fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False, **own)


def location_of(address: Address) -> str:
    """An address as the libraries take it."""
    if not address.is_web:
        return address.path
    query = f"?{address.query}" if address.query else ""
    return quote(f"{address}{query}", safe=SAFE_IN_URL)


def found_of(said: Mapping[str, Any]) -> Found:
    """What a library says of a file, in one form."""
    size = said.get("size")
    etag = str(said.get("ETag") or said.get("etag") or "").strip('"')
    changed = said.get("LastModified") or said.get("updated") or said.get("Last-Modified") or ""
    tag = etag or (changed.isoformat() if isinstance(changed, datetime) else str(changed))
    md5 = etag
    if said.get("md5Hash"):
        md5 = base64.b64decode(said["md5Hash"]).hex()
    return Found(None if size is None else int(size), tag, md5)


def watched_by(spool: Spool) -> Any:
    """A callback that ends a transfer once the spool is stopped."""
    from fsspec.callbacks import Callback

    class Watch(Callback):  # type: ignore[misc]  # fsspec ships no types
        def relative_update(self, inc: int = 1) -> None:
            spool.check()

    return Watch()
