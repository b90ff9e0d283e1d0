"""nnU-Net plans as plain JSON, scans for them, and logits as a trained network gives; without torch and nnU-Net."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

from voxtile.chains.nnunet.exporting import LabelExporter
from voxtile.chains.nnunet.plan import NnunetPlan
from voxtile.chains.nnunet.preprocessing import GridProperties

DEFAULT = "resample_data_or_seg_to_shape"
TORCH = "resample_torch_fornnunet"
STATISTICS = {"mean": 40.0, "std": 90.0, "percentile_00_5": -150.0, "percentile_99_5": 260.0}
"""Of a training set of CT scans, for each channel."""


def resampling(order: int, *, is_seg: bool = False) -> dict[str, Any]:
    return {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}


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
        "resampling_fn_data_kwargs": resampling(3),
        "resampling_fn_seg": DEFAULT,
        "resampling_fn_seg_kwargs": resampling(1, is_seg=True),
        "resampling_fn_probabilities": DEFAULT,
        "resampling_fn_probabilities_kwargs": resampling(1),
        "architecture": {"network_class_name": "n", "arch_kwargs": {}, "_kw_requires_import": []},
    }
    top = {
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(c): STATISTICS for c in range(6)},
    }
    top |= {key: changes.pop(key) for key in list(changes) if key in top}
    return {**top, "configurations": {"3d": configuration | changes}}


def flat(plan: dict[str, Any], name: str = "3d") -> dict[str, Any]:
    """One configuration of `plan` merged into its top level, as a card holds it."""
    top = {key: value for key, value in plan.items() if key != "configurations"}
    return {**top, **plan["configurations"][name]}


def plan_json(**changes: Any) -> dict[str, Any]:
    """One configuration of a plans.json merged into its top level, as it travels in a model's card."""
    name = "resample_data_or_seg_to_shape"
    plan = {
        **{"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]},
        **{"spacing": [1.5, 1.0, 1.0], "patch_size": [16, 16, 16]},
        **{"normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False]},
        "foreground_intensity_properties_per_channel": {str(c): STATISTICS for c in range(5)},
        **{"resampling_fn_data": name, "resampling_fn_data_kwargs": resampling(3)},
        **{"resampling_fn_seg": name, "resampling_fn_seg_kwargs": resampling(1, is_seg=True)},
        **{"resampling_fn_probabilities": name, "resampling_fn_probabilities_kwargs": resampling(1)},
    }
    return plan | changes


def parsed(plan: dict[str, Any], name: str = "3d") -> NnunetPlan:
    return NnunetPlan.parse(flat(plan, name))


def scan(shape: tuple[int, int, int], channels: int = 1, border: bool = True) -> NDArray[np.float32]:
    """A scan [channel, z, y, x] in 0 … 255 with an uneven zero border and a hole inside."""
    z, y, x = np.indices(shape)
    ramp = 60 + 3.0 * z + 2.0 * y + x
    noise = np.random.default_rng(7).random((channels, *shape)) * 60
    steps = 20 * np.arange(channels)[:, None, None, None]
    data = np.asarray(np.clip(ramp + noise + steps, 1, 255), np.float32)
    if border:
        data[:, :2], data[:, :, -3:], data[..., :1], data[..., -2:] = 0, 0, 0, 0
        data[:, 6:8, 5:8, 6:9] = 0
    return data


def bordered_scan(shape: tuple[int, int, int] = (13, 17, 21), channels: int = 1) -> NDArray[np.float32]:
    """A scan [channel, z, y, x] in 1 … 255 with an uneven zero border and a zero hole."""
    data = np.random.default_rng(2).integers(1, 256, (channels, *shape)).astype(np.float32)
    data[:, :3], data[:, :, -2:], data[..., :4], data[:, 6:8, 5:9, 7:9] = 0, 0, 0, 0
    return data


def smooth_logits(shape: tuple[int, ...], classes: int, seed: int = 3) -> NDArray[np.float32]:
    """Logits [class, z, y, x] with compact winners and distant losers, as a trained network gives."""
    coarse = np.random.default_rng(seed).standard_normal((classes, *(-(-size // 4) + 1 for size in shape)))
    factors = [1.0, *(size / n for size, n in zip(shape, coarse.shape[1:], strict=True))]
    full = zoom(coarse, factors, order=1, mode="nearest", grid_mode=True)
    assert full.shape == (classes, *shape)
    return (full * 12 + np.random.default_rng(seed).standard_normal(full.shape) * 0.3).astype(np.float32)


def export_labels(
    logits: NDArray[Any], properties: GridProperties, plan: NnunetPlan, n_labels: int, **options: Any
) -> NDArray[Any]:
    """The label map [z, y, x] from `logits` [class, z, y, x] that come in one piece."""
    exporter = LabelExporter(properties, plan, n_labels=n_labels, **options)
    exporter.add_planes(logits)
    return exporter.finish()


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
"""By what is special about them: changes of the plan, and the spacing of a scan."""
