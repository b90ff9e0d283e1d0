"""Writes the report where a command's --json says. Knows no command."""

from __future__ import annotations

from pathlib import Path

from voxtile.cli.console import write_out
from voxtile.errors import OutputError
from voxtile.outputs.report import Report, write_text
from voxtile.places.address import check_is_path

STANDARD_OUTPUT = "-"
REPORT_SUFFIX = ".json"


def report_file_of(json_file: str | None) -> Path | None:
    """The file of the option --json; None without it, and for standard output."""
    return None if json_file in (None, STANDARD_OUTPUT) else Path(str(json_file))


def check_report_file(report_file: Path | None) -> None:
    """Checks the name of the file of --json.

    Raises:
        InputError: it is an address.
        OutputError: it has another ending.
    """
    if report_file is not None:
        check_is_path(report_file)
    if report_file is not None and report_file.suffix != REPORT_SUFFIX:
        raise OutputError(f"{report_file}: expected a name that ends in {REPORT_SUFFIX}, or -, for --json")


def write_report(report: Report, json_file: str | None) -> None:
    """Writes a report where the option --json says.

    Raises:
        OutputError: it cannot be written, or nobody reads it.
    """
    text, file = report.model_dump_json(indent=2) + "\n", report_file_of(json_file)
    if json_file == STANDARD_OUTPUT:
        write_out(text)
    elif file is not None:
        write_text(text, file)
