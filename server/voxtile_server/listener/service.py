"""Looks after the series in the spool: which is complete, segmented, sent, to be tried again, to be forgotten.

All of it follows from what is on the disk, so that a new process goes on where one that died has stopped.
"""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from voxtile.errors import InputError, VoxtileError
from voxtile_server.listener.audit import Audit
from voxtile_server.listener.counting import why_incomplete
from voxtile_server.listener.intake import Header, Intake, header_of, shown
from voxtile_server.listener.making import Changed, Made, Maker, Stopped, made_of
from voxtile_server.listener.rules import rule_for
from voxtile_server.listener.sending import send
from voxtile_server.listener.series import Given, Outcome, Series
from voxtile_server.listener.settings import Rule, Settings

LOOK_S = 0.1
"""Seconds between two looks at all series."""

MOST_BEGINNINGS = 10
"""A series is given up that was begun so often by processes that died of something: it may be what they died of."""

HOUR_S, MINUTE_S, DAY_S = 3600.0, 60.0, 86400.0


class Service:
    """Works on the series of an intake.

    Args:
        intake: where they are.
        maker: segments them.
        settings: what is done with which.
        audit: gets a line a case.
        stopping: set when the listener ends.
    """

    def __init__(
        self, intake: Intake, maker: Maker, settings: Settings, audit: Audit, stopping: threading.Event
    ) -> None:
        self._intake, self._maker, self._settings, self._audit = intake, maker, settings, audit
        self._stopping = stopping

    def run(self) -> None:
        """Works until the listener ends; what is in work then is begun again by the next process."""
        with ThreadPoolExecutor(self._settings.limits.at_once, thread_name_prefix="voxtile-listener") as pool:
            while not self._stopping.wait(LOOK_S):
                told = self._spool_told()
                for series in self._intake.all():
                    series.told = series.told or series.name in told
                    with contextlib.suppress(OSError):  # of a disk; it is looked at again
                        if self._is_ripe(series):
                            series.running = True
                            pool.submit(self._work_on, series)

    def _spool_told(self) -> frozenset[str]:
        with contextlib.suppress(OSError):
            return frozenset(file.name for file in self._maker.spool.told.iterdir())
        return frozenset()

    def _is_ripe(self, series: Series) -> bool:
        """Whether it is time to work on a series."""
        now = time.monotonic()
        if series.running or series.is_carried() or now < series.not_before:
            return False
        if series.is_done:
            if series.told:  # of objects that are gone by now
                series.told = False
                (self._maker.spool.told / series.name).unlink(missing_ok=True)
            self._forget_old(series)
            return False
        return series.told or now - series.last >= self._settings.complete.idle_seconds

    def _forget_old(self, series: Series) -> None:
        age_s = time.time() - series.done.at if series.done else 0.0
        if series.done is None or age_s > self._settings.keep.remember_days * DAY_S:
            self._intake.forget(series)
        elif series.count and age_s > self._settings.keep.hours * HOUR_S:
            series.forget_objects()

    def _work_on(self, series: Series) -> None:
        try:
            if not self._stopping.is_set():
                self._take_further(series)
        except (Stopped, Changed):
            series.ended()
        except Exception as error:  # a case must not cost the others
            self._failed(series, None, told(error))
        finally:
            series.running = False

    def _take_further(self, series: Series) -> None:
        given = series.given
        header, rule = self._rule_of(series)
        if rule is None:
            self._finish(series, given, "", "no rule")
            reason = "no rule fits"
            self._tell(series, "kept out", reason=reason, modality=shown(header.modality), slices=series.count)
            return
        before = series.done
        way = self._settings.way_of(rule)
        if before and before.digest == given.digest and before.outcome == "sent" and before.rule == way:
            self._finish(series, given, way, "sent")
            self._tell(series, "nothing new", rule=rule.name, slices=series.count)
            return
        made = made_of(series)
        if made is None or made.given != given or made.rule != rule.fingerprint:
            if not self._is_complete(series, given, rule, header):
                return
            made = self._made(series, given, rule)
        if made is not None:
            self._send(series, rule, made)

    def _rule_of(self, series: Series) -> tuple[Header, Rule | None]:
        """The rule for a series, and the header of an object that fits it: objects of one may say unlike things.

        Raises:
            InputError: an object is damaged.
        """
        headers = []
        for file in series.files():
            header = header_of(file)
            if header is None:
                raise InputError("expected DICOM objects in the spool, found a damaged one; send the series again")
            if rule := rule_for(self._settings.rule, header.facts(series.senders), series.count):
                return header, rule
            headers.append(header)
        return headers[0], None

    def _is_complete(self, series: Series, given: Given, rule: Rule, header: Header) -> bool:
        reason = why_incomplete(series, header, self._settings)
        if reason is None:
            return True
        waits_s = self._settings.complete.give_up_hours * HOUR_S - series.oldest_wait_s()
        if waits_s <= 0:
            self._finish(series, given, self._settings.way_of(rule), "incomplete")
            self._tell(series, "refused", rule=rule.name, reason=f"incomplete: {reason}", slices=series.count)
            return False
        if series.said != given.digest:
            series.said = given.digest
            self._tell(series, "waits", rule=rule.name, reason=reason, slices=series.count)
        series.not_before = time.monotonic() + min(waits_s, self._settings.complete.ask_seconds)
        return False

    def _made(self, series: Series, given: Given, rule: Rule) -> Made | None:
        """What is made of a series now; None where it cannot be, which is then told."""
        if series.begin(given) > MOST_BEGINNINGS:
            reason = f"begun {MOST_BEGINNINGS} times by processes that died, of it or of something else"
            self._refuse(series, given, rule, reason)
            return None
        try:
            return self._maker.make(series, rule, given)
        except InputError as error:
            self._refuse(series, given, rule, told(error))
        except (VoxtileError, OSError, MemoryError) as error:
            self._failed(series, rule, told(error))
        finally:
            series.ended()
        return None

    def _send(self, series: Series, rule: Rule, made: Made) -> None:
        if made.given != series.given:  # a mask of a part is not sent
            return
        sent, failures = send(series, made, rule.to, self._settings)
        if failures:
            self._failed(series, rule, "; ".join(failures), made)
            return
        self._tell(
            series,
            "sent",
            rule=rule.name,
            slices=len(made.given.instances),
            model=made.model,
            seconds=made.seconds,
            sent=list(sent.values()),
            warnings=list(made.warnings) or None,
            failures=list(made.failures) or None,
        )
        self._finish(series, made.given, self._settings.way_of(rule), "sent")

    def _refuse(self, series: Series, given: Given, rule: Rule, reason: str) -> None:
        self._tell(series, "refused", rule=rule.name, reason=reason, slices=len(given.instances))
        self._finish(series, given, self._settings.way_of(rule), "refused")

    def _finish(self, series: Series, given: Given, rule: str, outcome: Outcome) -> None:
        series.finish(given, rule, outcome)
        (self._maker.spool.told / series.name).unlink(missing_ok=True)

    def _failed(self, series: Series, rule: Rule | None, reason: str, made: Made | None = None) -> None:
        """Tries again later; when it has failed as often as it may, the series waits for the next start."""
        pauses = self._settings.keep.retry_minutes
        name = rule.name if rule else None
        kept = str(series.result) if made else str(series.folder)
        if series.tries < len(pauses):
            pause_s = pauses[series.tries] * MINUTE_S
            series.not_before = time.monotonic() + pause_s
            self._tell(series, "tried in vain", rule=name, reason=reason, again_in_s=pause_s)
        else:
            series.not_before = float("inf")
            advice = "mend it and start the listener again"
            self._tell(series, "kept", rule=name, reason=reason, kept=kept, advice=advice)
        series.tries += 1

    def _tell(self, series: Series, outcome: str, **facts: object) -> None:
        self._audit.write(series.name, outcome, **facts)


def told(error: BaseException) -> str:
    """What an error says, where it is one that repeats nothing of an object; of another one its kind."""
    if isinstance(error, VoxtileError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
