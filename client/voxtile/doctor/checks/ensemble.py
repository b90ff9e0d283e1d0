"""Faults of an ensemble: steps that are not there, tensors that do not fit between steps. Knows no card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tritonclient.grpc import model_config_pb2 as pb

from voxtile.doctor.checks.config import check_queue_of_step
from voxtile.doctor.entry import Entry
from voxtile.doctor.finding import Finding
from voxtile.doctor.releases import Release

REBUILD = "build the model again"
NEWEST = -1
"""The version by which a step asks for the newest one; every other number is that very version."""


@dataclass(frozen=True)
class Tensor:
    """A tensor as a configuration has it.

    Attributes:
        dtype: Triton's number of its type.
        dims: without the batch axis; -1 is any extent.
        batched: whether a batch axis stands before them.
    """

    dtype: int
    dims: tuple[int, ...]
    batched: bool

    @property
    def text(self) -> str:
        """The tensor in words."""
        return f"{pb.DataType.Name(self.dtype)} {list(self.dims)}"

    def fits(self, other: Tensor) -> bool:
        """Whether one can be handed on as the other."""
        return self.dtype == other.dtype and dims_fit(self._shape, other._shape)

    @property
    def _shape(self) -> tuple[int, ...]:
        return (-1, *self.dims) if self.batched else self.dims


def dims_fit(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two shapes agree; a negative extent agrees with any."""
    return len(one) == len(other) and all(a == b or a < 0 or b < 0 for a, b in zip(one, other, strict=True))


def check_ensemble(entry: Entry, entries: Mapping[str, Entry], release: Release) -> Iterator[Finding]:
    """Faults of an ensemble.

    Args:
        entry: the ensemble; any other entry has none.
        entries: of all repositories, by name.
        release: that is to serve it.
    """
    if entry.config is None or not entry.is_ensemble:
        return
    where, config = str(entry.config_file), entry.config
    known = _tensors(config.input, config)
    complete = True
    if not config.ensemble_scheduling.step:
        yield Finding("error", "no-step", where, "an ensemble without steps", "Triton does not load it", REBUILD)
        return
    for step in config.ensemble_scheduling.step:
        behind = entries.get(step.model_name)
        if behind is None or behind.config is None:
            complete = False
            yield from _missing(step, behind, where)
            continue
        yield from _step(step, behind, config, known, where)
        yield from check_queue_of_step(behind, release)
        outputs = _tensors(behind.config.output, behind.config)
        known |= {target: outputs[name] for name, target in step.output_map.items() if name in outputs}
    if complete:
        yield from _sources(config, entries, known, where)
    if entry.name in _reached(entry, entries):
        yield Finding(
            "error", "ensemble-circle", where, "its steps lead back to itself", "Triton does not load it", REBUILD
        )


def _missing(step: pb.ModelEnsembling.Step, behind: Entry | None, where: str) -> Iterator[Finding]:
    if behind is None:  # one that is there and cannot be read is named by itself
        yield Finding(
            "error",
            "step-missing",
            where,
            f"step {step.model_name!r} is no model of this repository",
            "Triton loads no ensemble that lacks a model",
            "bring the entry back, or build the model again",
        )


def _step(
    step: pb.ModelEnsembling.Step,
    behind: Entry,
    config: pb.ModelConfig,
    known: Mapping[str, Tensor],
    where: str,
) -> Iterator[Finding]:
    name = step.model_name
    assert behind.config is not None
    if step.model_version != NEWEST and step.model_version not in behind.served and behind.versions:
        yield Finding(
            "error",
            "step-version",
            where,
            f"step {name!r} asks for version {step.model_version}, {behind.folder} serves "
            f"{', '.join(map(str, behind.served)) or 'none'}",
            "Triton loads no ensemble that lacks a version",
            REBUILD,
        )
    if behind.config.max_batch_size < config.max_batch_size:
        yield Finding(
            "error",
            "batch-size",
            where,
            f"max_batch_size {config.max_batch_size}, but step {name!r} takes {behind.config.max_batch_size}",
            "Triton does not load an ensemble with larger batches than its steps",
            REBUILD,
        )
        return  # shapes would tell the same again
    inputs = _tensors(behind.config.input, behind.config)
    optional = {tensor.name for tensor in behind.config.input if tensor.optional}
    for tensor in sorted(set(step.input_map) - set(inputs)):
        yield _tensor(where, f"step {name!r} has no input {tensor!r}; it has {', '.join(sorted(inputs))}")
    for tensor in sorted(set(inputs) - set(step.input_map) - optional):
        yield _tensor(where, f"input {tensor!r} of step {name!r} gets nothing")
    for tensor, source in sorted(step.input_map.items()):
        given, taken = known.get(source), inputs.get(tensor)
        if given is not None and taken is not None and not given.fits(taken):
            yield _tensor(where, f"{source!r} is {given.text}, but {tensor!r} of step {name!r} takes {taken.text}")
    outputs = {tensor.name for tensor in behind.config.output}
    for tensor in sorted(set(step.output_map) - outputs):
        yield _tensor(where, f"step {name!r} has no output {tensor!r}; it has {', '.join(sorted(outputs))}")


def _sources(
    config: pb.ModelConfig, entries: Mapping[str, Entry], known: Mapping[str, Tensor], where: str
) -> Iterator[Finding]:
    """Tensors that come from nowhere, and outputs that differ from what their step gives."""
    steps = config.ensemble_scheduling.step
    made = Counter(target for step in steps for target in step.output_map.values())
    given = {tensor.name for tensor in config.input} | set(made)
    for name in sorted(name for name, count in made.items() if count > 1):
        yield _tensor(where, f"tensor {name!r} comes from {made[name]} steps")
    taken = {source for step in steps for source in step.input_map.values()}
    for name in sorted({tensor.name for tensor in config.input} - taken):
        yield _tensor(where, f"input {name!r} is taken by no step")
    for step in steps:
        for source in sorted(set(step.input_map.values()) - given):
            yield _tensor(where, f"tensor {source!r} of step {step.model_name!r} comes from no input and no step")
    if taken <= given and (waiting := _waiting(config)):
        yield Finding(
            "error",
            "ensemble-circle",
            where,
            f"the steps {', '.join(map(repr, waiting))} wait for each other's tensors",
            "Triton does not load it",
            REBUILD,
        )
    for name, wanted in _tensors(config.output, config).items():
        found = known.get(name)
        if name not in given:
            yield _tensor(where, f"output {name!r} comes from no step")
        elif found is not None and not found.fits(wanted):
            yield _tensor(where, f"output {name!r} is {wanted.text}, but its step gives {found.text}")


def _waiting(config: pb.ModelConfig) -> list[str]:
    """The models of steps that never get all their tensors, if each gets those of inputs and of steps before it."""
    there, waiting = {tensor.name for tensor in config.input}, list(config.ensemble_scheduling.step)
    while ready := [step for step in waiting if there.issuperset(step.input_map.values())]:
        there.update(target for step in ready for target in step.output_map.values())
        waiting = [step for step in waiting if step not in ready]
    return [step.model_name for step in waiting]


def _tensor(where: str, what: str) -> Finding:
    return Finding("error", "tensor-mismatch", where, what, "Triton does not load the ensemble", REBUILD)


def _tensors(tensors: Sequence[pb.ModelInput] | Sequence[pb.ModelOutput], config: pb.ModelConfig) -> dict[str, Tensor]:
    batched = config.max_batch_size > 0
    return {tensor.name: Tensor(tensor.data_type, tuple(tensor.dims), batched) for tensor in tensors}


def _reached(entry: Entry, entries: Mapping[str, Entry]) -> set[str]:
    """The names of all entries that an ensemble's steps lead to."""
    reached: set[str] = set()
    waiting = [entry]
    while waiting:
        one = waiting.pop()
        steps = one.config.ensemble_scheduling.step if one.config is not None else ()
        for name in {step.model_name for step in steps} - reached:
            reached.add(name)
            if name in entries:
                waiting.append(entries[name])
    return reached
