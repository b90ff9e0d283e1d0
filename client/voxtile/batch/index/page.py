"""Writes the page about a batch: index.html in the folder of masks, one file that loads nothing.

Knows nothing of how a case is measured.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from xml.etree.ElementTree import Element

from voxtile.batch.cases import MASK_SUFFIX, CaseFiles
from voxtile.batch.index.outliers import LEAST_CASES, RULE, outliers
from voxtile.batch.index.row import Row, Rows
from voxtile.batch.record import Records
from voxtile.batch.summary import Outcome
from voxtile.card import Card
from voxtile.errors import OutputError
from voxtile.outputs.base import Output
from voxtile.outputs.page.document import document, section
from voxtile.outputs.page.elements import element
from voxtile.outputs.page.page import PAGE
from voxtile.outputs.page.scripts import joined, styles
from voxtile.outputs.page.structure_table import NOTHING, in_words
from voxtile.outputs.report import names_by_value, write_text

INDEX = "index.html"

MARK = "<title>Voxtile batch: "
"""What tells an index of an earlier run from any other file of its name."""

READ_BYTES = 1 << 16


@dataclass(frozen=True)
class Line:
    """One case, as the page shows it."""

    outcome: Outcome
    row: Row | None
    page: Path | None


def check_index(outputs: Path, cases: Sequence[CaseFiles], beside: Sequence[Output]) -> None:
    """Checks that the page's name is free, or has the page of an earlier run.

    Raises:
        OutputError: it has something else, or is that of a case's own page.
    """
    path = outputs / INDEX
    if any(path in case.targets(beside).values() for case in cases):
        raise OutputError(f"{path}: would be the page of the case 'index' and that of the batch; rename the scan")
    try:
        ours = not os.path.lexists(path) or MARK.encode() in _beginning(path)
    except OSError:
        ours = False
    if not ours:
        raise OutputError(f"{path}: expected no file, or the index of an earlier run, found another; move it away")


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(READ_BYTES)


def write_index(outputs: Path, outcomes: Sequence[Outcome], records: Records, card: Card) -> None:
    """Writes the page.

    Args:
        outputs: the folder of masks.
        outcomes: what became of each case.
        records: those of the cases.
        card: the model's.

    Raises:
        OutputError: it cannot be written.
    """
    rows = Rows(outputs)
    lines = [_line(outcome, rows, records, outputs) for outcome in outcomes]
    write_text(index_of(lines, card, outputs), outputs / INDEX)


def index_of(lines: Sequence[Line], card: Card, outputs: Path) -> str:
    """The text of the page."""
    labels = [" + ".join(names) for value, names in names_by_value(card).items() if value != 0]
    columns: dict[str, list[float | None]] = {
        f"{label} ml": [line.outcome.ml.get(label) for line in lines] for label in labels
    }
    columns["Surface cm²"] = [line.row.surface_cm2 if line.row else None for line in lines]
    columns["Pieces"] = [line.row.components if line.row else None for line in lines]
    marked = {name: outliers(values) for name, values in columns.items()}
    heads = ("Case", "Picture", "Marks", *columns, "Status", "Remark")
    kinds = {"Case": "text", "Status": "text", **dict.fromkeys(("Marks", *columns), "number")}
    head = [element("th", name, scope="col", **({"data_sort": kinds[name]} if name in kinds else {})) for name in heads]
    rows = [
        _row(line, {name: (values[at], marked[name][at]) for name, values in columns.items()}, outputs)
        for at, line in enumerate(lines)
    ]
    table = element("table", element("thead", element("tr", *head)), element("tbody", *rows), id="cases")
    counts = Counter(line.outcome.status for line in lines)
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    content = [
        element(
            "header", element("h1", card.title or card.name), element("p", f"A batch by the model {card.name}: {said}.")
        ),
        element("main", section("batch", "Cases", *_rules(lines), element("div", table, class_="scroll"))),
    ]
    return document(f"Voxtile batch: {card.name}", content, [joined(("sorting.js", "index.js"))],
                    styles(("common.css", "tables.css", "index.css")))  # fmt: skip


def _line(outcome: Outcome, rows: Rows, records: Records, outputs: Path) -> Line:
    record = records.read(outcome.case) if outcome.ml else None
    if record is None:
        return Line(outcome, None, None)
    page = outputs / f"{outcome.case}{PAGE.suffix}"
    has_page = PAGE.suffix in record.files and page.is_file()
    return Line(outcome, rows.read(outcome.case, record.files.get(MASK_SUFFIX)), page if has_page else None)


def _rules(lines: Sequence[Line]) -> list[Element]:
    measured = sum(bool(line.outcome.ml) for line in lines)
    said = [RULE]
    if measured < LEAST_CASES:
        said.append(f"No case is marked here: {measured} have a mask, and the rule wants at least {LEAST_CASES}.")
    if any(line.row is None for line in lines if line.outcome.ml):
        said.append("Cases that were segmented without --index have no picture, no surface and no pieces.")
    said.append(
        "Pieces are connected voxels, counted for each structure. The surface is that of all structures as one body, "
        "along the faces of its voxels. In pictures the patient's left is on the left."
    )
    return [element("p", text, class_="hint") for text in said]


def _row(line: Line, cells: Mapping[str, tuple[float | None, bool]], outputs: Path) -> Element:
    outcome = line.outcome
    name: Element | str = outcome.case
    if line.page is not None:
        name = element("a", outcome.case, href=_address(line.page.relative_to(outputs)))
    picture = element("td")
    if line.row is not None:
        address = f"data:image/jpeg;base64,{line.row.thumbnail}"
        picture.append(element("img", src=address, alt=f"Slices of {outcome.case}", loading="lazy"))
    marks = sum(marked for _, marked in cells.values())
    return element(
        "tr",
        element("th", name, scope="row", data_value=outcome.case),
        picture,
        element("td", str(marks) if marks else "", class_="number", data_value=str(marks)),
        *(_cell(value, marked) for value, marked in cells.values()),
        element("td", outcome.status, class_="bad" if outcome.status in ("failed", "not tried") else ""),
        element("td", outcome.error),
    )


def _cell(value: float | None, marked: bool) -> Element:
    if value is None:
        return element("td", NOTHING, class_="number")
    shown = f"{in_words(value)} ⚑" if marked else in_words(value)
    attributes = {"title": "far from the other cases"} if marked else {}
    kind = "number marked" if marked else "number"
    return element("td", shown, class_=kind, data_value=repr(value), **attributes)


def _address(page: Path) -> str:
    """A link to a file below the index, whatever its name is."""
    return "./" + quote(os.fsencode(page))
