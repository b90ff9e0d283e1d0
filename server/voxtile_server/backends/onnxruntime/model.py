"""Python-based `onnxruntime` backend: runs `model.onnx` and reads the config fields of the C++ backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from voxtile_server.backends.batching import Contract
    from voxtile_server.backends.entry import Entry, Loaded
    from voxtile_server.backends.onnxruntime.ort_session import load
    from voxtile_server.backends.serving import PythonModel
else:  # in the stub the shared files lie in the backend's own folder
    from ort_session import load
    from serving import PythonModel


class TritonPythonModel(PythonModel):
    """One instance of a model: one ONNX Runtime session."""

    def load(self, entry: Entry, contract: Contract) -> Loaded:
        return load(entry, pb_utils.Logger.log_warn)
