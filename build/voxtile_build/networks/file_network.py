"""A network that comes as one file: ONNX, TorchScript or a program of torch.export. Knows no kind of file.

Such a network runs as it is, which makes it the reference that engines are measured against. It also gives its graph as
ONNX, which is then put between the two halves of the wrapper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto
from torch import Tensor, nn

from voxtile_build.networks.float64 import in_float64
from voxtile_build.networks.heads import choose

IMAGE, LOGITS = "image", "logits"
"""Input and output of the graph that a file gives."""


@dataclass(frozen=True)
class Source:
    """What every kind of file gives.

    Attributes:
        run: image [batch, channel, *spatial] float32 -> the file's outputs.
        to_onnx: (shape of the image without the batch, opset, head) -> graph from `image` to `logits`.
        batch: the only batch size that the network takes; None where any will do.
    """

    run: Callable[[Tensor], Any]
    to_onnx: Callable[[Sequence[int], int, int | None], ModelProto]
    batch: int | None


class FileNetwork(nn.Module):
    """`image` [batch, channel, *spatial] float32 -> `logits` [batch, label, *spatial], by the file's own graph."""

    def __init__(self, path: Path, source: Source, head: int | None) -> None:
        super().__init__()
        # In a tuple, so that it is no submodule: programs of torch.export refuse train() and eval().
        self._source = (source,)
        self.path, self.head = path, head

    @property
    def program(self) -> nn.Module | None:
        """The file's own module, whose weights can be moved and compiled; None where it is no module."""
        run = self._source[0].run
        return run if isinstance(run, nn.Module) else None

    def forward(self, image: Tensor) -> Tensor:
        return choose(self._source[0].run(image), self.head)

    def in_float64(self, image: Tensor) -> Tensor | None:
        """`forward` in float64; None where the file cannot be run so, as with ONNX."""
        outputs = in_float64(self._source[0].run, image)
        return None if outputs is None else choose(outputs, self.head)

    def to_onnx(self, shape: Sequence[int], opset: int) -> ModelProto:
        """The file's graph from `image` [batch, *shape] to `logits`, with its weights unchanged.

        Raises:
            ExportError: the graph cannot be had in this opset.
        """
        return self._source[0].to_onnx(shape, opset, self.head)
