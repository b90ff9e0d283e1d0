"""Declares the options of `voxtile batch` with a manifest, and refuses what does not go together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from voxtile.batch.cohort.remote_place import check_can_be_written
from voxtile.errors import InputError
from voxtile.places.address import Address, path_or_address


@dataclass(frozen=True)
class CohortOptions:
    """Cases from a table in place of a folder."""

    manifest: Annotated[
        str | None,
        typer.Option(
            metavar="CASES.csv",
            help="A table in place of IN_DIR: case, one column a channel; voxtile manifest makes it. A file, or an "
            "address: s3://, gs://, https://.",
        ),
    ] = None
    out: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="With --manifest: the folder for masks, the same for all shards; or an address: s3://, gs://.",
        ),
    ] = None
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="With --manifest: do only the cases of part I of N, from 0/N; an array of Slurm, Kubernetes or AWS "
            "Batch says it by itself.",
        ),
    ] = None
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --manifest: try cases again that failed in an earlier run.")
    ] = False
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="With --manifest: segment every case again, and replace what has its name."),
    ] = False

    @property
    def place(self) -> str:
        """The folder for masks, which `folders` has found to be given."""
        assert self.out is not None, "folders comes first"
        return self.out

    def folders(self, inputs: Path | None, outputs: Path | None, *, index: bool) -> tuple[Path, Path] | None:
        """The folders of scans and of masks, where no manifest takes their place.

        Raises:
            InputError: something is missing, or does not belong to the rest.
            OutputError: the place for masks can only be read.
        """
        if self.manifest is None:
            stray = [
                name
                for name, value in (
                    ("--out", self.out),
                    ("--shard", self.shard),
                    ("--retry-failed", self.retry_failed),
                    ("--overwrite", self.overwrite),
                )
                if value
            ]
            if stray:
                raise InputError(
                    f"{stray[0]}: expected --manifest with it, found none; it is about cases of a manifest"
                )
            if inputs is None or outputs is None:
                raise InputError("expected IN_DIR and OUT_DIR, or --manifest and --out; see voxtile batch --help")
            return inputs, outputs
        if inputs is not None or outputs is not None:
            raise InputError(
                f"{inputs}: expected --manifest or IN_DIR and OUT_DIR, found both; with --manifest say --out"
            )
        if self.out is None:
            raise InputError("--manifest: expected --out with it, the folder for masks, found none")
        place = path_or_address(self.out)
        if isinstance(place, Address):
            check_can_be_written(place)
        if index:
            raise InputError("--index: is about a folder of scans, found --manifest; voxtile collect joins its shards")
        return None
