"""The entry by which clients ask for a model. Triton's stub runs a copy of this file; it knows nothing of the rest.

It takes one string, passes it on through a socket of this machine, and returns the answer as it is.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

TIMEOUT_S = 5.0


class TritonPythonModel:
    """What the stub calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Learns where the socket is; `args` are Triton's words about this instance."""
        self.path = json.loads(args["model_config"])["parameters"]["socket"]["string_value"]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Triton's responses, one for each of its requests, in their order."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            asked = pb_utils.get_input_tensor_by_name(request, "model").as_numpy()
            answer = self._passed_on(bytes(asked.reshape(-1)[0]))
            return pb_utils.InferenceResponse([pb_utils.Tensor("answer", np.array([answer], np.object_))])
        except Exception as error:  # whatever it is, the caller must hear of it
            text = f"what loads the models does not answer ({error})"
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, pb_utils.TritonError.UNAVAILABLE))

    def _passed_on(self, name: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(TIMEOUT_S)
            line.connect(self.path)
            line.sendall(name)
            line.shutdown(socket.SHUT_WR)
            parts = []
            while part := line.recv(65536):
                parts.append(part)
        if not parts:
            raise ConnectionError("no answer")
        return b"".join(parts)
