"""The teacher: opens it, with its fastest certified engine, and asks it for the scores of patches.

Knows nothing of students, pools or training.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from voxtile.tensor_types import NUMPY_TYPES
from voxtile.tiling.extract import tta_flips
from voxtile_build.arrays import Array, Feed, Runner
from voxtile_build.certificate.archive import unpack
from voxtile_build.errors import SlimmingError
from voxtile_build.evaluation.tiles import tile_inputs
from voxtile_build.graph.wrapper import Wrapper
from voxtile_build.importers.nnunet.models import CHECKPOINT
from voxtile_build.progress import Step, silent
from voxtile_build.repository.folds import Fold, Model
from voxtile_build.slimming.given.certified import (
    CertifiedEngine,
    build_certified,
    engines_here,
    find_certified,
    spec_for_scores,
    weights_of,
)
from voxtile_build.slimming.given.source import NnunetChoice, teacher_model
from voxtile_build.spec.spec import Spec

REPOSITORY = "teacher"
"""The folder, within the work folder, that a teacher's engines are built into."""


class Teacher:
    """A trained model that answers for patches; a context manager.

    If the block ends without an error, what was built for it is removed; else it stays for the run that goes on.

    Attributes:
        spec: of the public model, as it is given.
        scoring: the same with the output that `scores` gives; for `evaluation.whole_scan.segment`.
        networks: one a fold; `load` makes it in fp32 PyTorch.
        engine: the engine that answers.
        precision: what the engine computes in.
        certificates: SHA-256 of the engine's certificate for each fold.
        weights_sha256: of all folds' weights.
        kind: what `scores` gives.
        mirrorings: the spatial axes, from 0, that each pass is flipped along; () first.
        tile_seconds: for one tile through all folds and mirrorings, where the engine was built.
    """

    def __init__(
        self, model: Model, scoring: Spec, certified: CertifiedEngine, built_in: Path | None, weights: str
    ) -> None:
        """Takes the public model, its `spec_for_scores`, the engine, the folder that was made for it, and its hash."""
        self.spec: Spec = model.spec
        self.scoring = scoring
        self.networks: tuple[Fold, ...] = model.folds
        self.engine = certified.engine
        self.precision = certified.precision
        self.certificates = certified.certificates
        self.weights_sha256 = weights
        self.kind: Literal["logits", "probabilities"] = (
            "probabilities" if scoring.output.scores == "probabilities" else "logits"
        )
        self.mirrorings = tta_flips(model.spec.tiling.mirror_axes)
        self.tile_seconds = certified.seconds * len(self.mirrorings)
        self._certified, self._built_in = certified, built_in
        self._batch = certified.spec.serving.max_batch_size
        self._image = Wrapper(nn.Identity(), scoring).eval()
        self._runners: tuple[Runner, ...] = ()

    def __enter__(self) -> Teacher:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.rest()
        if kind is None and self._built_in is not None:
            shutil.rmtree(self._built_in, ignore_errors=True)

    def rest(self) -> None:
        """Gives the engine's memory back; the next question opens it again."""
        self._runners = ()

    def scores(self, rois: Array, statistics: Array) -> Array:
        """What the teacher says of patches: the mean over its folds and mirrorings.

        Args:
            rois: [batch, channel, *roi] as a client sends them, in the spec's input type.
            statistics: [batch, channel, 2] of the whole scans.

        Returns:
            [batch, class, *roi] float32, of the sort `kind`.

        Raises:
            SlimmingError: a score is NaN or infinite.
            EngineError: the engine fails.
        """
        self._check_type(rois)
        self._runners = self._runners or self._certified.open()
        parts = [slice(start, start + self._batch) for start in range(0, len(rois), self._batch)]
        found: Array = np.concatenate([self._mean(rois[part], statistics[part]) for part in parts])
        if not np.isfinite(found).all():
            raise SlimmingError(
                f"{self.spec.name}: expected finite scores of the teacher, found NaN or infinity by {self.engine} "
                f"({self.precision}) for patches of {rois.min():g} to {rois.max():g}; leave the scan out that has them"
            )
        return found

    def certified_scores(self) -> tuple[Array, ...]:
        """Scores [class, *roi] of the tiles beside its certificate; none where these are of a generated scan."""
        if not self.spec.acceptance.scans:
            return ()
        return tuple(scores for _, scores in unpack(self._certified.entries[0].samples).tiles)

    def run(self, feed: Feed) -> Array:
        """The same as `scores`, called as an engine is called; for `evaluation.whole_scan.Predictor`."""
        rois = feed["roi"]
        plain = np.broadcast_to(np.array([0, 1], np.float32), (*rois.shape[:2], 2))
        return self.scores(rois, feed.get("intensity", plain))

    def image(self, rois: Array, statistics: Array) -> Array:
        """What the network sees of patches: [batch, channel, *roi] float32, normalised. Arguments as for `scores`."""
        feed = tile_inputs(self.spec, rois, statistics)
        tensors = [torch.from_numpy(np.array(feed[name])) for name in ("roi", "intensity") if name in feed]
        with torch.inference_mode():
            seen: Array = self._image.image(*tensors).numpy()
        return seen

    def _mean(self, rois: Array, statistics: Array) -> Array:
        """Of at most as many patches as the engine takes at once."""
        total = np.zeros(1, np.float32)
        for axes in self.mirrorings:
            feed = tile_inputs(self.spec, _flipped(rois, axes), statistics)
            for run in self._runners:
                total = total + _flipped(run(feed).astype(np.float32, copy=False), axes)
        mean: Array = total / np.float32(len(self.mirrorings) * len(self._runners))
        return mean

    def _check_type(self, rois: Array) -> None:
        wanted = np.dtype(NUMPY_TYPES[self.spec.input.dtype])
        if rois.dtype != wanted:
            raise ValueError(f"expected patches in the spec's input type {wanted}, found {rois.dtype}")


def open_teacher(
    source: Path,
    *,
    folder: Path,
    repository: Path | None = None,
    folds: Sequence[str] | None = None,
    checkpoint: str = CHECKPOINT,
    configuration: str | None = None,
    trainer_keeps_network: bool = False,
    threads: int = 0,
    step: Step = silent,
) -> Teacher:
    """Open a teacher with an engine that keeps its limits; it is built where none is at hand.

    Args:
        source: a spec in TOML, or a trained nnU-Net folder or its zip file.
        folder: a work folder; what an earlier run built there is used again.
        repository: a model repository that may hold the teacher already.
        folds, checkpoint, configuration, trainer_keeps_network: of nnU-Net; see `importers.nnunet.models.models_of`.
        threads: CPU threads of the engine; 0 for its own choice.
        step: is told what is done.

    Raises:
        SlimmingError: the model cannot teach, or its published engine is not what its certificate says.
        AcceptanceError: every engine misses a limit of the spec.
        BuildError: what else a build says.
    """
    choice = NnunetChoice(folds, checkpoint, configuration, trainer_keeps_network)
    model = teacher_model(source, choice)
    scoring = spec_for_scores(model.spec, engines_here(model.spec), threads)
    to_build = Model(scoring, model.folds)
    weights = weights_of(to_build)
    found = find_certified(to_build, weights, repository, step) if repository is not None else None
    if found is not None:
        return Teacher(model, scoring, found, None, weights)
    own = folder / REPOSITORY
    with contextlib.suppress(SlimmingError):  # what is left of an earlier run and is damaged is built again
        found = find_certified(to_build, weights, own, step)
    return Teacher(model, scoring, found or build_certified(to_build, own, step), own, weights)


def _flipped(values: Array, axes: Sequence[int]) -> Array:
    """`values` [batch, channel, *spatial] flipped along the spatial `axes`, in one piece of memory."""
    return np.ascontiguousarray(np.flip(values, tuple(2 + axis for axis in axes)))
