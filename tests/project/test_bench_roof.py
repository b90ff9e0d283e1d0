"""The work that a network takes, counted, and the rate of products, measured."""

from __future__ import annotations

import torch
from torch import nn

from bench.roof import PRECISIONS, rates, work_gflop


def test_work_is_two_operations_for_each_weight_and_voxel() -> None:
    convolution = nn.Conv3d(1, 5, 3, padding=1, bias=False)
    assert work_gflop(convolution, (8, 10, 12)) == 2 * 27 * 5 * 8 * 10 * 12 / 1e9


def test_what_costs_no_products_counts_as_nothing() -> None:
    assert work_gflop(nn.Sequential(nn.InstanceNorm3d(1), nn.LeakyReLU()), (4, 4, 4)) == 0
    assert torch.is_grad_enabled()


def test_rates_are_those_of_products() -> None:
    found = rates(repetitions=2, side=256)
    assert set(found) == set(PRECISIONS)
    assert all(0.1 < rate < 1e6 for rate in found.values())
