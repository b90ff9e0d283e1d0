"""Keeps a training on the disk, so that one that is killed goes on. Knows neither networks nor what is learnt.

A file holds everything as safetensors, with a digest over it. It is put in place at once, and the one before it is
kept: whatever is cut off, a whole one is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from voxtile_build.errors import SlimmingError
from voxtile_build.repository.durable import sync

NAME, BEFORE = "checkpoint.safetensors", "checkpoint.previous.safetensors"
FACTS, DIGEST = "facts", "sha256"


@dataclass(frozen=True)
class Checkpoint:
    """A moment of a training.

    Attributes:
        tensors: by name.
        facts: everything else, as JSON has it.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Put a checkpoint in place.

    Raises:
        OSError: it cannot be written; the one before it then stays.
    """
    # Copies: safetensors refuses tensors that share memory, as some networks have them.
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in checkpoint.tensors.items()}
    facts = json.dumps(dict(checkpoint.facts))
    content = safetensors.torch.save(tensors, {FACTS: facts, DIGEST: _digest(tensors, facts)})
    path, partial = folder / NAME, folder / f".{NAME}.partial"
    try:
        partial.write_bytes(content)
        sync(partial)
        if path.exists():
            os.replace(path, folder / BEFORE)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync(folder)


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint; None where there never was one.

    Raises:
        SlimmingError: all that are there are damaged.
    """
    there = [path for path in (folder / NAME, folder / BEFORE) if path.exists()]
    for path in there:
        if (checkpoint := _whole(path)) is not None:
            return checkpoint
    if there:
        raise SlimmingError(
            f"{there[0]}: expected a whole checkpoint, found a damaged file, as after a disk's failure; remove it, and "
            "the training begins anew with the patches that are labelled"
        )
    return None


def remove_checkpoints(folder: Path) -> None:
    """Remove what a training has left in `folder`."""
    for name in (NAME, BEFORE, f".{NAME}.partial"):
        (folder / name).unlink(missing_ok=True)


def _whole(path: Path) -> Checkpoint | None:
    try:
        with safe_open(path, "pt") as file:
            kept = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError):
        return None
    facts = kept.get(FACTS, "")
    return Checkpoint(tensors, json.loads(facts)) if _digest(tensors, facts) == kept.get(DIGEST) else None


def _digest(tensors: Mapping[str, Tensor], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
