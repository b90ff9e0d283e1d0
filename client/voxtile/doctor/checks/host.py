"""What a repository needs of the machine that serves it: GPUs, memory, shared memory, ports, NumPy. Starts nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from voxtile.doctor.checks.config import GROUP, on_gpu
from voxtile.doctor.checks.layout import files_of, files_with_weights
from voxtile.doctor.checks.named_files import ENVIRONMENT, HERE
from voxtile.doctor.entry import Entry, version_folder
from voxtile.doctor.finding import Finding
from voxtile.doctor.machine import Machine
from voxtile.doctor.releases import Release
from voxtile.machine.memory import MIB

GIB = 1024 * MIB
LEAST_SHARED = 256 * MIB
"""Bytes of /dev/shm below which a stub of Triton's Python backend may find no room; Docker gives 64 MiB by itself."""

BROKEN_NUMPY = "25.01"
"""The release from which Triton's stub takes NumPy 2 for certain; that of 24.10 answers with empty tensors."""

NUMPY = re.compile(r"numpy-(\d+)\.[^/]*\.dist-info")


def check_host(entries: Mapping[str, Entry], release: Release, machine: Machine) -> Iterator[Finding]:
    """What the machine lacks for these entries, of all repositories together."""
    for entry in entries.values():
        if entry.backend in release.backends:
            yield from _gpus(entry, machine)
        yield from _scan_memory(entry, machine)
    yield from _memory(entries.values(), machine)
    yield from _shared(entries.values(), release, machine)
    for port in machine.taken_ports:
        yield Finding(
            "warning",
            "port-taken",
            f"port {port}",
            "another program listens there that is no Triton",
            "the server would not start on it",
            "end that program, or give the server another port",
        )


def check_numpy(engines: Path | None, entries: Mapping[str, Entry], release: Release) -> Iterator[Finding]:
    """NumPy 2 where a stub of an older Triton would load it.

    Args:
        engines: the folder of packages that `voxtile-server --engines` gets; None without one.
        entries: of all repositories, by name; one in Python may name an environment of its own.
        release: that is to serve them.
    """
    if not release.before(BROKEN_NUMPY):
        return
    folders = [engines] if engines is not None else []
    for entry in entries.values():
        if entry.config is not None and ENVIRONMENT in entry.config.parameters:
            place = entry.config.parameters[ENVIRONMENT].string_value
            folders.append(Path(place.replace(HERE, str(entry.folder))))
    for folder in folders:
        for found in sorted(folder.rglob("numpy-*.dist-info")) if folder.is_dir() else ():
            named = NUMPY.fullmatch(found.name)
            if named is not None and int(named[1]) >= 2:
                yield Finding(
                    "error",
                    "numpy-2",
                    str(found),
                    f"NumPy 2 for the stubs of {release.title}",
                    "they answer with empty tensors, without an error",
                    "install 'numpy<2' there",
                )


def _gpus(entry: Entry, machine: Machine) -> Iterator[Finding]:
    if entry.config is None or not on_gpu(entry):
        return
    there = len(machine.gpus)
    wanted = {gpu for group in entry.config.instance_group for gpu in group.gpus}
    missing = sorted(gpu for gpu in wanted if gpu >= there)
    if not there or missing:
        found = f"{there or 'no'} GPU{'s' if there != 1 else ''}"
        what = f"instances on GPU {', '.join(map(str, missing))}" if missing and there else "instances on a GPU"
        yield Finding(
            "error",
            "no-gpu",
            str(entry.config_file),
            f"{what}, but this machine shows {found}",
            "Triton does not load it",
            "serve it where the GPUs are (and lint for there with --elsewhere), or build with other serving.gpus",
        )


def _memory(entries: Collection[Entry], machine: Machine) -> Iterator[Finding]:
    needed: dict[str, int] = {}
    gpu_needed: dict[str, int] = {}
    for entry in entries:
        if entry.config is not None and files_of(entry):
            kept = gpu_needed if on_gpu(entry) else needed
            kept[entry.name] = _bytes(entry) * _copies(entry)
    rooms = [("the machine", machine.memory_bytes, needed)]
    rooms += [("its smallest GPU", min(gpu.memory_bytes for gpu in machine.gpus), gpu_needed)] if machine.gpus else []
    for place, room, wanted in rooms:
        total = sum(wanted.values())
        if total > room:
            largest = max(wanted, key=lambda name: wanted[name])
            yield Finding(
                "error",
                "memory",
                largest,
                f"the weights of all instances have {total / GIB:.1f} GiB, {place} {room / GIB:.1f}",
                "they do not fit, and loading ends the server or fails",
                "lower serving.count, or serve fewer models",
            )


def _scan_memory(entry: Entry, machine: Machine) -> Iterator[Finding]:
    """What the entries for whole scans may take, by their own limit."""
    if entry.config is None or "max_ram_mib" not in entry.config.parameters:
        return
    try:
        limit = float(entry.config.parameters["max_ram_mib"].string_value) * MIB
    except ValueError:
        limit = 0.0
    total = limit * sum(group.count for group in entry.config.instance_group)
    if not limit > 0:
        yield Finding(
            "error",
            "volume-unreadable",
            str(entry.config_file),
            "max_ram_mib is no number above 0",
            "the entry does not load",
            "write it again with voxtile-build volume",
        )
    elif total > machine.memory_bytes:
        yield Finding(
            "warning",
            "memory",
            str(entry.config_file),
            f"its scans may take {total / GIB:.1f} GiB at once, the machine has {machine.memory_bytes / GIB:.1f}",
            "the system may end the server",
            "write the entry again with fewer instances, or less --max-ram",
        )


def _shared(entries: Collection[Entry], release: Release, machine: Machine) -> Iterator[Finding]:
    in_python = release.backends if release.embedded else ("python", "voxtile")
    stubs = sum(
        max(sum(group.count for group in entry.config.instance_group), 1)
        for entry in entries
        if entry.config is not None and entry.backend in in_python
    )
    if stubs and machine.shared_bytes is not None and machine.shared_bytes < LEAST_SHARED:
        yield Finding(
            "warning",
            "shared-memory",
            "/dev/shm",
            f"{machine.shared_bytes // MIB} MiB for {stubs} processes of Triton's Python backend",
            "where it is full, they end without a word",
            "give the container more: --shm-size 1g",
        )


def _bytes(entry: Entry) -> int:
    """The size of the files that an entry's engine opens."""
    total = 0
    for version in entry.served:
        for name in files_with_weights(entry):
            file = version_folder(entry, version) / name
            total += file.stat().st_size if os.path.isfile(file) else 0
    return total


def _copies(entry: Entry) -> int:
    groups = entry.config.instance_group if entry.config is not None else ()
    return max(sum(max(int(group.count), 1) for group in groups if group.kind != GROUP.KIND_MODEL), 1)
