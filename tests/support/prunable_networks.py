"""Small networks of every class whose channels can be cut, with the options that change their layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from voxtile_build.networks import make_network

CLASSES = 3
RESIDUAL = "dynamic_network_architectures.building_blocks.residual"


def unet(axes: int = 3, **args: Any) -> tuple[str, dict[str, Any]]:
    sizes: dict[str, Any] = {"channels": [8, 12, 16], "strides": [2, 2]}
    return "UNet", {"spatial_dims": axes, "in_channels": 2, "out_channels": CLASSES, **sizes, **args}


def dynunet(axes: int = 3, **args: Any) -> tuple[str, dict[str, Any]]:
    sizes: dict[str, Any] = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}
    common = {"spatial_dims": axes, "in_channels": 2, "out_channels": CLASSES, "filters": [8, 12, 16]}
    return "DynUNet", {**common, **sizes, **args}


def nnunet(name: str, axes: int = 3, **args: Any) -> tuple[str, dict[str, Any]]:
    depth = "n_blocks_per_stage" if name == "ResidualEncoderUNet" else "n_conv_per_stage"
    sizes = {"n_stages": 3, "features_per_stage": [8, 12, 16], "kernel_sizes": [[3] * axes] * 3, "strides": [1, 2, 2]}
    blocks = {
        "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
        "nonlin": "torch.nn.LeakyReLU",
        "dropout_op": None,
    }
    options = {
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin_kwargs": {"inplace": True},
        "dropout_op_kwargs": None,
        "conv_bias": True,
    }
    return name, {**sizes, depth: [2, 2, 2], "n_conv_per_stage_decoder": [2, 1], **blocks, **options, **args}


def plain(axes: int = 3, **args: Any) -> tuple[str, dict[str, Any]]:
    return nnunet("PlainConvUNet", axes, **args)


def residual(axes: int = 3, **args: Any) -> tuple[str, dict[str, Any]]:
    return nnunet("ResidualEncoderUNet", axes, **args)


AFFINE = ["instance", {"affine": True}]
NORMALISED = {
    "unet": unet(),
    "unet-affine": unet(norm=AFFINE),
    "unet-batch": unet(norm="batch"),
    "unet-no-norm": unet(norm=None),
    "unet-1-residual": unet(num_res_units=1),
    "unet-3-residual": unet(num_res_units=3, norm=AFFINE),
    "unet-residual-stride-1": unet(num_res_units=2, strides=[1, 2], norm="batch"),
    "unet-residual-equal-widths": unet(num_res_units=2, strides=[2, 1], channels=[8, 8, 8], norm=AFFINE),
    "unet-two-layers": unet(channels=[8, 16], strides=[2], num_res_units=1),
    "unet-four-layers": unet(channels=[4, 8, 16, 16], strides=[2, 1, 2], num_res_units=1),
    "unet-options": unet(bias=False, dropout=0.3, act="relu", adn_ordering="NA"),
    "unet-act-first": unet(adn_ordering="AND", norm="batch"),
    "unet-slopes": unet(channels=[8, 8, 8], act=["prelu", {"num_parameters": 8}], norm=AFFINE),
    "unet-kernels": unet(kernel_size=[3, 1, 5], up_kernel_size=[3, 3, 1], num_res_units=1),
    "unet-2d": unet(2, num_res_units=2, norm="batch"),
    "unet-swish": unet(act="memswish", norm=AFFINE),
    "dynunet": dynunet(),
    "dynunet-residual": dynunet(res_block=True),
    "dynunet-residual-batch": dynunet(res_block=True, norm_name="batch", trans_bias=True),
    "dynunet-residual-equal-widths": dynunet(
        res_block=True, filters=[8, 8, 8], strides=[1, 1, 2], upsample_kernel_size=[1, 2]
    ),
    "dynunet-supervised": dynunet(deep_supervision=True, deep_supr_num=1, filters=[4, 8, 12, 16]),
    "dynunet-slopes": dynunet(filters=[8, 8, 8], act_name=["prelu", {"num_parameters": 8}], res_block=True),
    "dynunet-uneven": dynunet(
        kernel_size=[[3, 3, 1], 3, 3], strides=[1, [2, 2, 1], 2], upsample_kernel_size=[[2, 2, 1], 2]
    ),
    "dynunet-2d": dynunet(2, dropout=0.2),
    "plain": plain(),
    "plain-batch": plain(norm_op="torch.nn.BatchNorm3d", conv_bias=False),
    "plain-2d": plain(2, n_conv_per_stage=[1, 2, 3], nonlin_first=True),
    "plain-dropout": plain(dropout_op="torch.nn.Dropout3d", dropout_op_kwargs={"p": 0.2}),
    "plain-one-width": plain(features_per_stage=8, nonlin="torch.nn.PReLU", nonlin_kwargs={"num_parameters": 8}),
    "residual": residual(),
    "residual-batch": residual(norm_op="torch.nn.BatchNorm3d"),
    "residual-equal-widths": residual(features_per_stage=[8, 16, 16], n_blocks_per_stage=[1, 3, 2]),
    "residual-2d": residual(2, stem_channels=4),
    "residual-bottleneck": residual(block=f"{RESIDUAL}.BottleneckD", bottleneck_channels=[4, 4, 8], stem_channels=4),
}  # fmt: skip
"""Networks that treat every channel alone between convolutions: a dead channel is as good as none."""
GROUPED = {
    "unet-groups": unet(norm=["group", {"num_groups": 2}], channels=[8, 16, 32]),
    "unet-groups-residual": unet(
        norm=["group", {"num_groups": 4}], channels=[16, 32, 32], num_res_units=2, out_channels=4
    ),
    "dynunet-groups": dynunet(norm_name=["group", {"num_groups": 4}], filters=[8, 16, 32], res_block=True),
}
"""Networks in which a channel is normalised together with others."""


def classes_of(args: dict[str, Any]) -> int:
    return int(args.get("out_channels", CLASSES))


def trained(name: str, args: dict[str, Any], seed: int = 0) -> nn.Module:
    """The network with weights as training leaves them, in float64: none has its first value, statistics neither."""
    torch.manual_seed(seed)
    network = make_network(name, args, 2, classes_of(args)).double()
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.3 * torch.rand(tensor.shape, dtype=tensor.dtype)
    return network


def image(args: dict[str, Any], seed: int = 1) -> torch.Tensor:
    """An image that the network takes, float64."""
    axes = args.get("spatial_dims") or int(args["conv_op"][-2])
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 2, *(8, 4, 12)[:axes], generator=generator, dtype=torch.float64)
