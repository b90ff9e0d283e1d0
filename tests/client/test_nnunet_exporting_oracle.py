"""nnU-Net's export and the whole chain around it, against nnU-Net's own preprocessor and export functions."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

from tests.support.nnunet_plans import (
    CHAINS,
    export_labels,
    parsed,
    plans,
    scan,
    smooth_logits,
)
from voxtile.chains.nnunet.block_argmax import REGION_LOGIT
from voxtile.chains.nnunet.exporting import (
    export_probabilities,
)
from voxtile.chains.nnunet.plan import NnunetPlan
from voxtile.chains.nnunet.preprocessing import (
    preprocess,
)

TIES = 2e-5
"""Share of voxels whose two best scores are equal to float32's rounding, in which either label is right."""

DATA_TOLERANCE = 1e-5
"""Of a channel's range: order-3 resampling in float32 against nnU-Net's in float64."""

PROBABILITY_TOLERANCE = 1e-5


def oracle_preprocess(
    data: NDArray[Any], spacing: Any, plan: dict[str, Any], name: str = "3d"
) -> tuple[NDArray[Any], dict[str, Any], PlansManager, Any]:
    manager = PlansManager(copy.deepcopy(plan))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        configuration = manager.get_configuration(name)
    properties = {"spacing": list(spacing)}
    labels = {"labels": {"background": 0, "a": 1}}
    ready, _, properties = DefaultPreprocessor(verbose=False).run_case_npy(
        data, None, properties, manager, configuration, labels
    )
    return ready, properties, manager, configuration


def dataset(n_labels: int, regions: list[int] | None) -> dict[str, Any]:
    if regions is None:
        return {"labels": {"background": 0, **{f"l{i}": i for i in range(1, n_labels)}}}
    names = {f"r{i}": list(range(i, n_labels)) for i in range(1, n_labels)}
    return {"labels": {"background": 0, **names}, "regions_class_order": regions}


@pytest.mark.parametrize("regions", [None, [1, 3, 2]])
@pytest.mark.parametrize("name", CHAINS)
def test_chain_equals_nnunet(name: str, regions: list[int] | None) -> None:
    changes, spacing = CHAINS[name]
    plan = plans(**changes)
    data = scan((14, 22, 27), len(plan["configurations"]["3d"]["normalization_schemes"]))
    expected, properties, manager, configuration = oracle_preprocess(data, spacing, plan)
    before = data.copy()
    card = parsed(plan)
    found = preprocess(data, spacing, card)
    np.testing.assert_array_equal(data, before)
    assert (found.data.shape, found.data.dtype) == (expected.shape, expected.dtype)
    span = np.ptp(expected, axis=(1, 2, 3), keepdims=True)
    assert (np.abs(found.data - expected) / span).max() < DATA_TOLERANCE

    heads = 4 if regions is None else 3
    logits = smooth_logits(found.data.shape[1:], heads)
    labels = manager.get_label_manager(dataset(4, regions))
    wanted, probabilities = convert_predicted_logits_to_segmentation_with_correct_shape(
        *(logits.copy(), manager, configuration, labels, properties), return_probabilities=True, num_threads_torch=1
    )
    result = export_labels(logits, found.properties, card, n_labels=4, regions_class_order=regions)
    assert (result.shape, result.dtype) == (data.shape[1:], wanted.dtype)
    assert len(np.unique(wanted)) > 2
    assert (result != wanted).mean() <= TIES
    chance = export_probabilities(logits, found.properties, card, regions=regions is not None)
    assert chance.dtype == probabilities.dtype
    np.testing.assert_allclose(chance, probabilities, atol=PROBABILITY_TOLERANCE)


def old_plans() -> dict[str, Any]:
    """The format before nnU-Net 2.4: no architecture, and other names of the network and the statistics."""
    plan = plans()
    configuration = plan["configurations"]["3d"]
    del configuration["architecture"]
    configuration |= {
        **{"UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 8, "unet_max_num_features": 32},
        **{"n_conv_per_stage_encoder": [2, 2], "n_conv_per_stage_decoder": [2], "num_pool_per_axis": [1, 1, 1]},
        **{"pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2]], "conv_kernel_sizes": [[3, 3, 3], [3, 3, 3]]},
    }
    plan["foreground_intensity_properties_by_modality"] = plan.pop("foreground_intensity_properties_per_channel")
    plan["configurations"]["3d_lowres"] = {"inherits_from": "3d", "spacing": [2.6, 2.1, 2.2]}
    return plan


def by_manager(manager: PlansManager, configuration: Any) -> NnunetPlan:
    """The plan as nnU-Net itself reads it, old names translated and inherited values filled in."""
    return NnunetPlan.parse(
        {
            **configuration.configuration,
            "transpose_forward": manager.transpose_forward,
            "transpose_backward": manager.transpose_backward,
            "foreground_intensity_properties_per_channel": manager.foreground_intensity_properties_per_channel,
        }
    )


@pytest.mark.parametrize("name", ["3d", "3d_lowres"])
def test_old_plans_and_inherited_configurations(name: str) -> None:
    plan, data, spacing = old_plans(), scan((14, 22, 27)), (2.0, 1.3, 1.2)
    expected, properties, manager, configuration = oracle_preprocess(data, spacing, plan, name)
    card = by_manager(manager, configuration)
    found = preprocess(data, spacing, card)
    np.testing.assert_allclose(found.data, expected, atol=DATA_TOLERANCE * np.ptp(expected))
    logits = smooth_logits(expected.shape[1:], 3)
    labels = manager.get_label_manager(dataset(3, None))
    wanted = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits.copy(), manager, configuration, labels, properties, num_threads_torch=1
    )
    assert (export_labels(logits, found.properties, card, n_labels=3) != wanted).mean() <= TIES


@pytest.mark.parametrize("regions", [None, [1, 3, 2]])
@pytest.mark.parametrize("name", ["upsampled", "downsampled", "transposed", "separate z", "torch", "no resampling"])
def test_many_blocks_equal_nnunet(name: str, regions: list[int] | None) -> None:
    changes, spacing = CHAINS[name]
    plan, data = plans(**changes), scan((45, 71, 80))
    expected, properties, manager, configuration = oracle_preprocess(data, spacing, plan)
    card = parsed(plan)
    grid = preprocess(data, spacing, card).properties
    logits = smooth_logits(expected.shape[1:], 4 if regions is None else 3)
    labels = manager.get_label_manager(dataset(4, regions))
    wanted = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits.copy(), manager, configuration, labels, properties, num_threads_torch=1
    )
    found = export_labels(logits, grid, card, n_labels=4, regions_class_order=regions, threads=2)
    assert (found != wanted).mean() <= TIES


def test_region_threshold_is_where_torchs_sigmoid_passes_one_half() -> None:
    logits = np.nextafter(np.float32(REGION_LOGIT), np.array([0, 1], np.float32)).repeat(32)
    passes = torch.sigmoid(torch.from_numpy(logits)) > 0.5
    assert passes.tolist() == [False] * 32 + [True] * 32
