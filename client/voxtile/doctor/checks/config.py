"""Faults of one entry's configuration: backends, devices, batching, queues. Opens no file."""

from __future__ import annotations

from collections.abc import Iterator

from tritonclient.grpc import model_config_pb2 as pb

from voxtile.doctor.entry import Entry
from voxtile.doctor.finding import Finding
from voxtile.doctor.releases import Release

GROUP = pb.ModelInstanceGroup
FLOATS = {pb.TYPE_FP16, pb.TYPE_FP32}
INTEGERS = {pb.TYPE_INT8, pb.TYPE_INT16, pb.TYPE_INT32, pb.TYPE_INT64}
UNSIGNED = {pb.TYPE_UINT8, pb.TYPE_UINT16, pb.TYPE_UINT32, pb.TYPE_UINT64}
KINDS = {"tensorrt": {GROUP.KIND_AUTO, GROUP.KIND_GPU}, "openvino": {GROUP.KIND_AUTO, GROUP.KIND_CPU}}
"""Kinds of instances that a backend takes, where it does not take all. Source: the backends' own checks at load."""

TYPES = {
    "pytorch": {*FLOATS, *INTEGERS, pb.TYPE_FP64, pb.TYPE_UINT8, pb.TYPE_BOOL, pb.TYPE_BF16, pb.TYPE_STRING},
    "tensorrt": {*FLOATS, pb.TYPE_BF16, pb.TYPE_INT8, pb.TYPE_INT32, pb.TYPE_INT64, pb.TYPE_UINT8, pb.TYPE_BOOL},
    "openvino": {*FLOATS, *INTEGERS, *UNSIGNED, pb.TYPE_BOOL},
}
"""Types of tensors that a backend takes, where it does not take all. Source: the backends' tables of types."""

BATCHED_PACKAGES = "26.07"
"""The release from which a package of AOTInductor can be served in batches."""

ENSEMBLE_QUEUES = "26.02"
"""Before this release, an ensemble whose step refuses a request for want of room in its queue can hang."""

LONG_DELAY_US = 100_000
"""Microseconds that a tile may wait for others: from a tenth of a second on, one that comes alone is felt to wait."""

MESSAGE_BYTES = 2**31 - 1
"""The longest message of gRPC."""

BYTES = {
    pb.TYPE_BOOL: 1, pb.TYPE_UINT8: 1, pb.TYPE_INT8: 1, pb.TYPE_UINT16: 2, pb.TYPE_INT16: 2, pb.TYPE_FP16: 2,
    pb.TYPE_BF16: 2, pb.TYPE_UINT32: 4, pb.TYPE_INT32: 4, pb.TYPE_FP32: 4, pb.TYPE_UINT64: 8, pb.TYPE_INT64: 8,
    pb.TYPE_FP64: 8,
}  # fmt: skip


def check_config(entry: Entry, release: Release) -> Iterator[Finding]:
    """Faults of a configuration that is read."""
    if entry.config is None:
        return
    yield from _backend(entry, entry.config, release)
    yield from _instances(entry, entry.config)
    yield from check_types(entry)
    yield from check_batching(entry.config, str(entry.config_file))
    yield from _message(entry, entry.config)


def check_batching(config: pb.ModelConfig, where: str) -> Iterator[Finding]:
    """What a configuration's batching costs; of a served model too.

    Args:
        config: the configuration.
        where: what findings name.
    """
    batching = config.dynamic_batching
    odd = [size for size in batching.preferred_batch_size if not 0 < size <= config.max_batch_size]
    if config.HasField("dynamic_batching") and config.max_batch_size < 1:
        yield Finding(
            "error",
            "batching-without-batches",
            where,
            f"dynamic_batching with max_batch_size {config.max_batch_size}",
            "Triton does not load the model",
            "set max_batch_size, or leave dynamic_batching out",
        )
    elif odd:
        yield Finding(
            "error",
            "preferred-size",
            where,
            f"preferred_batch_size: expected 1 to max_batch_size {config.max_batch_size}, "
            f"found {', '.join(map(str, odd))}",
            "Triton does not load the model",
            "leave serving.preferred_batch_size out, and build the model again",
        )
    if pauses := _pauses(batching):
        yield Finding(
            "warning",
            "queue-policy",
            where,
            f"the queue has {' and '.join(pauses)}",
            "Triton then prefetches no tiles, and a scan can pause for half a second (decision 10)",
            "leave serving.default_timeout_microseconds and priority_levels out, and build the model again",
        )
    if batching.max_queue_delay_microseconds >= LONG_DELAY_US:
        yield Finding(
            "warning",
            "queue-delay",
            where,
            f"max_queue_delay_microseconds is {batching.max_queue_delay_microseconds}",
            f"a tile that comes alone waits {batching.max_queue_delay_microseconds / 1e6:g} s for others",
            "leave serving.max_queue_delay_microseconds out: full batches come from the client",
        )


def check_queue_of_step(entry: Entry, release: Release) -> Iterator[Finding]:
    """A bounded queue of a step of an ensemble, in a release where that can hang."""
    if entry.config is None or not release.before(ENSEMBLE_QUEUES):
        return
    batching = entry.config.dynamic_batching
    policies = (batching.default_queue_policy, *batching.priority_queue_policy.values())
    if any(policy.max_queue_size for policy in policies):
        yield Finding(
            "warning",
            "queue-of-step",
            str(entry.config_file),
            "max_queue_size on a step of an ensemble",
            f"before {ENSEMBLE_QUEUES}, an ensemble whose step is full can hang ({release.title})",
            "bound the queue of the public entry instead, or serve with a newer release",
        )


def on_gpu(entry: Entry) -> bool:
    """Whether instances of an entry need a GPU."""
    if entry.config is None or entry.is_ensemble:
        return False
    kinds = {group.kind for group in entry.config.instance_group}
    return GROUP.KIND_GPU in kinds or (entry.backend == "tensorrt" and GROUP.KIND_CPU not in kinds)


def _backend(entry: Entry, config: pb.ModelConfig, release: Release) -> Iterator[Finding]:
    where, backend = str(entry.config_file), entry.backend
    if not backend:
        yield Finding(
            "error",
            "no-backend",
            where,
            "names neither a backend nor a platform, and no file tells one",
            "Triton does not load it",
            "build the model again",
        )
    elif entry.is_ensemble:
        return
    elif config.platform == "torch_aoti" and release.before(BATCHED_PACKAGES):
        yield Finding(
            "error",
            "backend-missing",
            where,
            f"'torch_aoti' needs Triton {BATCHED_PACKAGES}, found {release.title}",
            "Triton does not load it",
            f"serve with {BATCHED_PACKAGES} or newer, or build without the engine aotinductor",
        )
    elif backend == "voxtile" and not release.embedded:
        yield Finding(
            "note",
            "derived-image",
            where,
            "backend 'voxtile' is not in NVIDIA's image",
            "only the image of server/deploy/Dockerfile, derived from it, serves whole scans",
            "",
        )
    elif backend not in release.backends:
        yield Finding(
            "error",
            "backend-missing",
            where,
            f"needs Triton's backend {backend!r}; {release.title} has {', '.join(release.backends)}",
            "Triton does not start with it",
            "serve it in NVIDIA's container (--for YY.MM)" if release.embedded else "build it for another engine",
        )


def _instances(entry: Entry, config: pb.ModelConfig) -> Iterator[Finding]:
    where = str(entry.config_file)
    if entry.is_ensemble and config.instance_group:
        yield Finding(
            "error",
            "ensemble-instances",
            where,
            "an ensemble with an instance_group",
            "Triton does not load it",
            "take instance_group out",
        )
        return
    for group in config.instance_group:
        if group.kind not in KINDS.get(entry.backend, {group.kind}):
            yield Finding(
                "error",
                "device-not-served",
                where,
                f"{entry.backend} on {GROUP.Kind.Name(group.kind)}",
                "the backend refuses to load",
                "build the model with other serving.gpus",
            )
        elif group.gpus and group.kind in (GROUP.KIND_CPU, GROUP.KIND_MODEL):
            yield Finding(
                "error",
                "device-not-served",
                where,
                f"GPUs {list(group.gpus)} for instances of {GROUP.Kind.Name(group.kind)}",
                "Triton does not load it",
                "build the model again with serving.gpus",
            )


def check_types(entry: Entry) -> Iterator[Finding]:
    """Types of tensors that the entry's backend does not take."""
    config, taken = entry.config or pb.ModelConfig(), TYPES.get(entry.backend)
    for tensor in (*config.input, *config.output):
        if tensor.data_type == pb.TYPE_INVALID or (taken is not None and tensor.data_type not in taken):
            yield Finding(
                "error",
                "type-not-taken",
                str(entry.config_file),
                f"{tensor.name!r} is {pb.DataType.Name(tensor.data_type)}, which {entry.backend} does not take",
                "the model does not load",
                "choose another input.dtype or output.dtype, and build the model again",
            )


def _message(entry: Entry, config: pb.ModelConfig) -> Iterator[Finding]:
    """Requests and answers of a public entry as large as a client makes them."""
    if entry.card is None:
        return
    for way, tensors in (("request", config.input), ("answer", config.output)):
        size = max(config.max_batch_size, 1) * sum(_size(tensor) for tensor in tensors)
        if size > MESSAGE_BYTES:
            yield Finding(
                "warning",
                "message-too-large",
                str(entry.config_file),
                f"a full {way} has {size / 2**30:.1f} GiB",
                "gRPC carries at most 2 GiB in one message",
                "lower serving.max_batch_size, choose a narrower type, or give --sw-batch-size to every client",
            )


def _size(tensor: pb.ModelInput | pb.ModelOutput) -> int:
    size = BYTES.get(tensor.data_type, 0)
    for extent in tensor.dims:
        size *= max(extent, 1)
    return size


def _pauses(batching: pb.ModelDynamicBatching) -> Iterator[str] | list[str]:
    found = []
    policies = (batching.default_queue_policy, *batching.priority_queue_policy.values())
    if any(policy.default_timeout_microseconds or policy.allow_timeout_override for policy in policies):
        found.append("a timeout, or lets callers set one")
    if batching.priority_levels > 1:
        found.append(f"{batching.priority_levels} levels of priority")
    return found
