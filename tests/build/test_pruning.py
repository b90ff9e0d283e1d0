"""What pruning cuts away is what a network can do without, and what is left is the same network with less in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.prunable_networks import GROUPED, NORMALISED, classes_of, image, trained
from voxtile_build.networks import make_network
from voxtile_build.slimming.pruning.cut import Cut, cut_between
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
