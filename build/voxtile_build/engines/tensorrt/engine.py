"""The engine TensorRT: a plan for one GPU architecture and one TensorRT version."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile_build.arrays import Runner
from voxtile_build.engines.base import Compiled, Engine, Variant
from voxtile_build.engines.gpu import served_gpus, visible_gpu, visible_gpus
from voxtile_build.engines.release import SERVER_IMAGE, TENSORRT_IMAGE
from voxtile_build.engines.tensorrt import timings
from voxtile_build.engines.tensorrt.fits import FILE, MODULE, fitting, here, together
from voxtile_build.errors import ContainerNeeded, SpecError
from voxtile_build.spec.spec import Spec

if TYPE_CHECKING:
    from voxtile_build.graph.graphs import Graphs

# Modules that load PyTorch are imported in the methods that need them.


class TensorRt(Engine):
    """model.plan, in fp32, tf32, bf16, mixed fp16 or int8."""

    name = "tensorrt"
    backend = "tensorrt"
    gpu = True
    measured_on = "gpu"
    input_dtypes = ("fp32", "fp16")  # TensorRT has no 16-bit integer
    profiled_elsewhere = "is run by the server on a GPU; profile its plan there with trtexec --dumpProfile"

    @property
    def version(self) -> str:
        return here() or "none"

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
                f"{spec.name}: inferer.multiple: a TensorRT plan is built for shapes that are known; take tensorrt out "
                f"of the engines, or {KEEP_THE_ROI}"
            )
        gpus = served_gpus(spec.serving.gpus) if visible_gpu() else {}
        missing = [what for what, there in (("a GPU", gpus), ("TensorRT", here())) if not there]
        if missing:
            raise ContainerNeeded(
                f"{spec.name}: a TensorRT plan cannot be built here: {' and '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} missing. A plan fits "
                "one version of TensorRT and one architecture of GPU, so build it on the machine that will serve it, "
                f"in {TENSORRT_IMAGE}, which has the TensorRT of {SERVER_IMAGE}; or take tensorrt out of the engines: "
                "with gpus set, onnxruntime builds an engine on the server's first start",
                TENSORRT_IMAGE,
                spec.files,
                timings.folder(),
            )
        if not together(gpus.values(), spec.serving.hardware_compatibility):
            kinds = dict.fromkeys(gpu.architecture for gpu in gpus.values())
            alike = {kind: [index for index, gpu in gpus.items() if gpu.architecture == kind] for kind in kinds}
            raise SpecError(
                f"{spec.name}: serving.gpus: expected GPUs of one architecture, because a plan fits one, found "
                f"{' and '.join(f'{kind} (gpus = {indices})' for kind, indices in alike.items())}; name those of "
                "one and serve the others from a repository of their own, or, from compute capability 8.0 on, write "
                "hardware_compatibility = 'ampere_plus' in [serving]"
            )
        from voxtile_build.engines.tensorrt.runner import require_cuda

        require_cuda()  # before minutes of export and reference

    def open(self, folder: Path, parameters: Mapping[str, str], facts: Mapping[str, Any] = {}) -> Runner:
        from voxtile_build.engines.tensorrt.runner import PlanRunner

        device = fitting(facts, dict(enumerate(visible_gpus())), here())
        return PlanRunner(importlib.import_module(MODULE), (folder / FILE).read_bytes(), device)


ENGINE = TensorRt()
