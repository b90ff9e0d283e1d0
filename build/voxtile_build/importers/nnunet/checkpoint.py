"""Reads nnU-Net's checkpoints. They are pickles, so only tensors and plain values are loaded: an allow-list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from voxtile_build.errors import SourceError, WeightsError
from voxtile_build.networks.weights import (
    check_fit,
    is_state,
    read_torch,
    sha256_of_file,
    without_prefix,
    without_wrappers,
)


@dataclass(frozen=True)
class Checkpoint:
    """One trained fold.

    Attributes:
        fold: such as "0" or "all".
        path: the file.
        sha256: of the file.
        weights: the network's tensors by name.
        trainer: name of the trainer's class.
        configuration: such as 3d_fullres.
        plans: the plans that it was trained with; empty in checkpoints without them.
        dataset: the dataset.json that it was trained with; empty in checkpoints without it.
        mirror_axes: spatial axes over which nnU-Net mirrors at inference.
    """

    fold: str
    path: Path
    sha256: str
    weights: Mapping[str, Tensor]
    trainer: str
    configuration: str
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    mirror_axes: tuple[int, ...]


def read_checkpoint(path: Path, fold: str) -> Checkpoint:
    """The checkpoint in a file.

    Raises:
        SourceError: there is no such file.
        WeightsError: the file is damaged, is not nnU-Net's, or holds anything but tensors, plain values and NumPy
            numbers; such an object is named, and none of its code is run.
    """
    if not path.is_file():
        trained = sorted(file.parent.name.removeprefix("fold_") for file in path.parents[1].glob(f"fold_*/{path.name}"))
        raise SourceError(
            f"fold {fold}: expected its checkpoint {path}, found no such file; train it, or leave it out "
            f"(trained are {', '.join(trained) or 'none'})"
        )
    content = read_torch(path)
    arguments = content.get("init_args") if isinstance(content, Mapping) else None
    if not isinstance(content, Mapping) or "network_weights" not in content or not isinstance(arguments, Mapping):
        raise WeightsError(f"{path}: expected an nnU-Net v2 checkpoint with network_weights and init_args, found none")
    return Checkpoint(
        fold,
        path,
        sha256_of_file(path),
        _weights(content["network_weights"], path),
        str(content.get("trainer_name", "")),
        str(arguments.get("configuration", "")),
        _mapping(arguments.get("plans")),
        _mapping(arguments.get("dataset_json")),
        _axes(content.get("inference_allowed_mirroring_axes"), path),
    )


def read_checkpoints(folder: Path, folds: Sequence[str], name: str) -> tuple[Checkpoint, ...]:
    """The checkpoints of all folds of one model.

    Args:
        folder: the trained model.
        folds: such as ("0", "1").
        name: of the file in each fold's folder.

    Raises:
        SourceError: as `read_checkpoint`.
        WeightsError: as `read_checkpoint`, or folds differ in configuration, trainer or mirroring.
    """
    found = tuple(read_checkpoint(folder / f"fold_{fold}" / name, fold) for fold in folds)
    first = found[0]
    for other in found[1:]:
        for what in ("configuration", "trainer", "mirror_axes"):
            one, two = getattr(first, what), getattr(other, what)
            if one != two:
                raise WeightsError(
                    f"{other.path}: expected {what} {one!r} as in fold {first.fold}, found {two!r}; "
                    "the folds of a model are trained in the same way"
                )
    return found


def load_into(network: nn.Module, checkpoint: Checkpoint) -> nn.Module:
    """`network` with the weights of a checkpoint, in evaluation mode.

    Raises:
        WeightsError: names what does not fit.
    """
    trainer = checkpoint.trainer or "an unnamed trainer"
    what = (
        f"the checkpoint belongs to another plan or trainer than plans.json describes; a network that {trainer} builds "
        "by its own code, not by the plan, cannot be imported"
    )
    wanted = network.state_dict()
    weights = without_prefix(checkpoint.weights, wanted)
    check_fit(weights, wanted, checkpoint.path, what)
    network.load_state_dict(dict(weights), strict=True)
    return network.eval()


def _axes(axes: Any, path: Path) -> tuple[int, ...]:
    """The axes that nnU-Net mirrors over, also as NumPy's numbers; none where the checkpoint names none."""
    if axes is None:
        return ()
    if not isinstance(axes, list | tuple) or not all(isinstance(axis, int | np.integer) for axis in axes):
        raise WeightsError(f"{path}: inference_allowed_mirroring_axes: expected numbers of axes, found {axes!r:.80}")
    return tuple(map(int, axes))


def _weights(weights: Any, path: Path) -> Mapping[str, Tensor]:
    if not is_state(weights):
        raise WeightsError(f"{path}: expected network_weights to be names and tensors, found {type(weights).__name__}")
    return dict(without_wrappers(weights))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
