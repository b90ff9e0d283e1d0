"""Shows errors as one line and progress to people, and makes signals end a command cleanly.

What nobody reads any more costs nothing but the showing. Knows nothing of what the commands do.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

import typer
from rich.console import Console

from voxtile.cli.printable import printable
from voxtile.cli.progress import Report, bar, ignore, lines
from voxtile.errors import OutputError, VoxtileError, in_one_line

SIGNAL_EXIT = 128
"""A process that a signal ends has this exit code and the signal's number, as shells expect it."""

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
"""What ends a command besides SIGINT: a scheduler's time limit, a terminal that is closed."""

STOPPING_SIGNALS = (*ENDING_SIGNALS, signal.SIGUSR1)
"""What stops a command that the same command line goes on with; Slurm can send SIGUSR1 before a time limit."""

EXIT_UNEXPECTED = 2


class Ended(KeyboardInterrupt):
    """A signal has asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def errors_for_the_user(stopped: int | None = None) -> Iterator[None]:
    """Turns every error into one line and its exit code, and a signal into 128 and its number.

    Args:
        stopped: the exit code of a command that a scheduler's signal has stopped, and that goes on when it is repeated;
            None for a command that does not.
    """
    try:
        with signals_interrupt(ENDING_SIGNALS if stopped is None else STOPPING_SIGNALS):
            yield
    except VoxtileError as error:
        say(str(error))
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Ended) else signal.SIGINT
        if stopped is not None and number != signal.SIGINT:
            say("stopped by a signal; what is finished is recorded; the same command goes on")
            raise typer.Exit(stopped) from None
        say(f"{'interrupted' if number == signal.SIGINT else 'ended by a signal'}; nothing half-written is left")
        raise typer.Exit(SIGNAL_EXIT + number) from None
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except Exception as error:  # a library's, or a fault of ours: a user cannot use a traceback
        say(in_one_line(error))
        raise typer.Exit(EXIT_UNEXPECTED) from None


def say(text: str) -> None:
    """Writes one line to standard error, if anybody reads it; what a terminal would obey is escaped."""
    with suppress(OSError, ValueError, AttributeError):  # closed by the reader, by this process, or never open
        sys.stderr.write(f"voxtile: {printable(text)}\n")
        sys.stderr.flush()


def tell(line: str) -> None:
    """Writes one line to standard output, if anybody reads it; what a terminal would obey is escaped."""
    with suppress(OutputError):
        write_out(f"{printable(line)}\n")


def write_out(text: str) -> None:
    """Writes text that was asked for to standard output, as it is: what others wrote goes through `printable` before.

    Raises:
        OutputError: nobody reads it, or it cannot be written.
    """
    if sys.stdout is None:
        raise OutputError("standard output: cannot be written (it is closed)")
    try:
        sys.stdout.write(text.encode("utf-8", "backslashreplace").decode())
        sys.stdout.flush()
    except (OSError, ValueError) as error:  # no reader, a full disk, closed, an encoding that cannot say it
        _let_go(sys.stdout)
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"standard output: cannot be written ({reason})") from None


def occupy_standard_streams() -> None:
    """Opens those of the three standard streams that are closed, so that no mask gets the number of one of them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one


def _let_go(stream: TextIO | None) -> None:
    """Gives what is still buffered to nobody; Python would fail over it once more at its end."""
    if stream is None:
        return
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextmanager
def signals_interrupt(signals: Sequence[signal.Signals] = ENDING_SIGNALS) -> Iterator[None]:
    """Within the block a signal that would end the process raises `Ended`, so that work is put in order first."""

    def end(number: int, _: object) -> None:
        raise Ended(number)

    ours = []
    if threading.current_thread() is threading.main_thread():
        ours = [one for one in signals if signal.getsignal(one) is signal.SIG_DFL]  # nohup's SIG_IGN stays
    for one in ours:
        signal.signal(one, end)
    try:
        yield
    finally:
        for one in ours:
            signal.signal(one, signal.SIG_DFL)


@contextmanager
def progress_bar(what: str, quiet: bool) -> Iterator[Report]:
    """Shows progress with the time left on the error output: a bar on a terminal, a line now and then elsewhere.

    Gives:
        A function to call as progress(done, total).
    """
    console = Console(stderr=True)
    if quiet:
        yield ignore
    elif console.is_terminal:
        with bar(what, console) as report:
            yield report
    else:
        with lines(what, say) as report:
            yield report
