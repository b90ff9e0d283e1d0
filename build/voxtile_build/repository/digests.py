"""Whether the certificates of a model's entries are those that its card was made with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from voxtile_build.hashing import file_sha256
from voxtile_build.repository.entries import CERTIFICATE
from voxtile_build.repository.folds import aggregate_sha256


def certificate_digests(entries: Sequence[Path]) -> tuple[tuple[str, ...], ...]:
    """For each entry the SHA-256 of its certificates, one a version folder."""
    return tuple(tuple(file_sha256(file) for file in entry.glob(f"*/{CERTIFICATE}")) for entry in entries)


def are_certified(entries: Sequence[Path], expected: str) -> bool:
    """Whether the entries hold the certificates that a card names.

    Args:
        entries: the folders of one engine's entries, one a fold.
        expected: the digest in the card, of all folds' certificates.
    """
    found = certificate_digests(entries)
    return expected in (aggregate_sha256(digests) for digests in itertools.product(*found))
