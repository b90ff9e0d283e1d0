"""Bundles in the shapes that MONAI's model zoo publishes, with small networks, small tiles and generated weights."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser
from monai.networks.nets import DiNTS, TopologyInstance
from numpy.typing import NDArray
from torch import nn

from tests.support.bundles import metadata
from tests.support.network_files import write_scripted

COMMON: dict[str, Any] = {
    "imports": ["$import glob", "$import numpy", "$import os"],
    "bundle_root": ".",
    "image_key": "image",
    "output_dir": "$@bundle_root + '/eval'",
    "output_dtype": "$numpy.float32",
    "load_pretrain": True,
    "dataset_dir": "/data",
    "datalist": "$list(sorted(glob.glob(@dataset_dir + '/*.nii.gz')))",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "network": "$@network_def.to(@device)",
    "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
    "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        **{"device": "@device", "val_data_loader": "@dataloader", "network": "@network", "inferer": "@inferer"},
        **{"postprocessing": "@postprocessing", "val_handlers": "@handlers", "amp": True},
    },
    "checkpointloader": {
        "_target_": "CheckpointLoader",
        "load_path": "$@bundle_root + '/models/model.pt'",
        "load_dict": {"model": "@network"},
    },
    "initialize": [
        "$monai.utils.set_determinism(seed=123)",
        "$@checkpointloader(@evaluator) if @load_pretrain else None",
    ],
    "run": ["$@evaluator.run()"],
}
KEY = "@image_key"
TIE = 1e-6
"""Probabilities that differ by no more have no order. At the rim of a crop MONAI has 1e-16 where the client has 0."""


def step(name: str, **arguments: Any) -> dict[str, Any]:
    """A transform of the image."""
    return {"_target_": name, "keys": KEY, **arguments}


def after(name: str, **arguments: Any) -> dict[str, Any]:
    """A transform of the prediction."""
    return {"_target_": name, "keys": "pred", **arguments}


LOAD, FIRST, TYPED = step("LoadImaged"), step("EnsureChannelFirstd"), step("EnsureTyped")
RAS = step("Orientationd", axcodes="RAS")
SOFTMAX, SIGMOID = after("Activationsd", softmax=True), after("Activationsd", sigmoid=True)
ARGMAX = after("AsDiscreted", argmax=True)
INVERT = after("Invertd", transform="@preprocessing", orig_keys=KEY, nearest_interp=False, to_tensor=True)
SAVE = after("SaveImaged", output_dir="@output_dir", output_dtype="@output_dtype", meta_keys="pred_meta_dict")


def spacing(*pixdim: float, **more: Any) -> dict[str, Any]:
    return step("Spacingd", pixdim=list(pixdim), mode="bilinear", **more)


def window(low: float, high: float) -> dict[str, Any]:
    return step("ScaleIntensityRanged", a_min=low, a_max=high, b_min=0, b_max=1, clip=True)


def sliding(roi: list[int], **more: Any) -> dict[str, Any]:
    return {"_target_": "SlidingWindowInferer", "roi_size": roi, "sw_batch_size": 2, **more}


def unet(labels: int, dims: int = 3, **more: Any) -> dict[str, Any]:
    return {
        "_target_": "UNet",
        **{"spatial_dims": dims, "in_channels": 1, "out_channels": labels, "channels": [4, 8, 8], "strides": [2, 2]},
        **{"num_res_units": 1, **more},
    }


def segresnet(channels: int, labels: int) -> dict[str, Any]:
    return {
        "_target_": "SegResNet",
        **{"spatial_dims": 3, "in_channels": channels, "out_channels": labels, "init_filters": 8},
        **{"blocks_down": [1, 1], "blocks_up": [1], "dropout_prob": 0.2},
    }


@dataclass(frozen=True)
class Shape:
    """What a bundle of the zoo looks like.

    Attributes:
        config: parts of its inference configuration that are not COMMON; None takes one of those out.
        labels: the output channels.
        channels: of the input, as the metadata says; there may be more names than channels, or fewer.
        count: how many input channels there are.
        files: the names of its weights.
        ending: of its configuration.
        size: of a scan, in voxels.
        codes: how a scan is stored.
        whole: the size of the input in the metadata, where that is a whole image.
        exported: makes the network of models/model.ts, where there is one.
    """

    config: dict[str, Any]
    labels: list[str]
    channels: list[str] = field(default_factory=lambda: ["image"])
    count: int = 1
    files: tuple[str, ...] = ("model.pt",)
    ending: str = "json"
    size: tuple[int, int, int] = (38, 31, 27)
    codes: str = "LPS"
    whole: list[int] | None = None
    exported: Callable[[], nn.Module] | None = None


def dints() -> nn.Module:
    codes = [np.ones((2, 4), dtype=int), np.arange(8).reshape(2, 4) % 5]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        space = TopologyInstance(codes, channel_mul=0.25, num_blocks=2, num_depths=2, device="cpu")
        return DiNTS(space, 1, 3, use_downsample=True, node_a=torch.ones(3, 2)).eval()


def pre(*steps: Any) -> dict[str, Any]:
    return {"preprocessing": {"_target_": "Compose", "transforms": list(steps)}}


def post(*steps: Any) -> dict[str, Any]:
    return {"postprocessing": {"_target_": "Compose", "transforms": list(steps)}}


SHAPES: dict[str, Shape] = {
    "spleen": Shape(
        {
            "network_def": unet(2, norm="batch"),
            **pre(LOAD, FIRST, RAS, spacing(1.5, 1.5, 2.0), window(100, 700), TYPED),
            **post(SOFTMAX, INVERT, ARGMAX, SAVE),
            "inferer": sliding([16, 16, 16], overlap=0.5),
        },
        ["background", "spleen"],
    ),
    "ventricular": Shape(
        {
            "network_def": unet(4, 2),
            "ckpt_path": "$@bundle_root + '/models/model.pt'",
            "checkpointloader": None,
            "handlers": [
                {"_target_": "CheckpointLoader", "load_path": "@ckpt_path", "load_dict": {"model": "@network"}}
            ],
            **pre({**LOAD, "image_only": False}, FIRST, step("ScaleIntensityd"), {**TYPED, "device": "@device"}),
            **post(SOFTMAX, {**INVERT, "meta_key_postfix": "meta_dict"}, ARGMAX, SAVE),
            "inferer": {"_target_": "SliceInferer", "roi_size": [24, 24], "spatial_dim": 2},
        },
        ["background", "one", "two", "three"],
    ),
    "swin_btcv": Shape(
        {
            "network_def": unet(3),
            "checkpoint": "$@bundle_root + '/models/model.pt'",
            "checkpointloader": {
                "_target_": "CheckpointLoader",
                **{"load_path": "$@checkpoint", "load_dict": {"model": "@network"}},
            },
            **pre({**LOAD, "reader": "ITKReader"}, FIRST, RAS, spacing(1.5, 1.5, 2.0), window(0, 900), TYPED),
            **post(SOFTMAX, INVERT, ARGMAX, SAVE),
            "inferer": sliding([16, 16, 16], overlap=0.5),
        },
        ["background", "spleen", "liver"],
        codes="PIR",
    ),
    "pediatric": Shape(
        {
            "imports": ["$import glob", "$import os", "$import scripts.monai_utils"],
            "spatial_size": [16, 16, 16],
            "spatial_dims": "$len(@spatial_size)",
            "output_channels": 4,
            "network_def": {
                "_target_": "monai.networks.nets.DynUNet",
                **{"spatial_dims": "@spatial_dims", "in_channels": 1, "out_channels": "@output_channels"},
                **{"kernel_size": [3, 3, 3], "strides": [1, 2, [2, 2, 1]], "upsample_kernel_size": [2, [2, 2, 1]]},
                **{"norm_name": "instance", "deep_supervision": False, "res_block": True, "filters": [4, 8, 8]},
            },
            "checkpointloader": None,
            "handlers": [
                {
                    "_target_": "CheckpointLoader",
                    "load_path": "$@bundle_root + '/models/dynunet_FT.pt'",
                    "load_dict": {"model": "@network"},
                }
            ],
            **pre(
                {**LOAD, "reader": "ITKReader"},
                FIRST,
                RAS,
                {**spacing(1.5, 1.5, 2.0), "keys": [KEY], "mode": ["bilinear"]},
                window(50, 700),
                step("CropForegroundd", source_key=KEY, mode=["minimum"]),
                TYPED,
                step("CastToTyped", dtype="$torch.float32"),
            ),
            **post(SOFTMAX, INVERT, ARGMAX, {**SAVE, "output_dtype": "$torch.int16"}),
            "inferer": sliding([16, 16, 16], overlap=0.75),
        },
        ["background", "liver", "spleen", "pancreas"],
        files=("dynunet_FT.pt",),
        ending="yaml",
    ),
    "brats": Shape(
        {
            "network_def": segresnet(4, 3),
            **pre({**LOAD, "image_only": False}, step("NormalizeIntensityd", nonzero=True, channel_wise=True)),
            **post(
                SIGMOID,
                {**INVERT, "meta_keys": "pred_meta_dict"},
                after("AsDiscreted", threshold=0.5),
                after(
                    "Lambdad",
                    func="$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, "
                    "torch.where(x[[1]] > 0, 2, 0)))",
                ),
                {**SAVE, "resample": False, "squeeze_end_dims": True},
            ),
            "inferer": sliding([24, 24, 16], overlap=0.5),
        },
        ["Tumor core", "Whole tumor", "Enhancing tumor"],
        channels=["T1c", "T1", "T2", "FLAIR"],
        count=4,
    ),
    "wholebody": Shape(
        {
            "displayable_configs": {"highres": True, "sw_overlap": 0.25, "sw_batch_size": 1},
            "pixdim": "$[1.5, 1.5, 1.5] if @displayable_configs#highres else [3.0, 3.0, 3.0]",
            "modelname": "$'model.pt' if @displayable_configs#highres else 'model_lowres.pt'",
            "network_def": segresnet(1, 5),
            "checkpointloader": {
                "_target_": "CheckpointLoader",
                **{"load_path": "$@bundle_root + '/models/' + @modelname", "load_dict": {"model": "@network"}},
            },
            **pre(
                LOAD,
                TYPED,
                FIRST,
                RAS,
                step("Spacingd", pixdim="@pixdim", mode="bilinear"),
                step("NormalizeIntensityd", nonzero=True),
                step("ScaleIntensityd", minv=-1.0, maxv=1.0),
            ),
            **post(SOFTMAX, ARGMAX, {**INVERT, "nearest_interp": True}, SAVE),
            "inferer": sliding(
                [24, 24, 24],
                sw_batch_size="@displayable_configs#sw_batch_size",
                overlap="@displayable_configs#sw_overlap",
                padding_mode="replicate",
                mode="gaussian",
                device="$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
            ),
        },
        ["background", "a", "b", "c", "d"],
        files=("model.pt", "model_lowres.pt"),
    ),
    "prostate": Shape(
        {
            "network_def": unet(3, norm="batch", act="prelu", dropout=0.15),
            "checkpointloader": None,
            "handlers": [
                {
                    "_target_": "CheckpointLoader",
                    "load_path": "$@bundle_root + '/models/model.pt'",
                    "map_location": {"_target_": "torch.device", "device": "@device"},
                    "load_dict": {"model": "@network"},
                },
            ],
            **pre(
                LOAD,
                FIRST,
                RAS,
                spacing(1.05, 1.15, 1.05),
                step("ScaleIntensityd", minv=0, maxv=1),
                step("NormalizeIntensityd"),
                TYPED,
            ),
            **post(
                ARGMAX,
                after("KeepLargestConnectedComponentd", applied_labels=[1, 2]),
                {**INVERT, "meta_key_postfix": "meta_dict"},
                {**SAVE, "resample": False},
            ),
            "inferer": sliding([16, 16, 16], overlap=0.5),
        },
        ["background", "central gland", "peripheral zone"],
    ),
    "template": Shape(
        {
            "image": "$monai.utils.CommonKeys.IMAGE",
            "pred": "$monai.utils.CommonKeys.PRED",
            "num_classes": 4,
            "network_def": {**unet(4), "out_channels": "@num_classes"},
            "ckpt_path": "$@bundle_root + '/models/model.pt'",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "@image", "image_only": True},
                {"_target_": "EnsureChannelFirstd", "keys": "@image"},
                {"_target_": "ScaleIntensityd", "keys": "@image"},
            ],
            "preprocessing": {"_target_": "Compose", "transforms": "$@transforms"},
            "postprocessing": {
                "_target_": "Compose",
                "transforms": [{**SOFTMAX, "keys": "@pred"}, {**ARGMAX, "keys": "@pred"}, {**SAVE, "keys": "@pred"}],
            },
            "inferer": {"_target_": "SimpleInferer"},
            "checkpointloader": None,
            "handlers": [
                {
                    "_target_": "CheckpointLoader",
                    "_disabled_": "$not os.path.exists(@ckpt_path)",
                    "load_path": "@ckpt_path",
                    "load_dict": {"model": "@network"},
                }
            ],
        },
        ["background", "category 1", "category 2", "category 3"],
        ending="yaml",
        size=(40, 32, 24),
        codes="RAS",
        whole=[40, 32, 24],
    ),
    "dints": Shape(
        {
            "arch_ckpt_path": "$@bundle_root + '/models/search_code.pt'",
            "arch_ckpt": "$torch.load(@arch_ckpt_path, map_location=torch.device('cuda'))",
            "dints_space": {
                "_target_": "monai.networks.nets.TopologyInstance",
                "arch_code": ["$@arch_ckpt['arch_code_a']", "$@arch_ckpt['arch_code_c']"],
                "device": "$torch.device('cuda')",
            },
            "network_def": {
                "_target_": "monai.networks.nets.DiNTS",
                "dints_space": "@dints_space",
                **{"in_channels": 1, "num_classes": 3, "node_a": "$torch.from_numpy(@arch_ckpt['node_a'])"},
            },
            **pre(LOAD, FIRST, RAS, spacing(1.0, 1.3, 1.1), window(0, 900), TYPED),
            **post(SOFTMAX, {**INVERT, "meta_key_postfix": "meta_dict"}, ARGMAX, SAVE),
            "inferer": sliding([16, 16, 16], overlap=0.625),
        },
        ["background", "pancreas", "tumor"],
        files=(),
        ending="yaml",
        exported=dints,
    ),
}


def write_zoo_bundle(folder: Path, shape: Shape) -> Path:
    """The bundle in `folder`, with weights made at random; each file of weights holds others."""
    config = {key: value for key, value in {**COMMON, **shape.config}.items() if value is not None}
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True)
    text = json.dumps(config) if shape.ending == "json" else yaml.safe_dump(config, sort_keys=False)
    (folder / f"configs/inference.{shape.ending}").write_text(text)
    meta = metadata(shape.channels, shape.labels)
    formats = meta["network_data_format"]
    formats["inputs"]["image"]["num_channels"] = shape.count
    if shape.whole:
        formats["inputs"]["image"] |= {"spatial_shape": shape.whole, "is_patch_data": False}
    (folder / "configs/metadata.json").write_text(json.dumps(meta))
    for index, file in enumerate(shape.files):
        network = zoo_parser(folder).get_parsed_content("network_def")
        randomise(network, index)
        torch.save(network.state_dict(), folder / "models" / file)
    if shape.exported is not None:
        network = shape.exported()
        randomise(network, 0)
        write_scripted(network, folder / "models/model.ts")
    return folder


def randomise(network: nn.Module, seed: int) -> None:
    """Weights and biases that give several labels."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for values in network.parameters():
            wide = 1.4 / max(1, values[0].numel()) ** 0.5 if values.ndim > 1 else 0.3
            values.copy_(torch.randn(values.shape, generator=generator) * wide + (values if values.ndim < 2 else 0))


def zoo_parser(folder: Path) -> ConfigParser:
    """MONAI's own reading of the bundle."""
    parser = ConfigParser()
    parser.read_config(str(next((folder / "configs").glob("inference.*"))))
    parser["bundle_root"] = str(folder)
    return parser


def run_zoo_bundle(
    folder: Path, shape: Shape, files: list[Path], *, nearest: bool = False
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """What the bundle gives on the scan's grid: its own transforms and inferer, run by MONAI.

    Args:
        folder: the bundle.
        shape: what it was made from.
        files: a scan, a file for each channel.
        nearest: whether Invertd takes nearest neighbours, whatever the bundle says.

    Returns:
        The mask [i, j, k], and the scores [label, …] that AsDiscreted decided on, on the grid where it did.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parser = zoo_parser(folder)
        for loading in parser["preprocessing"]["transforms"]:
            if isinstance(loading, dict):
                loading.pop("reader", None)  # ITK is not installed here; MONAI reads NIfTI by nibabel
        for finishing in parser["postprocessing"]["transforms"] if nearest else ():
            finishing |= {"nearest_interp": True} if finishing["_target_"] == "Invertd" else {}
        network = _network(parser, folder, shape)
        names = [str(file) for file in files]
        data = parser.get_parsed_content("preprocessing")({"image": names if len(names) > 1 else names[0]})
        inferer = parser.get_parsed_content("inferer")
        with torch.no_grad():
            prediction = inferer(inputs=data["image"][None], network=network)[0]
        prediction.applied_operations = data["image"].applied_operations
        return _finished(parser, {**data, "pred": prediction})


def _finished(parser: ConfigParser, data: dict[str, Any]) -> tuple[NDArray[Any], NDArray[np.float32]]:
    scores = np.empty(0, np.float32)
    for one in parser.get_parsed_content("postprocessing").transforms:
        if type(one).__name__ == "AsDiscreted":
            scores = np.array(data["pred"])
        if type(one).__name__ != "SaveImaged":
            data = one(data)
    return np.asarray(data["pred"])[0], scores


def is_tie(scores: NDArray[np.float32], labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Where MONAI's score of the label in `labels` [i, j, k] is its best one but for float32's rounding."""
    chosen = np.take_along_axis(scores, labels[None].astype(np.int64), 0)[0]
    tie: NDArray[np.bool_] = scores.max(0) - chosen <= TIE
    return tie


def _network(parser: ConfigParser, folder: Path, shape: Shape) -> nn.Module:
    if shape.exported is not None:
        load: Any = torch.jit.load
        scripted: nn.Module = load(folder / "models/model.ts").eval()
        return scripted
    network: nn.Module = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(folder / "models" / shape.files[0], weights_only=True))
    return network.eval()
