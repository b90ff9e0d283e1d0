"""Follows the channels of a network from layer to layer: which axes of which tensors must be cut together.

A stretch of channels is a *group*: a convolution's outputs, for example. Channels that are added to each other, as in
residual units, belong to one group. Channels that are concatenated stay apart, one stretch after the other. Nothing is
computed, so the network may have no values. Knows no kind of network, and not which channels are worth keeping.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from voxtile_build.errors import SlimmingError
from voxtile_build.slimming.skeleton import OWN_STUDENT

Stretch = tuple[int, ...]
"""The groups that lie along an axis, one after the other."""
SUMS = (operator.add, operator.iadd, torch.add)
CHANNEL_AXIS = 1
TRIED = 6, 16
"""Channels, and voxels along each axis, of what a layer without weights is tried on."""
SAME = 1e-4
"""Vectorised and plain code round functions such as exp in different ways; a softmax changes by far more."""


@dataclass(frozen=True)
class Axis:
    """An axis of a tensor, and the groups along it.

    Attributes:
        tensor: its name in the state dict; of several names the first.
        axis: of the tensor, from 0.
        groups: along this axis.
        weighs: whether the tensor's values say what a channel is worth. Weights of convolutions and norms do, but for
            those that serve deep supervision alone.
    """

    tensor: str
    axis: int
    groups: Stretch
    weighs: bool


@dataclass(frozen=True)
class Channels:
    """The channels of a network.

    Attributes:
        axes: every axis of channels, of every tensor that has one.
        sizes: the number of channels of each group, by its number.
        parts: for a group that a group norm takes the mean of, into how many equal parts that divides it.
    """

    axes: tuple[Axis, ...]
    sizes: Mapping[int, int]
    parts: Mapping[int, int]


def channels_of(network: nn.Module, channels: int) -> Channels:
    """The channel groups of a network.

    Args:
        network: image [batch, channel, *spatial] -> scores, or a list of which the first are the scores.
        channels: of the image.

    Raises:
        SlimmingError: the network holds a layer or a step that channels cannot be followed through.
    """
    walk = _Walk(fx.GraphModule(network, _Tracer().trace(network)))
    walk.run(walk.new(channels))
    return walk.found()


class _Tracer(fx.Tracer):
    """Layers are followed as a whole; modules that hold layers are looked into."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(True for _ in m.children())


class _Walk(fx.Interpreter):
    """Runs a network with the groups of a tensor in place of the tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.extra_traceback = False  # it would add the whole graph to our errors
        self._parents: list[int] = []
        self._sizes: list[int] = []
        self._along: dict[tuple[str, int], tuple[Stretch, bool]] = {}
        self._parts: list[tuple[int, int]] = []
        self._used = _used(module.graph)
        self._counts = True
        self._spatial = next(one.weight.ndim - 2 for one in module.modules() if isinstance(one, _ConvNd))

    def new(self, size: int) -> Stretch:
        """A group of its own."""
        self._parents.append(len(self._parents))
        self._sizes.append(size)
        return (self._parents[-1],)

    def found(self) -> Channels:
        """What the walk found, with one number for all groups that are tied."""
        axes = (
            Axis(name, axis, tuple(map(self._root, groups)), weighs)
            for (name, axis), (groups, weighs) in self._along.items()
        )
        sizes = {self._root(group): self._sizes[group] for group in self._parents}
        return Channels(tuple(axes), sizes, {self._root(group): parts for group, parts in self._parts})

    def run_node(self, n: fx.Node) -> Any:
        self._counts = n in self._used
        return super().run_node(n)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Stretch:
        layer: nn.Module = self.fetch_attr(target)
        given: Stretch = args[0]
        if isinstance(layer, _ConvNd):
            return self._convolution(target, layer, given)
        if isinstance(layer, _NormBase | nn.GroupNorm):
            self._norm(target, layer, given)
        elif isinstance(layer, nn.PReLU):
            if layer.num_parameters > 1:
                self._lies_along(f"{target}.weight", 0, given, weighs=False)
        elif layer.state_dict() or not keeps_apart(layer, self._spatial):
            raise _lost(f"{type(layer).__name__} ({target})")
        return given

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Stretch:
        if target is torch.cat and kwargs.get("dim", args[1] if len(args) > 1 else 0) == CHANNEL_AXIS:
            return tuple(group for stretch in args[0] for group in stretch)
        if target in SUMS and all(isinstance(one, tuple) for one in args):
            summands: tuple[Stretch, Stretch] = args
            self._tie(*summands)
            return summands[0]
        raise _lost(getattr(target, "__name__", str(target)))

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Stretch:
        raise _lost(str(target))

    def _convolution(self, name: str, layer: _ConvNd, given: Stretch) -> Stretch:
        if layer.groups != 1:
            raise _lost(f"a grouped convolution ({name})")
        outputs = self.new(layer.out_channels)
        of_outputs = 1 if isinstance(layer, _ConvTransposeNd) else 0
        self._lies_along(f"{name}.weight", 1 - of_outputs, given, weighs=True)
        self._lies_along(f"{name}.weight", of_outputs, outputs, weighs=True)
        if layer.bias is not None:
            self._lies_along(f"{name}.bias", 0, outputs, weighs=False)
        return outputs

    def _norm(self, name: str, layer: nn.Module, given: Stretch) -> None:
        for key, value in layer.state_dict().items():
            if value.ndim == 1:
                self._lies_along(f"{name}.{key}", 0, given, weighs=key == "weight")
        if isinstance(layer, nn.GroupNorm) and 1 < layer.num_groups < layer.num_channels:
            if len(given) > 1:
                raise _lost(f"a group norm of concatenated channels ({name})")
            self._parts.append((given[0], layer.num_groups))

    def _lies_along(self, tensor: str, axis: int, groups: Stretch, *, weighs: bool) -> None:
        """A tensor's axis holds these groups. A layer that runs twice ties what goes through it."""
        known, _ = self._along.setdefault((tensor, axis), (groups, weighs and self._counts))
        self._tie(known, groups)

    def _tie(self, one: Stretch, other: Stretch) -> None:
        if [self._sizes[group] for group in one] != [self._sizes[group] for group in other]:
            raise _lost("a sum of channels that were concatenated in different ways")
        for a, b in zip(one, other, strict=True):
            self._parents[self._root(b)] = self._root(a)

    def _root(self, group: int) -> int:
        while self._parents[group] != group:
            group = self._parents[group]
        return group


def _used(graph: fx.Graph) -> set[fx.Node]:
    """The steps that the scores come from."""
    (result,) = graph.output_node().args
    found: set[fx.Node] = set()
    waiting = [result[0] if isinstance(result, list | tuple) else result]
    while waiting:
        node = waiting.pop()
        if isinstance(node, fx.Node) and node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _lost(what: str) -> SlimmingError:
    return SlimmingError(f"channels cannot be followed through {what}, so none can be cut; {OWN_STUDENT}")


def keeps_apart(layer: nn.Module, spatial_dims: int) -> bool:
    """Whether a channel that goes through a layer without weights does not depend on the others.

    Args:
        layer: such as an activation, dropout or pooling.
        spatial_dims: number of spatial axes that it is used with.
    """
    channels, size = TRIED
    image = torch.randn(1, channels, *(size,) * spatial_dims, generator=torch.Generator().manual_seed(0))
    try:
        among_all, alone = layer(image.clone()), layer(image[:, ::2].clone())
    except Exception:  # made for one size, or for other shapes
        return False
    chosen = among_all[:, ::2]
    return bool(chosen.shape == alone.shape and torch.allclose(chosen, alone, rtol=SAME, atol=SAME))
