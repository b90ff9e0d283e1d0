"""Networks are made by name; wrong names and arguments are refused before any weight is read."""

from __future__ import annotations

import importlib.abc
import sys
from typing import Any

import pytest
import torch

from voxtile_build.errors import NetworkError
from voxtile_build.importers.nnunet.network import network_of
from voxtile_build.networks import NETWORKS, find_network, make_network

# As nnU-Net's plans have them: neither channels nor classes.
NNUNET: dict[str, Any] = {
    "n_stages": 2,
    "features_per_stage": [4, 8],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [2, 2, 2]],
    "n_conv_per_stage_decoder": [1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
# The smallest of each, and a ROI that its strides divide.
SMALL: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "SwinUNETR": ({"in_channels": 1, "out_channels": 2, "feature_size": 12, "spatial_dims": 2}, (64, 64)),
    "UNet": (
        {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]},
        (16, 16, 16),
    ),
    "AttentionUnet": (
        {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]},
        (16, 16, 16),
    ),
    "BasicUNet": (
        {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "features": [4, 4, 4, 4, 4, 4]},
        (32, 32, 32),
    ),
    "BasicUNetPlusPlus": (
        {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "features": [4, 4, 4, 4, 4, 4]},
        (32, 32, 32),
    ),
    "SegResNet": ({"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "init_filters": 8}, (16, 16, 16)),
    "DynUNet": (
        {
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 2,
            "kernel_size": [3, 3, 3],
            "strides": [1, 2, 2],
            "upsample_kernel_size": [2, 2],
            "filters": [4, 8, 8],
        },
        (16, 16, 16),
    ),
    "UNETR": (
        {
            "in_channels": 1,
            "out_channels": 2,
            "img_size": [32, 32],
            "spatial_dims": 2,
            "feature_size": 4,
            "hidden_size": 24,
            "mlp_dim": 32,
            "num_heads": 4,
        },
        (32, 32),
    ),
    "PlainConvUNet": ({**NNUNET, "n_conv_per_stage": 1}, (16, 16, 16)),
    "ResidualEncoderUNet": ({**NNUNET, "n_blocks_per_stage": 1}, (16, 16, 16)),
    "Identity": ({}, (5, 6, 7)),
}


@pytest.mark.parametrize("name", [network.name for network in NETWORKS])
def test_every_network_is_made_in_evaluation_mode_and_keeps_the_grid(name: str) -> None:
    arguments, roi = SMALL[name]
    classes = 1 if name == "Identity" else 2
    network = make_network(name, arguments, 1, classes)
    assert not network.training
    with torch.inference_mode():
        found = network(torch.zeros(1, 1, *roi))
    found = found[0] if isinstance(found, list) else found
    assert found.shape == (1, classes, *roi)


def test_an_unknown_network_is_refused_with_the_known_ones() -> None:
    with pytest.raises(NetworkError, match=r"network.name: expected one of SwinUNETR, .*Identity, found 'ResUNet'"):
        find_network("ResUNet")


@pytest.mark.parametrize(("name", "meant"), [("unet", "UNet"), ("SwinUnetr", "SwinUNETR"), ("segresnet", "SegResNet")])
def test_another_way_to_write_a_name_is_understood_as_a_slip(name: str, meant: str) -> None:
    with pytest.raises(NetworkError, match=f"found {name!r} .did you mean {meant!r}"):
        find_network(name)


def test_a_network_that_is_not_listed_is_given_as_a_file() -> None:
    with pytest.raises(NetworkError, match=r"found 'VNet'; any other network is given by network.file"):
        find_network("VNet")


def test_an_unknown_argument_is_refused_with_the_nearest() -> None:
    arguments = {**SMALL["UNet"][0], "num_res_unit": 2}
    with pytest.raises(NetworkError, match=r"network.args.num_res_unit: UNet has no such .*'num_res_units'"):
        make_network("UNet", arguments, 1, 2)


def test_identity_takes_no_argument_though_torch_would_ignore_it() -> None:
    with pytest.raises(NetworkError, match=r"network.args.channels: Identity has no such argument"):
        make_network("Identity", {"channels": 3}, 3, 3)


def test_a_missing_argument_is_named() -> None:
    arguments = {key: value for key, value in SMALL["UNet"][0].items() if key != "strides"}
    with pytest.raises(NetworkError, match=r"network.args: UNet needs strides"):
        make_network("UNet", arguments, 1, 2)


@pytest.mark.parametrize(("channels", "classes", "where"), [(2, 2, "input.channels"), (1, 5, "output.labels")])
def test_counts_that_contradict_the_spec_are_refused(channels: int, classes: int, where: str) -> None:
    with pytest.raises(NetworkError, match=where):
        make_network("UNet", SMALL["UNet"][0], channels, classes)


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        (
            "UNet",
            {"act": "RELUU"},
            r"network.args.act: expected one of CELU, .*, found 'RELUU' \(did you mean 'RELU6?'",
        ),
        ("UNet", {"act": ["LEAKY", {"negative_slope": 0.1}]}, r"network.args.act: .*found 'LEAKY'"),
        ("UNet", {"act": "zzz"}, r"network.args.act: expected one of .*found 'zzz'; UNet refuses it$"),
        ("UNet", {"norm": "instanse"}, r"network.args.norm: .*found 'instanse' \(did you mean 'INSTANCE'\?\)"),
        ("UNet", {"norm": ["instance", {"afine": True}]}, "network.args: UNet refuses them: .*'afine'"),
        ("UNet", {"adn_ordering": "XYZ"}, "network.args: UNet refuses them: "),
        ("UNet", {"strides": []}, "network.args: UNet refuses them: .*strides"),
        ("UNet", {"strides": ["2"]}, "network.args: UNet refuses them: "),
        ("UNet", {"channels": []}, "network.args: UNet refuses them: "),
        ("UNet", {"spatial_dims": 4}, "network.args: UNet refuses them: "),
        ("SegResNet", {"upsample_mode": "deconvolution"}, "network.args.upsample_mode: .*'nontrainable'|deconv"),
        ("SegResNet", {"init_filters": 7}, "network.args: SegResNet refuses them: .*groups|divisible"),
        ("DynUNet", {"act_name": "RELUU"}, "network.args.act_name: .*found 'RELUU'"),
        ("UNETR", {"num_heads": 0}, "network.args: UNETR refuses them: "),
        ("BasicUNet", {"features": [4, 4]}, "network.args: BasicUNet refuses them: "),
    ],
)
def test_what_a_constructor_refuses_is_one_line_of_ours(name: str, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(NetworkError, match=expected) as caught:
        make_network(name, {**SMALL[name][0], **changes}, 1, 2)
    assert "\n" not in str(caught.value)


def test_what_the_constructor_refuses_is_told() -> None:
    arguments = {**SMALL["UNet"][0], "strides": []}
    with pytest.raises(NetworkError, match=r"network.args: UNet refuses them: .*strides"):
        make_network("UNet", arguments, 1, 2)


@pytest.mark.parametrize("name", ["PlainConvUNet", "ResidualEncoderUNet"])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"conv_op": "os.system"}, r"network.args.conv_op: expected a class of torch.nn or .*, found 'os.system'"),
        ({"conv_op": "torch.nn"}, "network.args.conv_op: expected a class of torch.nn"),
        ({"norm_op": "torch.nnx.InstanceNorm3d"}, "network.args.norm_op: expected a class of torch.nn"),
        ({"nonlin": "torch.nn.functional.relu"}, "network.args.nonlin: expected a class of torch.nn"),
        ({"nonlin": ["torch.nn.ReLU"]}, "network.args.nonlin: expected a class of torch.nn"),
        ({"conv_op": None}, "network.args: .* refuses them"),
        ({"conv_op": "torch.nn.Linear"}, "network.args: .* refuses them"),
        ({"deep_supervision": True}, "network.args.deep_supervision: expected false, found True; leave it out"),
        ({"features_per_stage": [4, 8, 16]}, "network.args: .* refuses them: features_per_stage"),
        ({"input_channels": 3}, "network.args.input_channels of .* is 3, but input.channels has 1"),
        ({"num_classes": 3}, "network.args.num_classes of .* is 3, but output.labels has 2"),
        ({"n_stage": 3}, r"network.args.n_stage: .* has no such argument \(did you mean 'n_stages'\?\)"),
    ],
)
def test_what_nnunets_networks_refuse_is_one_line_of_ours(name: str, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(NetworkError, match=expected) as caught:
        make_network(name, {**SMALL[name][0], **changes}, 1, 2)
    assert "\n" not in str(caught.value)


def test_without_the_package_of_nnunets_networks_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [one for one in sys.modules if one.split(".")[0] == "dynamic_network_architectures"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [_Missing("dynamic_network_architectures"), *sys.meta_path])
    with pytest.raises(NetworkError, match=r"PlainConvUNet: .* not installed; pip install dynamic-network-archit"):
        make_network("PlainConvUNet", SMALL["PlainConvUNet"][0], 1, 2)
    assert make_network("UNet", SMALL["UNet"][0], 1, 2)


class _Missing(importlib.abc.MetaPathFinder):
    """Finds nothing of one package, as where it is not installed."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname.split(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=self.package)


def test_a_plans_network_is_the_same_by_name() -> None:
    """What a spec names is what the importer makes of the same plan."""
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": SMALL["PlainConvUNet"][0],
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    imported = network_of({"architecture": architecture}, 3, 5, "plans.json")
    named = make_network("PlainConvUNet", SMALL["PlainConvUNet"][0], 3, 5)
    named.load_state_dict(imported.state_dict(), strict=True)
    image = torch.randn(1, 3, 16, 16, 16)
    with torch.inference_mode():
        assert torch.equal(named(image), imported(image))
