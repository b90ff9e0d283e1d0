"""The GPUs of this machine, as their driver reports them. Knows no engine."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from voxtile_build.errors import EngineError

SECONDS = 60
"""Time that the driver's tool has to answer."""

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""The variable that hides GPUs from programs: their numbers or the beginnings of their UUIDs, in order."""


@dataclass(frozen=True)
class Gpu:
    """A GPU's product name, its architecture, such as `sm_90`, and its UUID."""

    name: str
    architecture: str
    uuid: str = ""

    @property
    def capability(self) -> str:
        """The compute capability, such as `9.0`, as Triton writes it."""
        digits = self.architecture.removeprefix("sm_")
        return f"{digits[:-1]}.{digits[-1]}"


def visible_gpu() -> Gpu | None:
    """The first GPU that programs of this process see; None if there is none."""
    return next(iter(visible_gpus()), None)


def visible_gpus(query: str = "nvidia-smi") -> tuple[Gpu, ...]:
    """The GPUs that programs of this process see, in CUDA's order: what `CUDA_VISIBLE_DEVICES` hides is left out.

    Numbers are those of the driver's tool, so that on a machine with unlike GPUs CUDA needs
    `CUDA_DEVICE_ORDER=PCI_BUS_ID` to count alike.

    Args:
        query: the driver's own tool.
    """
    tool = shutil.which(query)
    if tool is None:
        return ()
    command = [tool, "--query-gpu=uuid,name,compute_cap", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if answer.returncode:
        return ()
    rows = csv.reader(answer.stdout.splitlines(), skipinitialspace=True)
    gpus = [Gpu(row[1], f"sm_{row[2].replace('.', '')}", row[0]) for row in rows if _is_gpu(row)]
    wanted = os.environ.get(VISIBLE)
    return tuple(gpus if wanted is None else _chosen(gpus, wanted))


def served_gpus(wanted: str | tuple[int, ...]) -> dict[int, Gpu]:
    """The GPUs of this machine that a server runs a model on, by index.

    Args:
        wanted: the spec's `serving.gpus`; `none` means all for an engine that runs on GPUs alone.

    Raises:
        EngineError: this machine has no GPU of an index.
    """
    visible = dict(enumerate(visible_gpus()))
    if isinstance(wanted, str):
        return visible
    missing = [index for index in wanted if index not in visible]
    if missing:
        raise EngineError(
            f"serving.gpus: expected indices of the {len(visible)} GPUs that this machine shows, found {missing}; "
            "build on the machine that will serve, or change serving.gpus"
        )
    return {index: visible[index] for index in wanted}


def _is_gpu(row: Sequence[str]) -> bool:
    return len(row) == 3 and re.fullmatch(r"\d+\.\d", row[2]) is not None


def _chosen(gpus: Sequence[Gpu], wanted: str) -> Iterator[Gpu]:
    """What CUDA makes of the variable: it ends at the first entry that names no GPU, or names one again.

    Source: CUDA Programming Guide, "CUDA Environment Variables".
    """
    seen: list[Gpu] = []
    for word in (part.strip() for part in wanted.split(",")):
        found = _named(gpus, word)
        if found is None or found in seen:
            return
        seen.append(found)
        yield found


def _named(gpus: Sequence[Gpu], word: str) -> Gpu | None:
    if word.isdecimal():
        return gpus[int(word)] if int(word) < len(gpus) else None
    if word.startswith("MIG-"):  # a part of a GPU: the tool's answer does not say of which, so all must be alike
        kinds = {(gpu.name, gpu.architecture) for gpu in gpus}
        return Gpu(*kinds.pop(), word) if len(kinds) == 1 else None
    found = [gpu for gpu in gpus if word.startswith("GPU-") and gpu.uuid.startswith(word)]
    return found[0] if len(found) == 1 else None
