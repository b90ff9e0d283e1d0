"""A spec in the making: what was found, what is still to be said, and the remarks of its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtile_build.spec.spec import Spec, parse_spec
from voxtile_build.spec.spec_to_toml import Remarks

HEAD = (
    "Written by `voxtile-build init`. The keys say what was found in the source; `todo` says what was not.",
    "Do what a line of `todo` says, and delete the line. Nothing is built while one is left.",
    "Other tables (postprocessing, precision, acceptance) have usable defaults; see models/README.md.",
    "",
)
PREPROCESSING = (
    "What training did to the scans before the network: MONAI's transforms in order, by their names without d and",
    "with their arguments. Take away the # in front of the steps of training, and put in its numbers.",
    "#[[preprocessing]]",
    '#transform = "Orientation"',
    '#axcodes = "RAS"',
    "#[[preprocessing]]",
    '#transform = "Spacing"',
    "#pixdim = [1.5, 1.5, 2.0]",
    "For computed tomography:",
    "#[[preprocessing]]",
    '#transform = "ScaleIntensityRange"',
    "#a_min = -175.0",
    "#a_max = 250.0",
    "#b_min = 0.0",
    "#b_max = 1.0",
    "#clip = true",
    "For magnetic resonance:",
    "#[[preprocessing]]",
    '#transform = "NormalizeIntensity"',
    "#nonzero = true",
    "#channel_wise = true",
)
REMARKS = Remarks(head=HEAD, before={"output": PREPROCESSING}, whole=("weights", "inferer", "serving"))


@dataclass(frozen=True)
class Draft:
    """What `init` writes.

    Attributes:
        spec: the spec, with its `todo`.
        found: what the source is, in one line.
        remarks: what the file says besides the spec's keys.
    """

    spec: Spec
    found: str
    remarks: Remarks | None


def draft_of(
    name: str,
    folder: Path,
    found: str,
    fields: Mapping[str, Any],
    channels: int,
    classes: int,
    todo: Sequence[str],
) -> Draft:
    """A draft with stand-ins for all that a source of weights does not say.

    Args:
        name: the public name.
        folder: of the file.
        found: what the source is.
        fields: the tables that follow from the source, with `inferer.roi_size`.
        channels: the number of input channels.
        classes: the number of output channels.
        todo: what to check in `fields`.
    """
    flat = len(fields["inferer"]["roi_size"]) == 2
    inferer = {**fields["inferer"], "overlap": 0.25, **({"slice_axis": 2} if flat else {})}
    names = ["image"] if channels == 1 else [f"image-{number + 1}" for number in range(channels)]
    output: dict[str, Any] = {"labels": ["background", *(f"label-{number}" for number in range(1, classes))]}
    if classes == 1:  # one channel is a sigmoid: there is nothing that it could exclude
        output = {"labels": ["label-1"], "regions": True}
    all_fields = {
        **{"name": name, **fields, "inferer": inferer, "input": {"channels": names}, "output": output},
        "todo": [*todo, *_unsaid(channels, classes, flat)],
    }
    return Draft(parse_spec(all_fields, found, folder), found, REMARKS)


def in_words(axes: int, channels: int, classes: int) -> str:
    """What a network takes and gives."""
    return f"{axes}D, {channels} channel{'s'[: channels > 1]} in, {classes} out"


def _unsaid(channels: int, classes: int, flat: bool) -> list[str]:
    """What no weights say."""
    several = f"input.channels: name the {channels} channels in the network's order, one file of a scan each"
    axis = "inferer.slice_axis: say along which axis of the scan (0, 1 or 2) the network goes slice by slice"
    labels = (
        f"output.labels: name the {classes} channels of the scores in order, and say regions = true where they overlap "
        "(a sigmoid each)"
        if classes > 1
        else "output.labels: name the one label"
    )
    steps = (
        "preprocessing: say what training did to orientation, spacing and intensities; examples stand above [output]. "
        "Where it did nothing, only delete this line"
    )
    return [*([several] if channels > 1 else []), *([axis] if flat else []), labels, steps]
