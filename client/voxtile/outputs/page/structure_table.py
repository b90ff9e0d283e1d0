"""The part of a page that lists the structures of a mask: a switch, a name, a volume and intensities each.

Knows nothing of how they are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from voxtile.outputs.page.document import section
from voxtile.outputs.page.elements import element
from voxtile.outputs.page.structures import Structure

NOTHING = "–"


def structure_table(structures: Sequence[Structure], voxel_ml: float, unit: str, channel: str) -> Element:
    """The table.

    Args:
        structures: those of the mask, found or not.
        voxel_ml: millilitres of a voxel.
        unit: of the intensities; empty where it is not known.
        channel: the channel that the intensities are of; empty for a scan of one.
    """
    heads = ("Volume in ml", "Voxels", f"Mean in {unit}" if unit else "Mean", "Standard deviation", "Lowest", "Highest")
    head = element(
        "tr",
        element("th", "Shown", scope="col"),
        element("th", "Structure", scope="col", data_sort="text"),
        *(element("th", name, scope="col", data_sort="number") for name in heads),
    )
    found_first = sorted(structures, key=lambda one: one.measured.voxels == 0)
    of_channel = f", of the channel {channel}" if channel else ""
    table = element(
        "table",
        element("caption", f"Volumes are of the whole mask. Intensities are of the scan{of_channel}."),
        element("thead", head),
        element("tbody", *(_row(one, voxel_ml) for one in found_first), id="labels"),
        id="structures",
    )
    buttons = element("p", _button("Show all", "all"), _button("Hide all", "none"), class_="downloads")
    return section(
        "numbers", "Structures", element("p", _found(structures)), buttons, element("div", table, class_="scroll")
    )


def in_words(value: float) -> str:
    """A number for people: four significant digits, but never fewer than those of the whole number."""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _found(structures: Sequence[Structure]) -> str:
    found = sum(one.measured.voxels > 0 for one in structures)
    return f"{found} of {len(structures)} structures found." if found else "The mask is empty: no structure was found."


def _row(one: Structure, voxel_ml: float) -> Element:
    number, found = str(one.number), one.measured
    box = element(
        "input", type="checkbox", checked="", autocomplete="off", data_number=number, aria_label=f"Show {one.name}"
    )
    swatch = element("svg", element("rect", width="100%", height="100%", fill=_hex(one.rgb)), class_="swatch",
                     aria_hidden="true")  # fmt: skip
    name: Element | str = one.name
    if found.voxels:
        name = element("button", one.name, type="button", class_="go", data_number=number, title="Go there")
    measured = [found.voxels * voxel_ml, found.voxels]
    intensities = [found.mean, found.deviation, found.minimum, found.maximum]
    cells = map(_cell, [*measured, *intensities] if found.voxels else [*measured, *([None] * len(intensities))])
    return element("tr", element("td", box), element("th", swatch, name, scope="row", data_value=one.name), *cells)


def _cell(value: float | None) -> Element:
    if value is None:
        return element("td", NOTHING, class_="number")
    return element("td", in_words(value), class_="number", data_value=repr(value))


def _button(text: str, name: str) -> Element:
    return element("button", text, id=name, type="button")


def _hex(rgb: Sequence[int]) -> str:
    return "#" + "".join(f"{part:02x}" for part in rgb)
