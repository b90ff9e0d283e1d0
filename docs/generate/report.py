"""The page of the report: what `voxtile segment --json` writes."""

from __future__ import annotations

from docs.generate.fields import Section, sections_of
from docs.generate.markdown import code
from voxtile.outputs.report import Report

INTRODUCTION = """\
# The report

`voxtile segment --json FILE` writes one JSON object; `--json -` writes it to standard output. In Python it is
`segmentation.report`. It holds no file name and no field of the scan's header."""


def page() -> str:
    """Returns the page as Markdown."""
    return (
        "\n\n".join([INTRODUCTION, *(section.as_markdown(_title(section)) for section in sections_of(Report))]) + "\n"
    )


def _title(section: Section) -> str:
    return code(section.path) or "The object"
