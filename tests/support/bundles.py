"""Small MONAI bundles in the form that monai.bundle itself reads, and such a bundle run by MONAI in this process."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser
from numpy.typing import NDArray

NETWORK: dict[str, Any] = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": "@channels",
    "out_channels": 3,
    "channels": [4, 8],
    "strides": [2],
    "num_res_units": 1,
}
PREPROCESSING: list[dict[str, Any]] = [
    {"_target_": "LoadImaged", "keys": "@image_key"},
    {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
    {"_target_": "Orientationd", "keys": "@image_key", "axcodes": "RAS"},
    {"_target_": "Spacingd", "keys": "@image_key", "pixdim": [1.5, 1.2, 1.0], "mode": "bilinear"},
    {
        "_target_": "ScaleIntensityRanged",
        "keys": "@image_key",
        **{"a_min": 0, "a_max": 1000, "b_min": 0.0, "b_max": 1.0, "clip": True},
    },
    {"_target_": "EnsureTyped", "keys": "@image_key"},
]
INVERT: dict[str, Any] = {
    "_target_": "Invertd",
    "keys": "pred",
    "transform": "@preprocessing",
    "orig_keys": "image",
    "nearest_interp": False,
    "to_tensor": True,
}
POSTPROCESSING: list[dict[str, Any]] = [
    {"_target_": "Activationsd", "keys": "pred", "softmax": True},
    INVERT,
    {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
    {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "_disabled_": True},
]
INFERENCE: dict[str, Any] = {
    "imports": ["$import glob"],
    "bundle_root": ".",
    "image_key": "image",
    "channels": 1,
    "output_dir": "$@bundle_root + '/eval'",
    "datalist": "$list(sorted(glob.glob(@bundle_root + '/*.nii.gz')))",
    "device": "$torch.device('cpu')",
    "network_def": NETWORK,
    "network": "$@network_def.to(@device)",
    "preprocessing": {"_target_": "Compose", "transforms": PREPROCESSING},
    "inferer": {
        "_target_": "SlidingWindowInferer",
        **{"roi_size": [16, 16, 16], "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian"},
    },
    "postprocessing": {"_target_": "Compose", "transforms": POSTPROCESSING},
}
METADATA: dict[str, Any] = {
    "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
    "version": "0.1.0",
    "name": "Two structures",
    "task": "Two structures of nothing in particular",
    "copyright": "none",
    "network_data_format": {
        "inputs": {
            "image": {
                **{"type": "image", "format": "magnitude", "num_channels": 1, "spatial_shape": [16, 16, 16]},
                **{"dtype": "float32", "value_range": [0, 1], "is_patch_data": True, "channel_def": {"0": "image"}},
            }
        },
        "outputs": {
            "pred": {
                **{"type": "image", "format": "segmentation", "num_channels": 3, "spatial_shape": [16, 16, 16]},
                **{"dtype": "float32", "value_range": [0, 1], "is_patch_data": True},
                "channel_def": {"0": "background", "1": "one", "2": "two"},
            }
        },
    },
}


def inference(**changes: Any) -> dict[str, Any]:
    """The inference configuration with whole parts replaced."""
    return {**copy.deepcopy(INFERENCE), **changes}


def metadata(channels: list[str] | None = None, labels: list[str] | None = None) -> dict[str, Any]:
    """The metadata with other channels and labels."""
    result = copy.deepcopy(METADATA)
    formats = result["network_data_format"]
    for part, names in ((formats["inputs"]["image"], channels), (formats["outputs"]["pred"], labels)):
        if names is not None:
            part["num_channels"] = len(names)
            part["channel_def"] = {str(index): name for index, name in enumerate(names)}
    return result


def chain(*steps: dict[str, Any]) -> dict[str, Any]:
    """A Compose of `steps`."""
    return {"_target_": "Compose", "transforms": list(steps)}


def inferer(**arguments: Any) -> dict[str, Any]:
    """An inference configuration whose sliding window has these arguments."""
    return inference(inferer={"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], **arguments})


def write_bundle(
    folder: Path, config: dict[str, Any] | None = None, meta: dict[str, Any] | None = None, ending: str = "json"
) -> Path:
    """The bundle in `folder`, with random weights of the network that the configuration defines, made by MONAI."""
    config = inference() if config is None else config
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    text = json.dumps(config, indent=4) if ending == "json" else yaml.safe_dump(config)
    (folder / "configs" / f"inference.{ending}").write_text(text)
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata() if meta is None else meta, indent=4))
    torch.manual_seed(2)
    torch.save(parser_of(folder).get_parsed_content("network_def").state_dict(), folder / "models" / "model.pt")
    return folder


def parser_of(folder: Path) -> ConfigParser:
    """MONAI's own reading of the bundle."""
    parser = ConfigParser()
    parser.read_config(str(next((folder / "configs").glob("inference.*"))))
    parser.read_meta(str(folder / "configs" / "metadata.json"))
    return parser


def run_by_monai(folder: Path, files: list[Path]) -> NDArray[Any]:
    """Labels or regions [channel, i, j, k] on the scan's own grid: the bundle's chain, run by MONAI in this process."""
    with warnings.catch_warnings():
        # MONAI tells of each Orientationd that the default of an argument has changed; NIfTI is not concerned.
        warnings.simplefilter("ignore", FutureWarning)
        return _run(folder, files)


def _run(folder: Path, files: list[Path]) -> NDArray[Any]:
    parser = parser_of(folder)
    network = parser.get_parsed_content("network")
    network.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
    network.eval()
    names = [str(file) for file in files]
    data = parser.get_parsed_content("preprocessing")({"image": names if len(names) > 1 else names[0]})
    with torch.no_grad():
        prediction = parser.get_parsed_content("inferer")(inputs=data["image"][None], network=network)[0]
    prediction.applied_operations = data["image"].applied_operations
    result = parser.get_parsed_content("postprocessing")({**data, "pred": prediction})
    return np.asarray(result["pred"])


def write_scan(path: Path, shape: tuple[int, int, int], codes: str, seed: int = 0) -> Path:
    """An asymmetric head, 0 … about 1000 with zeros around it, axes stored along `codes`, 1.2 × 1.0 × 1.4 mm."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    noise = np.random.default_rng(seed).normal(size=shape)
    inside = ((grid / np.array([0.8, 0.9, 0.85])[:, None, None, None]) ** 2).sum(0) < 1
    values = 400 + 150 * np.sin(3 * grid[0] + 2 * grid[1] + seed) + 100 * grid[2] + 50 * noise
    image = nib.Nifti1Image(np.where(inside, values, 0).astype(np.float32), np.diag([1.2, 1.0, 1.4, 1.0]))
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    nib.save(image.as_reoriented(turn), path)
    return path
