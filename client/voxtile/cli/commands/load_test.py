"""`voxtile load-test`: how many scans a service segments in an hour, and how long each takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import BaseModel

from voxtile.cli import options
from voxtile.cli.console import errors_for_the_user, progress_bar, say, write_out
from voxtile.cli.printable import escaped
from voxtile.errors import InputError, OutputError, failures_of
from voxtile.io.atomic import check_writable
from voxtile.io.formats.all import all_files
from voxtile.io.same_file import check_outputs_apart
from voxtile.load.measure import LoadTest
from voxtile.load.mix import scans_of, shares_of
from voxtile.load.plan import Load, check_rising, rising, summary
from voxtile.load.plot import check_plot, draw_loads
from voxtile.load.result import LoadResult
from voxtile.load.table import level, load_lines, rising_lines
from voxtile.load.target import Target, target_of
from voxtile.load.units import in_words, rate_of, seconds_of
from voxtile.options import Options
from voxtile.outputs.report import write_text

EXIT_SOME_FAILED = 1


@dataclass(frozen=True)
class LoadOptions:
    """How hard to press."""

    clients: Annotated[
        int | None,
        typer.Option(
            min=1, help="Clients that ask at once, 2 by default; with --rate the most that do, 16 by default."
        ),
    ] = None
    count: Annotated[
        int | None, typer.Option("--scans", min=1, help="Scans in all, 8 by default; with --until, scans of each load.")
    ] = None
    duration: Annotated[
        str | None, typer.Option(metavar="TIME", help="Ask for no scan after so long, such as 10min.")
    ] = None
    rate: Annotated[
        str | None,
        typer.Option(metavar="N/h", help="Scans come at this rate, such as 60/h or 2/min, whatever the server does."),
    ] = None
    arrivals: Annotated[
        Literal["poisson", "even"] | None,
        typer.Option(help="How they come at --rate: independent of each other (the default), or evenly."),
    ] = None
    seed: Annotated[int | None, typer.Option(help="Of --arrivals poisson; the same one gives the same times.")] = None
    until: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET", help="Raise the clients, or the rate, until this percentile breaks, such as 'p95<30s'."
        ),
    ] = None

    def load(self) -> Load:
        """The load. Raises InputError for options that do not fit together."""
        if self.rate is None and (self.arrivals or self.seed is not None):
            raise InputError("--arrivals, --seed: expected --rate with them, found none")
        return Load(
            self.clients,
            None if self.rate is None else rate_of(self.rate, "--rate"),
            self.arrivals or "poisson",
            self.seed or 0,
            self.count,
            None if self.duration is None else seconds_of(self.duration, "--duration"),
        )

    def target(self, load: Load) -> Target | None:
        """The target. Raises InputError for none that could be told, or a load that cannot tell it."""
        target = None if self.until is None else target_of(self.until, "--until")
        if target is not None:
            check_rising(load, target)
        return target


@dataclass(frozen=True)
class ResultOptions:
    """Where the result goes."""

    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False
    json_file: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write the result as JSON.")] = None
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the result.")] = None

    def check(self, scans: Sequence[Path]) -> None:
        """Checks, before any work, the names of the files. Raises OutputError or MissingExtraError."""
        given = (("--json-file", self.json_file, ".json"), ("--plot", self.plot, ".png"))
        files = [(f"the file of {option}", file) for option, file, _ in given if file is not None]
        for option, file, suffix in given:
            if file is not None and file.suffix != suffix:
                raise OutputError(f"{file}: expected a name that ends in {suffix} for {option}")
        if self.plot is not None:
            check_plot()
        check_outputs_apart([file for scan in scans for file in all_files(scan)], files)
        for _, file in files:
            check_writable(file)

    def give(self, content: BaseModel, lines: Iterator[str], draw: Callable[[Path], None]) -> None:
        """Writes the result wherever it is wanted. Raises OutputError for what could not be written."""
        text = content.model_dump_json(indent=2) + "\n"
        writings: list[Callable[[], None]] = [
            lambda: write_out(text if self.as_json else "".join(f"{escaped(line)}\n" for line in lines))
        ]
        if (json_file := self.json_file) is not None:
            writings.append(lambda: write_text(text, json_file))
        if (plot := self.plot) is not None:
            writings.append(lambda: draw(plot))
        if failures := failures_of(writings):
            raise OutputError("; ".join(failures))


def load_test(
    model: Annotated[
        list[str],
        typer.Option(
            "--model", "-m", metavar="NAME[=SHARE]", help="The model's public name; repeat it for several, by shares."
        ),
    ],
    server: options.ServerOptions,
    press: LoadOptions,
    results: ResultOptions,
    scans: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[SCAN...]", help="The scan of every model without its own --scan; its files, one a channel."
        ),
    ] = None,
    own: Annotated[
        list[str] | None,
        typer.Option(
            "--scan", metavar="NAME=FILE", help="The scan of one of several models; repeat it for further channels."
        ),
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Measure a service in scans an hour: clients segment the same scan over and over, or scans come at a rate.

    Exit code 0: every scan was segmented; 1: some failed. An interrupted load tells what it measured so far.
    """
    with errors_for_the_user():
        load = press.load()
        target, shares = press.target(load), shares_of(model, "--model")
        given = scans_of(own or [], shares, "--scan")
        results.check([*(scans or []), *(file for files in given.values() for file in files)])
        chosen = Options(connection=server.connection())
        with LoadTest(server.url, shares, scans, chosen, given) as test, _told_at_the_end(test, target, results):
            if target is None:
                with progress_bar("scans under load", quiet) as show:
                    test.run(load, progress=lambda done, total: show(done, total or done))
            else:
                for result in rising(partial(test.run, target=target), load, target):
                    if not quiet:
                        _tell_step(result)
    if any(one.failed for one in test.results):
        raise typer.Exit(EXIT_SOME_FAILED)


@contextmanager
def _told_at_the_end(test: LoadTest, target: Target | None, results: ResultOptions) -> Iterator[None]:
    """Gives the result after the block, also where a signal has ended it."""
    interrupted = False
    try:
        yield
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        if test.results:
            _give(test, target, results, interrupted)


def _give(test: LoadTest, target: Target | None, results: ResultOptions, interrupted: bool) -> None:
    def draw(path: Path) -> None:
        draw_loads(test.results, target, path)

    if target is None:
        results.give(test.results[-1], load_lines(test.results[-1]), draw)
    else:
        found = summary(test.results, target, interrupted=interrupted)
        results.give(found, rising_lines(found), draw)


def _tell_step(result: LoadResult) -> None:
    """Says how a load went, while higher ones are still to come."""
    worst = "no scan" if result.seconds_longest is None else f"longest {in_words(result.seconds_longest)}"
    say(f"{level(result)}: {result.scans_per_hour:g} scans an hour, {worst}, {'held' if result.held else 'lost'}")
