"""A spec of an nnU-Net configuration: the tiling, labels and channels, and the card's `nnunet` part for the client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from voxtile_build.errors import SourceError
from voxtile_build.importers.nnunet.folder import ModelFolder
from voxtile_build.importers.nnunet.labels import Labels
from voxtile_build.spec.spec import Spec, parse_spec

OVERLAP = 0.5
"""nnU-Net's tile_step_size of 0.5."""
SIGMA = 0.125
"""nnU-Net's Gaussian: a standard deviation of an eighth of the patch."""
CONFIGURATION_KEYS = (
    "spacing", "patch_size", "normalization_schemes", "use_mask_for_norm",
    "resampling_fn_data", "resampling_fn_data_kwargs", "resampling_fn_seg", "resampling_fn_seg_kwargs",
    "resampling_fn_probabilities", "resampling_fn_probabilities_kwargs",
)  # fmt: skip
"""What the client needs of a configuration, under nnU-Net's own names."""
FIGURES = "foreground_intensity_properties_per_channel"
OLD_FIGURES = "foreground_intensity_properties_by_modality"

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
    """Refuse, with SourceError, a plan that names a function or class that the client does not reproduce."""
    for key, known in KNOWN.items():
        value = configuration.get(key, folder.plans.get(key, known[0]))
        for name in value if isinstance(value, list) else [value]:
            if name not in known:
                raise SourceError(
                    f"{folder.plans_file}: {key}: expected {' or '.join(known)}, found {name!r}; its result cannot be "
                    "reproduced without nnU-Net, so the model cannot be served"
                )


def plan_of(folder: ModelFolder, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the plan that the client needs, the configuration's and the plan's own merged.

    Raises SourceError for a key that is missing.
    """
    plan = dict(configuration)
    plan |= {key: folder.plans[key] for key in ("transpose_forward", "transpose_backward") if key in folder.plans}
    plan[FIGURES] = folder.plans.get(FIGURES, folder.plans.get(OLD_FIGURES, {}))
    wanted = ("transpose_forward", "transpose_backward", *CONFIGURATION_KEYS, FIGURES)
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
) -> Spec:
    """The spec of the model `name`; `settings` is what its SETTINGS sections say. Raises SpecError."""
    patch = list(configuration["patch_size"])
    what = str(folder.dataset.get("name") or folder.plans.get("dataset_name", "")).strip()
    architecture = configuration["architecture"]
    fields = {
        "name": name,
        "title": f"nnU-Net {what}".strip(),
        "network": {
            "name": str(architecture["network_class_name"]).rpartition(".")[2],
            "args": dict(architecture.get("arch_kwargs") or {}),
        },
        "input": {"channels": [*channels, *nnunet.get("label_channels", ())], "dtype": "fp32"},
        "output": {
            "scores": "logits",
            "labels": [{"name": one, "value": value} for one, value in zip(labels.names, labels.values, strict=True)],
            "regions": labels.regions,
        },
        "tiling": {
            "semantics": "nnunet",
            "roi_size": patch,
            "slice_axis": 0 if len(patch) == 2 else None,
            "overlap": OVERLAP,
            "mode": "gaussian",
            "sigma_scale": SIGMA,
            "mirror_axes": list(mirror_axes),
        },
        **settings,
        "nnunet": dict(nnunet),
    }
    return parse_spec(fields, str(folder.path), folder.path)
