"""A profile as text, with the engines side by side, and as JSON. Measures nothing."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from voxtile_build.errors import RepositoryError
from voxtile_build.profile.plot import plot
from voxtile_build.profile.profile import EngineProfile, Profile

WIDTH = 56
TOP = 15
JSON_VERSION = 1


def as_text(profile: Profile, top: int = TOP) -> str:
    """Two tables, by kind of operator and by layer, of `top` rows; each engine has a column."""
    heads = [_head(engine) for engine in profile.engines]
    operators = [_operators(engine, top) for engine in profile.engines]
    layers = [_layers(engine, top) for engine in profile.engines]
    runs = f"{profile.runs} run" + ("s" if profile.runs > 1 else "")
    lines = [f"{profile.model}, batch {profile.batch}, {runs}", "", *_beside(heads)]
    lines += ["", "by operator", *_beside(operators), "", f"by layer, the {top} longest", *_beside(layers)]
    warnings = [f"{engine.engine}: {warning}" for engine in profile.engines for warning in engine.warnings]
    warnings += [f"{engine} is left out: it {why}" for engine, why in profile.skipped.items()]
    return "\n".join(line.rstrip() for line in [*lines, *([""] if warnings else []), *warnings])


def as_json(profile: Profile) -> dict[str, Any]:
    """Everything that was measured: seconds of one run, and shares of the time in layers."""
    return {
        "schema_version": JSON_VERSION,
        "model": profile.model,
        "batch": profile.batch,
        "runs": profile.runs,
        "engines": [_engine_json(engine) for engine in profile.engines],
        "skipped": profile.skipped,
    }


def write(profile: Profile, json_file: Path | None, plot_file: Path | None) -> None:
    """Writes the JSON and the picture, if a file is given for them.

    Raises:
        RepositoryError: a file cannot be written.
    """
    if json_file is not None:
        try:
            json_file.write_text(json.dumps(as_json(profile), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise RepositoryError(f"{json_file}: cannot be written: {error.strerror}") from None
    if plot_file is not None:
        plot(profile, plot_file)


def share(seconds: float, engine: EngineProfile) -> float:
    """Of the time in all layers."""
    return seconds / engine.total if engine.total else 0.0


def _engine_json(engine: EngineProfile) -> dict[str, Any]:
    return {
        "engine": engine.engine,
        "entry": engine.entry,
        "precision": engine.precision,
        "seconds": engine.timed.plain,
        "seconds_profiled": engine.timed.profiled,
        "seconds_in_layers": engine.total,
        "operators": [
            {"operator": operator, "seconds": seconds, "share": share(seconds, engine)}
            for operator, seconds in engine.operators.items()
        ],
        "layers": [
            {
                "layer": layer.name,
                "operator": layer.operator,
                "seconds": layer.seconds,
                "share": share(layer.seconds, engine),
            }
            for layer in engine.layers
        ],
        "warnings": list(engine.warnings),
    }


def _head(engine: EngineProfile) -> list[str]:
    timed = engine.timed
    return [
        f"{engine.engine} ({engine.precision})",
        f"a run {_ms(timed.plain)}, profiled {_ms(timed.profiled)}, in layers {_ms(engine.total)}",
    ]


def _operators(engine: EngineProfile, top: int) -> list[str]:
    rows = [_row(operator, seconds, engine) for operator, seconds in itertools.islice(engine.operators.items(), top)]
    return [*rows, *_rest(list(engine.operators.values())[top:], engine)]


def _layers(engine: EngineProfile, top: int) -> list[str]:
    rows = [_row(layer.name, layer.seconds, engine) for layer in engine.layers[:top]]
    return [*rows, *_rest([layer.seconds for layer in engine.layers[top:]], engine)]


def _rest(seconds: list[float], engine: EngineProfile) -> list[str]:
    return [_row(f"{len(seconds)} more", sum(seconds), engine)] if seconds else []


def _row(name: str, seconds: float, engine: EngineProfile) -> str:
    room = WIDTH - 22
    shown = name if len(name) <= room else "…" + name[1 - room :]
    return f"{shown:<{room}} {_ms(seconds):>11} {share(seconds, engine):6.1%}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def _beside(columns: list[list[str]]) -> list[str]:
    rows = itertools.zip_longest(*columns, fillvalue="")
    return ["  ".join(f"{cell:<{WIDTH}}" for cell in row) for row in rows]
