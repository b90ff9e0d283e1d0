"""Voxtile's client: a 3D scan in, a segmentation on the scan's own grid out, by a model on a Triton server.

    import voxtile

    mask = voxtile.Segmenter("localhost:8001", "brain-swinunetr")("head.nii.gz")

Names are loaded when they are first used, so that `import voxtile` costs nothing.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voxtile.card import Card as Card
    from voxtile.errors import InputError as InputError
    from voxtile.errors import MemoryLimitError as MemoryLimitError
    from voxtile.errors import ModelError as ModelError
    from voxtile.errors import OutputError as OutputError
    from voxtile.errors import ServerUnavailable as ServerUnavailable
    from voxtile.errors import TileError as TileError
    from voxtile.errors import VoxtileError as VoxtileError
    from voxtile.remote import RemoteNetwork as RemoteNetwork
    from voxtile.segmenter import Options as Options
    from voxtile.segmenter import Segmentation as Segmentation
    from voxtile.segmenter import Segmenter as Segmenter
    from voxtile.triton.endpoint import ConnectionConfig as ConnectionConfig
    from voxtile.triton.transport import RetryPolicy as RetryPolicy

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())  # whoever embeds the client decides what is shown

_HOMES = {
    "Card": "card",
    "ConnectionConfig": "triton.endpoint",
    "RetryPolicy": "triton.transport",
    "InputError": "errors",
    "MemoryLimitError": "errors",
    "ModelError": "errors",
    "Options": "segmenter",
    "OutputError": "errors",
    "RemoteNetwork": "remote",
    "Segmentation": "segmenter",
    "Segmenter": "segmenter",
    "ServerUnavailable": "errors",
    "TileError": "errors",
    "VoxtileError": "errors",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'voxtile' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*_HOMES, "__version__"]
