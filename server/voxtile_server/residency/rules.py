"""Decides which model is loaded next and which is unloaded. Pure: the caller tells the time, and does what is decided.

A client asks for a model again and again until it is ready, so a client that has gone is known by its silence. A model
in use is left alone, unless another has waited for a whole turn: then they take turns. A request that is under way when
its model is unloaded is finished by Triton; the client asks for the model again before it sends the next.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

GRACE_S = 10.0
"""A model counts as in use for so long after its last request: a client prepares its scan before the first tile."""

PACE = 3.0
"""It counts as in use for so many times the mean duration of its requests too, where they take long."""

TURN_S = 60.0
"""How long a model in use may keep another waiting; more than loading takes, so that most time is spent on scans."""

SILENCE_S = 10.0
"""A client that has not asked for so long has gone. It asks every second."""

REMEMBERED_S = 10.0
"""For so long a failure to load is told to all that ask; whoever asks later has it tried again."""


class Load(NamedTuple):
    """Load this model."""

    name: str


class Unload(NamedTuple):
    """Unload this model."""

    name: str


class Use(NamedTuple):
    """What the server says of a model's use.

    Attributes:
        requests: how many requests it has answered since it was loaded.
        seconds: the mean duration of one, 0 where there was none.
    """

    requests: int
    seconds: float


UNUSED = Use(0, 0.0)


@dataclass(frozen=True)
class Answer:
    """What a client is told that asks for a model.

    Attributes:
        state: ready (send requests), waiting (ask again) or refused (it cannot be had).
        why: what is waited for, or why it is refused.
    """

    state: str
    why: str = ""


@dataclass
class _Resident:
    loaded_at: float
    used_at: float
    use: Use = UNUSED

    def busy(self, now: float) -> bool:
        return now - self.used_at < max(GRACE_S, PACE * self.use.seconds)


@dataclass
class _Ticket:
    since: float
    asked_at: float


@dataclass
class Rules:
    """The models that are loaded, those that are waited for, and what to do next. Times are seconds of one clock.

    Attributes:
        most: how many models may be loaded at once; None for any number.
        idle_s: seconds without a request after which a model is unloaded; None for never.
    """

    most: int | None = None
    idle_s: float | None = None
    _residents: dict[str, _Resident] = field(default_factory=dict)
    _tickets: dict[str, _Ticket] = field(default_factory=dict)
    _failures: dict[str, tuple[str, float]] = field(default_factory=dict)
    _leaving: str = ""

    @property
    def loaded(self) -> list[str]:
        """The models that are loaded, by name."""
        return sorted(self._residents)

    def ask(self, name: str, now: float) -> Answer:
        """A client wants the model."""
        if name in self._residents and name != self._leaving:
            self._residents[name].used_at = now
            return Answer("ready")
        reason, failed_at = self._failures.get(name, ("", now - REMEMBERED_S))
        if now - failed_at < REMEMBERED_S:
            return Answer("refused", reason)
        self._tickets.setdefault(name, _Ticket(now, now)).asked_at = now
        return Answer("waiting", self._awaited(name))

    def observe(self, uses: Mapping[str, Use], now: float) -> None:
        """Takes notice of what the server says of the models' use."""
        for name, use in uses.items():
            resident = self._residents.get(name)
            if resident is not None and use.requests != resident.use.requests:
                resident.used_at, resident.use = now, use

    def next(self, now: float, replaced: Collection[str] = ()) -> Load | Unload | None:
        """What to do now. The caller does it, and reports with `was_loaded`, `has_failed` or `was_unloaded`.

        Args:
            now: the time.
            replaced: loaded models that are others by now in the repository. They go first, in use or not: who asks for
                one of them must get what its name stands for.
        """
        self._tickets = {name: ticket for name, ticket in self._tickets.items() if now - ticket.asked_at < SILENCE_S}
        head = next(iter(self._tickets), None)
        if (outdated := next((name for name in self.loaded if name in replaced), None)) is not None:
            self._leaving = outdated
            return Unload(outdated)
        if head is not None and (self.most is None or len(self._residents) < self.most):
            return Load(head)
        leaving = self._idle(now) if head is None else self._in_the_way(now, now - self._tickets[head].since)
        if leaving is None:
            return None
        self._leaving = leaving
        return Unload(leaving)

    def was_loaded(self, name: str, now: float) -> None:
        """The model is loaded."""
        self._tickets.pop(name, None)
        self._failures.pop(name, None)
        self._residents[name] = _Resident(now, now)

    def has_failed(self, name: str, reason: str, now: float) -> None:
        """The model could not be loaded."""
        self._tickets.pop(name, None)
        self._failures[name] = (reason, now)

    def was_unloaded(self, name: str) -> None:
        """The model is gone."""
        self._residents.pop(name, None)
        self._leaving = ""

    def was_kept(self, now: float) -> None:
        """The model that was to be unloaded is still there; it is tried again later."""
        if self._leaving in self._residents:
            self._residents[self._leaving].used_at = now
        self._leaving = ""

    def _idle(self, now: float) -> str | None:
        """The model that has been without a request longest, if that is too long."""
        if self.idle_s is None or not self._residents:
            return None
        name, resident = min(self._residents.items(), key=lambda item: item[1].used_at)
        # Requests that take long end seldom: a model is not idle between two of them.
        return name if now - resident.used_at >= max(self.idle_s, PACE * resident.use.seconds) else None

    def _in_the_way(self, now: float, waited: float) -> str | None:
        """The model that makes room: the one whose last request is longest ago, or else the one whose turn is over."""
        free = {name: one.used_at for name, one in self._residents.items() if not one.busy(now)}
        if not free and waited >= TURN_S:
            free = {name: one.loaded_at for name, one in self._residents.items() if now - one.loaded_at >= TURN_S}
        return min(free, key=lambda name: free[name], default=None)

    def _awaited(self, name: str) -> str:
        before = list(self._tickets).index(name)
        if before:
            return f"{before} other{'s are' if before > 1 else ' is'} loaded first"
        if self.most is not None and len(self._residents) >= self.most:
            return f"no more than {self.most} may be loaded, and {', '.join(self.loaded)} may be in use"
        return "it is being loaded"
