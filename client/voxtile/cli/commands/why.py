"""`voxtile why`: what made a mask, and whether that still stands."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from voxtile.card import Card
from voxtile.cli import options
from voxtile.cli.console import errors_for_the_user, write_out
from voxtile.errors import InputError, VoxtileError
from voxtile.outputs.passport import Passport
from voxtile.outputs.signed_files import Signed, read_signed
from voxtile.triton.catalogue import list_models
from voxtile.triton.endpoint import Endpoint

DIFFERS = 1
"""The exit code where something is no longer as the passport says."""


def why(
    mask: Annotated[Path, typer.Argument(metavar="MASK", help="A mask of NIfTI, an object of DICOM, or a report.")],
    server: options.ServerOptions,
    check: Annotated[
        bool, typer.Option("--check", help="Compare it with the model that the servers of --url offer today.")
    ] = False,
    card: Annotated[
        Path | None, typer.Option("--card", metavar="FILE", help="Compare it with a card that was kept.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object, for programs.")] = False,
) -> None:
    """Say what made a mask: model, weights, certificate, engine, tiling, and what was changed.

    Exit code 0: all that was compared is the same; 1: something differs; 2: nothing can be said.
    """
    with errors_for_the_user():
        signed = read_signed(mask)
        compared = _of_mask(signed)
        if card is not None:
            compared |= _compared(signed.passport, _kept_card(card))
        if check:
            compared |= _compared(signed.passport, _served_card(signed.passport.model, server))
        write_out(_as_json(signed, compared) if as_json else _in_words(signed.passport, compared))
    raise typer.Exit(0 if all(compared.values()) else DIFFERS)


def _of_mask(signed: Signed) -> dict[str, bool]:
    return {} if signed.unchanged is None else {"the mask is as it was written": signed.unchanged}


def _compared(passport: Passport, card: Card) -> dict[str, bool]:
    """What of a card is as the passport says."""
    certificate = card.certificates.get(card.engine)
    return {
        "the model has the same weights": card.provenance.weights_sha256 == passport.weights_sha256,
        "its engines were built from the same graph": card.provenance.onnx_sha256 == passport.onnx_sha256,
        "the same engine answers": card.engine in passport.engine.split(", "),
        "its certificate is the same": (certificate.sha256 if certificate else "") == passport.certificate_sha256,
        "its certificate is valid": certificate is not None and certificate.accepted,
    }


def _served_card(model: str, server: options.ServerOptions) -> Card:
    """The card of a model on the first server that offers it. Raises VoxtileError where none does."""
    failed: VoxtileError | None = None
    for url in server.url:
        try:
            with contextlib.closing(Endpoint(url, server.connection())) as endpoint:
                found = [one.card for one in list_models(endpoint) if one.name == model and one.card is not None]
        except VoxtileError as error:
            failed = failed or error
            continue
        if found:
            return found[0]
    raise failed or InputError(f"expected the model {model!r} on {', '.join(server.url)}, found no such model there")


def _kept_card(path: Path) -> Card:
    try:
        found: Any = json.loads(path.read_bytes())
        return Card.model_validate(found.get("card", found))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, AttributeError, RecursionError):
        raise InputError(f"{path}: expected a card (JSON, as voxtile models --json prints it), found none") from None


def _as_json(signed: Signed, compared: dict[str, bool]) -> str:
    return json.dumps({"passport": signed.passport.model_dump(), "compared": compared}, indent=2) + "\n"


def _in_words(passport: Passport, compared: dict[str, bool]) -> str:
    tiling = ", ".join(f"{key} {value}" for key, value in passport.tiling.items())
    rows: Sequence[tuple[str, str]] = (
        ("model", f"{passport.model}, version {passport.version}"),
        ("weights", passport.weights_sha256),
        ("graph", passport.onnx_sha256),
        ("engine", " ".join(filter(None, (passport.engine, passport.precision)))),
        ("certificate", _verdict(passport)),
        ("tiling", tiling),
        ("changes", "; ".join(passport.changes) or "none: the model's own semantics"),
        ("scan", passport.scan_sha256),
        ("client", f"voxtile {passport.voxtile}" + (f", Triton {passport.triton}" if passport.triton else "")),
    )
    lines = [f"{name:12} {value}" for name, value in rows]
    lines += [f"{'yes' if same else 'NO':12} {what}" for what, same in compared.items()]
    return "\n".join(lines) + "\n"


def _verdict(passport: Passport) -> str:
    if not passport.certificate_sha256:
        return "none"
    return f"{passport.certificate_sha256}{'' if passport.certified else ', which did not meet its limits'}"
