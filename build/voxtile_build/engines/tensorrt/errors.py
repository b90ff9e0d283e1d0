"""What can go wrong between an ONNX file and a TensorRT plan.

TensorRtError (an EngineError)
├── OnnxParseError        the parser refuses the file, or one operator in it
├── EngineBuildError      the builder gives no plan, or the plan cannot be loaded
└── EnginePrecisionError  the network is not computed in the precision that was promised
"""

from voxtile_build.errors import EngineError


class TensorRtError(EngineError):
    """Base of the errors below. `layer` is the name of the ONNX node that is to blame, if one is."""

    def __init__(self, message: str, layer: str | None = None) -> None:
        super().__init__(message)
        self.layer = layer


class OnnxParseError(TensorRtError):
    """TensorRT's parser does not understand the ONNX file, or one node of it."""


class EngineBuildError(TensorRtError):
    """The builder returned no plan, or the plan cannot be loaded."""


class EnginePrecisionError(TensorRtError):
    """A layer is computed in another precision than the one promised."""
