"""ONNX to OpenVINO's own files, model.xml and model.bin; weights keep their type."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import openvino as ov

from voxtile_build.engines.openvino.runner import FILE
from voxtile_build.errors import EngineError


def convert(onnx_file: Path, folder: Path) -> tuple[Path, Path]:
    """Writes an ONNX file as `folder`/model.xml and `folder`/model.bin.

    Raises:
        EngineError: OpenVINO cannot read the graph.
    """
    return write(read(onnx_file), folder)


def read(onnx_file: Path) -> Any:
    """The ONNX file as OpenVINO's model, without paths of this machine.

    Raises:
        EngineError: OpenVINO cannot read the graph.
    """
    try:
        model = ov.convert_model(str(onnx_file))
    except Exception as error:  # OpenVINO raises RuntimeError and its own kinds, all with a text for the user
        raise EngineError(f"OpenVINO cannot read {onnx_file.name}: {error}") from error
    for parameter in model.get_parameters():
        # Without a layout, the backend in C++ warns at every load that the graph has no batch.
        parameter.set_layout(ov.Layout("N..."))
    _remove_paths(model)
    _name_by_place(model)
    return model


def write(model: Any, folder: Path) -> tuple[Path, Path]:
    """Writes `folder`/model.xml and `folder`/model.bin: the same bytes for the same model and OpenVINO."""
    _name_by_place(model)  # again, because passes and NNCF leave nodes without a name
    xml = folder / FILE
    ov.save_model(model, str(xml), compress_to_fp16=False)
    return xml, xml.with_suffix(".bin")


def _remove_paths(model: Any) -> None:
    """`conversion_parameters` names the folder of the ONNX file."""
    if model.has_rt_info("conversion_parameters"):
        model.set_rt_info("", "conversion_parameters")


def _name_by_place(model: Any) -> None:
    """OpenVINO numbers nodes without a name over the whole process; here they are numbered within the model."""
    for index, node in enumerate(model.get_ordered_ops()):
        if re.fullmatch(r"[A-Z][A-Za-z]*_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{index}")
