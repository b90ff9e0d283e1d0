"""What pruning cuts away is what a network can do without, and what is left is the same network with less in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from tests.support.prunable_networks import GROUPED, NORMALISED, classes_of, image, trained
from voxtile_build.errors import SlimmingError
from voxtile_build.networks import make_network
from voxtile_build.slimming.pruning.channels import channels_of, keeps_apart
from voxtile_build.slimming.pruning.choice import kept_channels
from voxtile_build.slimming.pruning.cut import Cut, can_prune, cut_between
from voxtile_build.slimming.pruning.prune import prune
from voxtile_build.slimming.widths import narrower

ROUNDING = 1e-9
"""Of the largest score, in float64: sums of fewer terms."""
FAINT = 0.1
"""What reads a dead channel is small, so that the norm decides as wanted, and not 0, so that it must be cut rightly."""


def halves(cut: Cut, seed: int = 5) -> dict[int, Tensor]:
    """Channels of each group that are to stay, by chance; as many in each part of a group norm."""
    generator = torch.Generator().manual_seed(seed)
    chosen = {}
    for group, count in cut.counts.items():
        parts = cut.channels.parts.get(group, 1)
        size = cut.channels.sizes[group] // parts
        rows = [torch.randperm(size, generator=generator)[: count // parts].sort().values for _ in range(parts)]
        chosen[group] = torch.cat([row + part * size for part, row in enumerate(rows)])
    return chosen


def producers(network: nn.Module) -> dict[str, int]:
    """Of every tensor that makes channels (rows of convolutions, biases, norms), the axis of these channels."""
    found = {}
    for name, layer in network.named_modules():
        transposed = isinstance(layer, nn.ConvTranspose2d | nn.ConvTranspose3d)
        for key, tensor in layer.named_parameters(name, recurse=False):
            found[key] = 1 if transposed and tensor.ndim > 1 else 0
    return found


def kill_others(network: nn.Module, cut: Cut, alive: dict[int, Tensor]) -> None:
    """Every channel but those that are to stay gives 0; what reads it is faint."""
    made_along, state = producers(network), network.state_dict()
    with torch.no_grad():
        for axis in cut.channels.axes:
            if axis.tensor not in made_along:  # statistics of a batch norm
                continue
            dead = 0.0 if made_along[axis.tensor] == axis.axis else FAINT
            factors = [torch.full((cut.channels.sizes[group],), dead, dtype=torch.float64) for group in axis.groups]
            for group, factor in zip(axis.groups, factors, strict=True):
                factor[alive[group]] = 1.0
            shape = [1] * state[axis.tensor].ndim
            shape[axis.axis] = -1
            state[axis.tensor] *= torch.cat(factors).reshape(shape)


def pruned(network: nn.Module, name: str, args: dict[str, Any], student: dict[str, Any]) -> nn.Module:
    small = make_network(name, student, 2, classes_of(args)).double()
    small.load_state_dict(prune(network, name, args, student), strict=True)
    return small


@pytest.mark.parametrize("case", NORMALISED)
def test_a_network_without_its_dead_channels_gives_what_it_gave(case: str) -> None:
    name, args = NORMALISED[case]
    network, student = trained(name, args), narrower(name, args, 0.5)
    cut = cut_between(name, args, student, 2, 3)
    kill_others(network, cut, halves(cut))
    small = pruned(network, name, args, student)
    with torch.no_grad():
        expected, found = network(image(args)), small(image(args))
    assert expected.std() > 0.01
    assert (found - expected).abs().max() <= ROUNDING * expected.abs().max()
    assert sum(one.numel() for one in small.parameters()) < 0.4 * sum(one.numel() for one in network.parameters())


def double_others(network: nn.Module, cut: Cut, alive: dict[int, Tensor]) -> None:
    """Every channel but those that are to stay is a copy of one of these, until a norm makes it 0.

    So the statistics of a group norm are the same with it and without it. Rows have the norm 1, so that the copy is
    worth less by what reads it. Convolutions without a norm have dead rows: MONAI's residual and transposed ones.
    """
    made_along, state = producers(network), network.state_dict()
    bare = ("residual", "transp_conv")
    with torch.no_grad():
        for axis in cut.channels.axes:
            rows = state[axis.tensor].movedim(axis.axis, 0)
            for group, start in zip(axis.groups, starts(cut, axis.groups), strict=True):
                parts, size = cut.channels.parts.get(group, 1), cut.channels.sizes[group]
                stay = alive[group].reshape(parts, -1)
                if stay.numel() == size:
                    continue
                every = torch.arange(size).reshape(parts, -1)
                others = torch.stack([row[~torch.isin(row, stay)] for row in every])
                if made_along[axis.tensor] != axis.axis:
                    rows[start + others.flatten()] *= FAINT
                elif rows.ndim > 1 and not any(one in axis.tensor for one in bare):
                    rows[:] /= rows.flatten(1).norm(dim=1).reshape(-1, *[1] * (rows.ndim - 1))
                    rows[others.flatten()] = rows[stay.flatten()]
                elif axis.tensor.endswith("conv.bias"):
                    rows[others.flatten()] = rows[stay.flatten()]
                else:
                    rows[others.flatten()] = 0


def starts(cut: Cut, groups: tuple[int, ...]) -> list[int]:
    sizes = [cut.channels.sizes[group] for group in groups]
    return [sum(sizes[:index]) for index in range(len(sizes))]


@pytest.mark.parametrize("case", GROUPED)
def test_a_group_norm_takes_the_mean_of_the_channels_that_it_took_the_mean_of(case: str) -> None:
    name, args = GROUPED[case]
    network, student = trained(name, args), narrower(name, args, 0.5)
    cut = cut_between(name, args, student, 2, 3)
    assert set(cut.channels.parts.values()) == {4 if "4" in str(args.get("norm", args.get("norm_name"))) else 2}
    double_others(network, cut, halves(cut))
    small = pruned(network, name, args, student)
    with torch.no_grad():
        expected, found = network(image(args)), small(image(args))
    assert expected.std() > 0.01
    assert (found - expected).abs().max() <= ROUNDING * expected.abs().max()


@contextmanager
def as_products() -> Iterator[None]:
    """Torch-Pruning follows autograd, where instance norms and PReLU(1) hide how many channels go through."""
    with pytest.MonkeyPatch.context() as patch:
        for layer in (nn.PReLU, _InstanceNorm):
            patch.setattr(layer, "forward", lambda _, x: x * 1.0)
        yield


OFTEN = ("unet-no-norm", "unet-3-residual", "dynunet-residual-batch", "dynunet-supervised", "plain-batch")
SELDOM = ("unet-residual-equal-widths", "unet-2d", "residual-equal-widths", "residual-bottleneck")


@pytest.mark.parametrize("case", [*OFTEN, *SELDOM])
def test_torch_pruning_cuts_the_same_channels(case: str) -> None:
    name, args = NORMALISED[case]
    network = trained(name, args)
    for layer in network.modules():
        if isinstance(layer, _InstanceNorm) and layer.affine:
            nn.init.ones_(layer.weight)  # Torch-Pruning does not weigh them
    cut = cut_between(name, args, narrower(name, args, 0.5), 2, 3)
    kept = kept_channels(cut.channels, network.state_dict(), cut.counts)
    assert cut_by_us(network, cut, kept) == cut_by_torch_pruning(network, image(args), classes_of(args))


def convolutions(network: nn.Module) -> dict[str, _ConvNd]:
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, _ConvNd)}


def cut_by_us(network: nn.Module, cut: Cut, kept: dict[int, Tensor]) -> dict[tuple[str, str], set[int]]:
    """By convolution and side, the channels that go; without those that serve deep supervision alone."""
    layers, found = convolutions(network), {}
    for axis in cut.channels.axes:
        layer = axis.tensor.removesuffix(".weight")
        if not axis.weighs or layer not in layers:
            continue
        outputs = (axis.axis == 0) != isinstance(layers[layer], _ConvTransposeNd)
        gone = {
            start + channel
            for group, start in zip(axis.groups, starts(cut, axis.groups), strict=True)
            for channel in set(range(cut.channels.sizes[group])) - set(kept[group].tolist())
        }
        if gone:
            found[layer, "prune_out_channels" if outputs else "prune_in_channels"] = gone
    return found


def cut_by_torch_pruning(network: nn.Module, example: Tensor, classes: int) -> dict[tuple[str, str], set[int]]:
    layers = convolutions(network)
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2, group_reduction="sum", normalizer=None)
    with as_products():
        pruner = torch_pruning.pruner.BasePruner(
            network,
            example,
            importance=importance,
            pruning_ratio=0.5,
            ignored_layers=[layer for layer in layers.values() if layer.out_channels == classes],
        )
        groups = list(pruner.step(interactive=True))  # before any is cut, as ours
    names = {layer: name for name, layer in reversed(layers.items())}
    found: dict[tuple[str, str], set[int]] = {}
    for group in groups:
        for dependency, indices in group:
            if isinstance(dependency.target.module, _ConvNd):
                key = names[dependency.target.module], dependency.handler.__name__
                found.setdefault(key, set()).update(indices)
    return found


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("unet", {"channels": [4, 6, 32]}),  # wider at the bottom
        ("unet", {"channels": [4, 6]}),
        ("unet", {"channels": [4, 6, 8], "act": "relu"}),
        ("unet", {"channels": [4, 6, 8], "kernel_size": 5}),
        ("unet", {"channels": [4, 6, 8], "in_channels": 1}),
        ("unet", {"channels": [4, 6, 8], "out_channels": 2}),
        ("unet", {"channels": [4, 6, 8], "strides": [2, 1]}),
        ("unet", {"channels": [4, 6, 8], "no_such": 1}),
        ("unet-residual-stride-1", {"channels": [2, 6, 8]}),  # as many as the image has: no residual convolution
        ("dynunet-residual-equal-widths", {"filters": [4, 6, 8]}),  # two widths, which ask for another convolution
        ("dynunet-slopes", {"filters": [4, 4, 4]}),  # and still eight slopes
        ("plain", {"n_conv_per_stage": [1, 2, 2]}),
        ("plain", {"nonlin": "torch.nn.ReLU"}),
    ],
)
def test_a_student_that_is_no_part_of_the_teacher_is_refused(case: str, changes: dict[str, Any]) -> None:
    name, args = NORMALISED[case]
    assert not can_prune(name, args, {**args, **changes})


def test_a_student_may_be_written_in_other_words_and_without_dropout() -> None:
    name, args = NORMALISED["unet-options"]
    assert can_prune(name, args, {**args, "channels": (3, 12, 1), "dropout": 0.0, "norm": "instance", "act": "relu"})
    name, args = NORMALISED["plain"]
    assert can_prune(name, args, {**args, "features_per_stage": [8, 1, 16], "conv_op": "torch.nn.Conv3d"})
    assert not can_prune("SwinUNETR", {}, {})


def test_a_network_of_other_arguments_is_refused() -> None:
    name, args = NORMALISED["unet"]
    other = trained(name, {**args, "channels": [8, 12, 20]})
    with pytest.raises(SlimmingError, match="expected the network of these arguments, found one with other weights"):
        prune(other, name, args, narrower(name, args, 0.5))


def test_the_same_widths_give_the_same_weights_and_leave_the_teacher_alone() -> None:
    name, args = NORMALISED["dynunet-supervised"]
    network = trained(name, args)
    state = prune(network, name, args, args)
    assert list(state) == list(network.state_dict())
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())
    first = next(iter(state))
    state[first].zero_()
    assert network.state_dict()[first].abs().sum() > 0


@pytest.mark.parametrize(
    "layer", [nn.Softmax(dim=1), nn.LocalResponseNorm(3), nn.ChannelShuffle(2), nn.PixelShuffle(1)]
)
def test_a_layer_in_which_channels_meet_is_found(layer: nn.Module) -> None:
    assert keeps_apart(layer, 3) == isinstance(layer, nn.PixelShuffle)  # of 1 it shuffles nothing


def test_what_channels_cannot_be_followed_through_is_named() -> None:
    for layers, what in (
        ([nn.Conv3d(2, 4, 3), nn.Softmax(dim=1)], r"Softmax \(1\)"),
        ([nn.Conv3d(2, 4, 3, groups=2)], r"a grouped convolution \(0\)"),
        ([nn.Conv3d(2, 4, 3), nn.LayerNorm(4)], r"LayerNorm \(1\)"),
        ([nn.Conv3d(2, 4, 3), nn.Flatten()], r"Flatten \(1\)"),
    ):
        with pytest.raises(SlimmingError, match=f"cannot be followed through {what}.* --student"):
            channels_of(nn.Sequential(*layers), 2)


def test_each_part_of_a_group_norm_keeps_as_many_channels_though_one_is_worth_more() -> None:
    name, args = GROUPED["unet-groups"]
    network = trained(name, args)
    first = network.state_dict()["model.0.conv.weight"]
    first[: len(first) // 2] *= 100
    cut = cut_between(name, args, narrower(name, args, 0.5))
    (group,) = next(axis.groups for axis in cut.channels.axes if (axis.tensor, axis.axis) == ("model.0.conv.weight", 0))
    kept = kept_channels(cut.channels, network.state_dict(), cut.counts)[group].tolist()
    assert [sum(channel < 4 for channel in kept), sum(channel >= 4 for channel in kept)] == [2, 2]
