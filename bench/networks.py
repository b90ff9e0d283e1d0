"""The networks that are measured, and their weights.

Where no trained weights are at hand, a network has random ones from a fixed seed, and its last layer is fitted by
least squares to known labels of one patch (random features, trained read-out): the masks are then compact regions with
borders, as a trained network's are, and not noise in which any rounding flips a voxel. Dice between two ways of
running such a network says how far they agree, and nothing about how good it is.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.nets import SwinUNETR, UNet
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from .density_network import fit_densities
from .scans import CT_LABELS, brain_crop, tissue_labels

Shape = tuple[int, int, int]

MODELS = Path(__file__).parent.parent / "models"
SEED = 20
LOGIT = 12.0
"""What the fitted layer aims at for the right label; trained networks are as sure."""
RIDGE = 1e-4
DEFAULT_WIDTHS = (32, 64, 128, 256, 320, 320)
"""nnU-Net's own: doubled from stage to stage, at most 320 in 3D."""
TISSUES = ("background", "grey matter", "white matter")


@dataclass(frozen=True)
class Network:
    """make(flash): the network without its weights; spec_name, args: how a voxtile-build spec says the same.

    trained: whether the weights were trained (then Dice says something about a mask) or fitted as told above.
    """

    key: str
    title: str
    roi: Shape
    overlap: float
    labels: tuple[str, ...]
    make: Callable[[bool], nn.Module]
    weights: Path
    spec_name: str
    args: Mapping[str, Any]
    trained: bool
    max_batch_size: int = 1

    def load(self, flash: bool = False) -> nn.Module:
        """The network in evaluation mode, fp32, with its weights."""
        network = self.make(flash)
        network.load_state_dict({key: value.clone() for key, value in load_file(self.weights).items()})
        return network.eval()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.weights.read_bytes()).hexdigest()


def trained_unet() -> Network:
    """MONAI's UNet of the demo, trained on the MNI152 template."""
    args = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [8, 16, 32, 64], "strides": [2, 2, 2]}
    args |= {"num_res_units": 1, "norm": "instance"}
    weights = MODELS / "brain-unet.safetensors"
    title = "MONAI UNet 8-16-32-64, trained"
    return Network(
        "unet", title, (64,) * 3, 0.5, TISSUES, lambda _: UNet(**args), weights, "UNet", args, True, max_batch_size=4
    )


def trained_swinunetr() -> Network:
    """The demo's SwinUNETR of feature size 12, trained on the MNI152 template."""
    weights = MODELS / "brain-swinunetr.safetensors"
    return _swin("swinunetr-trained", "SwinUNETR 12, trained", 12, (64,) * 3, 0.5, weights, trained=True)


def swinunetr(data: Path, feature_size: int = 24) -> Network:
    """SwinUNETR at 96³ with fitted weights: feature size 24, or 48 on a GPU."""
    weights = data / f"swinunetr-{feature_size}.safetensors"
    title = f"SwinUNETR {feature_size}, weights not trained"
    network = _swin("swinunetr", title, feature_size, (96,) * 3, 0.25, weights, trained=False)
    return _with_weights(network, brain_patch(data, network.roi))


def small_unet(data: Path) -> Network:
    """A network of no weight, for the test of the machinery itself."""
    args = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2]}
    network = Network(
        "unet", "tiny UNet", (32,) * 3, 0.25, TISSUES, lambda _: UNet(**args), data / "tiny-unet.safetensors", "UNet",
        args, False, max_batch_size=4,
    )  # fmt: skip
    return _with_weights(network)


def plain_conv_unet(widths: tuple[int, ...], classes: int) -> nn.Module:
    """nnU-Net's PlainConvUNet as its planner makes it: two convolutions a stage, instance norm, leaky ReLU."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    network: nn.Module = PlainConvUNet(
        1, num_classes=classes, conv_op=nn.Conv3d, norm_op=nn.InstanceNorm3d, nonlin=nn.LeakyReLU,
        **architecture(widths, {}),
    )  # fmt: skip
    return network.eval()


def architecture(widths: tuple[int, ...], extra: Mapping[str, Any]) -> dict[str, Any]:
    """PlainConvUNet's arguments as a plan's `arch_kwargs` says them; `extra` adds the classes by name."""
    stages = len(widths)
    return {
        "n_stages": stages,
        "features_per_stage": list(widths),
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin_kwargs": {"inplace": True},
        **extra,
    }


def brain_patch(data: Path, roi: Shape) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The middle of the brain, normalised, and its tissues; both [x, y, z]."""
    import nibabel as nib

    return normalised(np.asanyarray(nib.load(brain_crop(data, roi)).dataobj)), tissue_labels(data, roi)


def normalised(values: NDArray[Any]) -> NDArray[np.float32]:
    whole = values.astype(np.float32)
    result: NDArray[np.float32] = (whole - whole.mean()) / whole.std()
    return result


def fit_head(network: nn.Module, values: NDArray[np.float32], labels: NDArray[np.uint8], classes: int) -> None:
    """Sets the last 1³ convolution to `classes` scores by ridge regression from its inputs to the labels.

    Every class counts alike, however few voxels it has: else a small organ would never win.
    """
    head = _head(network, classes)
    features: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    with torch.inference_mode():
        network(torch.from_numpy(np.ascontiguousarray(values))[None, None])
    hook.remove()
    x = features[-1][0].flatten(1).double()
    x = torch.cat([x, torch.ones(1, x.shape[1], dtype=torch.float64)])
    truth = torch.from_numpy(labels).flatten().long()
    wanted = LOGIT * nn.functional.one_hot(truth, classes).T.double()
    weighted = x / torch.bincount(truth, minlength=classes)[truth]
    gram = weighted @ x.T
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    solution = torch.linalg.solve(gram + ridge, weighted @ wanted.T).T
    with torch.no_grad():
        head.weight.copy_(solution[:, :-1].reshape(head.weight.shape).float())
        if head.bias is not None:
            head.bias.copy_(solution[:, -1].float())


def _head(network: nn.Module, classes: int) -> nn.Conv3d:
    heads = [part for part in network.modules() if isinstance(part, nn.Conv3d) and part.out_channels == classes]
    if not heads:
        raise ValueError(f"expected a convolution to {classes} scores in {type(network).__name__}, found none")
    return heads[-1]


def _swin(
    key: str, title: str, feature_size: int, roi: Shape, overlap: float, weights: Path, *, trained: bool
) -> Network:
    args = {"in_channels": 1, "out_channels": 3, "feature_size": feature_size, "spatial_dims": 3}

    def make(flash: bool) -> nn.Module:
        network: nn.Module = SwinUNETR(**args, use_flash_attention=flash)
        return network

    return Network(key, title, roi, overlap, TISSUES, make, weights, "SwinUNETR", args, trained)


def _with_weights(network: Network, patch: tuple[NDArray[np.float32], NDArray[np.uint8]] | None = None) -> Network:
    """Makes the weights where they are not there yet, the last layer fitted to `patch` if there is one."""
    if not network.weights.exists():
        made = seeded(lambda: network.make(False)).eval()
        if patch is not None:
            fit_head(made, *patch, len(network.labels))
        partial = network.weights.with_suffix(".partial")
        save_file({key: value.contiguous() for key, value in made.state_dict().items()}, partial)
        partial.replace(network.weights)
    return network


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """What `make` gives from the fixed seed, without a trace in the global one."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(SEED)
        return make()


def stand_in(data: Path, kind: str, widths: tuple[int, ...]) -> Path:
    """Where `bench.train` leaves the weights of PlainConvUNet, trained on the scan `kind`: "brain" or "chest"."""
    return data / f"plain-conv-unet-{kind}-{widths[0]}.safetensors"


def trained_steps(data: Path, kind: str, widths: tuple[int, ...]) -> int | None:
    """Steps that the stand-in was trained for; None where there is none."""
    told = stand_in(data, kind, widths).with_suffix(".json")
    return int(json.loads(told.read_text(encoding="utf-8"))["steps"]) if told.exists() else None


def nnunet_network(data: Path, kind: str, widths: tuple[int, ...], roi: Shape) -> nn.Module:
    """PlainConvUNet of "brain" or "chest", trained where that was done; nnU-Net's axes are (z, y, x)."""
    classes = CT_LABELS if kind == "chest" else len(TISSUES)
    if trained_steps(data, kind, widths) is not None:
        trained = plain_conv_unet(widths, classes)
        trained.load_state_dict(load_file(stand_in(data, kind, widths)))
        return trained
    network = seeded(lambda: plain_conv_unet(widths, classes))
    if kind == "chest":
        fit_densities(network, roi)
    else:
        values, labels = brain_patch(data, roi)
        fit_head(network, values.transpose(2, 1, 0), labels.transpose(2, 1, 0).copy(), classes)
    return network
