"""Writes a narrower copy of a model: its spec and its weights, for those who train it by themselves. Trains nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save

from voxtile_build.errors import SlimmingError
from voxtile_build.hashing import bytes_sha256
from voxtile_build.importers.network import load_network
from voxtile_build.repository.durable import sync
from voxtile_build.slimming.arguments import widths_of
from voxtile_build.slimming.given.folders import check_folder, made
from voxtile_build.slimming.pruning.prune import prune
from voxtile_build.slimming.skeleton import first_names
from voxtile_build.slimming.widths import narrower, with_widths
from voxtile_build.spec.name import nearest_name
from voxtile_build.spec.network import Weights
from voxtile_build.spec.spec import Spec, load_spec
from voxtile_build.spec.spec_to_toml import Remarks, check_new, write_spec

ENDING, WEIGHTS_ENDING = ".toml", ".safetensors"


@dataclass(frozen=True)
class Pruned:
    """What was written.

    Attributes:
        spec: of the narrower model.
        file: of this spec.
        widths: by argument, the numbers of channels before and after.
        parameters: their number before and after.
    """

    spec: Spec
    file: Path
    widths: Mapping[str, tuple[Any, Any]]
    parameters: tuple[int, int]

    @property
    def weights(self) -> Path:
        """The file of the weights."""
        return self.file.with_suffix(WEIGHTS_ENDING)


def write_pruned(teacher: Path, width: float, output: Path) -> Pruned:
    """Write a spec with `width` times the channels as the new file `output`, and its weights beside it.

    Args:
        teacher: the spec of the model, with weights.
        width: share of the channels that stay, above 0 and below 1.
        output: NAME.toml, whose folder is made where it is missing; the weights become NAME.safetensors.

    Raises:
        BuildError: the teacher cannot be read or cut, or a file exists already; nothing is written then.
        OSError: the disk is full or fails; nothing is left then.
    """
    if output.suffix != ENDING:
        raise SlimmingError(f"{output}: expected the name of a new {ENDING} file, with its weights beside it")
    weights = output.with_suffix(WEIGHTS_ENDING)
    check_folder("--output", output.parent)
    if output.parent.exists():
        for file in (output, weights):
            check_new(file)
    spec = load_spec(teacher)
    name, args = spec.network.name, spec.network.args
    student_args = narrower(name, args, width)
    network = load_network(_without_head(spec))
    state = prune(network, name, args, student_args)
    names = first_names(network)
    alone = {key: tensor.contiguous() for key, tensor in state.items() if names[key] == key}
    content = save(alone)
    pruned = _spec(spec, nearest_name(output.stem), student_args, width, weights, bytes_sha256(content))
    with made(output.parent):
        _write(weights, content)
        try:
            write_spec(pruned, output, Remarks(head=_head(spec, width)))
        except BaseException:
            weights.unlink()
            raise
    parameters = [key for key, _ in network.named_parameters()]
    return Pruned(
        pruned,
        output,
        _widths(name, with_widths(name, args), student_args),
        (sum(one.numel() for one in network.parameters()), sum(alone[key].numel() for key in parameters)),
    )


def _widths(name: str, args: Mapping[str, Any], student_args: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    before, after = widths_of(name, args), widths_of(name, student_args)
    return {key: (before[key], after[key]) for key in after}


def _without_head(spec: Spec) -> Spec:
    """The spec of the network as it is, with all of its outputs."""
    return spec.model_copy(update={"network": spec.network.model_copy(update={"head": None})})


def _spec(teacher: Spec, name: str, args: Mapping[str, Any], width: float, weights: Path, sha256: str) -> Spec:
    given = teacher.weights
    source = f"pruned from {teacher.name} and not trained" + (f"; {given.source}" if given and given.source else "")
    return teacher.model_copy(
        update={
            "name": name,
            "title": f"{teacher.title or teacher.name} (pruned, not trained)",
            "version": 1,
            "network": teacher.network.model_copy(update={"args": dict(args)}),
            "weights": Weights(
                file=weights.resolve(), sha256=sha256, source=source, licence=given.licence if given else ""
            ),
            "distillation": None,
            "remarks": (*teacher.remarks, _said(teacher, width)),
        }
    )


def _said(teacher: Spec, width: float) -> str:
    of = f" (weights {teacher.weights.sha256[:12]})" if teacher.weights else ""
    return f"pruned from {teacher.name}{of} to {width:g} of its channels and not trained: its masks are wrong"


def _head(teacher: Spec, width: float) -> list[str]:
    return [
        f"{teacher.name}, pruned to {width:g} of its channels and not trained: its masks are wrong until it is.",
        "Once you have trained it, name the new weights with their SHA-256, and correct title, source and remarks.",
    ]


def _write(path: Path, content: bytes) -> None:
    """Write a new file in one step."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("xb") as stream:
            stream.write(content)
        sync(partial)
        check_new(path)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
