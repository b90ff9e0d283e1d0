"""Engines whose certificates say that they answer as a teacher does: found in a repository, or built for it.

Knows nothing of students or scans.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from voxtile.card import Card, Certificate
from voxtile_build.arrays import Runner
from voxtile_build.build import build_models
from voxtile_build.certificate.archive import Stored, unpack
from voxtile_build.certificate.entry_files import CertifiedEntry, read_entry
from voxtile_build.certificate.limits import MAX_SCORE_ERROR
from voxtile_build.certificate.verify import most_varied, open_entry, verify_entry
from voxtile_build.engines import find_engine
from voxtile_build.engines.gpu import visible_gpu
from voxtile_build.errors import BuildError, EngineError, RepositoryError, SlimmingError, VerificationError
from voxtile_build.evaluation.evaluate import error_and_spread, run_tiles, thinned
from voxtile_build.evaluation.whole_scan import torch_runner
from voxtile_build.graph.wrapper import wrap
from voxtile_build.hashing import file_sha256
from voxtile_build.prepared import weights_sha256
from voxtile_build.progress import Step, silent
from voxtile_build.repository.card import get_card
from voxtile_build.repository.config import read_config
from voxtile_build.repository.default_engine import fastest_engine
from voxtile_build.repository.digests import are_certified
from voxtile_build.repository.entries import CERTIFICATE, CONFIG, entry_name, fold_names
from voxtile_build.repository.facts import tile_seconds
from voxtile_build.repository.folds import Model, aggregate_sha256
from voxtile_build.spec.engines import ENGINE_NAMES
from voxtile_build.spec.spec import Spec

ON_GPU = ("tensorrt", "aotinductor")
ON_CPU = ("openvino", "onnxruntime")
"""Engines that are tried, the fastest as a rule first; of those for a GPU, the first that can be built."""

FLOATS = ("fp32", "tf32", "bf16", "fp16")
"""Precisions that may teach. int8 keeps masks and not scores, and scores are what a student learns."""

FP32 = "fp32"


@dataclass(frozen=True)
class CertifiedEngine:
    """One engine of a published model, for all of its folds.

    Attributes:
        engine: its name.
        entries: its entry of each fold, in the order of the folds.
        spec: the part of the spec that the certificates hold.
        seconds: for one tile through all folds, where it was built.
    """

    engine: str
    entries: tuple[CertifiedEntry, ...]
    spec: Spec
    seconds: float

    @property
    def precision(self) -> str:
        """What it computes in."""
        return str(self.entries[0].certificate["precision"])

    @property
    def certificates(self) -> tuple[str, ...]:
        """SHA-256 of each fold's certificate."""
        return tuple(file_sha256(entry.version / CERTIFICATE) for entry in self.entries)

    def open(self) -> tuple[Runner, ...]:
        """The engine of each fold, opened in this process.

        Raises:
            EngineError: this process cannot open it.
        """
        return tuple(open_entry(entry) for entry in self.entries)


def spec_for_scores(spec: Spec, engines: Sequence[str], threads: int) -> Spec:
    """The spec of the same networks that gives the scores that a student learns: logits in fp32 as far as there are.

    Args:
        spec: the model as it is served.
        engines: what it is built for.
        threads: CPU threads of one run; 0 for the engine's own choice.
    """
    kind = "probabilities" if spec.network.output == "probabilities" else "logits"
    names = tuple(label.name for label in spec.output.labels)
    output = {
        "scores": kind,
        "dtype": FP32,
        "foreground": None,
        "activation": "none",
        "region_order": names if spec.output.regions else None,  # nothing is painted here
    }
    gpus = "all" if set(engines) & set(ON_GPU) else "none"
    serving = {"engines": tuple(engines), "default_engine": None, "gpus": gpus, "threads": threads, "volume": None}
    changes = {
        "output": spec.output.model_copy(update=output),
        "serving": spec.serving.model_copy(update={**serving, "warm_up": False}),
        "postprocessing": None,
    }
    changed = spec.model_copy(update=changes)
    precisions = {name: _precision(name, changed) for name in ENGINE_NAMES}
    return changed.model_copy(update={"precision": spec.precision.model_copy(update=precisions)})


def engines_here(spec: Spec) -> tuple[str, ...]:
    """The engines that are worth building for a teacher on this machine: at most two."""
    on_gpu = [name for name in ON_GPU if _can_build(name, spec)] if visible_gpu() else []
    return (on_gpu[0], ON_CPU[0]) if on_gpu else ON_CPU


def build_certified(model: Model, repository: Path, step: Step = silent) -> CertifiedEngine:
    """Build a teacher's engines into `repository`, and choose the fastest that keeps its limits.

    Args:
        model: the teacher, with its `spec_for_scores`.
        repository: where to.
        step: is told what is done.

    Raises:
        AcceptanceError: every engine misses a limit.
        BuildError: what else a build says.
    """
    repository.mkdir(parents=True, exist_ok=True)
    build_models([model], repository, step=step)
    name = model.spec.name
    engine = fastest_engine(name, repository)
    return _certified(repository, [fold.name for fold in model.folds], engine)


def weights_of(model: Model) -> str:
    """The digest of all folds' weights, as a build writes it into a card."""
    own = model.spec.weights.sha256 if model.spec.weights else None
    return aggregate_sha256(
        [fold.weights_sha256 or own or weights_sha256(model.spec, fold.load()) for fold in model.folds]
    )


def find_certified(model: Model, weights: str, repository: Path, step: Step = silent) -> CertifiedEngine | None:
    """The fastest engine of these very networks that is published in `repository` and gives scores that can teach.

    It is measured again on this machine, on the tiles beside its certificate.

    Args:
        model: the teacher, with its `spec_for_scores`.
        weights: its digest, see `weights_of`.
        repository: a model repository, which need not exist.
        step: is told what is done.

    Returns:
        None where there is none.

    Raises:
        SlimmingError: the engine is not what its certificate says, or no longer does what it says.
    """
    for folder in sorted(file.parent for file in repository.glob(f"*/{CONFIG}")):
        card = _card(folder)
        if card is None or card.provenance.weights_sha256 != weights or not _fits(card, model.spec):
            continue
        for found in _by_speed(card, folder):
            if _same_networks(found, model) and _sound_here(found, card.certificates[found.engine], step):
                return found
    return None


def _card(folder: Path) -> Card | None:
    """The card of a public entry of one model; None where there is none that can be read."""
    try:
        card = get_card(read_config(folder), folder)
    except RepositoryError:
        return None
    return None if card.parts or card.previous_stage else card


def _fits(card: Card, spec: Spec) -> bool:
    return (card.output.kind, card.output.dtype) == (spec.output.scores, spec.output.dtype)


def _by_speed(card: Card, folder: Path) -> Iterator[CertifiedEngine]:
    """Its engines that may teach and can be opened here, the fastest first."""
    repository, folds = folder.parent, fold_names(read_config(folder))
    found = []
    for engine, certificate in card.certificates.items():
        measured_here = certificate.device == certificate.serves_on
        if certificate.accepted and certificate.precision in FLOATS and measured_here:
            try:
                found.append(_certified(repository, folds, engine))
            except VerificationError as error:
                raise _unsound(entry_name(card.name, engine), str(error)) from None
    yield from sorted(found, key=lambda one: one.seconds)


def _certified(repository: Path, folds: Sequence[str], engine: str) -> CertifiedEngine:
    folders = [repository / entry_name(fold, engine) for fold in folds]
    entries = tuple(read_entry(folder) for folder in folders)
    return CertifiedEngine(engine, entries, unpack(entries[0].samples).spec, sum(map(_seconds, folders)))


def _seconds(folder: Path) -> float:
    """What a tile took where the entry was built; infinite where nobody wrote it down."""
    try:
        return tile_seconds(folder)
    except RepositoryError:
        return math.inf


def _same_networks(found: CertifiedEngine, model: Model) -> bool:
    """Whether the stored reference is what the teacher's first network gives; folds differ in their weights alone."""
    stored, spec = unpack(found.entries[0].samples), model.spec
    alike = all(getattr(stored.spec, key) == getattr(spec, key) for key in ("input", "preprocessing"))
    sizes = ("roi_size", "slice_axis", "multiple", "cval")
    alike &= all(getattr(stored.spec.tiling, key) == getattr(spec.tiling, key) for key in sizes)
    alike &= stored.spec.output.labels == spec.output.labels and stored.spec.output.regions == spec.output.regions
    return alike and len(found.entries) == len(model.folds) and _answers_alike(stored, model)


def _answers_alike(stored: Stored, model: Model) -> bool:
    tile = most_varied(stored)
    expected = next(scores for one, scores in stored.tiles if one is tile)
    try:
        run = torch_runner(wrap(model.folds[0].load(), model.spec))
    except BuildError:
        return False  # the build of its own says why
    scores = thinned(run_tiles([tile], model.spec, run)[0], stored.stride)
    if scores.shape != expected.shape:
        return False
    error, spread = error_and_spread(expected, scores, model.spec.output)
    return error <= MAX_SCORE_ERROR[FP32] * spread


def _sound_here(found: CertifiedEngine, known: Certificate, step: Step) -> bool:
    """Whether the engine can be opened here; it then does what its certificate says.

    Raises:
        SlimmingError: it is not the certified one, or it misses a limit here.
    """
    name = found.entries[0].name
    if not are_certified([entry.folder for entry in found.entries], known.sha256):
        raise _unsound(name, "its certificate is not the one that the model card names")
    faults = [fault for entry in found.entries for fault in entry.file_faults()]
    if faults:
        raise _unsound(name, faults[0])
    try:
        found.open()
    except EngineError:
        return False
    for entry in found.entries:
        with step(f"verify {entry.name}"):
            verdict = verify_entry(entry.folder, scans=False)
        if not verdict.holds:
            raise _unsound(entry.name, "; ".join(verdict.faults))
    return True


def _unsound(name: str, reason: str) -> SlimmingError:
    return SlimmingError(
        f"{name}: expected a teacher that does what its certificate says, found another: {reason}; build the teacher "
        "again, or leave --repository out"
    )


def _precision(engine: str, spec: Spec) -> str:
    """What the spec asks for, if it can teach and this machine gains by it; else fp32."""
    wanted = spec.precision.of(engine)
    if engine not in spec.serving.engines or wanted not in FLOATS:
        return FP32
    found = find_engine(engine)
    gains = found.variants() if found.serves_on(spec) == "gpu" else found.search(spec)
    return wanted if wanted in {variant.precision for variant in gains} else FP32


def _can_build(name: str, spec: Spec) -> bool:
    engine = find_engine(name)
    if spec.input.dtype not in engine.input_dtypes:
        return False
    try:
        engine.require_buildable(spec.model_copy(update={"serving": spec.serving.model_copy(update={"gpus": "all"})}))
    except BuildError:
        return False
    return True
