"""ONNX to OpenVINO's own files, model.xml and model.bin, weights kept as they are; and how to run them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from voxtile_build.errors import EngineError

Array = NDArray[Any]


def convert(onnx_file: Path, folder: Path) -> tuple[Path, Path]:
    """Write `folder`/model.xml and `folder`/model.bin, the same bytes for the same ONNX file and OpenVINO.

    Raises EngineError where OpenVINO cannot read the graph.
    """
    return write(read(onnx_file), folder)


def read(onnx_file: Path) -> Any:
    """The ONNX file as OpenVINO's model, free of paths of this machine.

    Raises EngineError where OpenVINO cannot read the graph.
    """
    try:
        model = ov.convert_model(str(onnx_file))
    except Exception as error:  # OpenVINO raises RuntimeError and its own kinds, all with a text for the user
        raise EngineError(f"OpenVINO cannot read {onnx_file.name}: {error}") from error
    for parameter in model.get_parameters():
        # Without it the C++ backend warns at every load that the graph has no batch.
        parameter.set_layout(ov.Layout("N..."))
    _forget_paths(model)
    _name_by_place(model)
    return model


def write(model: Any, folder: Path) -> tuple[Path, Path]:
    """Write `folder`/model.xml and `folder`/model.bin, weights kept as they are."""
    _name_by_place(model)  # once more: passes and NNCF leave nodes without a name
    xml = folder / "model.xml"
    ov.save_model(model, str(xml), compress_to_fp16=False)
    return xml, xml.with_suffix(".bin")


def _forget_paths(model: Any) -> None:
    """`conversion_parameters` names the folder that was converted from."""
    if model.has_rt_info("conversion_parameters"):
        model.set_rt_info("", "conversion_parameters")


def _name_by_place(model: Any) -> None:
    """OpenVINO numbers nodes without a name over the whole process; here they are numbered within the model."""
    for index, node in enumerate(model.get_ordered_ops()):
        if re.fullmatch(r"[A-Z][A-Za-z]*_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{index}")


class OpenVinoRunner:
    """Runs model.xml in fp32 unless told otherwise, compiled once for each batch size, or once for all shapes where
    height and width are free.

    A batch of one is what the embedded server runs of each sample; larger ones are run whole, as in the container.

    precision: OpenVINO's INFERENCE_PRECISION_HINT, f32 or bf16.
    """

    def __init__(self, xml: Path, threads: int, precision: str = "f32") -> None:
        self._core = ov.Core()
        self._model = self._core.read_model(str(xml))
        # OpenVINO's own choice is bfloat16 on a CPU that has it.
        self._properties: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            self._properties["INFERENCE_NUM_THREADS"] = threads
        # As the server does: where slices of any size come, one graph for all shapes.
        self._any_size = any(size.is_dynamic for size in list(self._model.input("roi").partial_shape)[1:])
        self._compiled: dict[int, Any] = {}

    def __call__(self, inputs: Mapping[str, Array]) -> Array:
        """`scores` [batch, score, *spatial] for named inputs, batch first."""
        batch = len(inputs["roi"])
        try:
            results = self.compiled(inputs)(dict(inputs))
        except RuntimeError as error:
            raise EngineError(f"OpenVINO fails at a batch of {batch}: {error}") from error
        return np.array(results["scores"])

    def compiled(self, inputs: Mapping[str, Array]) -> Any:
        """OpenVINO's compiled model for the shapes of `inputs`."""
        batch = 0 if self._any_size else len(inputs["roi"])
        if batch not in self._compiled:
            self._compiled[batch] = self._compile(inputs)
        return self._compiled[batch]

    def _compile(self, inputs: Mapping[str, Array]) -> Any:
        model = self._model.clone()
        if not self._any_size:
            model.reshape({name: list(value.shape) for name, value in inputs.items()})
        try:
            return self._core.compile_model(model, "CPU", self._properties)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot compile the graph: {error}") from error
