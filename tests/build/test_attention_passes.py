"""Attention rewritten for engines that fuse it: the same scores at every batch, and less to compute."""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from monai.networks.blocks import SABlock
from monai.networks.nets import SwinUNETR
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor, nn

from tests.support.graph_passes import apply_pass
from tests.support.small_networks import SWIN_ROI, blobs, export, plain, swin
from voxtile_build.graph.optimise import optimise
from voxtile_build.graph.passes.group_windows import group_windows
from voxtile_build.graph.passes.split_qkv import split_qkv
from voxtile_build.sessions import run_graph

FLAT_ROI = (64, 96)


class Tokens(nn.Module):
    """MONAI's attention over the voxels of a volume, with or without a bias of queries, keys and values."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.widen = nn.Conv3d(1, 24, 1)
        self.attend = SABlock(24, 3, qkv_bias=bias)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.widen(image).flatten(2).transpose(1, 2)
        attended: Tensor = self.attend(tokens)
        return attended.transpose(1, 2)


@functools.cache
def folded() -> onnx.ModelProto:
    return optimise(swin())


@functools.cache
def split() -> onnx.ModelProto:
    return split_qkv(folded())


@functools.cache
def flat() -> onnx.ModelProto:
    """A 2D network of another number of heads, whose windows are not as many along one axis as along the other."""
    torch.manual_seed(9)
    network = SwinUNETR(1, 2, feature_size=12, depths=(2, 2, 1, 1), num_heads=(2, 4, 6, 12), spatial_dims=2)
    return optimise(export(network, FLAT_ROI))


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(model.SerializeToString())


def images(roi: tuple[int, ...], batch: int) -> dict[str, NDArray[np.float32]]:
    """Samples that differ, so that windows of one sample in another's place would show."""
    samples = [(index + 1) * blobs(roi, seed=index) for index in range(batch)]
    return {"roi": np.concatenate(samples).astype(np.float32)}


@pytest.mark.parametrize("batch", [1, 3])
def test_shifted_windows_in_groups_give_the_same_scores(batch: int) -> None:
    _, report = apply_pass("split", split_qkv, folded(), [images(SWIN_ROI, batch)])
    after, grouped = apply_pass("group", group_windows, split(), [images(SWIN_ROI, batch)])
    assert report.changed["MatMul"] == (report.changed["MatMul"][0], report.changed["MatMul"][0] + 2 * 5)
    # One block of five is shifted; its windows are of eight kinds, each with products of its own.
    assert operators(after)["Softmax"] - operators(split())["Softmax"] == 7
    assert grouped.max_abs is not None
    assert grouped.max_abs < 1e-5


def test_the_mask_of_all_windows_is_gone() -> None:
    after = group_windows(split())
    assert operators(split())["Where"] == 2
    assert operators(after)["Where"] == operators(after)["Equal"] == 0
    # Eight masks of a window's 343 tokens, less the one of nothing but zeros.
    masks = {tensor.name for tensor in after.graph.initializer if list(tensor.dims) == [1, 1, 343, 343]}
    assert len(masks) == 7
    assert sum(node.op_type == "Add" and node.input[1] in masks for node in after.graph.node) == 7


@pytest.mark.parametrize("batch", [1, 2])
def test_two_dimensional_windows_are_of_four_kinds(batch: int) -> None:
    feeds = [images(FLAT_ROI, batch)]
    before, _ = apply_pass("split", split_qkv, flat(), feeds)
    after, _ = apply_pass("group", group_windows, before, feeds)
    # Both stages have a shifted block.
    assert operators(after)["Softmax"] - operators(before)["Softmax"] == 2 * 3


def test_the_scale_of_the_queries_lies_in_their_weights() -> None:
    assert operators(folded())["Mul"] - operators(split())["Mul"] == 5


@pytest.mark.parametrize("bias", [False, True])
def test_attention_over_all_tokens_is_split_with_and_without_a_bias(bias: bool) -> None:
    before = optimise(export(Tokens(bias), (6, 5, 4)))
    after, report = apply_pass("split", split_qkv, before, [images((6, 5, 4), 2)])
    assert report.changed["MatMul"] == (operators(before)["MatMul"], operators(before)["MatMul"] + 2)
    assert report.changed.get("Add", (0, 0))[1] - report.changed.get("Add", (0, 0))[0] == (2 if bias else 0)
    assert group_windows(after) is after


def test_a_graph_without_attention_is_given_back() -> None:
    model = copied(plain())
    assert split_qkv(model) is model
    assert group_windows(model) is model
    _, report = apply_pass("split", split_qkv, model, [{"roi": blobs((32, 32, 32))}])
    assert (report.changed, report.max_abs) == ({}, 0.0)


def test_windows_are_left_alone_before_queries_are_split() -> None:
    model = copied(folded())
    assert group_windows(model) is model


def test_a_mask_that_depends_on_the_scan_stays() -> None:
    model = copied(split())
    node = next(node for node in model.graph.node if "Unsqueeze" in node.op_type and node.name == masks_of(model))
    mask = node.output[0]
    node.output[0] = "still"
    index = list(model.graph.node).index(node)
    more = [
        helper.make_node("ReduceMax", ["roi"], ["brightest"], name="brightest", keepdims=0),
        helper.make_node("Mul", ["still", "brightest"], [mask], name="depends"),
    ]
    for offset, new in enumerate(more):
        model.graph.node.insert(index + 1 + offset, new)
    onnx.checker.check_model(model)
    assert group_windows(model) is model


def masks_of(model: onnx.ModelProto) -> str:
    """The name of the node that gives the mask [1, window, 1, token, token]."""
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in inferred.graph.value_info
    }
    return next(node.name for node in model.graph.node if shapes.get(node.output[0]) == [1, 45, 1, 343, 343])


def test_a_mask_of_too_many_kinds_stays() -> None:
    model = copied(split())
    assert group_windows(model, most_groups=7) is model


def test_keys_cut_up_by_somebody_else_stay() -> None:
    """Where the joint tensor is used as a whole too, nothing would be saved."""
    model = copied(folded())
    node = next(node for node in model.graph.node if node.op_type == "Transpose" and perm(node) == [2, 0, 3, 1, 4])
    model.graph.node.append(helper.make_node("Identity", [node.output[0]], ["whole"], name="whole"))
    model.graph.output.append(helper.make_tensor_value_info("whole", onnx.TensorProto.FLOAT, None))
    after = split_qkv(model)
    kept = [node for node in after.graph.node if node.op_type == "Transpose" and perm(node) == [2, 0, 3, 1, 4]]
    assert [one.name for one in kept] == [node.name]
    feed = images(SWIN_ROI, 1)
    (old,), (new,) = run_graph(model, [feed]), run_graph(after, [feed])
    np.testing.assert_array_equal(old["whole"], new["whole"])


def perm(node: onnx.NodeProto) -> list[int]:
    return next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), [])


def test_names_stay_unlike_and_the_pass_is_repeatable() -> None:
    once, again = (group_windows(split_qkv(copied(folded()))) for _ in range(2))
    assert once.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
    names = [node.name for node in once.graph.node]
    assert len(set(names)) == len(names)
    assert all(names)
