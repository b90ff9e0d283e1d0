"""A running mean of a network's weights.

The mean of the last steps answers better than the last step while the rate of learning is high. So a training that is
stopped early, or that goes wrong, leaves good weights, and at the end of the schedule the mean costs nothing. Knows
neither data nor losses.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

DECAY = 0.99
"""The last 100 steps count; at the beginning fewer."""


class Average:
    """The mean of a state dict; whole numbers, such as counters, are those of the last step."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self.state = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def take(self, step: int) -> None:
        """Take in the weights after so many steps."""
        decay = min(DECAY, (1 + step) / (10 + step))
        now = self._network.state_dict()
        floats = [name for name, value in now.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.state[name] for name in floats], [now[name] for name in floats], 1 - decay)
        for name in now.keys() - floats:
            self.state[name].copy_(now[name])

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a kept mean."""
        for name, value in self.state.items():
            value.copy_(state[name])

    def copy(self) -> dict[str, Tensor]:
        """The mean on the CPU."""
        return {name: value.cpu().clone().contiguous() for name, value in self.state.items()}
