"""The engines that a spec may name, and the precisions of each: the only list of engines.

To add an engine, add a line here and a folder of its name in `engines/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias


class KnownEngine(NamedTuple):
    """An engine as a spec names it.

    Attributes:
        name: in specs, in names of entries, and of its folder in `engines/`.
        title: what its makers call it.
        precisions: what it can compute in, besides `auto`, which searches among them.
    """

    name: str
    title: str
    precisions: tuple[str, ...]


KNOWN_ENGINES = (
    KnownEngine("onnxruntime", "ONNX Runtime", ("fp32", "fp16", "int8", "int8-dynamic")),
    KnownEngine("openvino", "OpenVINO", ("fp32", "bf16", "int8")),
    KnownEngine("aotinductor", "AOTInductor", ("fp32", "bf16", "fp16")),
    KnownEngine("tensorrt", "TensorRT", ("fp32", "tf32", "bf16", "fp16", "int8")),
)
ENGINE_NAMES = tuple(engine.name for engine in KNOWN_ENGINES)
DEFAULT_ENGINES = ("onnxruntime", "openvino")
AUTO = "auto"

if TYPE_CHECKING:
    EngineName: TypeAlias = str
else:
    EngineName = Literal[ENGINE_NAMES]
