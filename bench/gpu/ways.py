"""Ways of running a network: types, layouts, and who makes its kernels. Knows nothing of scans or timings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from .networks import Subject
from .rates import allow_tf32
from .settings import Settings

Runner = Callable[[torch.Tensor], torch.Tensor]
"""Scores [batch, score, *roi], in the way's own type, of tiles [batch, 1, *roi] in fp32."""

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CAPTURE_WARM_UPS = 3


@dataclass(frozen=True)
class Way:
    """One way of running a network.

    Attributes:
        by: who makes the kernels: PyTorch as it is, torch.compile ("autotuned" tries many kernels), AOTInductor,
            TensorRT.
        dtype: of weights and values; "tf32" rounds only what is multiplied.
        last: whether channels are the last axis in memory.
        autocast: whether PyTorch chooses the layers that compute in `dtype`; weights stay fp32.
        fused: whether attention is PyTorch's own.
        graph: whether all kernels of a call are started as one CUDA graph.
    """

    by: Literal["eager", "compile", "autotuned", "aot", "tensorrt"] = "eager"
    dtype: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    last: bool = False
    autocast: bool = False
    fused: bool = False
    graph: bool = False

    @property
    def name(self) -> str:
        """The way in words, for readers."""
        words = [NAMES[self.by], self.dtype, "autocast" * self.autocast, "channels last" * self.last]
        return " ".join(filter(None, [*words, "fused attention" * self.fused, "CUDA graph" * self.graph]))


NAMES = {
    "eager": "PyTorch", "compile": "torch.compile", "autotuned": "torch.compile max-autotune", "aot": "AOTInductor",
    "tensorrt": "TensorRT",
}  # fmt: skip


class Typed(nn.Module):
    """A network that takes fp32 tiles and computes in the type and the layout of a way. Changes the network's."""

    def __init__(self, network: nn.Module, way: Way) -> None:
        super().__init__()
        self.dtype = torch.float32 if way.autocast else DTYPES[way.dtype]
        self.reduced = DTYPES[way.dtype] if way.autocast else None
        self.layout = torch.channels_last_3d if way.last else torch.contiguous_format
        self.network = network.to(self.dtype)
        if way.last:
            self.network = self.network.to(memory_format=self.layout)  # type: ignore[call-overload]

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Returns scores [batch, score, *roi] of tiles [batch, 1, *roi]."""
        values = tiles.to(self.dtype).contiguous(memory_format=self.layout)
        if self.reduced is None:
            return self.network(values)  # type: ignore[no-any-return]
        with torch.autocast(tiles.device.type, self.reduced):
            return self.network(values)  # type: ignore[no-any-return]


def open_way(subject: Subject, way: Way, batch: int) -> Runner:
    """Returns a network in a way, ready for calls of `batch` tiles.

    AOTInductor's package is kept in the work folder, and is loaded from there by a later stage.

    Raises:
        Exception: of any kind, where a library, a compiler or memory is missing.
    """
    allow_tf32(way.dtype == "tf32")
    torch.backends.cudnn.benchmark = True
    runner = MAKERS[way.by](subject, way, batch)
    return captured(runner, subject.tiles(batch)) if way.graph else runner


def captured(runner: Runner, tiles: torch.Tensor) -> Runner:
    """Returns `runner` as one CUDA graph, for inputs of the shape of `tiles`; its result is overwritten by each call.

    Raises:
        RuntimeError: there is no GPU, or a call cannot be captured.
    """
    if not tiles.is_cuda:
        raise RuntimeError("expected a GPU for a CUDA graph, found a CPU")
    stream = new_stream(tiles.device)
    stream.wait_stream(torch.cuda.current_stream(tiles.device))
    with torch.cuda.stream(stream):
        for _ in range(CAPTURE_WARM_UPS):
            runner(tiles)
    torch.cuda.current_stream(tiles.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on working with their own streams.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        scores = runner(tiles)

    def run(values: torch.Tensor) -> torch.Tensor:
        tiles.copy_(values)
        graph.replay()
        return scores

    return run


def new_stream(device: torch.device | str) -> Any:
    """Returns a new stream of a GPU."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _eager(subject: Subject, way: Way, batch: int) -> Runner:
    return Typed(subject.network(way.fused), way)


def _compiled(subject: Subject, way: Way, batch: int) -> Runner:
    mode = "max-autotune-no-cudagraphs" if way.by == "autotuned" else None
    return torch.compile(Typed(subject.network(way.fused), way), mode=mode, dynamic=False)


def _aot(subject: Subject, way: Way, batch: int) -> Runner:
    """A package for every batch of the run, as the server has it."""
    path = package_path(subject, way)
    if not path.exists():
        package(Typed(subject.network(way.fused), way), subject.tiles(2), subject.settings, path)
    run: Runner = torch._inductor.aoti_load_package(str(path))
    return run


def package_path(subject: Subject, way: Way) -> Path:
    """Returns the path of AOTInductor's package of a network in a way."""
    return subject.settings.work / f"{subject.key}-{way.name.replace(' ', '-')}.pt2"


def package(network: nn.Module, tiles: torch.Tensor, settings: Settings, path: Path) -> None:
    """Writes AOTInductor's package of a network for any batch of the run; `tiles` are an example of two."""
    free = torch.export.Dim("batch", min=1, max=max(settings.batches))
    with torch.no_grad():
        program = torch.export.export(network, (tiles,), dynamic_shapes=({0: free},))
    partial = path.with_name(f"partial-{path.name}")
    torch._inductor.aoti_compile_and_package(program, package_path=str(partial))
    partial.replace(path)


def _tensorrt(subject: Subject, way: Way, batch: int) -> Runner:
    """A plan for one size of batch, through the parser and the builder of voxtile-build."""
    import tensorrt

    from voxtile_build.engines.shapes import batch_shapes
    from voxtile_build.engines.tensorrt.plan import build_plan
    from voxtile_build.engines.tensorrt.runner import PlanRunner
    from voxtile_build.graph.torch_to_onnx import export

    module = Typed(subject.network(way.fused), way)
    model = export(module, (subject.tiles(2),))
    shapes = batch_shapes(model, batch, batch, batch)
    plan = build_plan(tensorrt, model.SerializeToString(), shapes, way.dtype)
    opened = PlanRunner(tensorrt, plan.content)
    return lambda tiles: opened.on_device({"roi": tiles})


MAKERS: Mapping[str, Callable[[Subject, Way, int], Runner]] = {
    "eager": _eager, "compile": _compiled, "autotuned": _compiled, "aot": _aot, "tensorrt": _tensorrt,
}  # fmt: skip
