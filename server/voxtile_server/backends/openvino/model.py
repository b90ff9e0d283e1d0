"""Python-based `openvino` backend: runs `model.xml` and reads the parameters of the C++ backend.

Three differences, all for the better: the precision is float32 unless the config says otherwise (OpenVINO's
own default is bfloat16 on a CPU that has it), a batch smaller than `max_batch_size` is neither an error
nor padded, and an answer does not depend on the batch that a request came in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from voxtile_server.backends.batching import Contract
    from voxtile_server.backends.entry import Entry, Loaded
    from voxtile_server.backends.openvino.ov_variants import load
    from voxtile_server.backends.serving import PythonModel
else:  # in the stub the shared files lie in the backend's own folder
    from ov_variants import load
    from serving import PythonModel


class TritonPythonModel(PythonModel):
    """One instance of a model: one OpenVINO core with the variants that it has compiled."""

    def load(self, entry: Entry, contract: Contract) -> Loaded:
        return load(entry, contract)
