"""Valid inputs that the fuzzers start from, made by code."""

from __future__ import annotations

import bz2
import gzip
import io
import tempfile
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK

from tests.support.cards import card

ROI = [16, 16, 16]

SPEC: dict[str, Any] = {
    "name": "model",
    "title": "two structures",
    "network": {
        "name": "UNet",
        "args": {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]},
    },
    "weights": {"file": "weights.safetensors", "sha256": "0" * 64, "source": "made", "licence": "none"},
    "input": {
        "channels": ["CT"],
        "dtype": "int16",
        "orientation": "RAS",
        "spacing": [1.0, 1.0, 2.0],
        "intensity": {"rule": "range", "a_min": -100, "a_max": 400},
    },
    "output": {"labels": ["background", "one"], "scores": "logits", "dtype": "fp32"},
    "tiling": {"roi_size": ROI, "overlap": 0.5, "mode": "gaussian", "sigma_scale": 0.125, "background_at_most": -200.0},
    "serving": {
        "engines": ["onnxruntime", "openvino"],
        "default_engine": "openvino",
        "max_batch_size": 4,
        "preferred_batch_size": [4],
        "count": 1,
    },
    "precision": {"openvino": "fp32", "calibration": [["scan.nii.gz"]]},
    "acceptance": {"min_dice": 0.99, "scans": [["scan.nii.gz"]]},
}
SPECS = (
    SPEC,
    {**SPEC, "precision": {}, "acceptance": {}, "input": {"channels": ["a", "b"], "intensity": {"rule": "zscore"}}},
    {**SPEC, "tiling": {"roi_size": [64, 64], "slice_axis": 2, "multiple": 16, "overlap": 0}},
)

CARDS = (
    card(),
    card(intensity={"rule": "percentile", "lower": 1, "upper": 99}, background={"at_most": 0.0}, mirror_axes=[0, 1]),
    card(intensity={"rule": "fixed", "mean": [1.0], "std": [2.0], "lower": [0.0], "upper": [9.0]}, spacing=None),
    card(nnunet={"previous_stage": "other", "label_channels": ["a"]}, orientation=None, regions=True),
    card(roi_size=[32, 32], slice_axis=1, multiple=8),
)

_RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
CONFIGURATION: dict[str, Any] = {
    "data_identifier": "nnUNetPlans_3d_fullres",
    "preprocessor_name": "DefaultPreprocessor",
    "batch_size": 2,
    "patch_size": ROI,
    "median_image_size_in_voxels": [32.0, 32.0, 32.0],
    "spacing": [2.0, 1.0, 1.0],
    "normalization_schemes": ["CTNormalization"],
    "use_mask_for_norm": [False],
    "resampling_fn_data": "resample_data_or_seg_to_shape",
    "resampling_fn_data_kwargs": _RESAMPLING,
    "resampling_fn_seg": "resample_data_or_seg_to_shape",
    "resampling_fn_seg_kwargs": {**_RESAMPLING, "is_seg": True},
    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
    "resampling_fn_probabilities_kwargs": _RESAMPLING,
    "batch_dice": False,
    "architecture": {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 2,
            "features_per_stage": [4, 8],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
            "strides": [[1, 1, 1], [2, 2, 2]],
            "n_conv_per_stage": [1, 1],
            "n_conv_per_stage_decoder": [1],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    },
}
PLANS: dict[str, Any] = {
    "dataset_name": "Dataset999_Generated",
    "plans_name": "nnUNetPlans",
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "experiment_planner_used": "ExperimentPlanner",
    "label_manager": "LabelManager",
    "configurations": {"3d_fullres": CONFIGURATION, "lowres": {"inherits_from": "3d_fullres"}},
    "foreground_intensity_properties_per_channel": {
        "0": {
            "mean": 1.0,
            "std": 2.0,
            "median": 1.0,
            "min": 0.0,
            "max": 9.0,
            "percentile_00_5": 0.0,
            "percentile_99_5": 9.0,
        }
    },
}
DATASET: dict[str, Any] = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "one": 1, "two": 2},
    "numTraining": 3,
    "file_ending": ".nii.gz",
}
REGIONS: dict[str, Any] = {
    **DATASET,
    "labels": {"background": 0, "whole": [1, 2], "core": 2},
    "regions_class_order": [1, 2],
}
POSTPROCESSING: dict[str, Any] = {"postprocessing_fns": [], "postprocessing_kwargs": []}
NNUNET = (
    {"dataset": DATASET, "plans": PLANS},
    {"dataset": REGIONS, "plans": PLANS},
    {
        "dataset": DATASET,
        "plans": {**PLANS, "configurations": {"3d_fullres": {"inherits_from": "base"}, "base": CONFIGURATION}},
    },
)

CHECKPOINT: dict[str, Any] = {
    "network_weights": {"encoder.weight": {"tensor": [2, 3]}, "decoder.weight": {"tensor": [4]}},
    "init_args": {"configuration": "3d_fullres", "plans": PLANS, "dataset_json": DATASET},
    "trainer_name": "nnUNetTrainer",
    "inference_allowed_mirroring_axes": [0, 1, 2],
    "current_epoch": 1000,
}

INFERENCE: dict[str, Any] = {
    "bundle_root": ".",
    "image_key": "image",
    "channels": 1,
    "output_dir": "$@bundle_root + '/eval'",
    "network_def": {
        "_target_": "UNet",
        "spatial_dims": 3,
        "in_channels": "@channels",
        "out_channels": 3,
        "channels": [4, 8],
        "strides": [2],
        "num_res_units": 1,
    },
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "@image_key"},
            {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
            {"_target_": "Orientationd", "keys": "@image_key", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "@image_key", "pixdim": [1.5, 1.2, 1.0], "mode": "bilinear"},
            {
                "_target_": "ScaleIntensityRanged",
                "keys": "@image_key",
                "a_min": 0,
                "a_max": 1000,
                "b_min": 0.0,
                "b_max": 1.0,
                "clip": True,
            },
            {"_target_": "EnsureTyped", "keys": "@image_key"},
        ],
    },
    "inferer": {
        "_target_": "SlidingWindowInferer",
        "roi_size": ROI,
        "sw_batch_size": 2,
        "overlap": 0.5,
        "mode": "gaussian",
    },
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {
                "_target_": "Invertd",
                "keys": "pred",
                "transform": "@preprocessing",
                "orig_keys": "image",
                "nearest_interp": False,
                "to_tensor": True,
            },
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "_disabled_": True},
        ],
    },
}
_IMAGE = {
    "type": "image",
    "format": "magnitude",
    "num_channels": 1,
    "spatial_shape": ROI,
    "dtype": "float32",
    "channel_def": {"0": "image"},
}
_PRED = {**_IMAGE, "num_channels": 3, "channel_def": {"0": "background", "1": "one", "2": "two"}}
METADATA: dict[str, Any] = {
    "version": "0.1.0",
    "name": "Two structures",
    "task": "made",
    "copyright": "none",
    "network_data_format": {"inputs": {"image": _IMAGE}, "outputs": {"pred": _PRED}},
}
BUNDLES = (
    {"metadata": METADATA, "inference": INFERENCE},
    {"metadata": METADATA, "inference": {**INFERENCE, "inferer": "@window", "window": INFERENCE["inferer"]}},
)


def nifti_files() -> list[bytes]:
    """Small NIfTI files of both versions and byte orders, plain and compressed."""
    files = []
    for klass in (nib.Nifti1Image, nib.Nifti2Image):
        for dtype in (np.int16, np.float32, np.uint8):
            image = klass(np.arange(60).reshape(3, 4, 5).astype(dtype), np.diag([1.0, 2.0, 3.0, 1.0]))
            image.header["scl_slope"], image.header["scl_inter"] = 2.0, -1.0
            stream = io.BytesIO()
            image.to_file_map({"image": nib.FileHolder(fileobj=stream)})
            files += [stream.getvalue(), gzip.compress(stream.getvalue(), mtime=0)]
    return files


def scans_of_formats() -> list[bytes]:
    """Small scans of every format but NIfTI's single files; behind a header alone, bytes for its file of voxels."""
    values = np.arange(60).reshape(3, 4, 5).astype(np.int16)
    affine = np.array([[1.0, 0.1, 0, -3], [-0.1, 2.0, 0, 5], [0, 0, 3.0, 7], [0, 0, 0, 1]])
    mgh = nib.MGHImage(values, affine).to_bytes()
    pair, analyze = nib.nifti1.Nifti1PairHeader(), nib.analyze.AnalyzeHeader()
    for header in (pair, analyze):
        header.set_data_dtype(np.int16)
        header.set_data_shape(values.shape)
        header.set_zooms((1.0, 2.0, 3.0))
    raw = values.tobytes(order="F")
    place = b"space: LPS\nspace directions: (1,0,0) (0,2,0) (0.1,0,3)\nspace origin: (1,2,3)\n"
    nrrd = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 3 4 5\nendian: little\n" + place
    listed = (
        b"NRRD0005\ntype: short\ndimension: 4\nspace: RAS\nsizes: 1 3 4 5\nkinds: list domain domain domain\n"
        b"space directions: none (1,0,0) (0,2,0) (0,0,3)\nendian: big\nencoding: raw\n\n"
    )
    meta = b"ObjectType = Image\nNDims = 3\nDimSize = 3 4 5\nElementType = MET_SHORT\nElementSpacing = 1 2 3\n"
    matrix = b"TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 1 2 3\n"
    text = b" ".join(str(value).encode() for value in values.T.ravel())
    return [
        mgh,
        gzip.compress(mgh, mtime=0),
        bytes(pair.binaryblock) + bytes(600),
        bytes(analyze.binaryblock) + bytes(600),
        nrrd + b"encoding: raw\n\n" + raw,
        nrrd + b"encoding: gzip\n\n" + gzip.compress(raw, mtime=0),
        nrrd + b"encoding: bzip2\n\n" + bz2.compress(raw),
        nrrd + b"encoding: ascii\n\n" + text,
        nrrd + b"encoding: raw\ndata file: scan.zraw\n" + bytes(500),
        nrrd.replace(place, b"spacings: 1 2 3\n") + b"encoding: raw\nbyte skip: -1\n\n" + raw,
        listed + raw,
        meta + matrix + b"ElementDataFile = LOCAL\n" + raw,
        meta + matrix + b"CompressedData = True\nElementDataFile = LOCAL\n" + zlib.compress(raw),
        meta + b"BinaryData = False\nElementDataFile = LOCAL\n" + text,
        meta + matrix + b"HeaderSize = -1\nElementDataFile = scan.zraw\n" + bytes(500),
        _tiff(values),
    ]


def _tiff(values: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values.T.astype(np.uint8)), f"{folder}/a.tif")
        return Path(folder, "a.tif").read_bytes()
