"""The graphs that the engines of one network are made of. Knows no engine.

`base` is the network's graph, optimised, with attention in the form that engines fuse; its opset is one that every
server reads. `fused` is `base` with fewer multiplications where it upsamples; see decision 15. Reduced precisions are
made of one of the two. fp32 is made of its file, in which instance norms keep float32's accuracy; other precisions
would round that away.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from pathlib import Path

from onnx import ModelProto

from voxtile_build.arrays import Array
from voxtile_build.evaluation.calibration import calibrate
from voxtile_build.evaluation.whole_scan import segment, torch_runner
from voxtile_build.graph.centred_norms import centre_norms
from voxtile_build.graph.composing import to_onnx
from voxtile_build.graph.optimise import optimise
from voxtile_build.graph.passes.compose_upsample import compose_upsample
from voxtile_build.graph.passes.group_windows import group_windows
from voxtile_build.graph.passes.split_qkv import split_qkv
from voxtile_build.graph.passes.verify import GraphPass, PassError, PassReport, Verified, report_of
from voxtile_build.graph.torch_to_onnx import checked, save
from voxtile_build.graph.wrapper import Wrapper
from voxtile_build.spec.spec import Spec

BASE, FP32, FUSED = "base", "fp32", "fused"
"""Names of the graphs. An engine in fp32 is made of `fp32` besides `base` or `fused`."""

BASE_PASSES: tuple[tuple[str, GraphPass], ...] = (
    ("optimise", optimise),
    ("split queries, keys and values", split_qkv),
    ("group windows", group_windows),
)
FUSED_PASSES: tuple[tuple[str, GraphPass], ...] = (("compose upsampling", compose_upsample),)


class Graphs:
    """The graphs of one network, and what reduced precision is calibrated on.

    Attributes:
        wrapper: the network in PyTorch, the reference of all graphs.
        spec: what the graphs were made for.
        calibration: scans and tiles that reduced precision is calibrated and searched on, and passes are verified on.
        base: the network's graph, optimised.
        files: the file of `base` in fp32, and its weights where they are stored beside it.
        reports: what each pass did, by the name of the graph.
        warnings: which passes were left out and why, by the name of the graph.

    Raises:
        ExportError: the network cannot be written as ONNX.
        ScanError: a calibration scan cannot be read.
    """

    def __init__(self, wrapper: Wrapper, spec: Spec, folder: Path) -> None:
        self.wrapper, self.spec, self._folder = wrapper, spec, folder
        self.reports: dict[str, list[PassReport]] = {}
        self.warnings: dict[str, list[str]] = {}
        self.calibration = calibrate(spec)
        self.base = self._passed(BASE, to_onnx(wrapper, spec), BASE_PASSES)
        fp32 = _centred(self.base)
        self.reports[FP32] = [report_of("centre norms", self.base, fp32)]
        self.files = save(fp32, folder / "model.onnx")

    @functools.cached_property
    def fused(self) -> ModelProto:
        """`base` with upsampling and the convolution after it in one."""
        return self._passed(FUSED, self.base, FUSED_PASSES)

    @functools.cached_property
    def fused_files(self) -> tuple[Path, ...]:
        """The file of `fused` in fp32, and its weights where they are stored beside it."""
        folder = self._folder / FUSED
        folder.mkdir()
        return save(_centred(self.fused), folder / "model.onnx")

    @functools.cached_property
    def expected(self) -> tuple[Array, ...]:
        """What fp32 PyTorch gives for each calibration scan: stitched scores [score, *spatial]."""
        run, batch = torch_runner(self.wrapper), self.spec.serving.max_batch_size
        return tuple(segment(scan, self.spec, run, batch) for scan in self.calibration.scans)

    def reports_of(self, graphs: Collection[str]) -> dict[str, list[PassReport]]:
        """What the passes did to the graphs of these names."""
        return {name: reports for name, reports in self.reports.items() if name in graphs}

    def warnings_of(self, graphs: Collection[str]) -> tuple[str, ...]:
        """Which passes were left out of the graphs of these names, and why."""
        return tuple(text for name, texts in self.warnings.items() if name in graphs for text in texts)

    def _passed(self, name: str, model: ModelProto, passes: Sequence[tuple[str, GraphPass]]) -> ModelProto:
        """`model` after every pass that keeps its scores; the other passes are left out, with a warning."""
        verified = Verified(model, [self.calibration.example])
        self.reports[name], self.warnings[name] = [], []
        for title, graph_pass in passes:
            try:
                self.reports[name].append(verified.apply(title, graph_pass))
            except PassError as error:
                self.warnings[name].append(str(error))
        return checked(verified.model)


def _centred(model: ModelProto) -> ModelProto:
    """Changes the last digits of the scores, so that the certificate judges it, and no comparison of two graphs."""
    return checked(centre_norms(model))
