"""nnU-Net's export and the whole chain around it, against nnU-Net's own preprocessor and export functions."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.postprocessing.remove_connected_components import (
    apply_postprocessing,
    remove_all_but_largest_component_from_segmentation,
)
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

from voxtile.chains.nnunet import block_argmax
from voxtile.chains.nnunet.block_argmax import REGION_LOGIT, candidates
from voxtile.chains.nnunet.exporting import LabelExporter, export_probabilities, label_dtype
from voxtile.chains.nnunet.plan import KeepLargest, NnunetModel, NnunetPlan
from voxtile.chains.nnunet.postprocessing import postprocess
from voxtile.chains.nnunet.preprocessing import GridProperties, box_slices, preprocess
from voxtile.errors import ModelError

TIES = 2e-5
"""Share of voxels whose two best scores are equal to float32's rounding, in which either label is right."""
DATA_TOLERANCE = 1e-5
"""Of a channel's range: order-3 resampling in float32 against nnU-Net's in float64."""
PROBABILITY_TOLERANCE = 1e-5
DEFAULT = "resample_data_or_seg_to_shape"
TORCH = "resample_torch_fornnunet"
FIGURES = {"mean": 40.0, "std": 90.0, "percentile_00_5": -150.0, "percentile_99_5": 260.0}


def plans(**changes: Any) -> dict[str, Any]:
    """A plans.json as nnU-Net writes it, with one configuration named 3d."""
    configuration = {
        "data_identifier": "nnUNetPlans_3d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16, 16, 16],
        "spacing": [1.5, 1.0, 1.0],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": DEFAULT,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_seg": DEFAULT,
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities": DEFAULT,
        "resampling_fn_probabilities_kwargs": {
            **{"is_seg": False, "order": 1, "order_z": 0},
            "force_separate_z": None,
        },
        "architecture": {"network_class_name": "n", "arch_kwargs": {}, "_kw_requires_import": []},
    }
    top = {
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(c): FIGURES for c in range(6)},
    }
    top |= {key: changes.pop(key) for key in list(changes) if key in top}
    return {**top, "configurations": {"3d": configuration | changes}}


def flat(plan: dict[str, Any], name: str = "3d", labels: dict[str, Any] | None = None) -> dict[str, Any]:
    """The plan as a card holds it: the configuration merged into plain JSON."""
    manager = PlansManager(copy.deepcopy(plan))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nnU-Net announces that it rebuilds an old plan
        configuration = manager.get_configuration(name)
    fields = {
        **configuration.configuration,
        "transpose_forward": manager.transpose_forward,
        "transpose_backward": manager.transpose_backward,
        "foreground_intensity_properties_per_channel": manager.foreground_intensity_properties_per_channel,
    }
    if labels is not None:
        manager_of_labels = manager.get_label_manager({"labels": labels})
        fields["foreground_labels"] = [int(label) for label in manager_of_labels.foreground_labels]
    return fields


def as_card(plan: dict[str, Any], name: str = "3d") -> NnunetPlan:
    return NnunetPlan.parse(flat(plan, name))


def case(shape: tuple[int, int, int], channels: int = 1, border: bool = True) -> NDArray[np.float32]:
    """A case [channel, z, y, x] in 0 … 255 with an uneven zero border and a hole inside."""
    z, y, x = np.indices(shape)
    ramp = 60 + 3.0 * z + 2.0 * y + x
    noise = np.random.default_rng(7).random((channels, *shape)) * 60
    steps = 20 * np.arange(channels)[:, None, None, None]
    data = np.asarray(np.clip(ramp + noise + steps, 1, 255), np.float32)
    if border:
        data[:, :2], data[:, :, -3:], data[..., :1], data[..., -2:] = 0, 0, 0, 0
        data[:, 6:8, 5:8, 6:9] = 0
    return data


def smooth_logits(shape: tuple[int, ...], classes: int, seed: int = 3) -> NDArray[np.float32]:
    """Logits [class, z, y, x] with compact winners and distant losers, as a trained network gives."""
    coarse = np.random.default_rng(seed).standard_normal((classes, *(-(-size // 4) + 1 for size in shape)))
    full = torch.nn.functional.interpolate(torch.from_numpy(coarse[None]), shape, mode="trilinear")[0].numpy()
    return (full * 12 + np.random.default_rng(seed).standard_normal(full.shape) * 0.3).astype(np.float32)


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


def export_labels(
    logits: NDArray[Any], properties: GridProperties, plan: NnunetPlan, n_labels: int, **options: Any
) -> NDArray[Any]:
    """The label map [z, y, x] from `logits` [class, z, y, x] that come in one piece."""
    exporter = LabelExporter(properties, plan, n_labels=n_labels, **options)
    exporter.add_planes(logits)
    return exporter.finish()


def dataset(n_labels: int, regions: list[int] | None) -> dict[str, Any]:
    if regions is None:
        return {"labels": {"background": 0, **{f"l{i}": i for i in range(1, n_labels)}}}
    names = {f"r{i}": list(range(i, n_labels)) for i in range(1, n_labels)}
    return {"labels": {"background": 0, **names}, "regions_class_order": regions}


def fast_resampling(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"resampling_fn_probabilities": DEFAULT, "resampling_fn_probabilities_kwargs": {"is_seg": False, **kwargs}}


MIXED = [
    *("CTNormalization", "ZScoreNormalization", "ZScoreNormalization"),
    *("NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization"),
]
CHAINS: dict[str, tuple[dict[str, Any], tuple[float, float, float]]] = {
    "upsampled": ({}, (2.0, 1.3, 1.2)),
    "downsampled": ({"spacing": [3.0, 2.2, 1.9]}, (2.0, 1.3, 1.2)),
    "unchanged": ({}, (1.5, 1.0, 1.0)),
    "transposed": (
        {"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0], "spacing": [1.1, 1.7, 0.9]},
        (2.0, 1.3, 1.2),
    ),
    "mirrored transpose": (
        {"transpose_forward": [1, 0, 2], "transpose_backward": [1, 0, 2], "spacing": [1.1, 1.7, 0.9]},
        (2.0, 1.3, 1.2),
    ),
    "separate z": ({"spacing": [4.0, 0.8, 0.9]}, (5.0, 1.0, 1.1)),
    "separate z by the plan only": ({"spacing": [4.0, 0.8, 0.9]}, (2.0, 1.0, 1.1)),
    "separate last axis": ({"spacing": [1.0, 0.8, 3.0]}, (1.2, 1.0, 5.0)),
    "separate z, linear": (
        {"spacing": [4.0, 0.8, 0.9], **fast_resampling({"order": 1, "order_z": 1, "force_separate_z": True})},
        (5.0, 1.0, 1.1),
    ),
    "never separate": ({"spacing": [4.0, 0.8, 0.9], **fast_resampling({"order": 1})}, (5.0, 1.0, 1.1)),
    "cubic scores": (fast_resampling({"order": 3, "force_separate_z": None}), (2.0, 1.3, 1.2)),
    "nearest scores": (fast_resampling({"order": 0, "force_separate_z": None}), (2.0, 1.3, 1.2)),
    "all schemes": (
        {"normalization_schemes": MIXED, "use_mask_for_norm": [False, False, True, False, False, False]},
        (2.0, 1.3, 1.2),
    ),
    "two dimensions": ({"spacing": [1.0, 1.0], "patch_size": [16, 16]}, (3.0, 1.3, 1.2)),
    "two dimensions, thick": ({"spacing": [1.0, 1.0], "patch_size": [16, 16]}, (6.0, 1.3, 1.2)),
    "torch": (
        {
            **{f"resampling_fn_{what}": TORCH for what in ("data", "probabilities")},
            **{f"resampling_fn_{what}_kwargs": {"is_seg": False} for what in ("data", "probabilities")},
        },
        (5.0, 1.3, 1.2),
    ),
    "no resampling": (
        {
            **{f"resampling_fn_{what}": "no_resampling_hack" for what in ("data", "probabilities", "seg")},
            **{f"resampling_fn_{what}_kwargs": {} for what in ("data", "probabilities", "seg")},
        },
        (2.0, 1.3, 1.2),
    ),
}


@pytest.mark.parametrize("regions", [None, [1, 3, 2]])
@pytest.mark.parametrize("name", CHAINS)
def test_chain_equals_nnunet(name: str, regions: list[int] | None) -> None:
    changes, spacing = CHAINS[name]
    plan = plans(**changes)
    data = case((14, 22, 27), len(plan["configurations"]["3d"]["normalization_schemes"]))
    expected, properties, manager, configuration = oracle_preprocess(data, spacing, plan)
    before = data.copy()
    card = as_card(plan)
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
    """The format before nnU-Net 2.4: no architecture, other names for the network's and the fingerprint's figures."""
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


@pytest.mark.parametrize("name", ["3d", "3d_lowres"])
def test_old_plans_and_inherited_configurations(name: str) -> None:
    plan, data, spacing = old_plans(), case((14, 22, 27)), (2.0, 1.3, 1.2)
    expected, properties, manager, configuration = oracle_preprocess(data, spacing, plan, name)
    card = as_card(plan, name)
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
    plan, data = plans(**changes), case((45, 71, 80))
    expected, properties, manager, configuration = oracle_preprocess(data, spacing, plan)
    card = as_card(plan)
    grid = preprocess(data, spacing, card).properties
    logits = smooth_logits(expected.shape[1:], 4 if regions is None else 3)
    labels = manager.get_label_manager(dataset(4, regions))
    wanted = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits.copy(), manager, configuration, labels, properties, num_threads_torch=1
    )
    found = export_labels(logits, grid, card, n_labels=4, regions_class_order=regions, threads=2)
    assert (found != wanted).mean() <= TIES


def prepared(changes: dict[str, Any] | None = None, spacing: Any = (2.0, 1.3, 1.2)) -> tuple[NnunetPlan, Any]:
    card = as_card(plans(**(changes or {})))
    return card, preprocess(case((14, 22, 27)), spacing, card).properties


PIECES = ("upsampled", "separate z", "cubic scores", "no resampling")


@given(cuts=st.lists(st.integers(1, 18), max_size=6), name=st.sampled_from([*PIECES]))
@settings(max_examples=25, deadline=None)
def test_feeding_in_pieces_changes_nothing(cuts: list[int], name: str) -> None:
    card, grid = prepared(*CHAINS[name])
    logits = smooth_logits(grid.shape_after_resampling, 4)
    whole = export_labels(logits, grid, card, n_labels=4)
    exporter = LabelExporter(grid, card, n_labels=4, threads=1)
    edges = sorted({0, logits.shape[1], *(cut for cut in cuts if cut < logits.shape[1])})
    for start, stop in itertools.pairwise(edges):
        planes = logits[:, start:stop].copy()
        exporter.add_planes(planes)
        planes[...] = np.nan  # the feeder may use its memory again
    np.testing.assert_array_equal(exporter.finish(), whole)


@pytest.mark.parametrize("planes", [1, 5, 400])
@pytest.mark.parametrize("classes", [1, 2, 7])
def test_without_resampling_the_highest_score_wins_voxel_by_voxel(
    classes: int, planes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    card, grid = prepared(*CHAINS["no resampling"])
    shape = grid.shape_after_resampling
    monkeypatch.setattr(block_argmax, "AT_ONCE", planes * shape[1] * shape[2])
    # Rounded, so that classes tie often: the first of them counts.
    logits = np.round(smooth_logits(shape, classes) / 4)
    wanted = np.zeros(grid.shape_before_cropping, np.uint8)
    wanted[box_slices(grid.bbox)] = logits.argmax(0)
    found = export_labels(logits, grid, card, n_labels=classes, threads=2)
    np.testing.assert_array_equal(found, wanted.transpose(card.transpose_backward))


@pytest.mark.parametrize("name", ["upsampled", "no resampling"])
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_are_taken(dtype: Any, name: str) -> None:
    card, grid = prepared(*CHAINS[name])
    logits = smooth_logits(grid.shape_after_resampling, 4).astype(dtype)
    expected = export_labels(logits.astype(np.float32), grid, card, n_labels=4)
    np.testing.assert_array_equal(export_labels(logits, grid, card, n_labels=4), expected)


@pytest.mark.parametrize("n_labels", [2, 255, 256, 300])
def test_label_type_is_nnunets(n_labels: int) -> None:
    expected = np.uint8 if len(range(1, n_labels)) < 255 else np.uint16
    assert label_dtype(n_labels) == expected


def test_many_classes_use_uint16() -> None:
    card, grid = prepared()
    logits = np.zeros((300, *grid.shape_after_resampling), np.float32)
    logits[299, :, :, : logits.shape[3] // 2], logits[257, :, :, logits.shape[3] // 2 :] = 5, 5
    labels = export_labels(logits, grid, card, n_labels=300)
    assert labels.dtype == np.uint16
    assert set(np.unique(labels)) == {0, 257, 299}


def test_equal_scores_go_to_the_first_class() -> None:
    card, grid = prepared()
    logits = np.zeros((3, *grid.shape_after_resampling), np.float32)
    logits[1:] = 1
    assert set(np.unique(export_labels(logits, grid, card, n_labels=3))) == {0, 1}


def test_region_threshold_is_where_torchs_sigmoid_passes_one_half() -> None:
    logits = np.nextafter(np.float32(REGION_LOGIT), np.array([0, 1], np.float32)).repeat(32)
    passes = torch.sigmoid(torch.from_numpy(logits)) > 0.5
    assert passes.tolist() == [False] * 32 + [True] * 32


@given(seed=st.integers(0, 10**6), classes=st.integers(1, 12), spread=st.floats(0.1, 10))
@settings(max_examples=60, deadline=None)
def test_classes_left_out_never_win(seed: int, classes: int, spread: float) -> None:
    random = np.random.default_rng(seed)
    block = random.standard_normal((classes, 3, 4, 5)) + random.standard_normal((classes, 1, 1, 1)) * spread
    block = block.astype(np.float32)
    weights = random.dirichlet(np.full(60, 0.2), 200)
    winners = (block.reshape(classes, -1).astype(float) @ weights.T).argmax(0)
    assert set(winners) <= set(candidates(block.reshape(classes, -1).max(1), block))


def test_distant_classes_are_left_out() -> None:
    block = np.full((40, 4, 4, 4), -9, np.float32)
    block[3], block[7, :, :2], block[7, :, 2:] = 4, 8, 1
    assert list(candidates(block.reshape(40, -1).max(1), block)) == [3, 7]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 5, 9, 9), "expected scores of shape"),
        ((4, 999), "planes of scores, got 999"),
        ((4, 2, 3), "expected scores"),
    ],
)
def test_wrong_scores_are_refused(shape: tuple[int, ...], message: str) -> None:
    card, grid = prepared()
    full = (*shape, *grid.shape_after_resampling[1:]) if len(shape) == 2 else shape
    with pytest.raises(ModelError, match=message):
        LabelExporter(grid, card, n_labels=4).add_planes(np.zeros(full, np.float32))


def test_missing_planes_are_refused() -> None:
    card, grid = prepared()
    exporter = LabelExporter(grid, card, n_labels=4)
    exporter.add_planes(smooth_logits(grid.shape_after_resampling, 4)[:, :3])
    with pytest.raises(ModelError, match="planes of scores, got 3"):
        exporter.finish()


def test_plan_that_cannot_be_exported_is_refused() -> None:
    changes = {"resampling_fn_probabilities": "no_resampling_hack", "resampling_fn_probabilities_kwargs": {}}
    card, grid = prepared(changes)
    with pytest.raises(ModelError, match="resamples scans but not probabilities"):
        LabelExporter(grid, card, n_labels=4)


def keep(*labels: int) -> KeepLargest:
    return KeepLargest(op="keep_largest", labels=labels)


STEPS: list[list[list[int]]] = [[[1, 2, 3]], [[1]], [[2], [3]], [[1, 2], [3], [1]]]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("share", [0.1, 0.35])
def test_postprocessing_equals_nnunet(steps: list[list[int]], share: float) -> None:
    random = np.random.default_rng(5)
    seg = (random.integers(1, 4, (18, 20, 22)) * (random.random((18, 20, 22)) < share)).astype(np.uint8)
    functions = [remove_all_but_largest_component_from_segmentation] * len(steps)
    kwargs = [{"labels_or_regions": labels if len(labels) == 1 else [tuple(labels)]} for labels in steps]
    expected = apply_postprocessing(seg, functions, kwargs)
    before = seg.copy()
    found = postprocess(seg, [keep(*labels) for labels in steps])
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(seg, before)
    assert found.dtype == expected.dtype


def test_postprocessing_keeps_equally_large_components() -> None:
    seg = np.zeros((4, 9, 4), np.uint8)
    seg[1, 1], seg[1, 5], seg[3, 8, 0] = 1, 1, 1
    expected = remove_all_but_largest_component_from_segmentation(seg, 1)
    np.testing.assert_array_equal(postprocess(seg, [keep(1)]), expected)


def test_postprocessing_of_an_empty_mask() -> None:
    seg = np.zeros((3, 3, 3), np.uint8)
    np.testing.assert_array_equal(postprocess(seg, [keep(1)]), seg)


@pytest.mark.parametrize(
    ("step", "key"),
    [
        ({"op": "erode"}, "op"),
        ({"op": "keep_largest"}, "labels"),
        ({"op": "keep_largest", "labels": []}, "labels"),
        ({"op": "keep_largest", "labels": ["a"]}, "labels.0"),
        ({"op": "keep_largest", "labels": [1.5]}, "labels.0"),
    ],
)
def test_unknown_postprocessing_is_refused_by_its_key(step: dict[str, Any], key: str) -> None:
    with pytest.raises(ModelError, match=rf"postprocessing\.0\.{key}"):
        NnunetModel.parse(flat(plans()) | {"n_labels": 4, "postprocessing": [step]})
