"""A made-up scan with known labels: a body with organs apart from each other, in units like a CT's."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

AIR, BODY, LIGHT, HEAVY, NOISE = -1000.0, 0.0, -600.0, 1000.0, 25.0
CENTRE, SPREAD = 0.0, 500.0
"""What the networks' values are normalised with: (x - CENTRE) / SPREAD."""
PLACES = tuple(itertools.product((-0.55, 0.0, 0.55), (-0.33, 0.33), (-0.45, 0.45)))
"""Centres (x, y, z) of organs, as shares of the half axes: no two organs of the size below touch."""
ORGAN = (0.2, 0.24, 0.33)


def labels_of(shape: Sequence[int], scores: int, device: str) -> torch.Tensor:
    """Returns labels [x, y, z], uint8: 0 air, 1 the body, 2 … `scores` - 1 organs of different sizes.

    Raises:
        ValueError: there is no place for so many organs.
    """
    if scores - 2 > len(PLACES):
        raise ValueError(f"expected at most {len(PLACES) + 2} labels, found {scores}")
    axes = [torch.linspace(-1, 1, size, device=device) for size in shape]
    labels = _ellipsoid(axes, (0, 0, 0), (0.92, 0.8, 1.5)).to(torch.uint8)
    for index, centre in enumerate(PLACES[: scores - 2]):
        half = [size * (1 - 0.02 * index) for size in ORGAN]
        labels[_ellipsoid(axes, centre, half)] = index + 2
    return labels


def values_of(labels: torch.Tensor, scores: int, seed: int) -> torch.Tensor:
    """Returns a scan of `labels`, int16 of the same shape: a density for each label, and noise over all."""
    organs = torch.linspace(LIGHT, HEAVY, max(scores - 2, 0))
    density = torch.cat([torch.tensor([AIR, BODY]), organs]).to(labels.device)
    noise = torch.Generator(labels.device).manual_seed(seed)
    values = density[labels.int()]
    values += NOISE * torch.randn(labels.shape, generator=noise, device=labels.device)
    return values.round_().to(torch.int16)


def normalised(values: torch.Tensor) -> torch.Tensor:
    """Returns a scan's values as the networks take them, fp32."""
    return (values.float() - CENTRE) / SPREAD


def _ellipsoid(axes: list[torch.Tensor], centre: Sequence[float], half: Sequence[float]) -> torch.Tensor:
    x, y, z = (((axis - c) / h) ** 2 for axis, c, h in zip(axes, centre, half, strict=True))
    return x[:, None, None] + y[None, :, None] + z[None, None, :] <= 1
