"""Faults between a card and the entry that carries it, and between the models that one needs. Opens no file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from tritonclient.grpc import model_config_pb2 as pb

from voxtile.card import Card
from voxtile.doctor.checks.engines import CERTIFICATE
from voxtile.doctor.checks.ensemble import REBUILD, dims_fit
from voxtile.doctor.checks.versions import is_version
from voxtile.doctor.entry import Entry, is_there, version_folder
from voxtile.doctor.finding import Finding

TYPES = {"fp32": pb.TYPE_FP32, "fp16": pb.TYPE_FP16, "int16": pb.TYPE_INT16, "uint8": pb.TYPE_UINT8}
ENGINES = ("onnxruntime", "openvino", "aotinductor", "tensorrt")
FOLD = re.compile(r"_(fold_[0-9]+|mean)$")
"""What stands between a model's name and the engine's, where a model has folds."""

FIRST_SCORES = "scores_0"
"""An input of the entry that averages the scores of several folds, and of no other."""


def check_card(entry: Entry, entries: Mapping[str, Entry]) -> Iterator[Finding]:
    """Faults of the card of a public entry.

    Args:
        entry: the entry; one without a card has none.
        entries: of all repositories, by name.
    """
    where = str(entry.config_file)
    if entry.card_fault:
        yield Finding("error", "card-unreadable", where, entry.card_fault, "no client can use the model", "")
    card = entry.card
    if card is None or entry.config is None:
        return
    if card.name != entry.name and not is_version(entry):
        yield Finding(
            "warning",
            "card-name",
            where,
            f"the card is that of {card.name!r}",
            "reports and passports would name another model than the one that was asked for",
            REBUILD,
        )
    yield from _tensors(card, entry.config, where)
    yield from _engine(entry, card, entries)
    for name in card.models_behind:
        if name not in entries:
            yield Finding(
                "error",
                "model-missing",
                where,
                f"it needs the model {name!r}, which is not in this repository",
                "a client cannot segment with it",
                "bring the model back, or build this one again",
            )
    yield from _parts(card, entries, where)


def check_reached(entries: Mapping[str, Entry]) -> Iterator[Finding]:
    """Engines that `voxtile-build` wrote and that no public name leads to.

    Args:
        entries: of all repositories, by name.
    """
    for entry in entries.values():
        engine = engine_of(entry.name)
        model = FOLD.sub("", entry.name.removesuffix(f"_{engine}"))
        built = any(is_there(version_folder(entry, version) / CERTIFICATE) for version in entry.served)
        if engine and built and model not in entries:
            yield Finding(
                "warning",
                "not-reached",
                str(entry.folder),
                f"an engine of {model!r}, whose public entry is not there",
                "no client finds it, and the server loads it all the same",
                "bring the public entry back, build the model again, or remove the folder",
            )


def engine_of(step: str) -> str:
    """The engine of an entry behind a public name; empty where its name ends with none."""
    return next((engine for engine in ENGINES if step.endswith(f"_{engine}")), "")


def folds_of(entry: Entry) -> tuple[str, ...]:
    """The folds behind a public entry, in the order of its steps: names of entries without their engine."""
    steps = [step.model_name for step in entry.config.ensemble_scheduling.step] if entry.config else []
    mean = mean_of(entry)
    return tuple(step.removesuffix(f"_{engine_of(step)}") for step in steps if engine_of(step) and step != mean)


def mean_of(entry: Entry) -> str:
    """The entry that averages the scores of the folds behind a public entry; empty where there is none."""
    steps = entry.config.ensemble_scheduling.step if entry.config else ()
    return next((step.model_name for step in steps if FIRST_SCORES in step.input_map), "")


def _tensors(card: Card, config: pb.ModelConfig, where: str) -> Iterator[Finding]:
    if card.parts is not None:
        return  # a set's tensors are those of its models, which the ensemble's steps compare
    spatial = (-1,) * len(card.roi_size) if card.multiple is not None else card.roi_size
    expected = {"roi": (TYPES[card.input.dtype], (len(card.channels), *spatial))}
    if card.whole_scan_intensity:
        expected["intensity"] = (pb.TYPE_FP32, (len(card.channels), 2))
    yield from _compare(expected, config.input, where, "input")
    scores = {"scores": (TYPES[card.output.dtype], (card.output.scores, *spatial))}
    yield from _compare(scores, config.output, where, "output")


def _compare(
    expected: Mapping[str, tuple[int, tuple[int, ...]]],
    tensors: Sequence[pb.ModelInput] | Sequence[pb.ModelOutput],
    where: str,
    kind: str,
) -> Iterator[Finding]:
    found = {tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in tensors}
    for name in sorted({*expected, *found}):
        wanted, there = expected.get(name), found.get(name)
        if wanted is None or there is None or wanted[0] != there[0] or not dims_fit(wanted[1], there[1]):
            yield Finding(
                "error",
                "card-tensor",
                where,
                f"the card says {kind} {name!r} {_words(wanted)}, config.pbtxt {_words(there)}",
                "clients believe the card, and the server refuses their tiles",
                REBUILD,
            )


def _words(tensor: tuple[int, tuple[int, ...]] | None) -> str:
    return "does not exist" if tensor is None else f"is {pb.DataType.Name(tensor[0])} {list(tensor[1])}"


def _engine(entry: Entry, card: Card, entries: Mapping[str, Entry]) -> Iterator[Finding]:
    if card.parts is not None or not entry.is_ensemble:
        return
    where, folds = str(entry.config_file), folds_of(entry)
    served = (
        {
            engine_of(step.model_name)
            for step in entry.config.ensemble_scheduling.step
            if step.model_name != mean_of(entry)
        }
        if entry.config
        else set()
    )
    if served and served != {card.engine}:
        yield Finding(
            "error",
            "card-engine",
            where,
            f"the card says engine {card.engine}, the steps run {', '.join(sorted(served)) or 'none'}",
            "a mask's passport and certificate would speak of another engine than the one that made it",
            f"voxtile-build point {entry.name} {card.engine}, or build the model again",
        )
    for engine in sorted(set(card.certificates) - served):
        missing = [f"{fold}_{engine}" for fold in folds if f"{fold}_{engine}" not in entries]
        if missing:
            some = len(missing) < len(folds)
            yield Finding(
                "warning",
                "fold-missing" if some else "engine-missing",
                where,
                f"the card names the engine {engine}; not there: {', '.join(missing)}",
                f"voxtile-build point and verify {entry.name} would fail",
                REBUILD,
            )


def _parts(card: Card, entries: Mapping[str, Entry], where: str) -> Iterator[Finding]:
    for part in card.parts.models if card.parts else ():
        model = entries[part.model].card if part.model in entries else None
        if model is None:
            continue
        if model.provenance.weights_sha256 != part.weights_sha256:
            yield Finding(
                "error",
                "part-weights",
                where,
                f"{part.model!r} has other weights than the set was built with",
                "the set's certificate does not speak of them",
                "build the set again",
            )
        unknown = set(part.labels) - {label.value for label in model.labels}
        if unknown:
            yield Finding(
                "error",
                "part-labels",
                where,
                f"{part.model!r} has no labels {sorted(unknown)}, which the set paints",
                "these structures would be missing in every mask",
                "build the set again",
            )
