"""Repeats the certificates of a public model: hashes of the files, and the figures as the engine gives them now.

Needs neither weights nor PyTorch: the reference lies beside each certificate. Through a running server it is the
acceptance of the machine that serves.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from voxtile_build.arrays import Runner
from voxtile_build.certificate.archive import Stored, unpack
from voxtile_build.certificate.limits import violations
from voxtile_build.certificate.mean_error import error_of, mean_error
from voxtile_build.errors import AcceptanceError, EngineError, RepositoryError, VerificationError
from voxtile_build.evaluation.evaluate import (
    check_finite,
    compare_masks,
    describe,
    measure_tiles,
    run_tiles,
    summary,
)
from voxtile_build.evaluation.metrics import masks
from voxtile_build.evaluation.samples import Tile
from voxtile_build.evaluation.stitching import stitch
from voxtile_build.hashing import file_sha256
from voxtile_build.repository.card import get_card
from voxtile_build.repository.config import read_config, warm_up_sizes
from voxtile_build.repository.digests import are_certified
from voxtile_build.repository.entries import CERTIFICATE, entry_name, fold_names, mean_name

if TYPE_CHECKING:
    from voxtile_build.certificate.served import ServedRunner

Array = NDArray[Any]


@dataclass(frozen=True)
class Verdict:
    """One entry: what does not hold, in sentences, and the figures found (none where the files are not the entry's)."""

    entry: str
    faults: tuple[str, ...]
    figures: Mapping[str, float] = field(default_factory=dict)
    certified: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def as_line(self) -> str:
        """The verdict in one line."""
        if not self.holds:
            return f"{self.entry}: does not hold: {'; '.join(self.faults)}"
        known = {name: f" (certified {figure:g})" for name, figure in self.certified.items()}
        shown = (f"{name} {found:g}{known.get(name, '')}" for name, found in self.figures.items())
        return f"{self.entry}: holds{': ' if self.figures else ''}{', '.join(shown)}"

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong with the entry."""
        return not self.faults


def verify(name: str, repository: Path, url: str | None = None, *, scans: bool = True) -> tuple[Verdict, ...]:
    """A verdict for each entry behind the public model `name`: every engine's, and the averaging one.

    url: HOST:PORT of the gRPC service of a running Triton, which is then measured, the public entry last; without it,
    files are opened in this process, where the engine can be, and the public entry, which only a server runs, is
    left out. scans: whether the stored scan is run too. An entry whose files are not those of its certificate is not
    run. Raises RepositoryError where the model is not in the repository, VerificationError where nothing answers at
    `url`.
    """
    folder = repository / name
    config = read_config(folder)
    card = get_card(config, folder)
    folds = fold_names(config)
    if url is not None:
        _require_server(url)
    verdicts = []
    for engine, known in card.certificates.items():
        entries = [repository / entry_name(fold, engine) for fold in folds]
        wrong = _digest_fault(entries, known.sha256)
        verdicts += [_entry(entry, url, scans, (wrong,) if wrong else ()) for entry in entries]
    if len(folds) > 1:
        verdicts.append(_mean(repository / mean_name(name), url))
    if url is not None:
        verdicts.append(_public(name, [repository / entry_name(fold, card.engine) for fold in folds], url))
    return tuple(verdicts)


def _public(name: str, entries: Sequence[Path], url: str) -> Verdict:
    """The public entry: it must give what the entries give that the card says it stands for, or their mean.

    Within rounding, which tells one engine from another. A server that puts requests of others into the same batch may
    differ by more than that.
    """
    try:
        version, certificate = _certificate(entries[0])
        stored = unpack(version / certificate["evidence"]["file"])
        tile = most_varied(stored)
        found, *behind = [_answer(url, entry, stored, tile) for entry in (name, *(entry.name for entry in entries))]
    except VerificationError as error:
        return Verdict(name, (str(error),))
    if any(found.shape != scores.shape or found.dtype != scores.dtype for scores in behind):
        said = " and ".join(f"{scores.dtype} {list(scores.shape)}" for scores in (*behind, found))
        return Verdict(name, (f"expected scores of the type and shape that the entries behind it give, found {said}",))
    most, limit = error_of(found, behind)
    said = " and ".join(entry.name for entry in entries)
    wrong = () if most <= limit else (f"expected the scores of {said} within {limit:g}, found {most:g} beside them",)
    return Verdict(name, wrong, {"max_abs_error": most})


def most_varied(stored: Stored) -> Tile:
    """The tile whose scores vary most: a corner of a scan is often air, which all engines score alike."""

    def spread(scores: Array) -> float:
        return float(scores.reshape(len(scores), -1).std(axis=1, dtype=np.float64).max())

    return max(stored.tiles, key=lambda pair: spread(pair[1]))[0]


def _answer(url: str, entry: str, stored: Stored, tile: Tile) -> Array:
    """Scores of the tile by an entry of the server."""
    with _served(url, entry) as run:
        return run_tiles([tile], stored.spec, run)


def _mean(entry: Path, url: str | None) -> Verdict:
    """The entry that averages, measured against NumPy again."""
    try:
        version, certificate = _certificate(entry)
        if faults := tuple(_file_faults(version, certificate)):
            return Verdict(entry.name, faults)
        with _runner(entry, version, certificate, url) as run:
            error, limit = mean_error(read_config(entry), run)
    except (EngineError, RepositoryError, VerificationError) as error_found:
        return Verdict(entry.name, (str(error_found),))
    wrong = () if error <= limit else (f"max_abs_error: expected at most {limit:g}, found {error:g}",)
    return Verdict(entry.name, wrong, {"max_abs_error": error}, certificate["figures"])


def _entry(entry: Path, url: str | None, scans: bool, faults: Sequence[str]) -> Verdict:
    try:
        version, certificate = _certificate(entry)
    except VerificationError as error:
        return Verdict(entry.name, (*faults, str(error)))
    faults = (*faults, *_file_faults(version, certificate))
    certified = certificate["figures"]
    if faults:
        return Verdict(entry.name, tuple(faults), {}, certified)
    try:
        figures = _figures(entry, version, certificate, url, scans)
    except (AcceptanceError, EngineError, VerificationError) as error:
        return Verdict(entry.name, (str(error),), {}, certified)
    return Verdict(entry.name, tuple(violations(figures, certificate["acceptance"])), figures, certified)


def _certificate(entry: Path) -> tuple[Path, dict[str, Any]]:
    """The newest version folder of an entry that has a certificate, and the certificate."""
    found = sorted(entry.glob(f"*/{CERTIFICATE}"), key=lambda file: int(file.parent.name))
    if not found:
        raise VerificationError(f"{entry}: expected a certificate in a version folder, found none; build it again")
    try:
        content: dict[str, Any] = json.loads(found[-1].read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VerificationError(f"{found[-1]}: cannot be read: {error}; build the entry again") from None
    return found[-1].parent, content


def _file_faults(version: Path, certificate: Mapping[str, Any]) -> Iterator[str]:
    """Every file of the entry that is missing, or is not the one that was certified."""
    expected = dict(certificate["hashes"]["files"])
    if "evidence" in certificate:
        expected[certificate["evidence"]["file"]] = certificate["evidence"]["sha256"]
    for name, sha256 in expected.items():
        file = version / name
        if not file.is_file():
            yield f"{file}: missing; build the entry again"
        elif (found := file_sha256(file)) != sha256:
            yield (
                f"{file}: expected the certified file (SHA-256 {sha256[:12]}…), found another ({found[:12]}…); "
                "build the entry again"
            )


def _digest_fault(entries: Sequence[Path], expected: str) -> str | None:
    if are_certified(entries, expected):
        return None
    return (
        f"expected the certificate that the model card names ({expected[:12]}…), found another; build the model again"
    )


def _figures(
    entry: Path, version: Path, certificate: Mapping[str, Any], url: str | None, scans: bool
) -> dict[str, float]:
    """The figures of the certificate, measured again."""
    stored = unpack(version / certificate["evidence"]["file"])
    most = stored.spec.serving.max_batch_size
    tiles: list[dict[str, Any]] = []
    with _runner(entry, version, certificate, url) as run:
        for batch in warm_up_sizes(most):
            tiles += measure_tiles(
                stored.spec,
                certificate["engine"],
                run,
                stored.tiles,
                batch,
                spacing=stored.spacing,
                stride=stored.stride,
                once=1 < batch < most,
            )[0]
        records = [_scan(stored, certificate["engine"], run, most)] if scans and stored.scan else []
    return summary(tiles, records)


def _scan(stored: Stored, engine: str, run: Runner, batch: int) -> dict[str, Any]:
    if stored.scan is None:
        raise VerificationError("the stored reference has no scan")
    scan, wanted = stored.scan
    found = stitch(scan, stored.spec, run, batch)
    check_finite(found, stored.spec, engine, f"scan '{scan.name}'")
    found_masks = masks(found, stored.spec.output)
    return {**describe(scan, batch), **compare_masks(wanted, found_masks, stored.spec.output, scan.spacing)}


@contextlib.contextmanager
def _runner(entry: Path, version: Path, certificate: Mapping[str, Any], url: str | None) -> Iterator[Runner]:
    if url is not None:
        with _served(url, entry.name) as served:
            yield served
        return
    yield _in_process(version, certificate, {k: v.string_value for k, v in read_config(entry).parameters.items()})


def _served(url: str, entry: str) -> ServedRunner:
    from voxtile_build.certificate.served import ServedRunner

    return ServedRunner(url, entry)


def _require_server(url: str) -> None:
    from voxtile_build.certificate.served import require_server

    require_server(url)


def _in_process(version: Path, certificate: Mapping[str, Any], parameters: Mapping[str, str]) -> Runner:
    engine = certificate["engine"]
    if engine == "onnxruntime":
        from voxtile_build.engines.onnxruntime.runner import OnnxRuntimeRunner

        return OnnxRuntimeRunner(version / "model.onnx", int(parameters.get("intra_op_thread_count", "0")))
    if engine == "openvino":
        from voxtile_build.engines.openvino.runner import OpenVinoRunner

        threads = int(parameters.get("INFERENCE_NUM_THREADS", "0"))
        return OpenVinoRunner(version / "model.xml", threads, parameters.get("INFERENCE_PRECISION_HINT", "f32"))
    raise EngineError(f"{engine}: opened by its server alone; give --url HOST:PORT")
