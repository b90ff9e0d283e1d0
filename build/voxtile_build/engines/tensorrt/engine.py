"""The engine TensorRT: a plan for one GPU architecture and one TensorRT version."""

from __future__ import annotations

import contextlib
import importlib.util
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from voxtile_build.engines.base import Compiled, Engine, Variant
from voxtile_build.engines.gpu import visible_gpu
from voxtile_build.engines.tensorrt.container import container_advice
from voxtile_build.errors import EngineError, SpecError
from voxtile_build.spec.spec import Spec

if TYPE_CHECKING:
    from voxtile_build.graph.graphs import Graphs

MODULE = "tensorrt"

# Modules that load PyTorch are imported in the methods that need them.


class TensorRt(Engine):
    """model.plan, in fp32, bf16, mixed fp16 or int8."""

    name = "tensorrt"
    backend = "tensorrt"
    gpu = True
    measured_on = "gpu"
    profiled_elsewhere = "is run by the server on a GPU; profile its plan there with trtexec --dumpProfile"

    @property
    def version(self) -> str:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(MODULE)
        return "none"

    def variants(self) -> tuple[Variant, ...]:
        from voxtile_build.engines.tensorrt.variants import VARIANTS

        return VARIANTS

    def serves_on(self, spec: Spec) -> str:
        """A plan runs on GPUs alone, whatever `serving.gpus` says."""
        return "gpu"

    def search(self, spec: Spec) -> tuple[Variant, ...]:
        """Graphs as a GPU rounds them, run on the CPU; a plan is built only of the one that is found."""
        from voxtile_build.engines.tensorrt.variants import ROUNDED

        return ROUNDED

    def settle(self, found: Compiled, kept: frozenset[str], graphs: Graphs, spec: Spec, folder: Path) -> Compiled:
        variant = next(variant for variant in self.variants() if variant.precision == found.precision)
        return variant.build(graphs, spec, folder, kept)

    def require_buildable(self, spec: Spec) -> None:
        if spec.tiling.multiple is not None:
            from voxtile_build.networks.free_sizes import KEEP_THE_ROI

            raise SpecError(
                f"{spec.name}: tiling.multiple: a TensorRT plan is built for shapes that are known; take tensorrt out "
                f"of the engines, or {KEEP_THE_ROI}"
            )
        missing = []
        if visible_gpu() is None:
            missing.append("a GPU")
        if importlib.util.find_spec(MODULE) is None:
            missing.append("TensorRT")
        if missing:
            advice = container_advice(" and ".join(missing), _arguments(spec, self.name), Path.cwd())
            raise EngineError(f"{spec.name}: {advice}")


def _arguments(spec: Spec, engine: str) -> list[str]:
    source = ["nnunet", "FOLDER", "--name", spec.name] if spec.nnunet else ["spec", f"models/{spec.name}.toml"]
    return [*source, "--repository", "model_repository", "--engines", engine]


ENGINE = TensorRt()
