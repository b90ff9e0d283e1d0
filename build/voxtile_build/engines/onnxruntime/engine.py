"""The engine ONNX Runtime: on the CPU, or on a GPU through its TensorRT provider."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort

from voxtile_build.arrays import Feed, Runner
from voxtile_build.engines.base import Compiled, Engine, Variant
from voxtile_build.engines.onnxruntime.runner import FILE, THREADS, OnnxRuntimeRunner
from voxtile_build.engines.timing import Timed
from voxtile_build.spec.spec import Spec

# Modules that load PyTorch are imported in the methods that need them.


class OnnxRuntime(Engine):
    """model.onnx, in fp32, mixed fp16 or int8."""

    name = "onnxruntime"
    backend = "onnxruntime"
    gpu = True

    @property
    def version(self) -> str:
        return str(ort.__version__)

    def variants(self) -> tuple[Variant, ...]:
        from voxtile_build.engines.onnxruntime.variants import VARIANTS

        return VARIANTS

    def search(self, spec: Spec) -> tuple[Variant, ...]:
        """On a GPU fp16, as a GPU rounds it: there is no int8 convolution there, and fp16 gains nothing on CPUs."""
        from voxtile_build.engines.onnxruntime.variants import CPU_SEARCH, GPU_SEARCH

        return CPU_SEARCH if spec.serving.gpus == "none" else GPU_SEARCH

    def open(self, folder: Path, parameters: Mapping[str, str], facts: Mapping[str, Any] = {}) -> Runner:
        return OnnxRuntimeRunner(folder / FILE, int(parameters.get(THREADS, "0")))

    def parameters(self, spec: Spec) -> dict[str, str]:
        return {THREADS: str(spec.serving.threads)} if spec.serving.threads else {}

    def accelerators(self, spec: Spec, compiled: Compiled) -> Mapping[str, Mapping[str, str]]:
        """The TensorRT provider, which builds its engine on the server, and behind it the CUDA provider.

        Slices of any size go to the CUDA provider alone: TensorRT needs shapes that are known.
        """
        if spec.serving.gpus == "none":
            return {}
        from voxtile_build.engines.onnxruntime.accelerator import (
            ACCELERATOR,
            CUDA,
            CUDA_OPTIONS,
            accelerator_parameters,
        )

        if spec.tiling.multiple is not None:
            return {CUDA: CUDA_OPTIONS}
        options = accelerator_parameters(f"{spec.name}_{self.name}", compiled.files[0], spec.serving)
        return {ACCELERATOR: options, CUDA: CUDA_OPTIONS}

    def profile(self, folder: Path, inputs: Feed, parameters: Mapping[str, str], runs: int) -> Timed:
        from voxtile_build.engines.onnxruntime.profiling import profile_onnxruntime

        return profile_onnxruntime(folder / FILE, inputs, int(parameters.get(THREADS, "0")), runs)


ENGINE = OnnxRuntime()
