"""What the commands print. Results go to standard output, warnings and errors to standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from voxtile.cli.printable import escaped_lines
from voxtile.cli.progress import FIRST_LINE_S, Report, bar, duration, lines
from voxtile_build.progress import listening

if TYPE_CHECKING:
    from voxtile.card import Card, Certificate
    from voxtile_build.build import Published, Speed


NOTICED = 1.1
"""How many times faster another engine must be to be told: a clock's runs differ by a few per cent."""


class Steps:
    """The steps of a build, on the error output.

    A terminal shows a bar, and for each step that is done a line with its seconds. A pipe gets such lines from
    FIRST_LINE_S on: where a build fails before, its error is the only line.
    """

    def __init__(self, name: str, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True)
        self.name, self.quiet = name, quiet
        self.started = time.monotonic()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        if self.quiet:
            yield
            return
        started = time.monotonic()
        shown = self._shown(f"{self.name}: {what}", started - self.started)
        with shown as report, listening(lambda share: report(round(100 * share), 100)):
            yield
        ended = time.monotonic()
        if self.console.is_terminal or ended - self.started > FIRST_LINE_S:
            line = f"{self.name}: {what:32} {ended - started:6.1f} s"
            echo(line if self.console.is_terminal else f"{line}, {duration(ended - self.started)} in all", err=True)

    def _shown(self, step: str, already: float) -> AbstractContextManager[Report]:
        if self.console.is_terminal:
            return bar(step, self.console, percent=True)
        return lines(step, partial(echo, err=True), already, percent=True)


def announce(published: Published, repository: Path) -> None:
    """What was published, what each engine is worth, and warnings; on a terminal also what each graph pass did."""
    name, card = published.card.name, published.card
    for line in published.graph_lines:
        say(f"{name}: {line}")
    warn(published.warnings)
    what = f"{name} is {card.engine}" if published.public is None else f"version {card.version} is {card.engine}"
    echo(f"{name}: published {', '.join(published.entries)}; {what}; in {repository}")
    if (student := card.provenance.student_of) is not None:
        echo(f"{name}: {student.in_words}")
    for engine, certificate in card.certificates.items():
        echo(f"{name}: {engine} {in_words(certificate, published.speeds[engine])}")
    if faster := _faster(card, published.speeds):
        echo(f"{name}: {faster}: voxtile-build point {name} fastest --repository {repository}")
    if published.volumes:
        folders, target = ", ".join(folder.name for folder in published.volumes), published.volumes[0].parent
        echo(f"{name}: whole scans by {folders}; serve them with --volume-repository {target}")
    if published.public is not None:
        echo(
            f"{name}: version {card.version} stands beside version {published.public}, which {name} still is; to move "
            f"the name: voxtile-build promote {name} {card.version} --repository {repository}"
        )
    for engine, error in published.refused.items():
        echo(f"voxtile-build: {name} was published without {engine}: {error}", err=True)


def _faster(card: Card, speeds: Mapping[str, Speed]) -> str:
    """Which engine was faster than the one that the public name stands for; nothing where none was.

    Engines count that were measured on what will serve them. A clock does not choose by itself: it errs on a busy
    machine.
    """
    measured = {
        engine: speeds[engine].engine
        for engine, certificate in card.certificates.items()
        if certificate.device == certificate.serves_on
    }
    fastest = min(measured, key=lambda engine: measured[engine], default=card.engine)
    if card.engine not in measured or measured[card.engine] < NOTICED * measured[fastest]:
        return ""
    ratio = measured[card.engine] / measured[fastest]
    return f"{fastest} was {ratio:.1f} times as fast for a tile as {card.engine}; to let {card.name} stand for it"


def in_words(certificate: Certificate, speed: Speed) -> str:
    """What an engine's certificate says, and how fast the engine is where it was measured on what will serve it."""
    changed = f"{certificate.changed_fraction:.4%} of voxels changed against fp32 PyTorch"
    words = "; ".join(
        (f"{certificate.precision}: Dice ≥ {certificate.dice_min:.4f}, {changed}", *certificate.reservations)
    )
    if certificate.device != certificate.serves_on:
        return words
    ratio = speed.pytorch / speed.engine
    return f"{words}; a tile takes {speed.engine:.3g} s, in fp32 PyTorch {speed.pytorch:.3g} s ({ratio:.1f}×)"


def exit_code(published: Iterable[Published]) -> int:
    """0, or the code of the first engine that was refused: what was asked for is not all there."""
    codes = [error.exit_code for one in published for error in one.refused.values()]
    return codes[0] if codes else 0


def echo(text: str, err: bool = False) -> None:
    """Prints text, without what a terminal would obey: names may come from a file of somebody else's."""
    typer.echo(escaped_lines(text), err=err)


def warn(warnings: Iterable[str]) -> None:
    """A line for each warning."""
    for warning in warnings:
        echo(f"warning: {warning}", err=True)


def say(text: str) -> None:
    """A line for people: printed on a terminal only."""
    if sys.stdout.isatty():
        echo(text)
