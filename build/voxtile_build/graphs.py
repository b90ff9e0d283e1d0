"""The graphs that one network's engines are made of, each made when the first engine asks for it.

`onnx_file` is what fp32 engines take: opset 20, which every server reads, with norms that keep float32's accuracy.
`lean` has the norms as they were, for engines that round far more than those save, and is folded and cleaned;
`fused` is the like of it with the operator `Attention`, where the network has attention.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from .attention import OPSET, TOLERANCE, attention_error, fused_attention
from .calibration import Calibration, calibrate
from .composing import to_onnx
from .passes import PassError, PassReport, apply_pass, clean, fold_constants
from .passes.verify import changed_operators
from .spec import Spec
from .torch_to_onnx import checked
from .whole_scan import segment, torch_runner
from .wrapper import Wrapper, input_names

Array = NDArray[Any]

PASSES = (("fold constants", fold_constants), ("clean", clean))


class Graphs:
    """The graphs of one network under one spec, and what its precision is calibrated on.

    reports: what each graph pass did, by the graph's name; notes: what was left out, and why.
    """

    def __init__(self, onnx_file: Path, traced: ModelProto, wrapper: Wrapper, spec: Spec) -> None:
        self.onnx_file, self.traced, self.wrapper, self.spec = onnx_file, traced, wrapper, spec
        self.reports: dict[str, list[PassReport]] = {"fp32": [_report("centre norms", traced, onnx_file)]}
        self.notes: list[str] = []
        # Largest relative |Δ| of fused against plain attention, once it was tried.
        self.attention_error: float | None = None

    @functools.cached_property
    def calibration(self) -> Calibration:
        """Scans and tiles that reduced precision is calibrated and searched on."""
        return calibrate(self.spec)

    @functools.cached_property
    def lean(self) -> ModelProto:
        """Opset 20, folded and cleaned, each pass verified by running the graph before and after."""
        return self._passed("lean", self.traced)

    @functools.cached_property
    def fused(self) -> ModelProto:
        """Opset 23 with the operator Attention; `lean` where the network has none, or it computes something else."""
        model = self._with_attention()
        return self.lean if model is None else self._passed("fused attention", model)

    @functools.cached_property
    def expected(self) -> tuple[Array, ...]:
        """What fp32 PyTorch says of each calibration scan: stitched scores [score, *spatial]."""
        run, batch = torch_runner(self.wrapper), self.spec.serving.max_batch
        return tuple(segment(scan, self.spec, run, batch) for scan in self.calibration.scans)

    def graph_reports(self, precision: str) -> dict[str, list[PassReport]]:
        """The reports of the graphs that an engine of this precision may have been made of."""
        return {name: made for name, made in self.reports.items() if (name == "fp32") == (precision == "fp32")}

    def _with_attention(self) -> ModelProto | None:
        given = [self.calibration.example[name] for name in input_names(self.spec)]
        inputs = tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in given)
        with fused_attention(self.wrapper) as blocks:
            pass
        if not blocks:
            return None
        self.attention_error = attention_error(self.wrapper, inputs)
        if not self.attention_error <= TOLERANCE:
            self.notes.append(
                f"fused attention is left out: it changes the fp32 scores by {self.attention_error:.2g} of the "
                f"largest, at most {TOLERANCE:g} is allowed"
            )
            return None
        with fused_attention(self.wrapper):
            return to_onnx(self.wrapper, self.spec, opset=OPSET)

    def _passed(self, name: str, model: ModelProto) -> ModelProto:
        """`model` after every pass that leaves its scores as they are; the others are left out and noted."""
        reports = self.reports.setdefault(name, [])
        for what, graph_pass in PASSES:
            try:
                model, report = apply_pass(what, graph_pass, model, [self.calibration.example])
            except PassError as error:
                self.notes.append(f"{name}: {error}")
                continue
            reports.append(report)
        return checked(model)


def _report(name: str, before: ModelProto, after_file: Path) -> PassReport:
    """Of a pass that the certificate judges: it is there to change the last digits."""
    after = onnx.load(after_file, load_external_data=False)
    counts = len(before.graph.node), len(after.graph.node)
    return PassReport(name, *counts, changed_operators(before, after), None)
