"""A narrower network is one of the same class with a uniform share of the channels, and never of another shape."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.prunable_networks import GROUPED, NORMALISED, classes_of, dynunet, plain, residual, unet
from voxtile_build.errors import NetworkError, SlimmingError
from voxtile_build.networks import NETWORKS, make_network
from voxtile_build.slimming.arguments import PRUNABLE, arguments_of
from voxtile_build.slimming.pruning.prune import prune
from voxtile_build.slimming.widths import narrower

NNUNETS = [32, 64, 128, 256, 320, 320]


@pytest.mark.parametrize(
    ("widths", "share", "expected"),
    [
        ([32, 64, 128, 256], 0.5, [16, 32, 64, 128]),
        ([32, 64, 128, 256], 0.25, [8, 16, 32, 64]),
        ([8, 16, 32, 64], 0.5, [4, 8, 16, 32]),
        ([64, 96, 128, 192], 0.75, [48, 80, 96, 144]),  # 72 is as near to 64
        ([32, 64], 0.75, [24, 48]),  # 24 is near neither 16 nor 32
        ([32, 64], 0.9, [28, 56]),  # 32 would change nothing
        ([24, 48], 0.5, [12, 24]),
        ([20, 40], 0.5, [10, 20]),
        ([5, 10], 0.5, [3, 5]),
        ([320, 640], 0.051, [16, 32]),
        ([40, 48], 0.5, [20, 24]),
    ],
)
def test_widths_are_multiples_of_16_where_one_is_near(widths: list[int], share: float, expected: list[int]) -> None:
    name, args = unet(channels=widths, strides=[2] * (len(widths) - 1))
    assert narrower(name, args, share)["channels"] == expected


def test_each_class_has_widths_of_its_own() -> None:
    name, args = plain(n_stages=6, features_per_stage=NNUNETS, kernel_sizes=3, strides=[1, 2, 2, 2, 2, 2])
    args |= {"n_conv_per_stage": 2, "n_conv_per_stage_decoder": 2}
    assert narrower(name, args, 0.5)["features_per_stage"] == [16, 32, 64, 128, 160, 160]
    name, args = plain(features_per_stage=8)
    assert narrower(name, args, 0.5)["features_per_stage"] == 4
    name, args = NORMALISED["residual-bottleneck"]
    student = narrower(name, args, 0.5)
    assert (student["bottleneck_channels"], student["stem_channels"]) == ([2, 2, 4], 2)
    name, args = dynunet(filters=None, strides=[1, 2, 2, 2], kernel_size=[3] * 4, upsample_kernel_size=[2] * 3)
    assert narrower(name, args, 0.5)["filters"] == [16, 32, 64, 128]
    name, args = dynunet(filters=[8, 16, 32, 64, 128])  # two of them beyond the last layer
    assert narrower(name, args, 0.5)["filters"] == [4, 8, 16]


@pytest.mark.parametrize("case", list(NORMALISED | GROUPED)[::4])
def test_all_else_stays_as_it_was(case: str) -> None:
    name, args = (NORMALISED | GROUPED)[case]
    before = json.dumps(args)
    student = narrower(name, args, 0.5)
    kinds = arguments_of(name)
    assert json.dumps(args) == before
    assert {key: value for key, value in student.items() if key not in (*kinds.widths, *kinds.options)} == {
        key: value for key, value in args.items() if key not in (*kinds.widths, *kinds.options)
    }
    assert json.loads(json.dumps(student)) == student


def test_slopes_of_each_channel_are_narrowed_with_it_and_one_for_all_is_not() -> None:
    name, args = NORMALISED["unet-slopes"]
    assert narrower(name, args, 0.5)["act"] == ["prelu", {"num_parameters": 4}]
    name, args = unet(act=["prelu", {"num_parameters": 1, "init": 0.1}])
    assert narrower(name, args, 0.5)["act"] == ["prelu", {"num_parameters": 1, "init": 0.1}]


def test_a_group_norms_groups_divide_the_widths() -> None:
    name, args = unet(channels=[24, 48], strides=[2], norm=["group", {"num_groups": 8}])
    assert narrower(name, args, 0.5)["channels"] == [16, 24]  # 12 of 24 would not be divided by 8
    assert narrower(name, args, 0.3)["channels"] == [8, 16]
    with pytest.raises(SlimmingError, match=r"leaves no channel .* has 24, of which the 8 groups .* need 8 or more"):
        narrower(name, args, 0.1)


def test_widths_that_differ_still_differ_because_layers_depend_on_it() -> None:
    name, args = dynunet(res_block=True, filters=[30, 32, 34], strides=[1, 1, 2], upsample_kernel_size=[1, 2])
    assert narrower(name, args, 0.5)["filters"] == [15, 16, 17]  # all are near 16
    name, args = unet(channels=[30, 32, 34])  # without residual units nothing depends on it
    assert narrower(name, args, 0.5)["channels"] == [16, 16, 16]


def test_where_another_layer_cannot_be_helped_it_is_refused() -> None:
    name, args = unet(channels=[4, 8], strides=[1], num_res_units=2)  # two channels, as many as the image has
    with pytest.raises(SlimmingError, match=r"UNet: the student cannot be cut .*residual.* in one of the two only"):
        narrower(name, args, 0.5)


@pytest.mark.parametrize("share", [0, 1, -0.5, 1.5, math.nan, math.inf, -math.inf])
def test_a_width_that_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(SlimmingError, match=r"width: expected a share of the channels above 0 and below 1, found "):
        narrower(*unet(), share)


def test_a_width_that_leaves_no_channel_or_changes_nothing_is_refused() -> None:
    with pytest.raises(SlimmingError, match=r"width: 0.01 leaves no channel of a layer that has 8; choose"):
        narrower(*unet(), 0.01)
    with pytest.raises(SlimmingError, match=r"width: 0.99 changes none of the UNet's widths; choose a smaller one"):
        narrower(*unet(), 0.99)
    with pytest.raises(SlimmingError, match=r"width: 0.5 changes none of the UNet's widths"):
        narrower(*unet(channels=[1, 1], strides=[2]), 0.5)


def test_other_classes_are_refused_with_what_is_left_to_do() -> None:
    for name in ("", *(one.name for one in NETWORKS)):
        if name not in PRUNABLE:
            with pytest.raises(SlimmingError, match=rf"found {name or 'one in a file'}; .*--student"):
                narrower(name, {}, 0.5)


def test_arguments_that_the_constructor_refuses_are_told_as_always() -> None:
    with pytest.raises(NetworkError, match=r"network.args: UNet needs channels"):
        narrower("UNet", {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "strides": [2]}, 0.5)
    with pytest.raises(NetworkError, match=r"network.args: PlainConvUNet refuses them"):
        narrower("PlainConvUNet", {**plain()[1], "features_per_stage": ["8", "16", "16"]}, 0.5)
    with pytest.raises(NetworkError, match=r"network.args: UNet refuses them"):
        narrower(*unet(channels=[[8], [12], [16]]), 0.5)


WIDTHS = st.lists(st.integers(2, 20), min_size=3, max_size=3)


@given(widths=WIDTHS, share=st.floats(0.2, 0.9), data=st.data())
@settings(max_examples=15, deadline=None)
def test_whatever_is_narrowed_loads_into_the_same_class(widths: list[int], share: float, data: Any) -> None:
    make = data.draw(st.sampled_from([unet, dynunet, plain, residual]))
    units = {unet: ("num_res_units", st.integers(0, 2)), dynunet: ("res_block", st.booleans())}
    key, values = units.get(make, ("conv_bias", st.booleans()))
    of = {unet: "channels", dynunet: "filters"}.get(make, "features_per_stage")
    name, args = make(data.draw(st.sampled_from([2, 3])), **{of: widths, key: data.draw(values)})
    try:
        student = narrower(name, args, share)
    except SlimmingError as error:
        reject_others(error)
        return
    for before, after in zip(widths, student[of], strict=True):
        assert 1 <= after <= before
        assert abs(after - share * before) <= max(1.0, share * before / 8)
    state = prune(make_network(name, args, 2, classes_of(args)), name, args, student)
    small = make_network(name, student, 2, classes_of(args))
    small.load_state_dict(state, strict=True)
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def reject_others(error: SlimmingError) -> None:
    """These three can happen to any network; another refusal is a fault of ours."""
    if not any(words in str(error) for words in ("changes none", "leaves no channel", "in one of the two only")):
        raise error
