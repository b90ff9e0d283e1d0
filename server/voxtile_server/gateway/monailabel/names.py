"""Names and values of a model's labels, as MONAI Label's clients read them. Knows nothing of requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from voxtile.card import Label

BACKGROUND = "background"


def values_by_name(labels: Sequence[Label]) -> dict[str, int]:
    """Values of a mask by the names of its structures, in the order of their values; without the background, 0.

    Each name stands once, and none is `background`: 3D Slicer leaves such a name out, and every name after it would
    then stand for the structure before.

    Args:
        labels: the labels of a model.
    """
    found: dict[str, int] = {}
    for label in sorted(labels, key=lambda one: one.value):
        if label.value == 0 or label.value in found.values():
            continue
        name = label.name
        while name in found or name.lower() == BACKGROUND:
            name = f"{name} ({label.value})"
        found[name] = label.value
    return found


def names_by_place(values: Mapping[str, int]) -> dict[str, int] | list[str]:
    """The names in such a form that a client which counts them finds the right one.

    3D Slicer gives the first name to the voxels of value 1, the second to 2, and so on, and passes over an empty name.
    So values without a gap stay as they are, and those with gaps become a list with an empty name at each gap.

    Args:
        values: values by names, in the order of their values.
    """
    if list(values.values()) == list(range(1, len(values) + 1)):
        return dict(values)
    names = {value: name for name, value in values.items()}
    return [names.get(value, "") for value in range(1, max(names) + 1)]
