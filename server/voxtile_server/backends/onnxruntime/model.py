"""What Triton's stub loads for the backend `onnxruntime`."""

from __future__ import annotations

import triton_python_backend_utils as pb_utils

from ..contract import Contract
from ..entry import Entry, Loaded
from ..serving import PythonModel
from .session import load


class TritonPythonModel(PythonModel):
    """One instance of a model: one ONNX Runtime session."""

    def load(self, entry: Entry, contract: Contract) -> Loaded:
        """Make the session; warnings go to tritonserver's log."""
        return load(entry, pb_utils.Logger.log_warn)
