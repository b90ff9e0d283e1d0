"""How far a student's answer is from its teacher's: Kullback-Leibler divergence and soft Dice.

Classes lie on axis 1. Both parts are 0 where the student answers as the teacher does, and nowhere else. Knows no
labels: the teacher's answer, with its doubts, is all there is to learn.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from voxtile_build.slimming.pool.labeller import Kind

SMALLEST = 2.0**-14
"""Of a probability that fp16 holds with all of its digits; a smaller one counts as this."""

VOXEL = 1.0
"""Added to both parts of the soft Dice's fraction: a class that neither shows costs nothing, and never 0/0."""


def distillation_loss(logits: Tensor, target: Tensor, kind: Kind, *, regions: bool) -> Tensor:
    """KL(teacher ‖ student) at temperature 1, the mean over voxels, plus 1 - soft Dice, the mean over classes.

    Args:
        logits: the student's, [batch, class, *spatial].
        target: the teacher's answer, of the same shape.
        kind: what the target holds.
        regions: whether classes overlap: each has a probability of its own (sigmoid in place of softmax).

    Returns:
        A scalar in fp32, at least 0.
    """
    student = _log_probabilities(logits.float(), "logits", regions).flatten(2)
    with torch.no_grad():
        teacher = _log_probabilities(target.float(), kind, regions).flatten(2)
        probabilities = teacher.exp()
        entropy = _dot(probabilities, teacher).sum()
    divergence = (entropy - _dot(probabilities, student).sum()) / (len(logits) * student.shape[2])
    classes = logits.shape[1]
    # Regions come as [inside, outside]; Dice is that of the inside.
    return divergence + soft_dice_loss(student[:, :classes].exp(), probabilities[:, :classes])


def soft_dice_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - 2Σpq / (Σp² + Σq²) over batch and voxels, the mean over classes; 0 for equal [batch, class, voxel].

    With Σp + Σq below instead, the best answer to a teacher in doubt would be to have no doubt.
    """
    both = _dot(student, teacher).sum(dim=0)
    squares = (_dot(student, student) + _dot(teacher, teacher)).sum(dim=0)
    return (1 - (2 * both + VOXEL) / (squares + VOXEL)).mean()


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """[batch, class] sums of products over voxels. The products are never held: with 100 labels they take gigabytes."""
    return torch.einsum("bcv,bcv->bc", one, other)


def _log_probabilities(values: Tensor, kind: Kind, regions: bool) -> Tensor:
    """[batch, class, …]; for regions [batch, 2 · class, …]: to be inside each, and then to be outside each."""
    if kind == "logits":
        if not regions:
            return functional.log_softmax(values, dim=1)
        return torch.cat([functional.logsigmoid(values), functional.logsigmoid(-values)], dim=1)
    if not regions:
        chosen = values.clamp(SMALLEST)
        return (chosen / chosen.sum(dim=1, keepdim=True)).log()
    inside = values.clamp(SMALLEST, 1 - SMALLEST)
    return torch.cat([inside.log(), (-inside).log1p()], dim=1)
