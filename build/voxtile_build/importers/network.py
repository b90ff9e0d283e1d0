"""A model from its spec: the network by name with its weights, or the network in a file."""

from __future__ import annotations

from torch import nn

from voxtile_build.errors import SpecError
from voxtile_build.importers.files.open import open_network
from voxtile_build.networks import make_network
from voxtile_build.networks.heads import OneHead
from voxtile_build.networks.weights import load_weights
from voxtile_build.repository.folds import Fold, Model
from voxtile_build.spec.spec import Spec


def model_of(spec: Spec, network: nn.Module | None = None) -> Model:
    """The model that a spec describes, of one network.

    Args:
        spec: the spec.
        network: in place of the network that the spec names, with its weights already in it.

    Raises:
        SpecError: a network is given, and the spec says of other weights whose student they are.
    """
    if network is not None and spec.distillation is not None:
        raise SpecError(f"{spec.name}: [distillation] speaks of the weights in a file; build the network of the file")

    def load() -> nn.Module:
        return network if network is not None else load_network(spec)

    # A network in a file has its weights there too, so the file's hash is that of the weights.
    return Model(spec, (Fold(spec.name, load, spec.network.sha256),))


def load_network(spec: Spec) -> nn.Module:
    """The network that the spec names, with its weights.

    Raises:
        NetworkError: the network cannot be made or opened.
        WeightsError: the weights cannot be read, or do not fit the network.
        SpecError: the network has weights, and the spec names none.
    """
    chosen = spec.network
    if chosen.file is not None and chosen.sha256 is not None:
        return open_network(chosen.file, chosen.sha256, chosen.head, spec.serving.max_batch_size)
    network = untrained_network(spec)
    if spec.weights is not None:
        load_weights(network, spec.weights.file, spec.weights.sha256)
    elif any(True for _ in network.parameters()):
        raise SpecError(f"{spec.name}: weights: missing; {chosen.name} needs [weights] with file and sha256")
    return with_head(network, spec)


def untrained_network(spec: Spec) -> nn.Module:
    """The network that the spec names and describes, with the weights that its constructor gives.

    Raises:
        NetworkError: the network cannot be made.
    """
    chosen = spec.network
    return make_network(chosen.name, chosen.args, len(spec.input.channels), len(spec.output.labels))


def with_head(network: nn.Module, spec: Spec) -> nn.Module:
    """The network with the one output that the spec chooses."""
    return network if spec.network.head is None else OneHead(network, spec.network.head)
