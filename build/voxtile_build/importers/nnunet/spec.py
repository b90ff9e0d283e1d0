"""Makes the spec of an nnU-Net configuration, with the card's `nnunet` part, by which the client prepares scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from voxtile_build.errors import SourceError
from voxtile_build.importers.nnunet.folder import ModelFolder
from voxtile_build.importers.nnunet.labels import Labels
from voxtile_build.spec.spec import Spec, parse_spec

SIGMA_SCALE = 0.125
"""The standard deviation of nnU-Net's Gaussian is an eighth of the patch."""
CONFIGURATION_KEYS = (
    "spacing", "patch_size", "normalization_schemes", "use_mask_for_norm",
    "resampling_fn_data", "resampling_fn_data_kwargs", "resampling_fn_seg", "resampling_fn_seg_kwargs",
    "resampling_fn_probabilities", "resampling_fn_probabilities_kwargs",
)  # fmt: skip
"""The keys of a configuration that the client needs, under nnU-Net's own names."""
STATISTICS = "foreground_intensity_properties_per_channel"
OLD_STATISTICS = "foreground_intensity_properties_by_modality"


@dataclass(frozen=True)
class Inference:
    """How nnU-Net is to be run; the defaults are nnU-Net's own.

    Attributes:
        tile_step_size: the step from tile to tile, as a share of the patch.
        mirroring: whether a model mirrors over the axes that its checkpoint allows.
    """

    tile_step_size: float = 0.5
    mirroring: bool = True


KNOWN = {
    "normalization_schemes": (
        "CTNormalization", "ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization",
    ),
    "resampling_fn_data": ("resample_data_or_seg_to_shape", "resample_torch_fornnunet", "no_resampling_hack"),
    "preprocessor_name": ("DefaultPreprocessor",),
    "label_manager": ("LabelManager",),
    "image_reader_writer": ("SimpleITKIO", "NibabelIO", "NibabelIOWithReorient"),
}  # fmt: skip
"""Functions and classes of nnU-Net that a plan may name and that the client reproduces."""
KNOWN["resampling_fn_seg"] = KNOWN["resampling_fn_probabilities"] = KNOWN["resampling_fn_data"]


def check_names(folder: ModelFolder, configuration: Mapping[str, Any]) -> None:
    """Refuse a plan that names a function or class that the client does not reproduce.

    Raises:
        SourceError: names it.
    """
    for key, known in KNOWN.items():
        value = configuration.get(key, folder.plans.get(key, known[0]))
        for name in value if isinstance(value, list) else [value]:
            if name not in known:
                raise SourceError(
                    f"{folder.plans_file}: {key}: expected {' or '.join(known)}, found {name!r}; its result cannot be "
                    "reproduced without nnU-Net, so the model cannot be served"
                )


def plan_of(folder: ModelFolder, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that the client needs, of the configuration and of the plan itself.

    Raises:
        SourceError: a key is missing.
    """
    plan = dict(configuration)
    plan |= {key: folder.plans[key] for key in ("transpose_forward", "transpose_backward") if key in folder.plans}
    plan[STATISTICS] = folder.plans.get(STATISTICS, folder.plans.get(OLD_STATISTICS, {}))
    wanted = ("transpose_forward", "transpose_backward", *CONFIGURATION_KEYS, STATISTICS)
    missing = [key for key in wanted if key not in plan]
    if missing:
        raise SourceError(f"{folder.plans_file}: expected nnU-Net v2 plans, found none of {', '.join(missing)}")
    return {key: plan[key] for key in wanted}


def spec_of(
    name: str,
    folder: ModelFolder,
    configuration: Mapping[str, Any],
    channels: Sequence[str],
    labels: Labels,
    mirror_axes: Sequence[int],
    nnunet: Mapping[str, Any],
    settings: Mapping[str, Any],
    tile_step_size: float = Inference.tile_step_size,
) -> Spec:
    """The spec of a model.

    Args:
        name: the public name.
        folder: the trained model.
        configuration: its configuration.
        channels: names of the input channels.
        labels: its labels.
        mirror_axes: spatial axes to mirror over.
        nnunet: the `nnunet` part of the card.
        settings: the tables [serving], [precision] and [acceptance].
        tile_step_size: the step from tile to tile, as a share of the patch.

    Raises:
        SpecError: the settings are not valid.
    """
    patch = list(nnunet["patch_size"])
    what = str(folder.dataset.get("name") or folder.plans.get("dataset_name", "")).strip()
    architecture = configuration["architecture"]
    fields = {
        "name": name,
        "title": f"nnU-Net {what}".strip(),
        "network": {
            "name": str(architecture.get("network_class_name")).rpartition(".")[2],
            "args": dict(architecture.get("arch_kwargs") or {}),
        },
        "input": {"channels": [*channels, *nnunet.get("label_channels", ())], "dtype": "fp32"},
        "output": {
            "scores": "logits",
            "labels": [{"name": one, "value": value} for one, value in zip(labels.names, labels.values, strict=True)],
            "regions": labels.regions,
            # nnU-Net paints regions in the order of its outputs; regions_class_order holds their values.
            "region_order": list(labels.names) if labels.regions else None,
        },
        "tiling": {
            "semantics": "nnunet",
            "roi_size": patch,
            "slice_axis": 0 if len(patch) == 2 else None,
            "overlap": round(1 - tile_step_size, 12),
            "mode": "gaussian",
            "sigma_scale": SIGMA_SCALE,
            "mirror_axes": list(mirror_axes),
        },
        **settings,
        "nnunet": dict(nnunet),
    }
    return parse_spec(fields, str(folder.path), folder.path)
