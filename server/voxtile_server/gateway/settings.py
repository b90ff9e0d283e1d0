"""What the gateway is told on its command line. Knows nothing of HTTP or of servers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from voxtile.triton.connection import ConnectionConfig

MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """How the gateway works.

    Attributes:
        urls: HOST:PORT of the gRPC service of one Triton or several.
        connection: how to reach them.
        at_once: scans that are segmented at once.
        waiting: scans that may wait; a further one is refused.
        max_upload_mib: the largest body of a request, in MiB.
        max_ram_mib: the most memory for one scan, in MiB; None for no limit.
        keep_s: seconds for which a finished job's mask can be fetched.
        upload_timeout_s: seconds without a byte after which an upload is given up.
        token_file: a file with one bearer token a line; None for no tokens.
        origins: web origins that browsers may call from (CORS).
        folder: where uploads and masks lie meanwhile; None for the system's temporary folder.
        datastore_mib: the most that MONAI Label's images, labels and sessions may take, in MiB; 0 for none of them.
        datastore_keep_s: seconds for which one of these is kept after its last use.

    Raises:
        ValueError: a number that cannot be.
    """

    urls: tuple[str, ...]
    connection: ConnectionConfig = field(default_factory=ConnectionConfig)
    at_once: int = 1
    waiting: int = 8
    max_upload_mib: float = 2048
    max_ram_mib: float | None = None
    keep_s: float = 600
    upload_timeout_s: float = 30
    token_file: Path | None = None
    origins: tuple[str, ...] = ()
    folder: Path | None = None
    datastore_mib: float = 4096
    datastore_keep_s: float = 3600

    def __post_init__(self) -> None:
        if self.at_once < 1 or self.waiting < 0:
            raise ValueError(f"expected at least 1 scan at once and 0 waiting, found {self.at_once}, {self.waiting}")
        if not self.max_upload_mib > 0 or not self.keep_s > 0 or not self.upload_timeout_s > 0:
            raise ValueError("expected limits above 0 for --max-upload, --keep and --upload-timeout")
        if not 0 <= self.datastore_mib < math.inf or not self.datastore_keep_s > 0:
            raise ValueError("expected --datastore of 0 MiB or more, and --datastore-keep above 0 seconds")

    @property
    def max_upload_bytes(self) -> int:
        return int(self.max_upload_mib * MIB)

    @property
    def max_ram_bytes(self) -> int | None:
        return None if self.max_ram_mib is None else int(self.max_ram_mib * MIB)

    @property
    def datastore_bytes(self) -> int:
        return int(self.datastore_mib * MIB)
