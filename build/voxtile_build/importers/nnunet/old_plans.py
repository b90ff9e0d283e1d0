"""Converts plans of nnU-Net before 2.3, which describe the parts of a U-Net instead of a class and its arguments.

The conversion is that of `ConfigurationManager` in nnunetv2 2.8.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from voxtile_build.errors import SourceError
from voxtile_build.importers.nnunet.shapes import OldConfiguration, check_kinds

ARCHITECTURES = "dynamic_network_architectures.architectures"
NETWORKS = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}
"""The two networks that old plans can name, and the argument of each for the depth of its stages."""
OLD_KEYS = (
    "UNet_class_name", "UNet_base_num_features", "n_conv_per_stage_encoder", "n_conv_per_stage_decoder",
    "num_pool_per_axis", "pool_op_kernel_sizes", "conv_kernel_sizes", "unet_max_num_features",
)  # fmt: skip


def with_architecture(configuration: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A configuration with the key `architecture`, which is made from the old keys where it is missing.

    Args:
        configuration: of the plans.
        where: names it in errors.

    Raises:
        SourceError: an old key is missing, or names another network.
    """
    if "architecture" in configuration:
        return dict(configuration)
    missing = [key for key in OLD_KEYS if key not in configuration and key != "num_pool_per_axis"]
    if missing:
        raise SourceError(f"{where}: expected architecture, or the keys of older plans; {', '.join(missing)} missing")
    check_kinds(OldConfiguration, configuration, where)
    name = configuration["UNet_class_name"]
    if name not in NETWORKS:
        raise SourceError(f"{where}: UNet_class_name: expected {' or '.join(NETWORKS)}, found {name!r}")
    kept = {key: value for key, value in configuration.items() if key not in OLD_KEYS}
    return {**kept, "architecture": _architecture(name, configuration)}


def _architecture(name: str, old: Mapping[str, Any]) -> dict[str, Any]:
    axes = len(old["patch_size"])
    stages = len(old["n_conv_per_stage_encoder"])
    widths = [min(old["UNet_base_num_features"] * 2**stage, old["unet_max_num_features"]) for stage in range(stages)]
    return {
        "network_class_name": f"{ARCHITECTURES}.unet.{name}",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": widths,
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": old["conv_kernel_sizes"],
            "strides": old["pool_op_kernel_sizes"],
            NETWORKS[name]: old["n_conv_per_stage_encoder"],
            "n_conv_per_stage_decoder": old["n_conv_per_stage_decoder"],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
