"""The precisions of AOTInductor: fp32, and bf16 or fp16 by PyTorch's autocast."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from voxtile_build.engines.aotinductor.package import FILE, compile_package
from voxtile_build.engines.aotinductor.program import check_precision, export_program, tensors_of
from voxtile_build.engines.aotinductor.runner import PackageRunner
from voxtile_build.engines.base import Compiled, Variant
from voxtile_build.graph.graphs import Graphs
from voxtile_build.spec.spec import Spec

PRECISIONS = ("fp16", "bf16", "fp32")


def compile_variant(
    graphs: Graphs, spec: Spec, folder: Path, _: frozenset[str] = frozenset(), *, precision: str
) -> Compiled:
    """model.pt2 for this machine's GPU where the spec wants GPUs, else for its CPU.

    Raises:
        EngineError: the network cannot be exported or compiled, or a layer does not compute in `precision`.
    """
    device = "cpu" if spec.serving.gpus == "none" else "cuda"
    program = export_program(graphs.wrapper, spec, precision, device)
    facts: dict[str, Any] = {"layers": check_precision(program, precision, spec.name)}
    interface = compile_package(program, *tensors_of(program, spec), folder / FILE, device)
    facts["instructions"] = list(interface.instructions)
    if device != "cpu":
        facts["gpu"] = {"name": torch.cuda.get_device_name(), "architecture": _architecture(0)}
    run = PackageRunner(folder / FILE, spec.serving.threads)
    return Compiled((folder / FILE,), precision, run, facts=facts, warnings=tuple(_warnings(precision, device)))


def has_bf16() -> bool:
    """Whether this CPU has bf16 arithmetic (AVX-512 BF16 or AMX); without it PyTorch computes bf16 slower than fp32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _architecture(index: int) -> str:
    """Of the GPU with this number, such as `sm_90`."""
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


def _warnings(precision: str, device: str) -> Iterator[str]:
    others = {_architecture(index) for index in range(torch.cuda.device_count())} if device == "cuda" else set()
    if len(others) > 1:
        yield (
            f"compiled for {_architecture(0)}, the first GPU's architecture, and this machine has GPUs of "
            f"{', '.join(sorted(others - {_architecture(0)}))} too, on which it does not run; name those of the "
            "first kind in serving.gpus"
        )
    if device == "cuda" and precision == "fp32":
        yield (
            "fp32: measured without TF32, which a server uses for convolutions unless NVIDIA_TF32_OVERRIDE=0 is in its "
            "environment; set it there, then run voxtile-build verify with --url"
        )
    if device == "cpu" and precision == "bf16" and not has_bf16():
        yield "bf16: this CPU has no bf16 arithmetic; PyTorch computes it slower than fp32"


VARIANTS = {name: Variant(name, partial(compile_variant, precision=name)) for name in PRECISIONS}
