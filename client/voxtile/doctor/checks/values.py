"""Values of a configuration that Triton refuses before it looks at any file. Opens no file."""

from __future__ import annotations

from collections.abc import Iterator

from tritonclient.grpc import model_config_pb2 as pb

from voxtile.doctor.entry import PLATFORMS, Entry
from voxtile.doctor.finding import Finding
from voxtile.doctor.releases import Release

NEEDS_TENSORS = ("onnxruntime", "openvino", "pytorch")
"""Backends that the embedded server runs in Python, which complete no configuration by themselves."""

REFUSED = "Triton does not load the model"


def check_values(entry: Entry, release: Release) -> Iterator[Finding]:
    """Faults of a configuration that is read, field by field."""
    if entry.config is None:
        return
    where, config = str(entry.config_file), entry.config
    yield from _platform(config, where)
    yield from _tensors(config, where)
    yield from _priorities(config.dynamic_batching, where)
    yield from _warm_up(config, where)
    if release.embedded and entry.backend in NEEDS_TENSORS and not (config.input and config.output):
        what = " and no ".join(kind for kind in ("input", "output") if not getattr(config, kind))
        yield Finding(
            "error",
            "no-tensors",
            where,
            f"names no {what}",
            "the embedded server completes no configuration, and does not load the model",
            "build the model again, or name inputs and outputs",
        )


def _platform(config: pb.ModelConfig, where: str) -> Iterator[Finding]:
    meant = PLATFORMS.get(config.platform)
    if config.backend and meant and meant != config.backend:
        yield Finding(
            "error",
            "backend-differs",
            where,
            f"platform {config.platform!r} is one of the backend {meant!r}, found backend {config.backend!r}",
            REFUSED,
            "leave one of the two out, or build the model again",
        )


def _tensors(config: pb.ModelConfig, where: str) -> Iterator[Finding]:
    for kind, tensors in (("input", config.input), ("output", config.output)):
        for tensor in tensors:
            odd = [size for size in tensor.dims if size < 1 and size != -1]
            if not tensor.name:
                what = f"an {kind} without a name"
            elif not tensor.dims:
                what = f"{kind} {tensor.name!r} without dims"
            elif odd:
                what = f"dims of {kind} {tensor.name!r}: expected numbers from 1, or -1 for any, found {odd[0]}"
            else:
                continue
            yield Finding("error", "odd-tensor", where, what, REFUSED, "build the model again")


def _priorities(batching: pb.ModelDynamicBatching, where: str) -> Iterator[Finding]:
    levels, usual = batching.priority_levels, batching.default_priority_level
    if levels and not 1 <= usual <= levels:
        yield Finding(
            "error",
            "priority-level",
            where,
            f"expected a default_priority_level from 1 to {levels} (priority_levels), found {usual or 'none'}",
            REFUSED,
            "leave serving.priority_levels out, and build the model again",
        )


def _warm_up(config: pb.ModelConfig, where: str) -> Iterator[Finding]:
    for sample in config.model_warmup:
        if 0 < config.max_batch_size < sample.batch_size:
            yield Finding(
                "error",
                "batch-size",
                where,
                f"model_warmup {sample.name!r} has a batch of {sample.batch_size}, max_batch_size is "
                f"{config.max_batch_size}",
                "the first requests fail, and Triton does not load the model",
                "build the model again",
            )
