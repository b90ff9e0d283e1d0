"""MONAI's networks as its own command writes them, scripted: their graph gives what the file gives, at every batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import BasicUNet, DiNTS, SegResNet, TopologyInstance
from torch import Tensor, nn

from tests.support.network_files import sha256, write_scripted
from voxtile_build.errors import ExportError
from voxtile_build.importers.files.open import open_network
from voxtile_build.importers.files.torchscript_file import TOLERANCE
from voxtile_build.importers.files.torchscript_operators import DataDependentError, record
from voxtile_build.networks.file_network import IMAGE, LOGITS
from voxtile_build.sessions import open_session

BLOCKS, DEPTHS = 2, 3


def segresnet() -> nn.Module:
    return SegResNet(3, 8, 1, 3, dropout_prob=0.2, blocks_down=(1, 1), blocks_up=(1,))


def basic_unet() -> nn.Module:
    return BasicUNet(3, 1, 3, features=(4, 4, 8, 8, 8, 4))


def dints() -> nn.Module:
    """DiNTS decides by its own constants which branches there are; these lack one."""
    codes = np.ones((BLOCKS, 3 * DEPTHS - 2), dtype=int), np.arange(BLOCKS * (3 * DEPTHS - 2)).reshape(BLOCKS, -1) % 5
    nodes = torch.ones(BLOCKS + 1, DEPTHS)
    nodes[0, -1] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        space = TopologyInstance(list(codes), channel_mul=0.25, num_blocks=BLOCKS, num_depths=DEPTHS, device="cpu")
        return DiNTS(space, 1, 3, use_downsample=True, node_a=nodes)


def loaded(file: Path) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load: Any = torch.jit.load  # it has no types
        network: nn.Module = load(file).eval()
        return network


@pytest.mark.parametrize("make", [segresnet, basic_unet, dints])
def test_a_scripted_network_of_monai_gives_what_its_file_gives(
    make: Callable[[], nn.Module], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    file = write_scripted(make().eval(), tmp_path / "net.ts")
    capfd.readouterr()
    graph = open_network(file, sha256(file), None, 4).to_onnx((1, 32, 16, 24), 20)
    assert capfd.readouterr() == ("", "")
    session, network = open_session(graph), loaded(file)
    for batch in (1, 2, 5):
        image = torch.randn(batch, 1, 32, 16, 24, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = network(image).numpy()
        found = session.run([LOGITS], {IMAGE: image.numpy()})[0]
        assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


class Decides(nn.Module):
    """Its values decide which way they go; the loop keeps the older exporter from writing it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = SegResNet(3, 8, 1, 2, blocks_down=(1, 1), blocks_up=(1,))

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.network(image)
        if bool(scores.max() > 100.0):
            return scores * 2
        return scores


def test_a_network_that_decides_by_the_image_is_no_graph(tmp_path: Path) -> None:
    torch.manual_seed(3)
    file = write_scripted(Decides().eval(), tmp_path / "net.ts")
    network = loaded(file)
    with pytest.raises(DataDependentError, match="depends on the image's values"):
        record(network, torch.zeros(2, 1, 16, 16, 16))
    with pytest.raises(ExportError, match=r"net\.ts: ") as caught:
        open_network(file, sha256(file), None, 4).to_onnx((1, 16, 16, 16), 20)
    assert len(str(caught.value).splitlines()) == 1


class Changes(nn.Module):
    """A buffer is changed in place by the image, and decides after that."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(1))

    def forward(self, image: Tensor) -> Tensor:
        level = self.level.clone()
        level.add_(image.mean())
        if bool(level > 0):
            return image * 2
        return image


def test_what_the_image_changed_is_of_the_image_too(tmp_path: Path) -> None:
    file = write_scripted(Changes().eval(), tmp_path / "net.ts")
    with pytest.raises(DataDependentError, match=r"is_nonzero|_local_scalar_dense"):
        record(loaded(file), torch.zeros(2, 1, 4, 4, 4))
