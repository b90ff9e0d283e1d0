"""The facts that a TensorRT plan is valid for: written beside it, and checked before it is served."""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from voxtile_build.engines.tensorrt.errors import PlanMismatchError

# Oldest compute capability that `ampere_plus` engines run on.
AMPERE = 80


@dataclass(frozen=True)
class PlanFacts:
    """All that decides where a plan may run. Shapes are batch first; hashes are SHA-256, in hex."""

    builder: str
    tensorrt_version: str
    gpu_architecture: str | None
    gpu_name: str | None
    onnx_sha256: str
    plan_sha256: str
    precision: str
    profile: dict[str, dict[str, list[int]]]
    hardware_compatibility: str | None = None
    version_compatible: bool = False
    kept_higher: list[str] = field(default_factory=list)
    layers: int = 0
    build_seconds: float = 0.0
    timing_cache: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "PlanFacts":
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Gpu:
    """A GPU's marketing name and its architecture, as `sm_90`."""

    name: str
    architecture: str


@dataclass(frozen=True)
class Runtime:
    """The TensorRT and the GPU that a plan is about to be served with."""

    tensorrt_version: str
    gpu_architecture: str


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def visible_gpu(query: str = "nvidia-smi") -> Gpu | None:
    """The first GPU of this machine, as its driver's own tool tells it; None where there is none."""
    tool = shutil.which(query)
    if tool is None:
        return None
    command = [tool, "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    match = re.match(r"\s*(.+?)\s*,\s*(\d+)\.(\d+)", answer.stdout)
    if answer.returncode or match is None:
        return None
    return Gpu(match[1], f"sm_{match[2]}{match[3]}")


def this_runtime(trt: ModuleType) -> Runtime:
    """The runtime of this process. Raises PlanMismatchError where no GPU is visible."""
    gpu = visible_gpu()
    if gpu is None:
        raise PlanMismatchError("A TensorRT plan needs an NVIDIA GPU and its driver; none is visible here.")
    return Runtime(trt.__version__, gpu.architecture)


def check_plan_facts(facts: PlanFacts, runtime: Runtime, onnx_sha256: str, plan: bytes | Path | None = None) -> None:
    """Compares a plan's facts with the ONNX file it must come from, and the place where it is to be served.

    `plan`, if given, is the plan itself, which must be the one that the facts were written for.
    Raises PlanMismatchError, which names every difference at once.
    """
    differences = {
        "ONNX file": _differs(facts.onnx_sha256, onnx_sha256),
        "plan file": _plan_differs(facts, plan),
        "TensorRT version": _version_differs(facts, runtime),
        "GPU architecture": _architecture_differs(facts, runtime),
    }
    _refuse({what: difference for what, difference in differences.items() if difference})


def profile_facts(profile: Mapping[str, Any]) -> dict[str, dict[str, list[int]]]:
    """A profile of ShapeRange objects as plain JSON."""
    return {name: {key: list(shape) for key, shape in asdict(sizes).items()} for name, sizes in profile.items()}


def _refuse(differences: Mapping[str, str]) -> None:
    if differences:
        listed = "; ".join(f"{what}: {difference}" for what, difference in differences.items())
        raise PlanMismatchError(f"This TensorRT plan does not fit: {listed}. Build it again on this machine.")


def _differs(built_for: object, found: object) -> str:
    return "" if built_for == found else f"built for {built_for}, found {found}"


def _plan_differs(facts: PlanFacts, plan: bytes | Path | None) -> str:
    if plan is None:
        return ""
    return _differs(facts.plan_sha256, sha256(plan.read_bytes() if isinstance(plan, Path) else plan))


def _version_differs(facts: PlanFacts, runtime: Runtime) -> str:
    built, found = facts.tensorrt_version, runtime.tensorrt_version
    # A version-compatible engine runs on the same major release, from its own version on.
    if facts.version_compatible and _numbers(built)[0] == _numbers(found)[0]:
        return "" if _numbers(found) >= _numbers(built) else _differs(built, found)
    return _differs(built, found)


def _architecture_differs(facts: PlanFacts, runtime: Runtime) -> str:
    built, found = facts.gpu_architecture, runtime.gpu_architecture
    if facts.hardware_compatibility == "ampere_plus":
        return "" if _capability(found) >= AMPERE else f"built for sm_{AMPERE} and later, found {found}"
    return _differs(built, found)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _capability(architecture: str) -> int:
    return int(architecture.removeprefix("sm_"))
