"""Trained nnU-Net v2 folders with random but fixed weights, as nnU-Net writes them, and nnU-Net's own prediction."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel.orientations import axcodes2ornt, ornt_transform
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

RESAMPLE = "resample_data_or_seg_to_shape"
STATISTICS = {
    **{"mean": 110.0, "std": 60.0, "median": 100.0, "min": 1.0, "max": 255.0},
    **{"percentile_00_5": 20.0, "percentile_99_5": 220.0},
}
SCHEMES = ("CTNormalization", "ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization")
LABELS = {"background": 0, "one": 1, "two": 2}
NETWORKS = "dynamic_network_architectures.architectures.unet"


def architecture(axes: int = 3, network: str = "PlainConvUNet", widths: Sequence[int] = (6, 8)) -> dict[str, Any]:
    """A network of as many stages as `widths`, halved between them."""
    blocks = "n_blocks_per_stage" if network.startswith("Res") else "n_conv_per_stage"
    stages = len(widths)
    return {
        "network_class_name": f"{NETWORKS}.{network}",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(widths),
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": [[3] * axes] * stages,
            "strides": [[1] * axes] + [[2] * axes] * (stages - 1),
            blocks: [1] * stages,
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def old_architecture(widths: Sequence[int] = (6, 8)) -> dict[str, Any]:
    """The same in the words of plans before 2.3."""
    return {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": widths[0],
        "n_conv_per_stage_encoder": [1] * len(widths),
        "n_conv_per_stage_decoder": [1] * (len(widths) - 1),
        "num_pool_per_axis": [len(widths) - 1] * 3,
        "pool_op_kernel_sizes": [[1, 1, 1]] + [[2, 2, 2]] * (len(widths) - 1),
        "conv_kernel_sizes": [[3, 3, 3]] * len(widths),
        "unet_max_num_features": widths[-1],
    }


def resampling(order: int, *, is_seg: bool = False) -> dict[str, Any]:
    return {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}


def configuration(patch: Sequence[int], spacing: Sequence[float], **changes: Any) -> dict[str, Any]:
    """One configuration as nnU-Net's planner writes it; `architecture=None` leaves the key out."""
    settings = {
        "data_identifier": "nnUNetPlans_generated",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "median_image_size_in_voxels": [32.0] * len(patch),
        "spacing": list(spacing),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": RESAMPLE,
        "resampling_fn_data_kwargs": resampling(3),
        "resampling_fn_seg": RESAMPLE,
        "resampling_fn_seg_kwargs": resampling(1, is_seg=True),
        "resampling_fn_probabilities": RESAMPLE,
        "resampling_fn_probabilities_kwargs": resampling(1),
        "batch_dice": False,
        "architecture": architecture(len(patch)),
    } | changes
    return {key: value for key, value in settings.items() if value is not None}


@dataclass(frozen=True)
class Training:
    """What a generated folder was trained as. `configurations` are those of plans.json; `name` is the trained one."""

    name: str
    configurations: Mapping[str, Mapping[str, Any]]
    folds: tuple[int | str, ...] = (0,)
    channels: tuple[str, ...] = ("CT",)
    labels: Mapping[str, Any] = field(default_factory=lambda: dict(LABELS))
    regions_class_order: tuple[int, ...] | None = None
    transpose_forward: tuple[int, int, int] = (0, 1, 2)
    mirror_axes: tuple[int, ...] | None = None
    reader: str = "SimpleITKIO"
    old: bool = False

    @property
    def plans(self) -> dict[str, Any]:
        statistics = {str(channel): STATISTICS for channel in range(len(self.channels))}
        by = "modality" if self.old else "channel"
        return {
            "dataset_name": "Dataset999_Generated",
            "plans_name": "nnUNetPlans",
            "image_reader_writer": self.reader,
            "transpose_forward": list(self.transpose_forward),
            "transpose_backward": [int(axis) for axis in np.argsort(self.transpose_forward)],
            "configurations": copy.deepcopy(dict(self.configurations)),
            "experiment_planner_used": "ExperimentPlanner",
            "label_manager": "LabelManager",
            f"foreground_intensity_properties_{'by' if self.old else 'per'}_{by}": statistics,
        }

    @property
    def dataset(self) -> dict[str, Any]:
        names = {str(number): channel for number, channel in enumerate(self.channels)}
        content = {
            "modality" if self.old else "channel_names": names,
            "labels": dict(self.labels),
            "numTraining": 3,
            "file_ending": ".nii.gz",
        }
        if self.regions_class_order is not None:
            content["regions_class_order"] = list(self.regions_class_order)
        return content


def write_folder(results: Path, training: Training, seed: int = 0) -> Path:
    """The trained model folder under `results`; weights differ from fold to fold."""
    folder = results / f"nnUNetTrainer__nnUNetPlans__{training.name}"
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(training.plans, indent=4))
    (folder / "dataset.json").write_text(json.dumps(training.dataset, indent=4))
    for number, fold in enumerate(training.folds):
        (folder / f"fold_{fold}").mkdir()
        content = checkpoint(training, fold, network(training, seed + number))
        torch.save(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def network(training: Training, seed: int) -> torch.nn.Module:
    """The network that nnU-Net itself builds for the plan, with deep supervision, as trained."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nnU-Net announces that it rebuilds an old plan, and looks for moved classes
        manager = PlansManager(training.plans)
        settings = manager.get_configuration(training.name)
        torch.manual_seed(seed)
        made = get_network_from_plans(
            settings.network_arch_class_name,
            settings.network_arch_init_kwargs,
            settings.network_arch_init_kwargs_req_import,
            determine_num_input_channels(manager, settings, training.dataset),
            manager.get_label_manager(training.dataset).num_segmentation_heads,
            deep_supervision=True,
        )
    assert isinstance(made, torch.nn.Module)
    return _undecided(made)


def _undecided(made: torch.nn.Module) -> torch.nn.Module:
    """The network with outputs that no label wins by an offset: its last layers weigh features against each other."""
    layers = made.get_submodule("decoder.seg_layers")
    with torch.no_grad():
        for name, value in layers.named_parameters():
            value -= value.mean(1, keepdim=True) if name.endswith("weight") else value
    return made


def checkpoint(training: Training, fold: int | str, trained: torch.nn.Module) -> dict[str, Any]:
    """What nnUNetTrainer.save_checkpoint writes, NumPy numbers in the log and an optimiser's state among it."""
    optimiser = torch.optim.SGD(trained.parameters(), 1e-2, momentum=0.99, nesterov=True)
    return {
        "network_weights": trained.state_dict(),
        "optimizer_state": optimiser.state_dict(),
        "grad_scaler_state": {"scale": 65536.0, "growth_tracker": 3},
        "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)], "lrs": [0.01], "dice": [np.arange(3.0)]},
        "_best_ema": np.float64(0.75),
        "current_epoch": 2,
        "init_args": {
            "plans": training.plans,
            "configuration": training.name,
            "fold": fold,
            "dataset_json": training.dataset,
            "device": torch.device("cpu"),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": training.mirror_axes,
    }


def write_scan(
    folder: Path,
    name: str,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    channels: int = 1,
    codes: str = "LPS",
) -> list[Path]:
    """Files NAME_0000.nii.gz …: an asymmetric body in 1 … 255 with an uneven zero border around it.

    shape, spacing: along R, A, S; codes: the order in which the axes are stored.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}_{channel:04d}.nii.gz" for channel in range(channels)]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-20.5, 31.0, 7.25)
    turned = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    for channel, file in enumerate(files):
        image = nib.Nifti1Image(_body(shape, channel), affine).as_reoriented(turned)
        image.set_sform(image.affine, 1)
        image.set_qform(image.affine, 1)
        nib.save(image, file)
    return files


def _body(shape: tuple[int, int, int], channel: int) -> NDArray[np.int16]:
    i, j, k = (np.linspace(0, 1, size)[tuple(slice(None) if axis == a else None for a in range(3))] for axis, size in
               enumerate(shape))  # fmt: skip
    smooth = 120 + 60 * np.sin(9 * i + 3 * channel) * np.cos(7 * j) + 40 * k
    noise = np.random.default_rng(channel).normal(0, 12, shape)
    inside = (i > 0.06) & (i < 0.95) & (j > 0.1) & (k < 0.93)
    return np.where(inside, np.clip(np.rint(smooth + noise), 1, 255), 0).astype(np.int16)


@contextlib.contextmanager
def single_precision() -> Iterator[None]:
    """nnU-Net's accumulators in float32; the Gaussian keeps its own rounding to half."""
    half = torch.half
    torch.half = torch.float32
    try:
        yield
    finally:
        torch.half = half


class Oracle:
    """nnUNetPredictor on the CPU over one trained folder."""

    def __init__(self, folder: Path, folds: Sequence[int | str], checkpoint: str = "checkpoint_final.pth") -> None:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            self.predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
            self.predictor.initialize_from_trained_model_folder(str(folder), tuple(folds), checkpoint)
        self.io = self.predictor.plans_manager.image_reader_writer_class()

    def predict(self, files: Sequence[Path], output: Path, previous: Path | None = None) -> NDArray[np.float32]:
        """Writes the labels to `output` (.nii.gz) as nnU-Net does; returns the probabilities [class, z, y, x]."""
        image, properties = self.io.read_images([str(file) for file in files])
        seg = None if previous is None else self.io.read_seg(str(previous))[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            labels, probabilities = self.predictor.predict_single_npy_array(
                image, properties, seg, save_or_return_probabilities=True
            )
        self.io.write_seg(labels, str(output), properties)
        return np.asarray(probabilities)
