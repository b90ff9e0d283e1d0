"""A picture of a profile: a bar for each engine, divided by kind of operator; below, each engine's longest layers.

Measures nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from voxtile_build.errors import RepositoryError
from voxtile_build.profile.profile import EngineProfile, Profile

OPERATORS = 8
LAYERS = 12
NAME_ROOM = 34
REST = "other"
GREY = "#b0b0b0"


def plot(profile: Profile, path: Path) -> None:
    """Writes the picture to `path`, whose ending chooses PNG, SVG or PDF.

    Raises:
        RepositoryError: it cannot be written, or matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise RepositoryError("--plot needs matplotlib; install it beside voxtile-build") from None
    count = max(1, len(profile.engines))
    figure = Figure(figsize=(7 * count, 8), layout="constrained")
    FigureCanvasAgg(figure)
    rows: Any = figure.subfigures(2, 1, height_ratios=(1, 2))
    _bars(rows[0].subplots(), profile)
    for axes, engine in zip(rows[1].subplots(1, count, squeeze=False)[0], profile.engines, strict=False):
        _longest(axes, engine)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise RepositoryError(f"{path}: the picture cannot be written: {error}") from None


def parts(engine: EngineProfile) -> dict[str, float]:
    """Milliseconds by operator: the longest by name, the rest together as `other`."""
    items = [(name, seconds * 1e3) for name, seconds in engine.operators.items()]
    rest = sum(value for _, value in items[OPERATORS:])
    return {**dict(items[:OPERATORS]), **({REST: rest} if rest else {})}


def _bars(axes: Any, profile: Profile) -> None:
    from matplotlib import colormaps

    names = list(dict.fromkeys(name for engine in profile.engines for name in parts(engine)))
    colours = {name: GREY if name == REST else colormaps["tab20"](index % 20) for index, name in enumerate(names)}
    for row, engine in enumerate(profile.engines):
        left = 0.0
        for name, value in parts(engine).items():
            axes.barh(row, value, left=left, color=colours[name], edgecolor="white", linewidth=0.5)
            left += value
    axes.set_yticks(range(len(profile.engines)), [f"{engine.engine}\n{engine.precision}" for engine in profile.engines])
    axes.invert_yaxis()
    axes.set_xlabel(f"ms a run, batch {profile.batch}")
    axes.set_title(f"{profile.model}: time by operator")
    handles = [_patch(colours[name]) for name in names]
    axes.legend(handles, names, ncols=6, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.3))


def _patch(colour: Any) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour)


def _longest(axes: Any, engine: EngineProfile) -> None:
    layers = engine.layers[:LAYERS]
    names = [layer.name if len(layer.name) <= NAME_ROOM else "…" + layer.name[1 - NAME_ROOM :] for layer in layers]
    axes.barh(range(len(layers)), [layer.seconds * 1e3 for layer in layers], color="tab:blue")
    axes.set_yticks(range(len(layers)), names, fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel("ms a run")
    axes.set_title(f"{engine.engine} ({engine.precision}): the longest layers")
