"""What can go wrong between an ONNX file and a TensorRT plan.

TensorRtError (an EngineError)
├── OnnxParseError        the parser refuses the file, or one operator in it
├── ProfileError          the optimisation profile does not fit the inputs
├── EngineBuildError      the builder gives no engine, or ignores an option
├── EnginePrecisionError  the network is not computed in the precision that was promised
└── PlanMismatchError     a plan does not fit the file, the TensorRT or the GPU that it would be served with
"""

from voxtile_build.errors import EngineError


class TensorRtError(EngineError):
    """Base of everything below. `layer` is the ONNX node's name, where one is to blame."""

    def __init__(self, message: str, layer: str | None = None) -> None:
        super().__init__(message)
        self.layer = layer


class OnnxParseError(TensorRtError):
    """The ONNX file, or one node of it, is not understood by TensorRT's parser."""


class ProfileError(TensorRtError):
    """An optimisation profile misses an input, has the wrong rank, or contradicts a fixed size."""


class EngineBuildError(TensorRtError):
    """The builder returned no engine, or does not honour an option that was asked for."""


class EnginePrecisionError(TensorRtError):
    """A layer is computed in another precision than the one promised."""


class PlanMismatchError(TensorRtError):
    """A plan is not valid for the ONNX file, the TensorRT version or the GPU at hand."""
