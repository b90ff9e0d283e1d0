"""Translates a bundle's pre-processing into the table [input]: orientation, spacing and intensity rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from voxtile_build.errors import SourceError
from voxtile_build.importers.bundle.steps import REQUIRED, Step, first

NO_OPERATION = {
    "LoadImage": ("keys", "image_only", "ensure_channel_first", "dtype", "meta_keys", "meta_key_postfix"),
    "EnsureChannelFirst": ("keys", "strict_check"),
    "AddChannel": ("keys",),
    "EnsureType": ("keys", "device", "data_type", "track_meta", "dtype"),
    "CastToType": ("keys", "dtype"),
    "ToTensor": ("keys", "device", "dtype", "track_meta"),
    "ToDevice": ("keys", "device"),
    "Identity": ("keys",),
}
"""Steps that change no value, and those of their arguments that do not matter."""
FLOATS = (None, "float32", "float64")
AXES = [["L", "R"], ["P", "A"], ["I", "S"]]
READ = ("source_key", "key_dst", "orig_keys", "meta_keys")
"""Arguments that name a key which a step reads, and does not write."""
ORDER = ("orientation", "spacing", "intensity")


def input_of(steps: Sequence[Step], channels: int, target: str, where: str) -> dict[str, Any]:
    """`orientation`, `spacing` and `intensity` of [input].

    Args:
        steps: the pre-processing.
        channels: how many input channels there are.
        target: the key under which MONAI's evaluator takes them.
        where: names the configuration in errors.

    Raises:
        SourceError: names the step that cannot be translated, and why; or no step concerns the image.
    """
    found: dict[str, Any] = {}
    concerned = [step for step in steps if _concerns(step, target)]
    if not concerned:
        keys = sorted({key for step in steps for key in step.keys(target)})
        raise SourceError(
            f"{where}: preprocessing: expected transforms for the key {target!r}, which MONAI gives to the network, "
            f"found {f'transforms for {keys}' if keys else 'none'}; name the image {target!r} in a copy of the bundle"
        )
    for step in concerned:
        if step.name in NO_OPERATION:
            _check_no_operation(step)
            continue
        if step.name not in RULES:
            raise step.refusal(f"there is no counterpart; known are {', '.join((*NO_OPERATION, *RULES))}")
        try:
            key, value = RULES[step.name](step, channels)
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise step.refusal(f"an argument has a value of another kind: {error}") from None
        _check_order(step, key, found)
        found[key] = value
    return found


def _concerns(step: Step, target: str) -> bool:
    """Whether a step changes the image. One of other keys that writes the image from them has no counterpart."""
    if target in step.keys(target):
        return True
    for key, value in step.given.items():
        if key not in ("keys", *READ) and _names(step, key, value, target):
            raise step.refusal(f"it makes {target!r} of other keys, by its argument {key}")
    return False


def _names(step: Step, key: str, value: Any, target: str) -> bool:
    try:
        plain = step.config.plain(value, f"{step.where}::{key}")
    except SourceError:
        return False  # Python, which names no key
    return target in (plain if isinstance(plain, list) else [plain])


def _check_no_operation(step: Step) -> None:
    arguments = step.arguments({"dtype": None, "reader": None}, ignored=tuple(set(NO_OPERATION[step.name]) - {"dtype"}))
    step.require(arguments, {"dtype": (*FLOATS, "$torch.float32"), "reader": (None, "NibabelReader")})


def _check_order(step: Step, key: str, found: Mapping[str, Any]) -> None:
    if key in found:
        raise step.refusal(f"there is another step before it for the {key}")
    later = [name for name in ORDER[ORDER.index(key) + 1 :] if name in found]
    if later:
        raise step.refusal(f"it comes after the {later[0]}; expected first orientation, then spacing, then intensity")


def _orientation(step: Step, _: int) -> tuple[str, Any]:
    given = step.arguments({"axcodes": None, "as_closest_canonical": False, "labels": None}, ignored=("keys",))
    step.require(given, {"labels": (None, AXES)})
    codes = "RAS" if given["as_closest_canonical"] else given["axcodes"]
    if not isinstance(codes, str):
        raise step.refusal(f"expected axcodes such as 'RAS', found {codes!r}")
    return "orientation", codes


def _spacing(step: Step, _: int) -> tuple[str, Any]:
    given = step.arguments(
        {
            "pixdim": REQUIRED,
            "mode": "bilinear",
            "padding_mode": "border",
            "diagonal": False,
            "align_corners": False,
            "dtype": "float64",
            "scale_extent": False,
            "recompute_affine": False,
        },
        ignored=("keys",),
    )
    for key in ("mode", "padding_mode", "align_corners"):
        given[key] = first(given[key])  # a list has one value for each key, the image's first
    step.require(
        given,
        {
            "mode": ("bilinear",),
            "padding_mode": ("border",),
            "diagonal": (False,),
            "align_corners": (False, None),
            "dtype": FLOATS,
            "scale_extent": (False,),
            "recompute_affine": (False,),
        },
    )
    pixdim = given["pixdim"]
    sizes = list(pixdim) if isinstance(pixdim, list) else [pixdim] * 3
    numbers = [step.number("pixdim", size) for size in sizes]
    if len(numbers) != 3 or not all(number > 0 for number in numbers):
        raise step.refusal(f"expected pixdim with three sizes above 0 in mm, found {pixdim!r}")
    return "spacing", numbers


def _range(step: Step, _: int) -> tuple[str, Any]:
    given = step.arguments(
        {"a_min": REQUIRED, "a_max": REQUIRED, "b_min": None, "b_max": None, "clip": False, "dtype": None},
        ignored=("keys",),
    )
    step.require(given, {"dtype": FLOATS})
    if given["b_min"] is None or given["b_max"] is None:
        raise step.refusal("expected b_min and b_max, found none")
    bounds = {key: step.number(key, given[key]) for key in ("a_min", "a_max", "b_min", "b_max")}
    return "intensity", {"rule": "range", **bounds, "clip": bool(given["clip"])}


def _zscore(step: Step, channels: int) -> tuple[str, Any]:
    given = step.arguments(
        {"subtrahend": None, "divisor": None, "nonzero": False, "channel_wise": False, "dtype": None}, ignored=("keys",)
    )
    step.require(given, {"dtype": FLOATS})
    if given["subtrahend"] is not None or given["divisor"] is not None:
        return "intensity", _fixed(step, given, channels)
    _check_channel_wise(step, given, channels)
    if given["nonzero"]:
        return "intensity", {"rule": "zscore", "mask": "nonzero", "keep_zero": True}
    return "intensity", {"rule": "zscore", "mask": "all"}


def _fixed(step: Step, given: Mapping[str, Any], channels: int) -> dict[str, Any]:
    if given["nonzero"]:
        raise step.refusal("fixed statistics for non-zero voxels alone have no counterpart")
    statistics = {}
    for key, name in (("mean", "subtrahend"), ("std", "divisor")):
        value = given[name]
        values = value if isinstance(value, list) else [value] * channels
        if len(values) != channels:
            raise step.refusal(f"expected {name} as a number, or one a channel, found {value!r}")
        statistics[key] = [step.number(name, number) for number in values]
    return {"rule": "fixed", **statistics}


def _percentile(step: Step, channels: int) -> tuple[str, Any]:
    given = step.arguments(
        {
            **{"lower": REQUIRED, "upper": REQUIRED, "b_min": REQUIRED, "b_max": REQUIRED},
            **{"clip": False, "relative": False, "channel_wise": False, "dtype": None},
        },
        ignored=("keys",),
    )
    step.require(given, {"b_min": (0,), "b_max": (1,), "relative": (False,), "dtype": FLOATS})
    _check_channel_wise(step, given, channels)
    lower, upper = step.number("lower", given["lower"]), step.number("upper", given["upper"])
    return "intensity", {"rule": "percentile", "lower": lower, "upper": upper, "clip": bool(given["clip"])}


def _minimum_to_maximum(step: Step, channels: int) -> tuple[str, Any]:
    """ScaleIntensity: the lowest value becomes 0, the highest 1."""
    given = step.arguments(
        {"minv": 0.0, "maxv": 1.0, "factor": None, "channel_wise": False, "dtype": None}, ignored=("keys",)
    )
    step.require(given, {"minv": (0,), "maxv": (1,), "factor": (None,), "dtype": FLOATS})
    _check_channel_wise(step, given, channels)
    return "intensity", {"rule": "percentile", "lower": 0.0, "upper": 100.0}


def _check_channel_wise(step: Step, given: Mapping[str, Any], channels: int) -> None:
    if channels > 1 and not given["channel_wise"]:
        raise step.refusal(
            f"statistics over all {channels} channels together have no counterpart; expected channel_wise = True"
        )


RULES: dict[str, Callable[[Step, int], tuple[str, Any]]] = {
    "Orientation": _orientation,
    "Spacing": _spacing,
    "ScaleIntensityRange": _range,
    "NormalizeIntensity": _zscore,
    "ScaleIntensityRangePercentiles": _percentile,
    "ScaleIntensity": _minimum_to_maximum,
}
