"""What Triton's stub loads for the backend `pytorch`."""

from __future__ import annotations

from ..contract import Contract
from ..entry import Entry, Loaded
from ..serving import PythonModel
from .package import load


class TritonPythonModel(PythonModel):
    """One instance of a model: one loaded package."""

    def load(self, entry: Entry, contract: Contract) -> Loaded:
        """Load the package, which runs code of its own."""
        return load(entry)
