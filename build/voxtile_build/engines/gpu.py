"""The GPU of this machine, as its driver reports it. Knows no engine."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

SECONDS = 60
"""Time that the driver's tool has to answer."""


@dataclass(frozen=True)
class Gpu:
    """A GPU's product name, and its architecture, such as `sm_90`."""

    name: str
    architecture: str


def visible_gpu(query: str = "nvidia-smi") -> Gpu | None:
    """The first GPU of this machine, as the driver's own tool reports it; None if there is none."""
    tool = shutil.which(query)
    if tool is None:
        return None
    command = [tool, "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    match = re.match(r"\s*(.+?)\s*,\s*(\d+)\.(\d+)", answer.stdout)
    if answer.returncode or match is None:
        return None
    return Gpu(match[1], f"sm_{match[2]}{match[3]}")
