"""Declares every option that several commands share, once, and translates them into the library's configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from voxtile.io.dicom.choice import Gaps, SeriesChoice, Tilt
from voxtile.options import Options
from voxtile.triton.connection import ConnectionConfig, TlsConfig
from voxtile.triton.retry import RetryPolicy

DEFAULT_URL = "localhost:8001"

Scans = Annotated[
    list[Path],
    typer.Argument(
        metavar="SCAN...", help="Files (NIfTI, NRRD, MGZ, MetaImage, …), one a channel, in the model's order."
    ),
]
ScansOrAddresses = Annotated[
    list[str],
    typer.Argument(
        metavar="SCAN...",
        help="Files (NIfTI, DICOM, NRRD, MGZ, MetaImage, …), or addresses in a PACS "
        "(https://HOST/…/studies/UID/series/UID, AET@HOST:PORT); one a channel, in the model's order.",
    ),
]
Model = Annotated[str, typer.Option("--model", "-m", help="The model's public name.")]
ShowPatient = Annotated[
    bool, typer.Option("--show-patient", help="Name the patient and the scan's file on the page of --page.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


@dataclass(frozen=True)
class ServerOptions:
    """How to reach the servers."""

    url: Annotated[
        list[str],
        typer.Option(
            "--url", envvar="VOXTILE_URL", help="HOST:PORT of a server's gRPC service; repeat it for several servers."
        ),
    ] = field(default_factory=lambda: [DEFAULT_URL])
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt; the authorities that the system trusts are trusted.")] = (
        False
    )
    tls_ca: Annotated[Path | None, typer.Option(help="PEM file of the authorities to trust instead; turns TLS on.")] = (
        None
    )
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of this client's certificate; turns TLS on.")] = None
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its private key; turns TLS on.")] = None
    header: Annotated[
        list[str], typer.Option("--header", metavar="NAME:VALUE", help="Send this with every call, e.g. a token.")
    ] = field(default_factory=list)

    def connection(self, **changes: Any) -> ConnectionConfig:
        """The connection that the options describe, with other fields as `changes` say.

        Raises:
            typer.BadParameter: A header has no name or no colon.
            InputError: a certificate is given without its key, or a key without its certificate.
        """
        files = (self.tls_ca, self.tls_cert, self.tls_key)
        tls = TlsConfig(*files) if self.tls or any(files) else None
        return ConnectionConfig(tls=tls, headers=dict(map(_header, self.header)), **changes)


@dataclass(frozen=True)
class TransferOptions:
    """How tiles are sent; nothing here changes the result."""

    sw_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Tiles in one request; by default the most that the server takes.")
    ] = None
    in_flight: Annotated[int, typer.Option(min=1, help="The most requests in flight to one server.")] = 8
    shared_memory: Annotated[
        bool | None,
        typer.Option("--shared-memory/--no-shared-memory", help="By default, where the server is on this machine."),
    ] = None
    compression: Annotated[
        Literal["gzip", "deflate"] | None, typer.Option(help="Compress tiles; only slow networks gain by it.")
    ] = None
    timeout: Annotated[float, typer.Option(help="Seconds that one request may take.")] = 300.0
    no_response_timeout: Annotated[
        float, typer.Option(help="Give up after so many seconds without a good answer from any server.")
    ] = 300.0


@dataclass(frozen=True)
class ScanOptions:
    """What is said of scans beside what their files say."""

    nan: Annotated[
        float | None, typer.Option("--nan", metavar="VALUE", help="Replace voxels that are NaN; changes the result.")
    ] = None
    posinf: Annotated[
        float | None,
        typer.Option("--posinf", metavar="VALUE", help="Replace voxels that are infinite, or above float32."),
    ] = None
    neginf: Annotated[
        float | None,
        typer.Option("--neginf", metavar="VALUE", help="Replace voxels that are minus infinity, or below float32."),
    ] = None
    orientation: Annotated[
        str | None,
        typer.Option(metavar="CODES", help="Where the axes run of a scan whose file does not say it, such as LAS."),
    ] = None
    spacing: Annotated[
        tuple[float, float, float] | None,
        typer.Option(metavar="I J K", help="Millimetres a step of a scan whose file does not say it."),
    ] = None
    series: Annotated[
        list[str],
        typer.Option(metavar="UID|NUMBER", help="Of a DICOM study, the series; repeat it for one a channel."),
    ] = field(default_factory=list)
    modality: Annotated[
        str | None, typer.Option(metavar="CT|MR|…", help="Of a DICOM study, only series of this modality.")
    ] = None
    description: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Of a DICOM study, only series described so, such as '*venous*'."),
    ] = None
    gaps: Annotated[
        Gaps, typer.Option(help="Fill in slices that a DICOM series lacks between others; changes the result.")
    ] = "refuse"
    tilt: Annotated[
        Tilt, typer.Option(help="Straighten a DICOM series that a tilted gantry sheared; changes the result.")
    ] = "refuse"

    def for_library(self) -> dict[str, Any]:
        """The fields of the library's options.

        Raises:
            InputError: a value that is none.
        """
        dicom = SeriesChoice(tuple(self.series), self.modality, self.description, self.gaps, self.tilt)
        return {
            "nan": self.nan,
            "posinf": self.posinf,
            "neginf": self.neginf,
            "orientation": self.orientation,
            "spacing": self.spacing,
            "dicom": dicom,
        }


@dataclass(frozen=True)
class MethodOptions:
    """How a scan is segmented."""

    overlap: Annotated[
        float | None, typer.Option(help="The fraction of the ROI that tiles share; changes the result.")
    ] = None
    mode: Annotated[
        Literal["constant", "gaussian"] | None,
        typer.Option(help="How overlapping tiles are weighted; changes the result."),
    ] = None
    mirror: Annotated[bool, typer.Option(help="Average over the model's test-time flips, if it has any.")] = True
    skip_empty: Annotated[bool, typer.Option("--skip-empty", help="Leave out tiles outside the body.")] = False
    spot_check: Annotated[
        int, typer.Option(min=0, help="Send this many of the tiles left out all the same, to count labels in them.")
    ] = 0
    max_ram: Annotated[
        float | None, typer.Option("--max-ram", metavar="MIB", min=1, help="The most memory to take, in MiB.")
    ] = None
    allow_half_scores: Annotated[
        bool,
        typer.Option("--allow-half-scores", help="Sum in half precision if --max-ram requires it; changes the result."),
    ] = False


def library_options(
    server: ServerOptions, scan: ScanOptions, method: MethodOptions, transfer: TransferOptions, *, keep_scores: bool
) -> Options:
    """The library's options. Raises as `ServerOptions.connection` does, and InputError for impossible values."""
    return Options(
        overlap=method.overlap,
        mode=method.mode,
        mirror=method.mirror,
        sw_batch_size=transfer.sw_batch_size,
        in_flight=transfer.in_flight,
        skip_empty=method.skip_empty,
        spot_check=method.spot_check,
        max_ram_mib=method.max_ram,
        half_scores=method.allow_half_scores,
        keep_scores=keep_scores,
        **scan.for_library(),
        connection=server.connection(
            shared_memory=transfer.shared_memory, compression=transfer.compression, deadline_s=transfer.timeout
        ),
        retry_policy=RetryPolicy(no_response_timeout_s=transfer.no_response_timeout),
    )


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise typer.BadParameter(f"--header is NAME:VALUE, found {text!r}")
    return name.strip().lower(), value.strip()
