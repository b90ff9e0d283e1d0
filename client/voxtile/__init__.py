"""Voxtile's client: a model on a Triton server segments a 3D scan, and the mask lies on the scan's own grid.

    import voxtile

    mask = voxtile.Segmenter("localhost:8001", "brain-swinunetr")("head.nii.gz")

Names are loaded when they are first used, so that `import voxtile` takes no time.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from voxtile.version import __version__ as __version__

if TYPE_CHECKING:
    from voxtile.batch.run import BatchResult as BatchResult
    from voxtile.batch.run import segment_folder as segment_folder
    from voxtile.batch.summary import Outcome as Outcome
    from voxtile.card import Card as Card
    from voxtile.errors import AccessError as AccessError
    from voxtile.errors import DiskFullError as DiskFullError
    from voxtile.errors import ForkError as ForkError
    from voxtile.errors import InputError as InputError
    from voxtile.errors import MemoryLimitError as MemoryLimitError
    from voxtile.errors import MissingExtraError as MissingExtraError
    from voxtile.errors import ModelError as ModelError
    from voxtile.errors import NoCardError as NoCardError
    from voxtile.errors import NoResponseError as NoResponseError
    from voxtile.errors import NotLoadedError as NotLoadedError
    from voxtile.errors import OtherBuildError as OtherBuildError
    from voxtile.errors import OutputError as OutputError
    from voxtile.errors import ServerUnavailable as ServerUnavailable
    from voxtile.errors import TileError as TileError
    from voxtile.errors import VoxtileError as VoxtileError
    from voxtile.io.scan import ScanInput as ScanInput
    from voxtile.options import Options as Options
    from voxtile.outputs.report import Report as Report
    from voxtile.pacs.access import Access as Access
    from voxtile.pacs.scans import PacsScan as PacsScan
    from voxtile.remote import RemoteNetwork as RemoteNetwork
    from voxtile.segmenter import LoadedScan as LoadedScan
    from voxtile.segmenter import Segmentation as Segmentation
    from voxtile.segmenter import Segmenter as Segmenter
    from voxtile.triton.connection import ConnectionConfig as ConnectionConfig
    from voxtile.triton.connection import TlsConfig as TlsConfig
    from voxtile.triton.retry import RetryPolicy as RetryPolicy
    from voxtile.triton.transport import Transport as Transport
    from voxtile.triton.types import Request as Request
    from voxtile.triton.types import ServedModel as ServedModel
    from voxtile.triton.types import Traffic as Traffic


logging.getLogger(__name__).addHandler(logging.NullHandler())  # the application decides what is shown

_HOMES = {
    "Access": "pacs.access",
    "AccessError": "errors",
    "BatchResult": "batch.run",
    "Card": "card",
    "ConnectionConfig": "triton.connection",
    "DiskFullError": "errors",
    "ForkError": "errors",
    "InputError": "errors",
    "LoadedScan": "segmenter",
    "MemoryLimitError": "errors",
    "MissingExtraError": "errors",
    "ModelError": "errors",
    "NoCardError": "errors",
    "NoResponseError": "errors",
    "NotLoadedError": "errors",
    "Options": "options",
    "OtherBuildError": "errors",
    "Outcome": "batch.summary",
    "OutputError": "errors",
    "PacsScan": "pacs.scans",
    "RemoteNetwork": "remote",
    "Report": "outputs.report",
    "Request": "triton.types",
    "RetryPolicy": "triton.retry",
    "ScanInput": "io.scan",
    "Segmentation": "segmenter",
    "Segmenter": "segmenter",
    "ServedModel": "triton.types",
    "ServerUnavailable": "errors",
    "TileError": "errors",
    "TlsConfig": "triton.connection",
    "Traffic": "triton.types",
    "Transport": "triton.transport",
    "VoxtileError": "errors",
    "segment_folder": "batch.run",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'voxtile' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*_HOMES, "__version__"]
