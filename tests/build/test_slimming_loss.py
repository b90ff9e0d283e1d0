"""The loss of a student against its teacher, beside PyTorch's own divergence and NumPy's arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax
from torch.nn import functional

from voxtile_build.slimming.training.loss import VOXEL, distillation_loss, soft_dice_loss

Array = NDArray[Any]
SHAPE = (2, 3, 4, 5, 6)
"""All sizes differ, so that no axis can stand for another."""
LARGEST = 65504.0


def noise(seed: int, shape: tuple[int, ...] = SHAPE) -> Array:
    return np.random.default_rng(seed).normal(0, 3, shape)


def loss(student: Array, teacher: Array, kind: Any = "logits", regions: bool = False) -> float:
    given = torch.from_numpy(student.astype(np.float32)), torch.from_numpy(teacher.astype(np.float32))
    return float(distillation_loss(*given, kind, regions=regions))


def numpy_dice(q: Array, p: Array) -> float:
    """The mean over axis 1 of 1 - (2Σpq + 1)/(Σp² + Σq² + 1), in a loop."""
    found = []
    for one, other in zip(np.moveaxis(q, 1, 0), np.moveaxis(p, 1, 0), strict=True):
        found.append(1 - (2 * (one * other).sum() + VOXEL) / ((one**2).sum() + (other**2).sum() + VOXEL))
    return float(np.mean(found))


@pytest.mark.parametrize("shape", [SHAPE, (2, 3, 7, 5), (1, 6, 3, 3, 3)])
def test_classes_lie_on_axis_1(shape: tuple[int, ...]) -> None:
    student, teacher = noise(1, shape), noise(2, shape)
    # PyTorch's own divergence, with the classes last and voxels as its batch.
    last = [torch.from_numpy(np.moveaxis(one, 1, -1).reshape(-1, shape[1]).copy()) for one in (student, teacher)]
    expected = functional.kl_div(last[0].log_softmax(-1), last[1].softmax(-1), reduction="batchmean")
    by_hand = numpy_dice(softmax(student, axis=1), softmax(teacher, axis=1))
    assert loss(student, teacher) == pytest.approx(float(expected) + by_hand, rel=1e-5)


def test_regions_are_judged_each_alone() -> None:
    student, teacher = noise(3), noise(4)
    q, p = expit(student), expit(teacher)
    divergence = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(axis=1).mean()
    assert loss(student, teacher, regions=True) == pytest.approx(divergence + numpy_dice(q, p), rel=1e-5)
    # Another answer for one region leaves the part of the others as it is.
    changed = student.copy()
    changed[:, 1] += 1
    alone = [
        loss(one[:, :1], teacher[:, :1], regions=True) + loss(one[:, 2:], teacher[:, 2:], regions=True)
        for one in (student, changed)
    ]
    assert alone[0] == alone[1]


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_a_student_that_answers_as_its_teacher_has_nothing_to_learn(kind: str, regions: bool) -> None:
    answer = noise(5)
    target = {"logits": answer, "probabilities": expit(answer) if regions else softmax(answer, axis=1)}[kind]
    student = torch.from_numpy(answer).float().requires_grad_()
    found = distillation_loss(student, torch.from_numpy(target).float(), kind, regions=regions)  # type: ignore[arg-type]
    found.backward()
    assert float(found.detach()) == pytest.approx(0, abs=2e-4)
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-4 < loss(answer + noise(6), target, kind, regions)


@pytest.mark.parametrize("regions", [False, True])
def test_probabilities_in_fp16_teach_the_same_as_logits(regions: bool) -> None:
    student, teacher = noise(7), noise(8)
    probabilities = (expit(teacher) if regions else softmax(teacher, axis=1)).astype(np.float16)
    found = loss(student, probabilities, "probabilities", regions)
    assert found == pytest.approx(loss(student, teacher, "logits", regions), rel=5e-3)


def test_a_doubting_teacher_is_met_by_a_doubting_student() -> None:
    teacher = torch.full((1, 2, 16), 0.5)
    doubt, certain = teacher.clone().requires_grad_(), torch.zeros(1, 2, 16)
    certain[:, 0] = 1
    found = soft_dice_loss(doubt, teacher)
    found.backward()
    assert doubt.grad is not None
    assert float(doubt.grad.abs().max()) < 1e-6
    assert float(found.detach()) == pytest.approx(0, abs=1e-6)
    assert float(soft_dice_loss(certain, teacher)) > 0.1


def test_a_class_that_nobody_shows_costs_nothing_and_one_that_the_student_invents_costs() -> None:
    teacher = noise(9)
    teacher[:, 2] = -LARGEST
    student = teacher.copy()
    assert loss(student, teacher) == pytest.approx(0, abs=1e-6)
    student[:, 2] = 10
    assert loss(student, teacher) > 0.3
    assert np.isfinite(loss(np.zeros(SHAPE), np.zeros(SHAPE), "probabilities", regions=True))


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_answers_at_the_end_of_fp16_give_finite_gradients(kind: str, regions: bool) -> None:
    signs = np.sign(noise(10))
    target = signs * LARGEST if kind == "logits" else (signs > 0).astype(np.float64)
    student = torch.from_numpy(-signs * 1e4).float().requires_grad_()
    found = distillation_loss(student, torch.from_numpy(target).float(), kind, regions=regions)  # type: ignore[arg-type]
    found.backward()
    assert student.grad is not None
    assert torch.isfinite(found)
    assert bool(torch.isfinite(student.grad).all())
    assert float(found.detach()) > 1


def test_the_loss_is_in_fp32_whatever_the_student_computes_in() -> None:
    student = torch.from_numpy(noise(11)).to(torch.bfloat16)
    found = distillation_loss(student, torch.from_numpy(noise(12)).half(), "logits", regions=False)
    assert found.dtype == torch.float32
