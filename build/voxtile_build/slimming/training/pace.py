"""How long a student takes for a patch in training, before there are any. Knows neither patches nor teachers."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

import torch
from torch import nn

from voxtile_build.slimming.training.device import Device, best_device, denormals_flushed
from voxtile_build.slimming.training.training import one_output

TIMED = 2
"""Steps that are timed, after one that is not: its memory is claimed and its arithmetic chosen then."""


def patch_seconds(network: nn.Module, image: Sequence[int], batch: int, device: Device | None = None) -> float | None:
    """Time what a patch takes, forth and back; the network stays as it is.

    Args:
        network: the student.
        image: shape [channel, *roi] of a patch.
        batch: patches a step.
        device: where it is trained; None: a GPU where there is one.

    Returns:
        Seconds; None where the network cannot be trained so, which the training says better.
    """
    chosen = device or best_device()
    try:
        with denormals_flushed(), chosen.random_numbers():
            student = copy.deepcopy(network).to(chosen.name).train()
            images = torch.randn(batch, *image, device=chosen.name)
            return min(_step(student, images, chosen) for _ in range(1 + TIMED)) / batch
    except (RuntimeError, ValueError, TypeError, MemoryError):
        return None


def _step(student: nn.Module, images: torch.Tensor, device: Device) -> float:
    started = time.monotonic()
    with device.arithmetic():
        answer = one_output(student(images), images.ndim)
    loss = answer.float().square().mean()
    torch.autograd.backward(loss)
    loss.item()  # waits for what a GPU still does
    return time.monotonic() - started
