"""Triton's Python interface around an engine; knows no engine."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .batching import Request, Run, Tensors, answer
from .contract import ConfigError, Contract, check_against_graph, parse_contract
from .entry import Entry, Loaded


class PythonModel:
    """What the stub calls: `initialize` once, then `execute` with every batch of requests.

    A backend is a subclass named `TritonPythonModel` that defines `load`.
    """

    contract: Contract
    run: Run

    def load(self, entry: Entry, contract: Contract) -> Loaded:
        """Load the engine; what config.pbtxt declares is checked against the graph afterwards.

        Raises:
            ConfigError: the config asks for what cannot be.
        """
        raise NotImplementedError

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model; `args` are Triton's words about this instance."""
        refuse_numpy_2()
        config = json.loads(args["model_config"])
        device = int(args["model_instance_device_id"])
        self.contract = parse_contract(config)
        loaded = self.load(Entry(config, Path(pb_utils.get_model_dir()), _on_gpu(args), device), self.contract)
        check_against_graph(self.contract, loaded.inputs, loaded.outputs)
        self.run = loaded.run

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Triton's responses, one for each of its requests, in their order."""
        answers = answer([_read(request) for request in requests], self.contract, self.run)
        return [self._respond(result) for result in answers]

    def _respond(self, result: Tensors | Exception) -> Any:
        if isinstance(result, Exception):
            text = f"model '{self.contract.model}': {type(result).__name__}: {result}"
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(text))
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in result.items()])


def _read(request: Any) -> Request:
    """The request; its arrays are views of shared memory, not copies."""
    tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
    return Request(tensors, tuple(request.requested_output_names()))


def refuse_numpy_2() -> None:
    if int(np.__version__.split(".")[0]) >= 2:
        raise ConfigError(
            f"NumPy {np.__version__} in the server's interpreter: with it, Triton's stub answers with empty tensors; "
            "it needs numpy<2"
        )


def _on_gpu(args: dict[str, str]) -> bool:
    """Whether the config insists on a GPU."""
    if args["model_instance_kind"] != "GPU":
        return False
    # Triton has already turned KIND_AUTO into GPU or CPU. KIND_AUTO may fall back to the CPU, KIND_GPU may not;
    # only the file still tells them apart.
    text = Path(args["model_repository"], "config.pbtxt").read_text(encoding="utf-8")
    return re.search(r"^[^#\n]*\bKIND_GPU\b", text, re.MULTILINE) is not None
