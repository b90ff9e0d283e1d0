"""Faults of an ONNX file: a version that a release cannot read, operators and weights that are not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from voxtile.doctor.checks.graphs.onnx_header import OnnxTensor, read_header
from voxtile.doctor.checks.graphs.tensors import GraphTensor, check_tensors, check_weights, unreadable
from voxtile.doctor.finding import Finding
from voxtile.doctor.releases import Release

TYPES = {
    1: pb.TYPE_FP32, 2: pb.TYPE_UINT8, 3: pb.TYPE_INT8, 4: pb.TYPE_UINT16, 5: pb.TYPE_INT16, 6: pb.TYPE_INT32,
    7: pb.TYPE_INT64, 8: pb.TYPE_STRING, 9: pb.TYPE_BOOL, 10: pb.TYPE_FP16, 11: pb.TYPE_FP64, 12: pb.TYPE_UINT32,
    13: pb.TYPE_UINT64, 16: pb.TYPE_BF16,
}  # fmt: skip
"""ONNX's numbers of types (TensorProto.DataType) as Triton's."""

OWN_DOMAINS = ("", "ai.onnx", "com.microsoft", "org.pytorch.aten")
"""Domains of operators that ONNX Runtime brings; further ones begin with `ai.onnx.` or `com.microsoft.`."""


def check_onnx(file: Path, config: pb.ModelConfig, release: Release) -> Iterator[Finding]:
    """Faults of an ONNX file.

    Args:
        file: the file.
        config: the configuration of its entry.
        release: that is to serve it.
    """
    try:
        header = read_header(file)
    except (OSError, ValueError) as error:
        yield unreadable(file, str(error))
        return
    if release.ir is None or release.opset is None:
        yield Finding(
            "note",
            "release-unknown",
            str(file),
            f"opset {header.opset}, IR {header.ir}",
            f"what ONNX {release.title} reads is not known to this version of voxtile",
            "try the server itself",
        )
    elif header.ir > release.ir:
        yield _too_new(file, f"IR version {header.ir}", str(release.ir), release)
    elif header.opset is not None and header.opset > release.opset:
        yield _too_new(file, f"opset {header.opset}", str(release.opset), release)
    if not header.domains <= header.imported:
        missing = ", ".join(sorted(one or "ai.onnx" for one in header.domains - header.imported))
        yield unreadable(file, f"expected an opset of {missing}, whose operators the graph uses, found none")
    if strange := sorted(one for one in header.domains if not _brought(one)):
        yield Finding(
            "error",
            "operator-unknown",
            str(file),
            f"operators of {', '.join(strange)}",
            "ONNX Runtime does not bring them, and does not load the graph",
            "export the model without operators of its own",
        )
    for location, end in sorted(header.weights.items()):
        yield from check_weights(file, file.parent / location, end)
    inputs, outputs = ([_tensor(one) for one in some] for some in (header.inputs, header.outputs))
    yield from check_tensors(file, inputs, outputs, config)


def _too_new(file: Path, found: str, most: str, release: Release) -> Finding:
    return Finding(
        "error",
        "onnx-too-new",
        str(file),
        f"{found}; ONNX Runtime {release.onnxruntime} of {release.title} reads up to {most}",
        "the server does not start with it",
        "build the model again (voxtile-build writes opset 20, IR 10), or serve with a newer release",
    )


def _brought(domain: str) -> bool:
    return domain in OWN_DOMAINS or domain.startswith(("ai.onnx.", "com.microsoft."))


def _tensor(found: OnnxTensor) -> GraphTensor:
    return GraphTensor((found.name,), TYPES.get(found.dtype, pb.TYPE_INVALID) if found.dtype else None, found.dims)
