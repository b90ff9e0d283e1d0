"""Faults of engines' files: graphs that do not fit, versions and devices that compiled ones were not made for.

Reads heads of files and certificates; runs nothing.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from voxtile.doctor.checks.config import check_types
from voxtile.doctor.checks.graphs.onnx import check_onnx
from voxtile.doctor.checks.graphs.openvino import check_ir
from voxtile.doctor.checks.graphs.tensors import unreadable
from voxtile.doctor.checks.layout import files_of
from voxtile.doctor.entry import Entry, may_read, version_folder
from voxtile.doctor.finding import Finding
from voxtile.doctor.machine import Machine
from voxtile.doctor.releases import Release

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
            continue  # `layout` speaks of files that are missing, empty or not for this user
        if entry.backend == "onnxruntime" and files:
            yield from check_onnx(files[0], entry.config, release)
        elif entry.backend == "openvino" and files and files[0].suffix == ".xml" and not list(check_types(entry)):
            yield from check_ir(files[0], files[1] if len(files) > 1 else None, entry.config)
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
        return file.is_file() and file.stat().st_size > 0 and may_read(file)
    except OSError:
        return False


def _package(files: list[Path], facts: Mapping[str, Any], machine: Machine | None) -> Iterator[Finding]:
    for file in files:
        if not zipfile.is_zipfile(file):
            yield unreadable(file, "expected a package of PyTorch (a zip file), found something else")
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
