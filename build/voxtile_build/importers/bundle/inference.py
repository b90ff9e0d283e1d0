"""Translates a bundle's inferer and post-processing into the tables [tiling] and [output] of a spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from voxtile_build.errors import SourceError
from voxtile_build.importers.bundle.config import Config
from voxtile_build.importers.bundle.painting import Painted, painting_of
from voxtile_build.importers.bundle.steps import REQUIRED, SPECIAL, Step, first
from voxtile_build.importers.bundle.targets import INFERERS, monai_name

NO_MATTER = ("sw_batch_size", "sw_device", "device", "progress", "cache_roi_weight_map", "cpu_thresh", "with_coord")
"""Arguments of the inferer that change speed or memory, but no result."""
PREDICTION = "pred"
"""The key under which MONAI's evaluator puts what the network gives."""
OUTPUT_ONLY = (
    "SaveImage",
    "EnsureType",
    "ToDevice",
    "Identity",
    "CastToType",
    "ToTensor",
    "DeleteItems",
    "SelectItems",
)
"""Steps after the network that do not change the labels."""
DECISIONS = (("softmax", "argmax"), (None, "argmax"), ("sigmoid", "threshold"))
"""Activations and decisions that give the labels of the client. Softmax keeps the order, so argmax needs none."""


def tiling_of(config: Config) -> dict[str, Any]:
    """[tiling] of the inferer: SlidingWindowInferer, or SliceInferer for a 2D network.

    Raises:
        SourceError: it is another inferer, or an argument has no counterpart.
    """
    part = config.raw("inferer")
    if not isinstance(part, Mapping):
        raise SourceError(f"{config.where}: inferer: expected SlidingWindowInferer, found {part!r}")
    name = monai_name(part, INFERERS, f"{config.where}: inferer")
    if name not in ("SlidingWindowInferer", "SliceInferer"):
        raise SourceError(f"{config.where}: inferer: cannot be translated: expected SlidingWindowInferer, found {name}")
    given = {key: value for key, value in part.items() if not SPECIAL.fullmatch(key)}
    step = Step(name, name, "inferer", given, config)
    given = step.arguments(
        {
            "roi_size": REQUIRED,
            "overlap": 0.25,
            "mode": "constant",
            "sigma_scale": 0.125,
            "padding_mode": "constant",
            "cval": 0.0,
            **({"spatial_dim": 0} if name == "SliceInferer" else {}),
        },
        ignored=NO_MATTER,
    )
    step.require(given, {"mode": ("constant", "gaussian"), "padding_mode": ("constant",)})
    roi = _roi(step, given["roi_size"])
    return {
        "semantics": "monai",
        "roi_size": roi,
        "overlap": _per_axis(step, "overlap", given["overlap"], len(roi)),
        "mode": given["mode"],
        "sigma_scale": _per_axis(step, "sigma_scale", given["sigma_scale"], len(roi)),
        "cval": step.number("cval", given["cval"]),
        **({"slice_axis": given["spatial_dim"]} if name == "SliceInferer" else {}),
    }


def _roi(step: Step, size: Any) -> list[int]:
    axes = 2 if step.name == "SliceInferer" else 3
    sizes = size if isinstance(size, list) else [size] * axes
    if len(sizes) != axes or not all(type(number) is int and number > 0 for number in sizes):
        raise step.refusal(f"expected roi_size with {axes} whole numbers above 0, found {size!r}")
    return list(sizes)


def _per_axis(step: Step, key: str, value: Any, axes: int) -> float | list[float]:
    """One number for all axes, or one for each."""
    if isinstance(value, int | float):
        return step.number(key, value)
    if isinstance(value, list) and len(value) == axes:
        return [step.number(key, number) for number in value]
    raise step.refusal(f"expected one number for {key}, or {axes}, found {value!r}")


def output_of(steps: Sequence[Step], names: Sequence[str], *, resampled: bool) -> dict[str, Any]:
    """[output]: softmax and argmax, or sigmoid, a threshold of 0.5 and the order in which regions are painted.

    The client stitches logits, applies the activation, resamples to the scan's grid, and then decides.

    Args:
        steps: the post-processing.
        names: of the network's output channels.
        resampled: whether the scan was resampled. The bundle must then invert before it decides, and linearly. An
            activation after the inversion is ignored, because it changes neither the order nor the threshold.

    Raises:
        SourceError: the steps do something else.
    """
    activation = decision = None
    painted: list[Painted] = []
    before = False
    for step in steps:
        if step.name in OUTPUT_ONLY:
            continue
        if PREDICTION not in step.keys(PREDICTION):
            raise step.refusal(f"expected it to concern {PREDICTION!r}, found the keys {list(step.keys(PREDICTION))}")
        if step.name == "Activations":
            activation = _activation(step)
        elif step.name == "Invert":
            _check_inverse(step, decision is not None, resampled)
            before = activation is not None
        elif step.name == "AsDiscrete":
            decision = _decision(step)
        elif step.name == "Lambda" and decision == "threshold" and not painted:
            painted = painting_of(step, len(names))
        else:
            raise step.refusal("there is no counterpart after the network")
    where = steps[0].config.where if steps else "configs"
    if decision is None:
        raise SourceError(f"{where}: postprocessing: expected AsDiscreted with argmax or threshold, found none")
    if (activation, decision) not in DECISIONS:
        raise SourceError(
            f"{where}: postprocessing: cannot be translated: expected softmax and argmax, or sigmoid and a threshold "
            f"of 0.5, found {activation or 'no activation'} and {decision}"
        )
    return {
        "regions": decision == "threshold",
        **({"activation": activation} if resampled and before else {}),
        **_labels(names, painted),
    }


def _labels(names: Sequence[str], painted: Sequence[Painted]) -> dict[str, Any]:
    """`labels` of [output], and the order of regions where the bundle itself paints them."""
    if not painted:
        return {"labels": list(names)}
    values = {one.channel: one.value for one in painted}
    return {
        "labels": [{"name": name, "value": values[channel]} for channel, name in enumerate(names)],
        "region_order": [names[one.channel] for one in painted],
    }


def _activation(step: Step) -> str:
    given = step.arguments({"softmax": False, "sigmoid": False, "other": None}, ignored=("keys",))
    chosen = [name for name in ("softmax", "sigmoid") if given[name] is True or given[name] == [True]]
    if len(chosen) != 1 or given["other"] is not None:
        raise step.refusal("expected softmax or sigmoid")
    return chosen[0]


def _decision(step: Step) -> str:
    given = step.arguments({"argmax": False, "threshold": None, "to_onehot": None, "rounding": None}, ignored=("keys",))
    plain = {key: first(value) for key, value in given.items()}
    step.require(plain, {"to_onehot": (None,), "rounding": (None,), "threshold": (None, 0.5)})
    if (plain["argmax"] is True) == (plain["threshold"] is not None):
        raise step.refusal("expected argmax, or a threshold of 0.5")
    return "argmax" if plain["argmax"] is True else "threshold"


def _check_inverse(step: Step, decided: bool, resampled: bool) -> None:
    given = step.arguments(
        {"nearest_interp": True},
        ignored=(
            "keys",
            "transform",
            "orig_keys",
            "meta_keys",
            "orig_meta_keys",
            "meta_key_postfix",
            "to_tensor",
            "device",
        ),
    )
    nearest = first(given["nearest_interp"])
    if resampled and (decided or nearest):
        what = "it comes after AsDiscreted" if decided else "nearest_interp is on, which it is unless switched off"
        raise step.refusal(
            f"with Spacingd the scores must be resampled linearly and decided on after: {what}; expected "
            "Activationsd, Invertd with nearest_interp = false, AsDiscreted"
        )
