"""How far two label volumes agree, counted on the device. Knows nothing of where they come from."""

from __future__ import annotations

import torch

from .settings import Row
from .timing import digits


def agreement(reference: torch.Tensor, found: torch.Tensor, labels: int) -> Row:
    """Returns `dice_min`, the smallest Dice of a label in either volume, and `changed_fraction` of all voxels.

    Background (0) has no Dice; without any other label `dice_min` is 1.

    Args:
        reference: labels, uint8, of any shape.
        found: labels of the same shape.
        labels: how many there are, background included.

    Raises:
        ValueError: the shapes differ.
    """
    pairs = table(reference, found, labels)
    dice = dice_of(pairs)[1:]
    smallest = dice[~dice.isnan()].min() if (~dice.isnan()).any() else torch.ones(())
    changed = 1 - pairs.diagonal().sum() / pairs.sum()
    return {"dice_min": round(float(smallest), 5), "changed_fraction": digits(float(changed))}


def dice_loss(truth: torch.Tensor, reference: torch.Tensor, found: torch.Tensor, labels: int) -> float:
    """Returns by how much the Dice with the truth falls from `reference` to `found`, for the worst label."""
    before, after = (dice_of(table(truth, one, labels))[1:] for one in (reference, found))
    return round(float((before - after).nan_to_num(0.0).max()), 5)


def table(reference: torch.Tensor, found: torch.Tensor, labels: int) -> torch.Tensor:
    """Returns how many voxels have each pair of labels, [label of `reference`, label of `found`], fp64.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != found.shape:
        raise ValueError(f"expected labels of shape {tuple(reference.shape)}, found {tuple(found.shape)}")
    pairs = reference.flatten().int() * labels + found.flatten().int()
    return torch.bincount(pairs, minlength=labels**2).reshape(labels, labels).double().cpu()


def dice_of(pairs: torch.Tensor) -> torch.Tensor:
    """Returns the Dice of each label from a table of pairs; NaN for a label that neither volume has."""
    return 2 * pairs.diagonal() / (pairs.sum(0) + pairs.sum(1))
