"""A package of AOTInductor from an entry's config.

PyTorch runs a package with whatever it is given, and a CPU that lacks an instruction ends the process. So both are
checked before. It knows nothing of Triton's Python interface.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..batching import Array, one_by_one
from ..contract import ConfigError, InGraph
from ..entry import Entry, Loaded, threads

TORCH_FOLDER = "VOXTILE_TORCH"
"""The environment variable that EmbeddedServer sets to the folder with PyTorch, where its own environment has one."""

KEY = "voxtile"
"""Of what voxtile-build says of a package, in the package's metadata."""

DEVICE = "AOTI_DEVICE_KEY"
CPUINFO = Path("/proc/cpuinfo")
SETUP = "install it where voxtile-server is installed: pip install 'voxtile-server[aotinductor]'"


def load(entry: Entry) -> Loaded:
    """Load the package.

    Raises:
        ConfigError: there is no PyTorch, the file is missing or not of voxtile-build, or it is for another machine.
    """
    if entry.on_gpu:
        raise ConfigError("instance_group says KIND_GPU; the embedded server runs packages on the CPU only")
    file = entry.model_file("model.pt2")
    torch = import_torch()
    if count := threads(entry.parameters, "INTRA_OP_THREAD_COUNT"):
        torch.set_num_threads(count)
    metadata = _metadata(torch, file)
    if KEY not in metadata:
        raise ConfigError(f"{file}: expected a package of voxtile-build, found one that does not describe its tensors")
    described = json.loads(metadata[KEY])
    check_machine(file, metadata.get(DEVICE, "cpu"), described["instructions"], cpu_features())
    package = _open(torch, file)
    inputs, outputs = ([_in_graph(one) for one in described[key]] for key in ("inputs", "outputs"))
    order, names = [tensor.name for tensor in inputs], [tensor.name for tensor in outputs]

    def run(given: Mapping[str, Array], wanted: Sequence[str]) -> Mapping[str, Array]:
        tensors = [torch.from_numpy(np.ascontiguousarray(given[name])) for name in order]
        with torch.inference_mode():
            found = dict(zip(names, package.boxed_run(tensors), strict=True))
        return {name: found[name].numpy() for name in wanted}

    return Loaded(one_by_one(run), inputs, outputs)


def import_torch() -> Any:
    """PyTorch, from the folder of the engines or from the one that `VOXTILE_TORCH` names.

    Raises:
        ConfigError: neither has it.
    """
    folder = os.environ.get(TORCH_FOLDER)
    if folder and folder not in sys.path:
        sys.path.append(folder)  # at the end: NumPy and the engines come from their own folder
    try:
        import torch
    except ImportError as error:
        raise ConfigError(f"the engine aotinductor is run by PyTorch, which is missing ({error}); {SETUP}") from error
    return torch


def check_machine(file: Path, device: str, instructions: Sequence[str], found: frozenset[str]) -> None:
    """Refuse a package for a GPU, or for a CPU with more than this one has.

    Args:
        file: the package.
        device: what it was compiled for: `cpu` or `cuda`.
        instructions: what its CPU must have, in the words of /proc/cpuinfo.
        found: what this CPU has; nothing if that is not known.

    Raises:
        ConfigError: it is for another machine.
    """
    if device != "cpu":
        raise ConfigError(
            f"{file}: compiled for {device}, and the embedded server uses the CPU; build the entry with gpus = 'none'"
        )
    lacking = [one for one in instructions if found and one not in found]
    if lacking:
        raise ConfigError(
            f"{file}: compiled for a CPU with {', '.join(lacking)}, which this one lacks; build the entry again on a "
            "machine of the kind that serves"
        )


def cpu_features(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """What this CPU has, as Linux names it; nothing where Linux does not tell."""
    try:
        found = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return frozenset()
    return frozenset(found[1].split()) if found else frozenset()


def _metadata(torch: Any, file: Path) -> Mapping[str, str]:
    try:
        found: Mapping[str, str] = torch._C._aoti.AOTIModelPackageLoader.load_metadata_from_package(str(file), "model")
    except Exception as error:
        raise ConfigError(f"{file}: not a package of AOTInductor: {error}") from error
    return found


def _open(torch: Any, file: Path) -> Any:
    try:
        # What torch._inductor.aoti_load_package makes; the compiler around it is not needed here.
        return torch._C._aoti.AOTIModelPackageLoader(str(file), "model", False, 1, -1)
    except Exception as error:  # also what the system's loader says of a library
        raise ConfigError(f"PyTorch {torch.__version__} cannot load {file}: {error}") from error


def _in_graph(described: Mapping[str, Any]) -> InGraph:
    return InGraph(described["name"], described["type"], tuple(described["dims"]))
