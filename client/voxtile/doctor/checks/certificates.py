"""Whether the files behind a public name are those that were certified, and what the certificates do not prove here."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from voxtile.card import Card, Certificate
from voxtile.doctor.checks.cards import folds_of, mean_of
from voxtile.doctor.checks.engines import CERTIFICATE
from voxtile.doctor.checks.layout import files_of, files_with_weights
from voxtile.doctor.entry import Entry, version_folder
from voxtile.doctor.finding import Finding
from voxtile.doctor.machine import Machine
from voxtile.doctor.releases import Release

BLOCK = 1 << 20
SHOWN = 12
"""Digits of a digest that a message shows."""


def check_certificates(
    entry: Entry, entries: Mapping[str, Entry], release: Release, machine: Machine | None, *, whole: bool
) -> Iterator[Finding]:
    """Faults of the certificates behind a public entry.

    Args:
        entry: the public entry; one without a card has none.
        entries: of all repositories, by name.
        release: that is to serve it.
        machine: that is to serve it; None where it is another than this.
        whole: whether all its steps are there, so that their certificates together are those of the card.
    """
    card = entry.card
    if card is None or card.parts is not None:
        return
    for engine, known in card.certificates.items():
        names = [f"{fold}_{engine}" for fold in folds_of(entry)]
        behind = [entries[name] for name in names if name in entries and entries[name].config is not None]
        yield from (finding for one in behind for finding in _files(one))
        if whole and names and len(behind) == len(names):
            yield from _digest(entry, engine, known, behind)
    mean = mean_of(entry)
    yield from _files(entries[mean]) if mean in entries else ()
    yield from _proof(entry, card, release, machine)


def _digest(entry: Entry, engine: str, known: Certificate, behind: list[Entry]) -> Iterator[Finding]:
    found = [list(_digests(one)) for one in behind]
    if all(found) and known.sha256 not in map(_together, itertools.product(*found)):
        yield Finding(
            "error",
            "certificate-differs",
            str(entry.config_file),
            f"the card names the certificate {known.sha256[:SHOWN]}… of {engine}; "
            f"{', '.join(one.name for one in behind)} has another",
            "what is served is not what the card says was certified",
            "build the model again",
        )


def _digests(entry: Entry) -> Iterator[str]:
    """The SHA-256 of every certificate of an entry, one a version."""
    for file in sorted(entry.folder.glob(f"*/{CERTIFICATE}")):
        with contextlib.suppress(OSError):
            if file.is_file():
                yield _sha256(file)


def _together(digests: tuple[str, ...]) -> str:
    """One digest for all folds, as the build makes it: one as it is, several as the SHA-256 of their lines."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()


def _files(entry: Entry) -> Iterator[Finding]:
    for version in entry.served:
        folder = version_folder(entry, version)
        file = folder / CERTIFICATE
        try:
            if not any(folder.iterdir()):
                continue  # `layout` speaks of it
            if not file.is_file():  # a pipe would be read for ever
                raise FileNotFoundError(file)
            content = json.loads(file.read_text(encoding="utf-8"))
            expected = _hashes(content)
        except FileNotFoundError:
            yield Finding(
                "error",
                "certificate-missing",
                str(file),
                "missing",
                "nothing proves that this engine gives the network's masks",
                "build the model again",
            )
            continue
        except PermissionError:
            continue
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            yield Finding(
                "error",
                "certificate-unreadable",
                str(file),
                f"no certificate: {' '.join(str(error).split())}",
                "nothing proves that this engine gives the network's masks",
                "build the model again",
            )
            continue
        for name, digest in expected.items():
            yield from _file(folder / name, digest, own=name in files_of(entry))
        for name in files_with_weights(entry):
            if name not in expected and (folder / name).is_file():
                yield Finding(
                    "error",
                    "not-in-certificate",
                    str(folder / name),
                    f"the certificate beside it speaks of {', '.join(sorted(expected)) or 'no file'}",
                    "nothing proves that this engine gives the network's masks",
                    "build the model again",
                )


def _hashes(content: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 of every file that a certificate speaks of, by name."""
    expected = {str(name): str(digest) for name, digest in content["hashes"]["files"].items()}
    if "samples" in content:
        expected[str(content["samples"]["file"])] = str(content["samples"]["sha256"])
    return expected


def _file(file: Path, expected: str, *, own: bool) -> Iterator[Finding]:
    try:
        if own and not (file.exists() and file.stat().st_size):
            return  # `layout` speaks of it
        if not file.is_file():  # a certificate may name anything, such as a device
            raise FileNotFoundError(file)
        found = _sha256(file)
    except FileNotFoundError:
        yield Finding(
            "error",
            "certified-file-missing",
            str(file),
            "missing, and the certificate speaks of it",
            "voxtile-build verify cannot measure the engine again",
            "build the model again",
        )
        return
    except OSError:
        return
    if found != expected:
        yield Finding(
            "error",
            "certified-file-changed",
            str(file),
            f"expected the certified file (SHA-256 {expected[:SHOWN]}…), found another ({found[:SHOWN]}…)",
            "what is served is not what was certified: its masks may be wrong",
            "build the model again",
        )


def _proof(entry: Entry, card: Card, release: Release, machine: Machine | None) -> Iterator[Finding]:
    """What the certificate of the engine behind the public name leaves open."""
    where, known = str(entry.config_file), card.certificates.get(card.engine)
    verify = f"start the server and run {_verify(entry)}"
    if known is None or not known.accepted:
        yield Finding(
            "error",
            "not-certified",
            where,
            f"the engine {card.engine} has no accepted certificate",
            "nothing proves that it gives the network's masks",
            "build the model again",
        )
        return
    if not known.certified_where_served:
        yield Finding(
            "warning",
            "other-device",
            where,
            f"{card.engine} was certified on a {known.device.upper()} and runs on a {known.serves_on.upper()}",
            "nothing proves its masks there",
            verify,
        )
    elif (
        machine is not None and (here := _here(known, machine)) and here not in (known.device_name, *known.verified_on)
    ):
        yield Finding(
            "warning",
            "other-device",
            where,
            f"{card.engine} was certified on {known.device_name}, this machine has {here}",
            "another device may round differently",
            verify,
        )
    yield from _version(entry, card, release)


def _here(known: Certificate, machine: Machine) -> str:
    """This machine's device of the kind that an engine runs on; empty where that is not known."""
    if known.serves_on == "cpu" and known.device_name:
        return machine.cpu
    if known.serves_on == "gpu" and machine.gpus:
        return machine.gpus[0].name
    return ""


def _version(entry: Entry, card: Card, release: Release) -> Iterator[Finding]:
    """Another version of the engine than the certificate's: the certificate has run out, in a way."""
    served = {"onnxruntime": release.onnxruntime, "openvino": release.openvino}.get(card.engine)
    certified = card.provenance.versions.get(card.engine, "").partition("-")[0]
    if served and certified and served != certified:
        yield Finding(
            "note",
            "other-version",
            str(entry.config_file),
            f"certified with {card.engine} {certified}; {release.title} has {served}",
            "the certificate speaks of its own version",
            f"measure this one: {_verify(entry)}",
        )


def _verify(entry: Entry) -> str:
    """The command that measures the engine on the server that serves it."""
    return f"voxtile-build verify {entry.name} --repository {entry.config_file.parent.parent} --url HOST:PORT"


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
