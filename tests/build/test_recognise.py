"""From weights alone, a network is found that gives what the network gave that they were saved from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks import nets
from torch import Tensor, nn

from voxtile_build.importers.recognise.candidates import candidates, inner_states
from voxtile_build.networks import NETWORKS, make_network

PATH = Path("any.pt")
GROUP = ("group", {"num_groups": 2})

SAVED: list[tuple[str, dict[str, Any]]] = [
    ("UNet", {"spatial_dims": 3, "channels": (4, 8, 16), "strides": (2, 2)}),
    ("UNet", {"spatial_dims": 3, "channels": (4, 6, 8, 10), "strides": (2, 1, 2), "num_res_units": 2}),
    ("UNet", {"spatial_dims": 3, "channels": (4, 4, 8), "strides": (1, 2), "num_res_units": 1, "norm": "batch"}),
    ("UNet", {"spatial_dims": 2, "channels": (4, 8), "strides": (2,), "kernel_size": 5, "act": "relu", "bias": False}),
    ("UNet", {"spatial_dims": 3, "channels": (4, 8), "strides": (2,), "norm": ("instance", {"affine": True})}),
    (
        "UNet",
        {"spatial_dims": 3, "channels": (4, 8), "strides": (2,), "kernel_size": (3, 3, 1), "up_kernel_size": (3, 3, 1)},
    ),
    ("AttentionUnet", {"spatial_dims": 3, "channels": (4, 8, 16), "strides": (2, 2)}),
    ("AttentionUnet", {"spatial_dims": 2, "channels": (4, 8), "strides": (2,), "kernel_size": 5, "up_kernel_size": 5}),
    ("BasicUNet", {"spatial_dims": 3, "features": (4, 4, 6, 8, 8, 6)}),
    ("BasicUNet", {"spatial_dims": 2, "features": (4, 5, 6, 8, 10, 6), "upsample": "nontrainable", "norm": "batch"}),
    ("BasicUNet", {"spatial_dims": 2, "features": (4, 4, 6, 8, 8, 6), "upsample": "pixelshuffle", "bias": False}),
    ("BasicUNetPlusPlus", {"spatial_dims": 3, "features": (4, 4, 6, 8, 8, 6)}),
    ("BasicUNetPlusPlus", {"spatial_dims": 2, "features": (4, 4, 6, 8, 8, 6), "upsample": "nontrainable"}),
    ("BasicUNetPlusPlus", {"spatial_dims": 2, "features": (4, 4, 6, 8, 8, 6), "upsample": "pixelshuffle"}),
    ("SegResNet", {"spatial_dims": 3, "init_filters": 8, "blocks_down": (1, 2, 1), "blocks_up": (1, 2)}),
    ("SegResNet", {"spatial_dims": 2, "init_filters": 16, "upsample_mode": "deconv", "norm": "batch"}),
    ("SegResNet", {"spatial_dims": 3, "init_filters": 8, "upsample_mode": "pixelshuffle", "norm": "instance"}),
    (
        "DynUNet",
        {
            "spatial_dims": 3,
            "kernel_size": [[3, 3, 1], 3, 3],
            "strides": [1, [2, 2, 1], 2],
            "upsample_kernel_size": [[2, 2, 1], 2],
            "filters": [4, 6, 8],
            "res_block": True,
            "deep_supervision": True,
            "trans_bias": True,
        },
    ),
    (
        "DynUNet",
        {
            "spatial_dims": 2,
            "kernel_size": [3, 3, 3, 3],
            "strides": [1, 2, 2, 2],
            "upsample_kernel_size": [2, 2, 2],
            "norm_name": "batch",
        },
    ),
    ("SwinUNETR", {"spatial_dims": 3, "feature_size": 12, "use_v2": True, "depths": (2, 1, 2, 1)}),
    ("SwinUNETR", {"spatial_dims": 3, "feature_size": 12, "window_size": (7, 5, 3), "num_heads": (2, 3, 6, 12)}),
    ("SwinUNETR", {"spatial_dims": 2, "feature_size": 12, "mlp_ratio": 2.0, "qkv_bias": False, "patch_norm": True}),
    ("UNETR", {"img_size": 32, "feature_size": 4, "hidden_size": 24, "mlp_dim": 48}),
    (
        "UNETR",
        {
            "img_size": (32, 32),
            "spatial_dims": 2,
            "feature_size": 4,
            "hidden_size": 24,
            "mlp_dim": 48,
            "proj_type": "perceptron",
            "qkv_bias": True,
            "res_block": False,
        },
    ),
]


def saved(name: str, arguments: dict[str, Any], seed: int = 0) -> nn.Module:
    """The network as training leaves it: no weight has its first value."""
    torch.manual_seed(seed)
    network: nn.Module = getattr(nets, name)(in_channels=2, out_channels=3, **arguments)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value += 0.1 * torch.rand(value.shape)
    return network.eval()


def image(guess: Any) -> Tensor:
    size = guess.roi_size or [max(32, 2 * one) for one in guess.divisors]
    return torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "arguments"), SAVED, ids=[f"{name}-{i}" for i, (name, _) in enumerate(SAVED)])
def test_the_first_candidate_gives_what_the_saved_network_gave(name: str, arguments: dict[str, Any]) -> None:
    network = saved(name, arguments)
    found, _ = candidates(network.state_dict(), PATH)
    assert found[0].network == name
    again = make_network(name, found[0].args, 2, 3)
    again.load_state_dict(network.state_dict(), strict=True)
    with torch.no_grad():
        expected, given = network(image(found[0])), again(image(found[0]))
    if name == "BasicUNetPlusPlus":
        expected, given = expected[-1], given[-1]
    assert torch.equal(expected, given)
    assert expected.std() > 0


def test_every_network_that_a_spec_can_name_is_recognised() -> None:
    """But nnU-Net's, whose weights come with the plan that describes them."""
    assert {name for name, _ in SAVED} == {one.name for one in NETWORKS if not one.blocks} - {"Identity"}


@pytest.mark.parametrize(
    ("name", "arguments", "key"),
    [
        ("UNet", {"spatial_dims": 3, "channels": (4, 8, 16), "strides": (2, 1)}, "strides"),
        ("UNet", {"spatial_dims": 3, "channels": (4, 8), "strides": (4,), "num_res_units": 2}, "strides"),
        ("UNet", {"spatial_dims": 3, "channels": (4, 8), "strides": (2,), "act": "leakyrelu"}, "act"),
        ("UNet", {"spatial_dims": 3, "channels": (4, 8), "strides": (2,), "norm": GROUP}, "norm"),
        ("UNet", {"spatial_dims": 3, "channels": (4, 8), "strides": (2,), "adn_ordering": "AND"}, "adn_ordering"),
        ("AttentionUnet", {"spatial_dims": 3, "channels": (4, 8, 16), "strides": (2, 4)}, "strides"),
        ("BasicUNetPlusPlus", {"spatial_dims": 2, "features": (4, 4, 6, 8, 8, 6), "act": "relu"}, "act"),
        ("BasicUNetPlusPlus", {"spatial_dims": 2, "features": (4, 4, 6, 8, 8, 6), "norm": GROUP}, "norm"),
        ("SegResNet", {"spatial_dims": 3, "num_groups": 4, "norm": ("group", {"num_groups": 4})}, "norm"),
        ("SegResNet", {"spatial_dims": 3, "act": "leakyrelu"}, "act"),
        (
            "DynUNet",
            {"spatial_dims": 3, "kernel_size": [3] * 3, "strides": [2, 2, 2], "upsample_kernel_size": [2, 2]},
            "strides",
        ),
        ("SwinUNETR", {"spatial_dims": 2, "feature_size": 12, "downsample": "mergingv2"}, "downsample"),
        ("SwinUNETR", {"spatial_dims": 2, "feature_size": 12, "normalize": False}, "normalize"),
        ("UNETR", {"img_size": (32, 64, 16), "feature_size": 4, "hidden_size": 24, "mlp_dim": 48}, "img_size"),
        ("UNETR", {"img_size": 32, "feature_size": 4, "hidden_size": 24, "mlp_dim": 48, "num_heads": 6}, "num_heads"),
    ],
)
def test_an_argument_that_weights_do_not_tell_is_said_to_be_open(
    name: str, arguments: dict[str, Any], key: str
) -> None:
    found, _ = candidates(saved(name, arguments).state_dict(), PATH)
    assert key in found[0].untold


def test_weights_of_no_known_network_are_not_taken_for_one() -> None:
    networks = {
        "HighResNet": nets.HighResNet(2, 1, 2),
        "VNet": nets.VNet(3, 1, 2),
        "linear": nn.Linear(2, 2),
        "empty": nn.ReLU(),
    }
    for name, network in networks.items():
        assert candidates(network.state_dict(), PATH) == ((), []), name


def test_a_network_with_a_layer_of_its_own_is_named_as_what_it_resembles() -> None:
    state = dict(saved("SegResNet", {"spatial_dims": 3}).state_dict())
    found, refused = candidates({**state, "extra.weight": torch.zeros(1)}, PATH)
    assert not found
    assert "SegResNet: any.pt: the weights do not fit the network. 1 unexpected: extra.weight" in refused[0]


def test_objects_around_the_network_are_taken_off_every_name() -> None:
    network = saved("UNet", {"spatial_dims": 3, "channels": (4, 8), "strides": (2,)})
    wrapped = {f"trainer.net.{key}": value for key, value in network.state_dict().items()}
    fits = [candidates(state, PATH)[0] for state in inner_states(wrapped)]
    assert [bool(one) for one in fits][:3] == [False, False, True]
    assert not any(fits[3:])
