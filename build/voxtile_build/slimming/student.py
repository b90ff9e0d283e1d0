"""The spec of a student: that of its teacher with a smaller network, whose weights do not exist yet.

A student stands in for its teacher, so it takes the same scans in the same way and gives the same labels. Knows nothing
of training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from torch import nn

from voxtile_build.errors import SlimmingError
from voxtile_build.graph.wrapper import wrap
from voxtile_build.importers.network import untrained_network, with_head
from voxtile_build.spec.name import nearest_name
from voxtile_build.spec.network import Network
from voxtile_build.spec.plain import fields_of, key_of, plain_value
from voxtile_build.spec.preparation import Preparation
from voxtile_build.spec.spec import Spec, check_done, load_spec

SHOWN = 120
"""Characters of a value in a message."""

FREE = {"inferer": ("sw_batch_size", "mirror_axes")}
"""Keys of compared tables in which a student may differ: how many tiles run at once, and mirroring, which is left out
to gain time."""

PREPARATION_KEYS = {"client": "preprocessing", "graph": "preprocessing"}
"""Where the parts of a preparation stand in a spec, if not in [input] under their own names."""


def student_spec(teacher: Spec, name: str, args: Mapping[str, Any]) -> Spec:
    """The spec of a student whose network is of the teacher's class.

    Mirroring is left out: the student learns what the teacher answers with it.

    Args:
        teacher: the teacher's spec.
        name: the student's public name.
        args: of its network.
    """
    return teacher.model_copy(
        update={
            "name": name,
            "version": 1,
            "network": Network(name=teacher.network.name, args=dict(args), head=teacher.network.head),
            "weights": None,
            "distillation": None,
            "tiling": teacher.tiling.model_copy(update={"mirror_axes": ()}),
        }
    )


def read_student(path: Path, teacher: Spec, name: str | None = None) -> Spec:
    """The student that a TOML file describes.

    Args:
        path: of the file.
        teacher: the teacher's spec.
        name: in place of the student's own name.

    Raises:
        SpecError: the file is no spec.
        SlimmingError: the student would not stand in for the teacher; each difference is a line.
    """
    read = load_spec(path)
    student = read if name is None else read.model_copy(update={"name": name})
    check_done(student)
    faults = list(_faults(student))
    if faults:
        raise SlimmingError(f"{path}: {faults[0]}")
    found = list(differences(teacher, student))
    if found:
        listed = f" {found[0]}" if len(found) == 1 else "".join(f"\n  - {one}" for one in found)
        raise SlimmingError(
            f"{path}: expected a student that takes what {teacher.name} takes and gives what it gives; change to the "
            f"teacher's what differs:{listed}"
        )
    return student


def student_name(teacher: str, width: float) -> str:
    """What a student is called that was given no name: for example brain-unet-w50 at half of the channels."""
    return nearest_name(f"{teacher}-w{100 * width:g}".replace(".", "-"))


def new_network(student: Spec) -> nn.Module:
    """The student's network with random weights, after it was tried on a ROI.

    Raises:
        NetworkError: it cannot be made, or does not fit the spec.
        SlimmingError: it has nothing to train.
    """
    network = with_head(untrained_network(student), student)
    if not any(True for _ in network.parameters()):
        raise SlimmingError(
            f"{student.name}: network: expected a network with weights to train, found {student.network.name}, which "
            "has none; name another one"
        )
    wrap(network, student)
    return network


def _faults(student: Spec) -> Iterator[str]:
    """What makes a spec none of a student, whatever the teacher."""
    if student.network.file is not None:
        yield (
            f"network.file: expected a network by name, found {student.network.file.name}, whose weights are fixed; "
            "give network.name and args"
        )
    if student.weights is not None:
        yield "weights: expected a student whose weights do not exist yet, found [weights]; take the table out"
    if student.network.output != "logits":
        yield "network.output: expected a network that gives logits, found one that ends in softmax or sigmoid itself"


def differences(teacher: Spec, student: Spec) -> Iterator[str]:
    """Where a student does not take or give what its teacher does: a line each, with the key and both values."""
    yield from _between("input.channels", teacher.input.channels, student.input.channels)
    yield from _between("input.dtype", teacher.input.dtype, student.input.dtype)
    for field in fields(Preparation):
        key = PREPARATION_KEYS.get(field.name, f"input.{field.name}")
        yield from _between(key, getattr(teacher.preparation, field.name), getattr(student.preparation, field.name))
    yield from _between("output", teacher.output, student.output)
    yield from _between("postprocessing", teacher.postprocessing, student.postprocessing)
    yield from _between("inferer", _each_axis(teacher), _each_axis(student))
    more = sorted(set(student.tiling.mirror_axes) - set(teacher.tiling.mirror_axes))
    if more:
        ours, theirs = list(teacher.tiling.mirror_axes), list(student.tiling.mirror_axes)
        yield f"inferer.mirror_axes: {ours} in the teacher, {theirs} in the student, which mirrors over more axes"
    yield from _between("nnunet", teacher.nnunet, student.nnunet)
    if student.name == teacher.name:
        yield f"name: both are called {teacher.name}; the student would take the teacher's place in a repository"


def _each_axis(spec: Spec) -> BaseModel:
    """The tiling with numbers for each axis, however they are written."""
    tiling = spec.tiling
    widths = (
        tiling.sigma_scale if isinstance(tiling.sigma_scale, tuple) else (tiling.sigma_scale,) * len(tiling.roi_size)
    )
    return tiling.model_copy(update={"overlap": tiling.overlaps, "sigma_scale": widths})


def _between(key: str, ours: Any, theirs: Any) -> Iterator[str]:
    """The differences of one value, down to the smallest part that differs."""
    if ours == theirs and type(ours) is type(theirs):
        return
    if isinstance(ours, BaseModel) and type(ours) is type(theirs):
        for name, info in fields_of(ours):
            if name not in FREE.get(key, ()):
                yield from _between(f"{key}.{key_of(name, info)}", getattr(ours, name), getattr(theirs, name))
    elif isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for name in dict.fromkeys((*ours, *theirs)):
            yield from _between(f"{key}.{name}", ours.get(name), theirs.get(name))
    elif _is_tables(ours) and _is_tables(theirs):
        if len(ours) != len(theirs):
            yield f"{key}: {len(ours)} in the teacher, {len(theirs)} in the student"
        for index, (one, other) in enumerate(zip(ours, theirs, strict=False)):
            yield from _between(f"{key}[{index}]", one, other)
    else:
        yield f"{key}: {_said(ours)} in the teacher, {_said(theirs)} in the student"


def _is_tables(value: Any) -> bool:
    return isinstance(value, tuple) and any(isinstance(one, BaseModel) for one in value)


def _said(value: Any) -> str:
    """A value as people read it, in one line."""
    if value is None or value == ():
        return "nothing"
    text = json.dumps(plain_value(value, Path("/")), default=str, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
