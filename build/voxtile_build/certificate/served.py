"""An entry of a running server, called as an engine is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile_build.errors import VerificationError

Array = NDArray[Any]

TYPES = {"float32": "FP32", "float16": "FP16", "int16": "INT16", "uint8": "UINT8"}
# gRPC's own limit is 4 MB; messages of tiles are larger.
MOST_BYTES = 2**31 - 1
SECONDS = 600.0


class ServedRunner:
    """Runs the entry `model` of the Triton at `url` (HOST:PORT of its gRPC service)."""

    def __init__(self, url: str, model: str) -> None:
        # Here, because building needs no connection.
        from tritonclient import grpc
        from tritonclient.utils import InferenceServerException

        self._grpc, self._failure = grpc, InferenceServerException
        self.url, self.model = url, model
        options = [("grpc.max_receive_message_length", MOST_BYTES), ("grpc.max_send_message_length", MOST_BYTES)]
        self._client = grpc.InferenceServerClient(url, channel_args=options)
        self._check_offered()

    def __enter__(self) -> ServedRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def __call__(self, inputs: Mapping[str, Array]) -> Array:
        """`scores` [batch, score, *spatial] for named inputs, batch first.

        Raises VerificationError with the server's own words.
        """
        tensors = []
        for name, value in inputs.items():
            tensor = self._grpc.InferInput(name, list(value.shape), TYPES[value.dtype.name])
            tensor.set_data_from_numpy(np.ascontiguousarray(value))
            tensors.append(tensor)
        wanted = [self._grpc.InferRequestedOutput("scores")]
        try:
            answer = self._client.infer(self.model, tensors, outputs=wanted, client_timeout=SECONDS)
        except self._failure as error:
            raise VerificationError(f"{self.url}: {self.model} fails: {error.message()}") from error
        scores, batch = answer.as_numpy("scores"), len(next(iter(inputs.values())))
        if scores is None or len(scores) != batch:
            raise VerificationError(f"{self.url}: {self.model} gives no scores for a batch of {batch}")
        return np.asarray(scores)

    def _check_offered(self) -> None:
        try:
            ready = self._client.is_model_ready(self.model, client_timeout=SECONDS)
        except self._failure as error:
            raise _silent(self.url, error) from error
        if not ready:
            raise VerificationError(
                f"{self.url}: the server does not offer {self.model}; serve the repository that is verified"
            )


def require_server(url: str) -> None:
    """Raises VerificationError where no Triton answers at `url`, HOST:PORT of its gRPC service."""
    from tritonclient import grpc
    from tritonclient.utils import InferenceServerException

    with grpc.InferenceServerClient(url) as client:
        try:
            client.is_server_live(client_timeout=SECONDS)
        except InferenceServerException as error:
            raise _silent(url, error) from error


def _silent(url: str, error: Any) -> VerificationError:
    return VerificationError(f"{url}: no Triton answers there ({error.message()}); give HOST:PORT of its gRPC service")
