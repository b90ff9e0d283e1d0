"""What the tests share: a model repository built by voxtile-build, and the real embedded Triton that serves it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from monai.networks.nets import UNet
from safetensors.torch import save_file

from voxtile_build.build import build
from voxtile_build.spec.spec import load_spec
from voxtile_server.embedded import EmbeddedServer

ROI = (32, 32, 32)

IDENTITY = """
name = "{name}"
[network]
name = "Identity"
[input]
channels = ["any"]
dtype = "{dtype}"
[output]
labels = ["value"]
[tiling]
roi = [16, 24, 8]
overlap = 0.25
[serving]
engines = ["onnxruntime"]
max_batch = 4
"""

UNET = """
name = "{name}"
title = "three labels of nothing in particular"
[network]
name = "UNet"
args = {{ spatial_dims = 3, in_channels = 1, out_channels = 3, channels = [4, 8], strides = [2], num_res_units = 1 }}
[weights]
file = "small-unet.safetensors"
sha256 = "{sha256}"
[input]
channels = ["T1"]
dtype = "{dtype}"
orientation = "RAS"
intensity = {{ rule = "zscore", mask = "nonzero" }}
[output]
labels = ["background", "one", "two"]
[tiling]
roi = [32, 32, 32]
overlap = 0.5
empty_at_most = 0.0
[serving]
engines = ["onnxruntime", "openvino"]
point = "openvino"
max_batch = 4
"""


def small_unet() -> UNet:
    """The network behind the model small-unet: random weights, always the same ones."""
    torch.manual_seed(11)
    network = UNet(3, 1, 3, channels=(4, 8), strides=(2,), num_res_units=1)
    return network.eval()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks of a few features lose more by waiting for each other's threads than they win."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with the models identity and small-unet, each also with int16 in."""
    folder = tmp_path_factory.mktemp("models")
    target = folder / "model_repository"
    target.mkdir()
    weights = folder / "small-unet.safetensors"
    save_file(small_unet().state_dict(), weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    texts = {
        "identity": IDENTITY.format(name="identity", dtype="fp32"),
        "identity-int16": IDENTITY.format(name="identity-int16", dtype="int16"),
        "small-unet": UNET.format(name="small-unet", dtype="fp32", sha256=digest),
        "small-unet-int16": UNET.format(name="small-unet-int16", dtype="int16", sha256=digest),
    }
    for name, text in texts.items():
        spec = folder / f"{name}.toml"
        spec.write_text(text)
        build(load_spec(spec), target)
    return target


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[EmbeddedServer]:
    """The embedded Triton on `repository`, for tests that do not stop it."""
    with EmbeddedServer(repository) as running:
        yield running
