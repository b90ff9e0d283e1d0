"""Translates a bundle's pre-processing into the steps [[preprocessing]] of a spec."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from voxtile.transforms.base import Transform
from voxtile.transforms.preprocessing import CropForeground, Preprocessing
from voxtile_build.errors import SourceError
from voxtile_build.importers.bundle.lambdas import NotKnownError, rule_of, scaling_of
from voxtile_build.importers.bundle.refusals import Refusals
from voxtile_build.importers.bundle.steps import Step, first
from voxtile_build.importers.bundle.translating import FLOATS, classes_of, translated

CLASSES = classes_of(Preprocessing)
"""The transforms that are translated by their arguments alone, by name."""
READERS = ("NibabelReader", "ITKReader", "NrrdReader", "PydicomReader")
"""Readers that give the values and the geometry that the client reads."""
TYPES = ("keys", "device", "data_type", "track_meta", "wrap_sequence")
LOADING = (
    *("keys", "image_only", "ensure_channel_first", "meta_keys", "meta_key_postfix", "simple_keys", "expanduser"),
    *("overwriting", "prune_meta_pattern", "prune_meta_sep", "as_closest_canonical"),
)
NO_OPERATION: dict[str, tuple[str, ...]] = {
    "LoadImage": LOADING,
    "EnsureChannelFirst": ("keys", "strict_check"),
    "AddChannel": ("keys",),
    "EnsureType": TYPES,
    "CastToType": ("keys",),
    "ToTensor": TYPES,
    "ToNumpy": TYPES,
    "ToDevice": ("keys", "device", "non_blocking"),
    "Identity": ("keys",),
    "CopyItems": ("keys", "times", "names"),
    "SelectItems": ("keys",),
}
"""Steps that change no value, and those of their arguments that do not matter."""
READ = ("source_key", "key_dst", "orig_keys", "meta_keys", "mask_key")
"""Arguments that name a key which a step reads, and does not write."""
COORDINATES = ("start_coord_key", "end_coord_key")
PADDING = ("mode", "value", "constant_values")
NO_MARGIN, NO_MULTIPLE = (0, (0, 0, 0)), (1, (1, 1, 1))
AXES = [["L", "R"], ["P", "A"], ["I", "S"]]
RULE_ADVICE = "expected a rule such as $lambda x: x > 0"


def steps_for(
    steps: Sequence[Step], channels: int, target: str, where: str, refusals: Refusals
) -> tuple[Transform, ...]:
    """The steps of a spec's chain.

    Args:
        steps: the pre-processing.
        channels: how many input channels there are.
        target: the key under which MONAI's evaluator takes them.
        where: names the configuration in errors.
        refusals: gets the error of each step that cannot be translated.

    Raises:
        SourceError: no step concerns the image.
    """
    found: list[Transform] = []
    concerned = []
    for step in steps:
        with refusals.collect():
            if _concerns(step, target):
                concerned.append(step)
    if not concerned and not refusals:
        keys = sorted({key for step in steps for key in step.keys(target)})
        raise SourceError(
            f"{where}: preprocessing: expected transforms for the key {target!r}, which MONAI gives to the network, "
            f"found {f'transforms for {keys}' if keys else 'none'}; name the image {target!r} in a copy of the bundle"
        )
    for step in concerned:
        with refusals.collect():
            found += _translated(step, channels, target)
    return tuple(found)


def _translated(step: Step, channels: int, target: str) -> Sequence[Transform]:
    if step.name in NO_OPERATION:
        _check_no_operation(step, channels)
        return ()
    if step.name in SPECIAL:
        return SPECIAL[step.name](step, target)
    if step.name in CLASSES:
        return (translated(step, CLASSES[step.name]),)
    raise step.refusal(f"there is no counterpart{RESIZED if step.name in ('Resize', 'Zoom') else ''}")


RESIZED = ": it gives every scan the same number of voxels, whatever their size; use Spacingd, or resample scans before"


def _concerns(step: Step, target: str) -> bool:
    """Whether a step changes the image. One of other keys that writes the image from them has no counterpart."""
    if step.name in ("DeleteItems", "FlattenSubKeys"):
        if target in step.keys(target):
            raise step.refusal(f"it removes {target!r}")
        return False
    if step.name == "SelectItems" and target not in step.keys(target):
        raise step.refusal(f"it removes {target!r}")
    writes = [key for key in step.given if key not in ("keys", *READ) and _names(step, key, target)]
    if target in step.keys(target):
        return True
    if writes:
        raise step.refusal(f"it makes {target!r} of other keys, by its argument {writes[0]}")
    return False


def _names(step: Step, key: str, target: str) -> bool:
    try:
        plain = step.value(key)
    except SourceError:
        return False  # Python, which names no key
    return target in (plain if isinstance(plain, list) else [plain])


def _check_no_operation(step: Step, channels: int) -> None:
    known: dict[str, tuple[Any, ...]] = {"dtype": (*FLOATS, "$torch.float32")}
    if step.name == "LoadImage":
        known |= {"reader": (None, *READERS), "reverse_indexing": (False,), "affine_lps_to_ras": (True, None)}
        known |= {"squeeze_non_spatial_dims": (False,), "series_meta": (False,), "fallback_only": (True, False)}
    if step.name == "EnsureChannelFirst":
        known |= {"channel_dim": (None, "original_channel_dim", *(("no_channel",) if channels == 1 else ()))}
    defaults = {key: values[0] for key, values in known.items()}
    arguments = step.arguments(defaults, ignored=NO_OPERATION[step.name])
    if "reader" in arguments:
        arguments["reader"] = _reader(arguments["reader"])
    if "channel_dim" in arguments:
        arguments["channel_dim"] = first(arguments["channel_dim"])
    arguments["dtype"] = first(arguments["dtype"])
    step.require(arguments, known)


def _reader(given: Any) -> Any:
    """The name of a reader, which MONAI takes in any case and with its module."""
    name = first(given)
    if not isinstance(name, str):
        return name
    bare = name.rpartition(".")[2] if name.startswith("monai.data") else name
    return next((reader for reader in READERS if reader.lower() == bare.lower()), name)


def _orientation(step: Step, _: str) -> Sequence[Transform]:
    if step.value("as_closest_canonical"):
        return (
            translated(
                step, CLASSES[step.name], ignored=("as_closest_canonical", "labels"), instead={"axcodes": "RAS"}
            ),
        )
    step.require({"labels": step.value("labels")}, {"labels": (None, AXES)})
    return (translated(step, CLASSES[step.name], ignored=("as_closest_canonical", "labels")),)


def _crop_foreground(step: Step, target: str) -> Sequence[Transform]:
    step.require({"source_key": step.value("source_key")}, {"source_key": (target,)})
    instead = {"select_fn": _rule(step)} if "select_fn" in step.given else {}
    made = translated(step, CropForeground, ignored=("source_key", *COORDINATES, *PADDING), instead=instead)
    assert isinstance(made, CropForeground)
    # A box without margin lies within the scan, so how it would be padded does not matter.
    if made.margin in NO_MARGIN and made.k_divisible in NO_MULTIPLE:
        return (made,)
    return (translated(step, CropForeground, ignored=("source_key", *COORDINATES), instead=instead),)


def _mask_intensity(step: Step, target: str) -> Sequence[Transform]:
    wanted = {"mask_data": (None,), "mask_key": (target,)}
    step.require({key: step.value(key) for key in wanted}, wanted)
    instead = {"select_fn": _rule(step)} if "select_fn" in step.given else {}
    return (translated(step, CLASSES[step.name], ignored=tuple(wanted), instead=instead),)


def _rule(step: Step) -> str:
    try:
        return rule_of(step.text("select_fn"))
    except NotKnownError:
        raise step.refusal(f"{RULE_ADVICE}, found {step.text('select_fn')!r}, which is not run") from None


def _lambda(step: Step, _: str) -> Sequence[Transform]:
    step.require(
        step.arguments({"inv_func": None, "overwrite": True, "track_meta": True}, ignored=("keys", "func", "inv_func")),
        {"overwrite": (True, [True])},
    )
    try:
        found = scaling_of(step.text("func"))
    except NotKnownError:
        raise step.refusal(
            f"expected a shift, a division or limits, such as $lambda x: (x - 100) / 200, found {step.text('func')!r}, "
            "which is not run"
        ) from None
    return [CLASSES[fields["transform"]].model_validate(fields) for fields in found]


SPECIAL: dict[str, Callable[[Step, str], Sequence[Transform]]] = {
    "Orientation": _orientation,
    "CropForeground": _crop_foreground,
    "MaskIntensity": _mask_intensity,
    "Lambda": _lambda,
}
"""Transforms with arguments that a spec writes in another way."""
