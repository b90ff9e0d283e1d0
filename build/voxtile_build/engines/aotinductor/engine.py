"""The engine AOTInductor: PyTorch's own compiler, on the GPU where the spec wants one, else on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from voxtile_build.arrays import Runner
from voxtile_build.engines.aotinductor.interface import NAMES
from voxtile_build.engines.aotinductor.tools import require_compiler, require_gpu
from voxtile_build.engines.base import Engine, Variant
from voxtile_build.errors import EngineError, SpecError
from voxtile_build.spec.spec import Spec

# Modules that load PyTorch are imported in the methods that need them.

PROGRAM = ".pt2"
"""The only kind of network file that holds a program of PyTorch's new compiler."""


class AotInductor(Engine):
    """model.pt2, in fp32, bf16 or fp16."""

    name = "aotinductor"
    backend = "pytorch"
    gpu = True
    platform = "torch_aoti"
    default_model_filename = "model.pt2"
    profiled_elsewhere = "holds compiled code; profile it with torch.profiler, or with nsys on a GPU"

    @property
    def version(self) -> str:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version("torch")
        return "none"

    def certified_on(self, spec: Spec) -> str:
        """A package runs on the kind of device that it was compiled for, and is measured there."""
        return self.serves_on(spec)

    def tensor_name(self, name: str) -> str:
        return NAMES[name]

    def variants(self) -> tuple[Variant, ...]:
        from voxtile_build.engines.aotinductor.variants import VARIANTS

        return tuple(VARIANTS.values())

    def search(self, spec: Spec) -> tuple[Variant, ...]:
        """On a GPU fp16, bf16, fp32. On a CPU never fp16, which few have, and bf16 only where the CPU has it."""
        from voxtile_build.engines.aotinductor.variants import VARIANTS, has_bf16

        if self.serves_on(spec) == "gpu":
            return tuple(VARIANTS.values())
        return tuple(VARIANTS[name] for name in ("bf16", "fp32") if name != "bf16" or has_bf16())

    def require_buildable(self, spec: Spec) -> None:
        file = spec.network.file
        if file is not None and file.suffix != PROGRAM:
            raise SpecError(
                f"{spec.name}: network.file: aotinductor compiles programs of torch.export ({PROGRAM}) and networks by "
                f"name, found {file.name}; export the network with torch.export, or take aotinductor out of the engines"
            )
        require_compiler(spec.name)
        if self.serves_on(spec) == "gpu":
            require_gpu(spec)

    def open(self, folder: Path, parameters: Mapping[str, str], facts: Mapping[str, Any] = {}) -> Runner:
        try:
            from voxtile_build.engines.aotinductor.runner import THREADS, PackageRunner
        except ImportError:
            raise EngineError(f"{self.name}: opened by PyTorch, which is not installed; give --url HOST:PORT") from None
        return PackageRunner(folder / self.default_model_filename, int(parameters.get(THREADS, "0")))

    def parameters(self, spec: Spec) -> dict[str, str]:
        return {"INTRA_OP_THREAD_COUNT": str(spec.serving.threads)} if spec.serving.threads else {}


ENGINE = AotInductor()
