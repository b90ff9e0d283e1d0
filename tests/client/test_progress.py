"""Progress for people: lines in a pipe with the time that is left, a bar on a terminal, nothing on request."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from voxtile.cli import console, progress
from voxtile.cli.progress import _State, bar, duration, ignore, lines


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    turned = Clock()
    monkeypatch.setattr(progress, "time", turned)
    return turned


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (65, "1 min 5 s"),
        (3600, "1 h"),
        (3599.6, "1 h"),
        (7830, "2 h 10 min"),
    ],
)
def test_durations_are_told_as_people_tell_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_time_left_is_that_of_the_counted_work_alone(clock: Clock) -> None:
    state = _State("segmenting")
    clock.now += 50  # the model is opened
    assert state.line(clock.now) == "segmenting: 50 s so far"
    state.report(1, 21)
    assert state.line(clock.now) == "segmenting: 1 of 21, 50 s so far", "one report shows no pace"
    clock.now += 10
    state.report(6, 21)  # five in ten seconds, fifteen to go
    assert state.line(clock.now) == "segmenting: 6 of 21, 1 min so far, about 30 s left"
    clock.now += 30
    state.report(21, 21)
    assert state.line(clock.now).endswith("21 of 21, 1 min 30 s so far, about 0 s left")


def test_a_share_is_told_in_percent(clock: Clock) -> None:
    state = _State("building", percent=True)
    state.report(20, 100)
    clock.now += 10
    state.report(40, 100)
    assert state.line(clock.now) == "building: 40%, 10 s so far, about 30 s left"


def test_a_pipe_gets_lines_while_slow_work_lasts_and_none_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE_S", 0.01)
    monkeypatch.setattr(progress, "NEXT_LINE_S", 0.01)
    written: list[str] = []
    two = threading.Event()

    def write(line: str) -> None:
        written.append(line)
        if len(written) >= 2:
            two.set()

    with lines("calibrating", write) as report:
        report(3, 7)
        assert two.wait(60)
    ended = len(written)
    assert not [one for one in threading.enumerate() if one.name == "progress"]
    assert all(line.startswith("calibrating: ") for line in written)
    assert "3 of 7" in written[-1]
    assert len(written) == ended


def test_quick_work_and_work_that_fails_at_once_write_nothing() -> None:
    written: list[str] = []
    with lines("reading", written.append) as report:
        report(1, 1)
    with pytest.raises(ValueError, match="bad"), lines("reading", written.append):
        raise ValueError("bad")
    assert written == []


def test_a_terminal_gets_a_bar_with_the_count_and_the_time_left() -> None:
    screen = io.StringIO()
    with bar("segmenting", Console(file=screen, force_terminal=True, width=100)) as report:
        report(2, 9)
        report(3, 9)
    shown = screen.getvalue()
    assert "segmenting" in shown
    assert "3/9" in shown


@pytest.mark.parametrize("quiet", [True, False])
def test_the_commands_write_lines_to_the_error_output_unless_quiet(
    quiet: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE_S", 0.01)
    spoken = threading.Event()
    tell = console.say
    monkeypatch.setattr(console, "say", lambda line: (tell(line), spoken.set()))
    with console.progress_bar("segmenting", quiet) as report:
        assert (report is ignore) == quiet
        report(1, 2)
        assert spoken.wait(0.2 if quiet else 60) != quiet
    out, err = capsys.readouterr()
    assert out == ""
    assert (err == "") == quiet
    assert quiet or err.startswith("voxtile: segmenting: 1 of 2, 0 s so far")
