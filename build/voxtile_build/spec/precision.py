"""The table [precision]: the arithmetic of each engine, and the scans that reduced precision is calibrated on."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from voxtile_build.spec.table import AnyPath, Table, as_scans


class Precision(Table):
    """The precision that each engine is asked for."""

    openvino: Literal["fp32", "bf16", "int8", "auto"] = Field(
        default="fp32", description="arithmetic of the OpenVINO engine: fp32, bf16, int8 or auto"
    )
    onnxruntime: Literal["fp32", "fp16", "int8", "int8-dynamic", "auto"] = Field(
        default="fp32", description="arithmetic of the ONNX Runtime engine: fp32, fp16, int8, int8-dynamic or auto"
    )
    tensorrt: Literal["fp32", "bf16", "fp16", "int8", "auto"] = Field(
        default="fp32", description="arithmetic of the TensorRT engine: fp32, bf16, fp16, int8 or auto"
    )
    calibration: tuple[tuple[AnyPath, ...], ...] = Field(
        default=(),
        description="scans that reduced precision is calibrated and searched on, relative to the spec (a list of files "
        "a scan where there are several channels); left out: a generated phantom, and the certificate says so",
    )

    @field_validator("calibration", mode="before")
    @classmethod
    def _one_file_is_a_scan(cls, value: Any) -> Any:
        return as_scans(value)

    def of(self, engine: str) -> str:
        """The precision that `engine` is asked for."""
        return str(getattr(self, engine))
