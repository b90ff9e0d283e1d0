"""The README's chart, an SVG picture of the summary. Knows nothing of how figures were measured."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from docs.generate.summary import Line

COLOURS = {"before": "#9aa5ad", "best other way": "#6b7780", "Voxtile fp32": "#5b9bd0", "Voxtile fastest": "#1b6ca8"}
WIDTH, LEFT, LABEL, RIGHT, BAR, STEP, GAP, TOP = 800, 8, 118, 150, 16, 20, 34, 26
"""The chart's measures in pixels: its width, the margin, room for the names of columns, room right of the longest bar,
the height of a bar, of a line, between groups, and above the first."""
NAMED = ("best other way", "Voxtile fastest")
"""Columns whose way differs from line to line; the chart names it."""
TITLE = "How many times faster than before, from the scan's file to the mask's file"


def draw(summary: Sequence[Line]) -> str:
    """Returns the summary as an SVG picture: how many times faster than before, a group of bars for each workload.

    It has the figures as text in its description, for readers who cannot see it.
    """
    shown = charted(summary)
    most = max((line.speed(column) for line in shown for column in line.ways), default=1.0)
    parts, top = [], TOP
    for line in shown:
        parts.append(f'<text x="{LEFT}" y="{top}" font-weight="bold">{escape(line.title)}</text>')
        top += 8
        for column in line.ways:
            parts.append(_bar(line, column, top, (WIDTH - LABEL - RIGHT) / most))
            top += STEP
        top += GAP - 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top - GAP + 12}" role="img" '
        'aria-labelledby="title description" font-family="sans-serif" font-size="13">\n'
        f'<title id="title">{escape(TITLE)}</title>\n<desc id="description">{escape(words(shown))}</desc>\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n<g fill="#1d2327">\n'
        + "\n".join(parts)
        + "\n</g>\n</svg>\n"
    )


def charted(summary: Sequence[Line]) -> list[Line]:
    """Returns the lines that the chart shows: those with several ways that Voxtile took."""
    return [line for line in summary if len(line.ways) > 2]


def words(summary: Sequence[Line]) -> str:
    """Returns the chart's figures as sentences."""
    return " ".join(
        f"{line.title}: " + ", ".join(f"{column} {line.speed(column):.1f}×" for column in line.ways) + "."
        for line in summary
    )


def _bar(line: Line, column: str, top: int, scale: float) -> str:
    width = line.speed(column) * scale
    way = line.ways[column]
    said = f"{line.speed(column):.1f}×, {way.seconds:.3g} s" + (f": {way.name}" if column in NAMED else "")
    middle = top + BAR - 4
    return (
        f'<text x="{LABEL - 8}" y="{middle}" text-anchor="end">{escape(column)}</text>'
        f'<rect x="{LABEL}" y="{top}" width="{width:.1f}" height="{BAR}" fill="{COLOURS[column]}"/>'
        f'<text x="{LABEL + width + 6:.1f}" y="{middle}">{escape(said)}</text>'
    )
