"""Entries of networks that cost nothing, so that everything else shows."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from voxtile_build.spec.spec import parse_spec

from .entries import OPEN, Entry, build_network
from .settings import Settings

MAX_BATCH = 4


class Repeat(nn.Module):
    """The input, as so many scores."""

    def __init__(self, scores: int) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, roi: torch.Tensor) -> torch.Tensor:
        return torch.cat([roi] * self.scores, dim=1) if self.scores > 1 else roi * 1.0


def free_entry(
    name: str, scores: int, taken: str, given: str, roi: int, settings: Settings, *, one_mask: bool = False
) -> Entry:
    """A served network of `scores` channels; taken, given: types in which ROI and scores travel.

    one_mask: the probability of one of its classes is all that comes back.
    """
    labels = [f"score {index}" for index in range(scores)]
    wanted = {"scores": "foreground", "foreground": labels[-1]} if one_mask else {}
    fields: dict[str, Any] = {
        "name": name,
        "network": {"name": "Identity"},
        "input": {"channels": ["any"], "dtype": taken},
        "output": {"dtype": given, "labels": labels, **wanted},
        "tiling": {"roi_size": [roi] * 3, "overlap": 0.25, "mode": "gaussian"},
        "serving": {"engines": ["openvino"], "max_batch_size": MAX_BATCH, "warm_up": False},
        "acceptance": OPEN,
    }
    return build_network(Repeat(scores), parse_spec(fields, "bench", settings.data), settings)
