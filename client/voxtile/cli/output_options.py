"""Makes an option of every output that `voxtile.outputs` lists; knows but the page by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxtile.errors import InputError
from voxtile.outputs.all import OUTPUTS
from voxtile.outputs.base import Output
from voxtile.outputs.page.page import PAGE

if TYPE_CHECKING:

    class OutputFiles:
        """The file of each output, or None."""

    class OutputFlags:
        """Whether each output is wanted."""

else:  # one field for each output, which a type checker cannot know
    OutputFiles = make_dataclass(
        "OutputFiles",
        [
            (one.name, Annotated[Path | None, typer.Option(metavar=f"FILE{one.suffix}", help=one.help)], None)
            for one in OUTPUTS
        ],
        frozen=True,
    )
    OutputFlags = make_dataclass(
        "OutputFlags",
        [
            (one.name, Annotated[bool, typer.Option(f"--{one.name}", help=f"{one.help} As CASE{one.suffix}.")], False)
            for one in OUTPUTS
        ],
        frozen=True,
    )


def files_of(chosen: OutputFiles) -> list[tuple[Output, Path]]:
    """The outputs that are wanted, each with its file."""
    return [(one, file) for one, file in zip(OUTPUTS, _values(chosen), strict=True) if file is not None]


def wanted_of(chosen: OutputFlags) -> list[Output]:
    """The outputs that are wanted."""
    return [one for one, wanted in zip(OUTPUTS, _values(chosen), strict=True) if wanted]


def check_show_patient(show_patient: bool, outputs: Sequence[Output]) -> None:
    """Refuses --show-patient where no output is wanted that it is about. Raises InputError."""
    if show_patient and PAGE not in outputs:
        raise InputError(
            "--show-patient: is about the page of --page, which is not asked for; ask for it, or for neither"
        )


def _values(chosen: Any) -> list[Any]:
    return [getattr(chosen, field.name) for field in fields(chosen)]
