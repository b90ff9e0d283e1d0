"""MONAI's own chains of the steps of a spec: before the network, and after it with the inverse."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from monai import transforms as monai
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from voxtile.io.volume import Volume
from voxtile.transforms.base import selection

AXES = (("L", "R"), ("P", "A"), ("I", "S"))


def monai_step(step: dict[str, Any]) -> Any:
    """The dictionary transform of MONAI for the key `image`."""
    given = {key: value for key, value in step.items() if key != "transform"}
    if step["transform"] == "Orientation":
        given["labels"] = AXES
    if "select_fn" in given:
        given["select_fn"] = selection(given["select_fn"])
    if step["transform"] == "CropForeground":
        given |= {"source_key": "image", "allow_smaller": given.get("allow_smaller", False)}
    if step["transform"] == "MaskIntensity":
        given["mask_key"] = "image"
    if step["transform"] == "ScaleIntensityRangePercentiles":
        given = {"b_min": None, "b_max": None, **given}
    if step["transform"] == "ScaleIntensity" and "factor" in given:
        given |= {"minv": None, "maxv": None}
    if step["transform"] == "ClipIntensityPercentiles":
        given = {"lower": None, "upper": None, **given}
    return getattr(monai, step["transform"] + "d")("image", **given)


def monai_image(volume: Volume, steps: list[dict[str, Any]]) -> tuple[Any, Any]:
    """What MONAI's chain makes of a scan, and the chain."""
    chain = monai.Compose([monai_step(step) for step in steps])
    image = MetaTensor(torch.as_tensor(volume.data.astype(np.float32)), affine=torch.as_tensor(volume.affine))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return chain({"image": image}), chain


def monai_labels(scores: NDArray[np.float32], data: Any, chain: Any, after: list[Any]) -> NDArray[Any]:
    """What MONAI's post-processing makes of scores: [channel, i, j, k]."""
    image = data["image"]
    data["pred"] = MetaTensor(torch.as_tensor(scores), meta=image.meta, applied_operations=image.applied_operations)
    steps: list[Any] = []
    for step in after:
        if step["transform"] == "Invert":
            steps.append(
                monai.Invertd("pred", chain, orig_keys="image", nearest_interp=step["nearest_interp"], to_tensor=True)
            )
            continue
        given = {key: value for key, value in step.items() if key != "transform"}
        steps.append(getattr(monai, step["transform"] + "d")("pred", **given))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result: NDArray[Any] = monai.Compose(steps)(data)["pred"].numpy()
    return result


def first_activation(after: list[dict[str, Any]]) -> str:
    """What comes before Invert, as the card has it."""
    names = [step["transform"] for step in after]
    ends = [names.index(name) for name in ("Invert", "AsDiscrete") if name in names]
    early = [step for step in after[: min(ends)] if step["transform"] == "Activations"]
    return "none" if not early else "softmax" if early[0].get("softmax") else "sigmoid"


def smooth_scores(shape: tuple[int, ...], count: int, seed: int) -> NDArray[np.float32]:
    """Scores with blobs of several sizes, some with holes."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 1, (count, *shape))
    fine = np.stack([gaussian_filter(one, 0.9) for one in noise]) * 4
    coarse = np.stack([gaussian_filter(one, 2.5) for one in noise[::-1]]) * 12
    return (fine + coarse).astype(np.float32)
