"""Faults of engines' files: versions that a release cannot read, tensors that differ, devices that they do not fit.

Reads heads of files and certificates; runs nothing.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from voxtile.doctor.ensemble import dims_fit
from voxtile.doctor.entry import Entry, version_folder
from voxtile.doctor.finding import Finding
from voxtile.doctor.layout import files_of
from voxtile.doctor.machine import Machine
from voxtile.doctor.onnx_header import OnnxHeader, OnnxTensor, read_header
from voxtile.doctor.releases import Release

ONNX_TYPES = {
    1: pb.TYPE_FP32, 2: pb.TYPE_UINT8, 3: pb.TYPE_INT8, 4: pb.TYPE_UINT16, 5: pb.TYPE_INT16, 6: pb.TYPE_INT32,
    7: pb.TYPE_INT64, 8: pb.TYPE_STRING, 9: pb.TYPE_BOOL, 10: pb.TYPE_FP16, 11: pb.TYPE_FP64, 12: pb.TYPE_UINT32,
    13: pb.TYPE_UINT64, 16: pb.TYPE_BF16,
}  # fmt: skip
"""ONNX's numbers of types (TensorProto.DataType) as Triton's."""

HEAD = 4096
"""Bytes of an OpenVINO IR in which its root element stands."""

AMPERE = 80
"""The first architecture that a plan for `ampere_plus` fits."""

CERTIFICATE = "certificate.json"


def check_engine(entry: Entry, release: Release, machine: Machine | None) -> Iterator[Finding]:
    """Faults of the files of an entry's engine, in each version that is served."""
    if entry.config is None or entry.backend not in release.backends:
        return
    for version in entry.served:
        folder = version_folder(entry, version)
        files = [folder / name for name in files_of(entry)]
        if not all(_readable(file) for file in files):
            continue  # `layout` speaks of files that are missing or empty
        if entry.backend == "onnxruntime" and files:
            yield from _onnx(files[0], entry.config, release)
        elif entry.backend == "openvino" and files:
            yield from _openvino(files[0])
        elif entry.backend == "pytorch" and entry.config.platform != "pytorch_libtorch":
            yield from _package(files, facts_of(folder), machine)
        elif entry.backend == "tensorrt":
            yield from _plan(files, facts_of(folder), release, machine)


def facts_of(folder: Path) -> Mapping[str, Any]:
    """What the certificate of a version says of the machine that its engine fits; empty where it says nothing."""
    file = folder / CERTIFICATE
    try:
        facts = json.loads(file.read_text(encoding="utf-8")).get("precision_facts") if file.is_file() else None
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _readable(file: Path) -> bool:
    try:
        return file.is_file() and file.stat().st_size > 0
    except OSError:
        return False


def _onnx(file: Path, config: pb.ModelConfig, release: Release) -> Iterator[Finding]:
    try:
        header = read_header(file)
    except (OSError, ValueError) as error:
        yield _unreadable(file, str(error))
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
    yield from _tensors(file, header, config)


def _too_new(file: Path, found: str, most: str, release: Release) -> Finding:
    return Finding(
        "error",
        "onnx-too-new",
        str(file),
        f"{found}; ONNX Runtime {release.onnxruntime} of {release.title} reads up to {most}",
        "the server does not start with it",
        "build the model again (voxtile-build writes opset 20, IR 10), or serve with a newer release",
    )


def _tensors(file: Path, header: OnnxHeader, config: pb.ModelConfig) -> Iterator[Finding]:
    for kind, described, graph in (("input", config.input, header.inputs), ("output", config.output, header.outputs)):
        there = {tensor.name: tensor for tensor in graph}
        for tensor in described:
            found = there.get(tensor.name)
            if found is None:
                yield _differs(file, f"has no {kind} {tensor.name!r}; it has {', '.join(sorted(there)) or 'none'}")
            elif fault := _difference(tensor, found, config.max_batch_size > 0):
                yield _differs(file, f"{kind} {tensor.name!r} {fault}")
        for name in sorted(set(there) - {tensor.name for tensor in described}) if kind == "input" else ():
            yield _differs(file, f"needs the input {name!r}, which config.pbtxt does not have")


def _difference(tensor: pb.ModelInput | pb.ModelOutput, found: OnnxTensor, batched: bool) -> str:
    wanted = (*((-1,) if batched else ()), *(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims))
    if found.dtype and ONNX_TYPES.get(found.dtype, pb.TYPE_INVALID) != tensor.data_type:
        name = pb.DataType.Name(ONNX_TYPES.get(found.dtype, pb.TYPE_INVALID))
        return f"is {name} in the graph, {pb.DataType.Name(tensor.data_type)} in config.pbtxt"
    if found.dims is not None and not dims_fit(found.dims, wanted):
        return f"has shape {list(found.dims)} in the graph, {list(wanted)} in config.pbtxt"
    if batched and found.dims is not None and found.dims[0] >= 0:
        return f"has a fixed batch of {found.dims[0]} in the graph, but max_batch_size in config.pbtxt"
    return ""


def _differs(file: Path, what: str) -> Finding:
    return Finding(
        "error",
        "graph-differs",
        str(file),
        what,
        "the backend refuses to load it, or fails at the first tile",
        "build the model again",
    )


def _unreadable(file: Path, what: str) -> Finding:
    return Finding(
        "error",
        "engine-unreadable",
        str(file),
        what,
        "the backend cannot load it",
        "copy it again, or build the model again",
    )


def _openvino(file: Path) -> Iterator[Finding]:
    if file.suffix == ".xml" and b"<net" not in file.read_bytes()[:HEAD]:
        yield _unreadable(file, "expected an OpenVINO IR (<net …>), found something else")


def _package(files: list[Path], facts: Mapping[str, Any], machine: Machine | None) -> Iterator[Finding]:
    for file in files:
        if not zipfile.is_zipfile(file):
            yield _unreadable(file, "expected a package of PyTorch (a zip file), found something else")
            return
        if machine is None:
            continue
        needed = facts.get("instructions")
        lacking = sorted(set(needed) - machine.instructions) if needed and machine.instructions is not None else []
        if lacking:
            yield Finding(
                "error",
                "cpu-differs",
                str(file),
                f"compiled for a CPU with {', '.join(lacking)}, which this one lacks",
                "the process ends at the first tile",
                "build the model again on the machine that serves",
            )
        yield from _gpu(file, facts, machine, "none")


def _plan(files: list[Path], facts: Mapping[str, Any], release: Release, machine: Machine | None) -> Iterator[Finding]:
    for file in files:
        built = facts.get("tensorrt")
        if not isinstance(built, str):
            yield Finding(
                "warning",
                "plan-unknown",
                str(file),
                "no certificate says what TensorRT and GPU it was built for",
                "a plan loads in its own version and on its own kind of GPU alone",
                "build the model again",
            )
            continue
        if release.tensorrt is None:
            yield Finding(
                "note",
                "release-unknown",
                str(file),
                f"built with TensorRT {built}",
                f"a plan loads in its own version alone, and that of {release.title} is not known here",
                "build the plan in the image that the build prints",
            )
        elif built != release.tensorrt:
            yield Finding(
                "error",
                "plan-version",
                str(file),
                f"built with TensorRT {built}; {release.title} has {release.tensorrt}",
                "a plan loads in the version alone that built it",
                "build the model again in the image of this release",
            )
        if machine is not None:
            yield from _gpu(file, facts, machine, str(facts.get("hardware_compatibility", "none")))


def _gpu(file: Path, facts: Mapping[str, Any], machine: Machine, compatibility: str) -> Iterator[Finding]:
    gpu = facts.get("gpu")
    built = gpu.get("architecture") if isinstance(gpu, dict) else None
    if not isinstance(built, str) or not machine.gpus:
        return  # a machine without GPUs is `host`'s
    unfit = [one for one in machine.gpus if not _fits(built, one.architecture, compatibility)]
    if unfit:
        yield Finding(
            "error",
            "gpu-differs",
            str(file),
            f"built for {built}; this machine has {', '.join(f'{one.name} ({one.architecture})' for one in unfit)}",
            "it does not load there",
            "build the model again on the machine that serves",
        )


def _fits(built: str, here: str, compatibility: str) -> bool:
    if built == here:
        return True
    numbers = [name.removeprefix("sm_") for name in (built, here)]
    return compatibility == "ampere_plus" and all(one.isdecimal() and int(one) >= AMPERE for one in numbers)


def check_plans_together(entries: Mapping[str, Entry]) -> Iterator[Finding]:
    """Plans of different versions of TensorRT, which no server loads together."""
    built: dict[str, list[str]] = {}
    for entry in entries.values():
        for version in entry.served if entry.backend == "tensorrt" else ():
            found = facts_of(version_folder(entry, version)).get("tensorrt")
            if isinstance(found, str):
                built.setdefault(found, []).append(entry.name)
    if len(built) > 1:
        names = "; ".join(f"{version}: {', '.join(names)}" for version, names in sorted(built.items()))
        first = next(iter(entries.values()))
        yield Finding(
            "error",
            "plans-differ",
            str(first.folder.parent),
            f"plans of several versions of TensorRT ({names})",
            "a server has one version, and loads no plan of another",
            "build them all in one image",
        )
