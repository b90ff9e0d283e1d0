"""Puts the page about one mask together: the picture, the structures, what made the mask, and whom it is of.

Knows nothing of files.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element

from voxtile.io.dicom.source import Source
from voxtile.outputs.base import Result
from voxtile.outputs.page import elements
from voxtile.outputs.page.document import document, section
from voxtile.outputs.page.elements import element
from voxtile.outputs.page.images import page_images
from voxtile.outputs.page.made_by import certificates, passports
from voxtile.outputs.page.patient import patient_of
from voxtile.outputs.page.scripts import LICENCE, joined, niivue, styles
from voxtile.outputs.page.structure_table import structure_table
from voxtile.outputs.page.structures import numbered, structures_of
from voxtile.outputs.page.view import view
from voxtile.outputs.page.windows import says_ct, windows_of
from voxtile.outputs.passport import Passport

MODULES = ("drawing.js", "sorting.js", "report.js")
STYLES = ("common.css", "tables.css", "report.css")


def page_of(result: Result) -> str:
    """The text of a page about one mask.

    Raises:
        MissingExtraError: NiiVue was not packed.
    """
    volume, card = result.volume, result.card
    structures, windows = structures_of(card, volume.data[0], result.labels), windows_of(volume)
    images = page_images(volume, numbered(result.labels, structures), (windows[0].low, windows[0].high))
    channel = card.channels[0] if volume.channels > 1 else ""
    table = structure_table(structures, volume.voxel_ml, "HU" if says_ct(volume) else "", channel)
    content = [
        _header(result),
        element("main", *_patient(result), view(windows, images), table, *_made_by(result)),
        _footer(),
    ]
    told = {
        "structures": [{"number": one.number, "name": one.name, "rgb": one.rgb} for one in structures],
        "radiological": isinstance(volume.native, Source),  # as those see it who read DICOM
        "windows": [[window.low, window.high] for window in windows],
    }
    carried = {"scan": images.scan, "mask": images.mask}
    scripts = [niivue(), joined(MODULES)]
    return document(f"{card.name}: segmentation", content, scripts, styles(STYLES), told, carried)


def _header(result: Result) -> Element:
    card = result.card
    version = f", version {result.report.version}" if result.report else ""
    said = f"Segmentation by the model {card.name}{version}."
    return element("header", element("h1", card.title or card.name), element("p", said))


def _patient(result: Result) -> list[Element]:
    if not result.show_patient:
        return []
    return [section("patient", "Patient", elements.table("By the scan's headers", patient_of(result.volume)))]


def _made_by(result: Result) -> list[Element]:
    report = result.report
    if report is None:
        return []
    remarks = [*(f"Asked for, may change the result: {one}" for one in report.changes), *report.warnings]
    shown = passports(Passport.model_validate(report.passport)) if report.passport else []
    tables = [elements.table(heading, rows) for heading, rows in (*shown, *certificates(report))]
    sections = [section("remarks", "Remarks", elements.items(remarks))] if remarks else []
    return [*sections, section("made-by", "What made it", *tables)]


def _footer() -> Element:
    licence = element("pre", LICENCE.read_text(encoding="utf-8"))
    said = "This page holds the scan itself: whoever may not see the scan may not see the page. It loads nothing."
    details = element("details", element("summary", "Drawn by NiiVue: its licence"), licence)
    return element("footer", element("p", said), details)
