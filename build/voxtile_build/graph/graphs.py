"""The graphs that one network's engines are made of.

`base` is the network's own, folded, cleaned, its attention in the form that engines fuse; opset 20, which every server
reads. `onnx_file` is what fp32 engines take: `base` with norms that keep float32's accuracy, which the other precisions
round away. OpenVINO has both with upsampling composed: `fused`, `fused_file`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto

from voxtile_build.evaluation.calibration import Calibration, calibrate
from voxtile_build.evaluation.whole_scan import segment, torch_runner
from voxtile_build.graph.centred_norms import centre_norms
from voxtile_build.graph.composing import to_onnx
from voxtile_build.graph.passes import (
    PassError,
    PassReport,
    Verified,
    clean,
    compose_upsample,
    fold_constants,
    group_windows,
    split_qkv,
)
from voxtile_build.graph.passes.verify import GraphPass, changed_operators
from voxtile_build.graph.torch_to_onnx import checked, save
from voxtile_build.graph.wrapper import Wrapper
from voxtile_build.spec.spec import Spec

Array = NDArray[Any]

PASSES = (
    ("fold constants", fold_constants),
    ("clean", clean),
    ("split queries, keys and values", split_qkv),
    ("group windows", group_windows),
)
# The one engine that takes the composed graph.
COMPOSED = "openvino"


class Graphs:
    """The graphs of one network under one spec, and what its precision is calibrated on.

    files: the fp32 graph's, weights beside it where they are large; reports: what each graph pass did, by the graph's
    name; notes: what was left out, and why.
    Raises ExportError where the network cannot be written as ONNX, ScanError where a calibration scan cannot be read.
    """

    def __init__(self, wrapper: Wrapper, spec: Spec, folder: Path) -> None:
        self.wrapper, self.spec = wrapper, spec
        self.reports: dict[str, list[PassReport]] = {}
        self.notes: list[str] = []
        self._folder = folder
        self._verified = Verified(to_onnx(wrapper, spec), [self.calibration.example])
        self.base = self._passed("base", PASSES)
        fp32 = checked(centre_norms(self.base))
        self.reports["fp32"] = [_report("centre norms", self.base, fp32)]
        self.files = save(fp32, folder / "model.onnx")

    @property
    def onnx_file(self) -> Path:
        """The fp32 graph."""
        return self.files[0]

    @functools.cached_property
    def fused(self) -> ModelProto:
        """`base` with fewer products where it upsamples; see decision 15."""
        return self._passed(COMPOSED, (("compose upsampling", compose_upsample),))

    @functools.cached_property
    def fused_file(self) -> Path:
        """The fp32 graph with fewer products where it upsamples."""
        folder = self._folder / COMPOSED
        folder.mkdir(exist_ok=True)
        return save(checked(centre_norms(self.fused)), folder / "model.onnx")[0]

    @functools.cached_property
    def calibration(self) -> Calibration:
        """Scans and tiles that reduced precision is calibrated and searched on, and passes are verified on."""
        return calibrate(self.spec)

    @functools.cached_property
    def expected(self) -> tuple[Array, ...]:
        """What fp32 PyTorch says of each calibration scan: stitched scores [score, *spatial]."""
        run, batch = torch_runner(self.wrapper), self.spec.serving.max_batch_size
        return tuple(segment(scan, self.spec, run, batch) for scan in self.calibration.scans)

    def under(self, spec: Spec) -> Graphs:
        """The same graphs for a spec that differs in what comes after them; what was made is not made again."""
        other = copy.copy(self)
        other.spec = spec
        return other

    def graph_reports(self, engine: str, precision: str) -> dict[str, list[PassReport]]:
        """The reports of the graphs that an engine in this precision is made of."""
        foreign = {name for name, only in (("fp32", precision), (COMPOSED, engine)) if name != only}
        return {name: made for name, made in self.reports.items() if name not in foreign}

    def _passed(self, graph: str, passes: Sequence[tuple[str, GraphPass]]) -> ModelProto:
        """The graph so far after every pass that leaves its scores as they are; the others are left out and noted."""
        reports = self.reports.setdefault(graph, [])
        for name, graph_pass in passes:
            try:
                reports.append(self._verified.apply(name, graph_pass))
            except PassError as error:
                self.notes.append(str(error))
        return checked(self._verified.model)


def _report(name: str, before: ModelProto, after: ModelProto) -> PassReport:
    """Of a pass that the certificate judges: it is there to change the last digits."""
    counts = len(before.graph.node), len(after.graph.node)
    return PassReport(name, *counts, changed_operators(before, after), None)
