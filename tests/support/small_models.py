"""Two small models for the tests of the client and the certificate: identity, and small-unet with random weights.

It imports torch and MONAI: import it inside a fixture or a test where torch-free tests share the module.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from monai.networks.nets import UNet
from safetensors.torch import save_file

from voxtile_build.build import build
from voxtile_build.spec.spec import load_spec

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
roi_size = [16, 24, 8]
overlap = 0.25
[serving]
engines = ["onnxruntime"]
max_batch_size = 4
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
roi_size = [32, 32, 32]
overlap = 0.5
background_at_most = 0.0
[serving]
engines = ["onnxruntime", "openvino"]
default_engine = "openvino"
max_batch_size = 4
"""


def small_unet() -> UNet:
    """The network behind the model small-unet: random weights, always the same ones."""
    torch.manual_seed(11)
    network = UNet(3, 1, 3, channels=(4, 8), strides=(2,), num_res_units=1)
    return network.eval()


def build_small_models(folder: Path) -> Path:
    """Build identity and small-unet, each also with int16 input, below `folder`; returns the model repository."""
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
