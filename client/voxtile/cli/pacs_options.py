"""The options of a command that takes a scan from a PACS, or puts what it made into one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from voxtile.errors import InputError
from voxtile.pacs.access import OUR_AET, SOURCE_TOKEN, TARGET_TOKEN, Access, token_of
from voxtile.pacs.address import FORMS, is_uid, looks_like_address, parse_source, parse_target
from voxtile.pacs.fetch import Fetched, fetched
from voxtile.pacs.scans import PacsScan
from voxtile.pacs.store import Kept, check_reachable, store
from voxtile.places.address import check_is_path
from voxtile.triton.connection import TlsConfig


@dataclass(frozen=True)
class SourceOptions:
    """What is needed at the PACS that a scan comes from."""

    study: Annotated[
        str | None, typer.Option(metavar="UID", help="The study, where the address in a PACS does not name it.")
    ] = None
    from_token_file: Annotated[
        Path | None, typer.Option(help=f"A file with the token for that PACS; by default that in {SOURCE_TOKEN}.")
    ] = None
    pacs_ca: Annotated[Path | None, typer.Option(help="PEM file of the authorities to trust with a PACS.")] = None
    pacs_cert: Annotated[Path | None, typer.Option(help="PEM file of this client's certificate for a PACS.")] = None
    pacs_key: Annotated[Path | None, typer.Option(help="PEM file of its private key.")] = None
    aet: Annotated[str, typer.Option(help="This program's AE title, for a PACS at AET@HOST:PORT.")] = OUR_AET

    def scans(self, given: Sequence[str]) -> list[Path | PacsScan]:
        """What was given as SCAN: files, and scans in a PACS.

        Raises:
            InputError: an address or a token is none, or an option is for a PACS and no scan lies in one.
        """
        for text in given:
            if not looks_like_address(text):
                check_is_path(text)
        scans = [self._scan(text) if looks_like_address(text) else Path(text) for text in given]
        if self != SourceOptions() and not any(isinstance(one, PacsScan) for one in scans):
            raise InputError(
                f"expected {FORMS} as a SCAN with --study, --from-token-file, --pacs-ca, --pacs-cert, --pacs-key or "
                "--aet, found no address"
            )
        return scans

    def _scan(self, text: str) -> PacsScan:
        return PacsScan(text, self.study, access=self._access(self.from_token_file, SOURCE_TOKEN))

    def _access(self, token_file: Path | None, variable: str) -> Access:
        return Access(token_of(token_file, variable), TlsConfig(self.pacs_ca, self.pacs_cert, self.pacs_key), self.aet)


@dataclass(frozen=True)
class PacsOptions(SourceOptions):
    """Where a scan comes from, where objects go to, and what is needed there."""

    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="URL",
            help="Take the scan from a PACS, in place of IN: https://HOST/…/studies/UID/series/UID, or AET@HOST:PORT.",
        ),
    ] = None
    target: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="URL", help="Also store the objects in a PACS: https://HOST/…/dicom-web, or AET@HOST:PORT."
        ),
    ] = None
    to_token_file: Annotated[
        Path | None, typer.Option(help=f"A file with the token for --to; by default that in {TARGET_TOKEN}.")
    ] = None

    def check(self, inputs: Sequence[Path]) -> None:
        """Checks, before any work, what can be: addresses, tokens, and that the PACS of --to answers.

        Args:
            inputs: what was given as IN.

        Raises:
            VoxtileError: something is wrong, such as that both IN and --from are given, or none.
        """
        if self.source is None and len(inputs) != 1:
            raise InputError(f"expected IN and OUT, or --from and OUT, found {len(inputs) + 1} names and no --from")
        if self.source is not None and inputs:
            raise InputError("expected IN or --from, found both")
        if self.source is None and self.study is not None:
            raise InputError("expected --from with --study, found none")
        if self.source is not None:
            parse_source(self.source, self.study)
            self._access(self.from_token_file, SOURCE_TOKEN)
        if self.target is not None:
            check_reachable(parse_target(self.target), self._access(self.to_token_file, TARGET_TOKEN))

    @contextlib.contextmanager
    def scan(self, inputs: Sequence[Path], series: Sequence[str]) -> Iterator[Fetched]:
        """Gives where the scan lies: at IN, or where it was fetched to, which is removed afterwards.

        Args:
            inputs: what was given as IN, which `check` has seen.
            series: the series that were chosen; of one UID, only that series is fetched.

        Raises:
            VoxtileError: it cannot be fetched.
        """
        if self.source is None:
            yield Fetched(inputs[0])
            return
        address, wanted = parse_source(self.source, self.study)
        if len(series) == 1 and is_uid(series[0]):
            address, wanted = parse_source(self.source, self.study, series[0])
        with fetched(address, wanted, self._access(self.from_token_file, SOURCE_TOKEN)) as came:
            yield came

    def store(self, files: Sequence[Path]) -> Kept:
        """Stores files in the PACS of --to; without one, nothing.

        Raises:
            VoxtileError: one cannot be stored.
        """
        if self.target is None:
            return Kept((), ())
        return store(files, parse_target(self.target), self._access(self.to_token_file, TARGET_TOKEN))
