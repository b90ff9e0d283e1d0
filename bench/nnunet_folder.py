"""A trained nnU-Net v2 folder as nnU-Net writes it, with the benchmark's own weights in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .density_network import MODEL_SPACING, fingerprint
from .networks import TISSUES, Shape, architecture, nnunet_network, trained_steps
from .scans import CT_LABELS

RESAMPLING = "resample_data_or_seg_to_shape"


def brain_folder(data: Path, widths: tuple[int, ...], roi: Shape) -> Path:
    """A model of the brain's tissues at 1 mm, z-score."""
    labels = {name: value for value, name in enumerate(TISSUES)}
    return _folder(data, "brain", widths, roi, labels, "ZScoreNormalization", (1.0, 1.0, 1.0))


def ct_folder(data: Path, widths: tuple[int, ...], roi: Shape) -> Path:
    """A model of the made-up CT's 25 labels, nnU-Net's CT rule."""
    labels = {"background": 0} | {f"organ {value}": value for value in range(1, CT_LABELS)}
    return _folder(data, "chest", widths, roi, labels, "CTNormalization", (MODEL_SPACING,) * 3)


def _folder(
    data: Path,
    kind: str,
    widths: tuple[int, ...],
    roi: Shape,
    labels: Mapping[str, int],
    rule: str,
    spacing: tuple[float, float, float],
) -> Path:
    steps = trained_steps(data, kind, widths)
    size = f"{widths[0]}-{roi[0]}" + ("" if steps is None else f"-trained-{steps}")
    folder = data / f"nnunet-{kind}-{size}" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    checkpoint = folder / "fold_0" / "checkpoint_final.pth"
    if checkpoint.exists():
        return folder
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    plan = _plans(kind, widths, roi, rule, spacing)
    _write(folder / "plans.json", plan)
    _write(folder / "dataset.json", _dataset(kind, labels, rule))
    network = nnunet_network(data, kind, widths, roi)
    content = {
        "network_weights": network.state_dict(),
        "init_args": {"configuration": "3d_fullres", "fold": 0},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": None,
    }
    partial = checkpoint.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(checkpoint)
    return folder


def _dataset(kind: str, labels: Mapping[str, int], rule: str) -> dict[str, Any]:
    channel = "CT" if rule == "CTNormalization" else "T1"
    return {
        "name": f"bench {kind}",
        "channel_names": {"0": channel},
        "labels": dict(labels),
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }


def _plans(
    kind: str, widths: tuple[int, ...], roi: Shape, rule: str, spacing: tuple[float, float, float]
) -> dict[str, Any]:
    data = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    extra = {
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "nonlin": "torch.nn.LeakyReLU",
    }
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(roi),
        "median_image_size_in_voxels": [float(size) for size in roi],
        "spacing": list(spacing),
        "normalization_schemes": [rule],
        "use_mask_for_norm": [False],
        "resampling_fn_data": RESAMPLING,
        "resampling_fn_seg": RESAMPLING,
        "resampling_fn_data_kwargs": data,
        "resampling_fn_seg_kwargs": {**data, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": RESAMPLING,
        "resampling_fn_probabilities_kwargs": {**data, "order": 1},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": architecture(widths, extra),
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    return {
        "dataset_name": f"Dataset001_bench_{kind}",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": list(spacing),
        "original_median_shape_after_transp": list(roi),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": fingerprint(roi)},
    }


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
