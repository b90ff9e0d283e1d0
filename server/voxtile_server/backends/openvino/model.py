"""What Triton's stub loads for the backend `openvino`."""

from __future__ import annotations

from ..contract import Contract
from ..entry import Entry, Loaded
from ..serving import PythonModel
from .variants import load


class TritonPythonModel(PythonModel):
    """One instance of a model: one OpenVINO core with the variants that it has compiled."""

    def load(self, entry: Entry, contract: Contract) -> Loaded:
        """Read the model, and compile what a batch of one needs."""
        return load(entry, contract)
