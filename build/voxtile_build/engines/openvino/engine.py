"""The engine OpenVINO, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openvino as ov

from voxtile_build.arrays import Feed, Runner
from voxtile_build.engines.base import Engine, Variant
from voxtile_build.engines.openvino.runner import FILE, HINT, THREADS, OpenVinoRunner
from voxtile_build.engines.timing import Timed
from voxtile_build.spec.spec import Spec

# Modules that load PyTorch are imported in the methods that need them.


class OpenVino(Engine):
    """model.xml and model.bin, in fp32, bf16 or int8."""

    name = "openvino"
    backend = "openvino"
    gpu = False

    @property
    def version(self) -> str:
        return str(ov.__version__)

    def variants(self) -> tuple[Variant, ...]:
        from voxtile_build.engines.openvino.variants import VARIANTS

        return VARIANTS

    def search(self, spec: Spec) -> tuple[Variant, ...]:
        """Without bf16 where the CPU has none: it emulates bf16, slower than fp32, or computes in fp32 all the same."""
        from voxtile_build.engines.openvino.variants import VARIANTS, has_bf16

        return tuple(variant for variant in VARIANTS if variant.precision != "bf16" or has_bf16())

    def open(self, folder: Path, parameters: Mapping[str, str], facts: Mapping[str, Any] = {}) -> Runner:
        return OpenVinoRunner(folder / FILE, int(parameters.get(THREADS, "0")), parameters.get(HINT, "f32"))

    def parameters(self, spec: Spec) -> dict[str, str]:
        """Properties under the names of Triton's openvino backend.

        The backend in C++ fixes the batch at max_batch_size, and refuses smaller ones unless it may pad them.
        """
        parameters = {HINT: "f32", "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
        if spec.serving.threads:
            parameters[THREADS] = str(spec.serving.threads)
        if spec.serving.max_batch_size > 1:
            parameters["ENABLE_BATCH_PADDING"] = "YES"
        if spec.tiling.multiple is not None:
            # Otherwise each new size of slices is compiled in the middle of a scan.
            parameters["STATIC_VARIANTS"] = "0"
        return parameters

    def profile(self, folder: Path, inputs: Feed, parameters: Mapping[str, str], runs: int) -> Timed:
        from voxtile_build.engines.openvino.profiling import profile_openvino

        return profile_openvino(folder / FILE, inputs, parameters, runs)


ENGINE = OpenVino()
