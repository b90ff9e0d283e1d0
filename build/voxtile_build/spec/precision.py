"""The table [precision]: the arithmetic of each engine, and the scans that reduced precision is calibrated on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model, field_validator

from voxtile_build.spec.engines import AUTO, KNOWN_ENGINES, KnownEngine
from voxtile_build.spec.table import AnyPath, Table, as_scans


def _field(engine: KnownEngine) -> Any:
    meaning = f"arithmetic of the {engine.title} engine: {', '.join(engine.precisions)} or {AUTO}"
    return Literal[(*engine.precisions, AUTO)], Field(default="fp32", description=meaning)


if TYPE_CHECKING:
    _ByEngine = Table
else:
    _ByEngine = create_model("_ByEngine", __base__=Table, **{engine.name: _field(engine) for engine in KNOWN_ENGINES})


class Precision(_ByEngine):
    """The precision that each engine is asked for: a key for each engine, by its name."""

    calibration: tuple[tuple[AnyPath, ...], ...] = Field(
        default=(),
        description="scans that reduced precision is calibrated and searched on, relative to the spec (a list of files "
        "a scan where there are several channels); left out: a generated phantom, and the certificate says so",
    )

    @field_validator("calibration", mode="before")
    @classmethod
    def _one_file_is_a_scan(cls, value: Any) -> Any:
        return as_scans(value)

    def of(self, engine: str) -> str:
        """The precision that `engine` is asked for."""
        return str(getattr(self, engine))
