"""The part of a page in which the scan is seen, with the controls of the picture. Knows nothing of what draws it."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from voxtile.outputs.page.document import section
from voxtile.outputs.page.elements import element
from voxtile.outputs.page.images import PageImages
from voxtile.outputs.page.windows import Window

VIEWS = (
    ("MULTIPLANAR", "three planes"), ("AXIAL", "axial"), ("CORONAL", "coronal"), ("SAGITTAL", "sagittal"),
    ("RENDER", "volume (3D)"),
    ("ALL", "three planes and volume"),
)  # fmt: skip
"""NiiVue's names of views, and ours; ALL is no name of NiiVue's."""

HINT = (
    "Click, drag or use the arrow keys, Page Up and Page Down to move; the wheel goes through slices. In the volume, "
    "drag to turn it. Letters name the patient's sides."
)


def view(windows: Sequence[Window], images: PageImages) -> Element:
    """The picture and its controls.

    Args:
        windows: what can be chosen; the first one is chosen.
        images: what is drawn.
    """
    canvas = element(
        "canvas", id="canvas", tabindex="0", role="img", aria_label="The scan with the mask over it",
        aria_describedby="canvas-hint",
    )  # fmt: skip
    return section(
        "view", "Mask over scan",
        element("noscript", element("p", "The picture needs JavaScript; the tables do not.", class_="error")),
        element("div", canvas, class_="picture"),
        element("p", "The picture is being drawn.", id="where", class_="hint"),
        element("p", HINT, id="canvas-hint", class_="hint"),
        _controls(windows),
        element("p", id="view-error", class_="error", role="alert", hidden=""),
        *(element("p", text, class_="hint") for text in _apart(images)),
    )  # fmt: skip


def _controls(windows: Sequence[Window]) -> Element:
    named = [(str(at), window.name) for at, window in enumerate(windows)]
    turned = element("input", id="radiological", type="checkbox", autocomplete="off")
    return element(
        "div",
        _labelled("View", _select("planes", VIEWS)),
        _labelled("Window", _select("window", [*named, ("", "other")])),
        _labelled("Black at", element("input", id="low", type="number", step="any", autocomplete="off")),
        _labelled("White at", element("input", id="high", type="number", step="any", autocomplete="off")),
        _labelled("Opacity of the mask", element(
            "input", id="opacity", type="range", min="0", max="1", step="0.05", value="0.6", autocomplete="off",
        )),
        element("label", turned, " The patient's right on the left (radiological)"),
        class_="controls",
    )  # fmt: skip


def _select(name: str, choices: Sequence[tuple[str, str]]) -> Element:
    options = [element("option", text, value=value) for value, text in choices]
    return element("select", *options, id=name, autocomplete="off")


def _labelled(text: str, control: Element) -> Element:
    return element("span", element("label", text, for_=control.attrib["id"]), control, class_="control")


def _apart(images: PageImages) -> list[str]:
    """What the picture shows otherwise than the scan is."""
    said = []
    if max(images.every) > 1:
        steps = " × ".join(map(str, images.every))
        said.append(
            f"The scan is too large for a page: the picture shows one of {steps} voxels along its axes. All numbers "
            "are of the whole scan and mask."
        )
    if images.kept:
        low, high = images.kept
        said.append(f"In the picture, values below {low:.6g} and above {high:.6g} are shown as these.")
    return said
