"""One series in the spool: its objects, who sent them, and what of it is done. Knows nothing of DICOM's wire.

What counts lies on the disk. What is in memory besides (when an object came last, which associations are open) is about
this process alone, and a new one starts without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from voxtile.io.atomic import atomic_file
from voxtile_server.listener.spool import content_of, make_folder, read_json, sync_folder, write_json

DIGEST_LENGTH = 16

Outcome = Literal["sent", "refused", "incomplete", "no rule"]


class Association(Protocol):
    """An association, as pynetdicom has it."""

    is_released: bool

    def is_alive(self) -> bool:
        """Whether it is open."""


@dataclass(frozen=True)
class Given:
    """Which objects of a series something is about.

    Attributes:
        digest: another one for other objects, or for other bytes of one.
        instances: their names.
    """

    digest: str
    instances: tuple[str, ...]


@dataclass(frozen=True)
class Done:
    """What of a series is done.

    Attributes:
        digest: that of the objects that it is about.
        rule: the fingerprint of the rule it was done by; empty for none.
        outcome: what came of it.
        at: when, in seconds since 1970.
    """

    digest: str
    rule: str
    outcome: Outcome
    at: float


class Series:
    """A series in a folder of the spool. Several threads may use it.

    Attributes:
        name: what the audit calls it.
        folder: its folder.
        lock: held by whoever changes or copies its objects.
        last: when an object came last, by time.monotonic.
        not_before: when it is looked at again, by time.monotonic.
        running: whether somebody works on it.
        arriving: how many objects of it are being written.
        again: whether an object came after it was done, be it one that was there.
        told: whether somebody said that it is complete.
        tries: how often it has failed since a new object came.
        said: the digest of the objects of which the audit knows that they wait.
        lacks: the names of objects that came and are not kept; empty once they have come again and are.
    """

    def __init__(self, folder: Path) -> None:
        self.name, self.folder = folder.name, folder
        self.lock = threading.RLock()
        self.last = time.monotonic()
        self.not_before = 0.0
        self.running = self.again = self.told = False
        self.tries = self.arriving = 0
        self.said = ""
        self.lacks = frozenset[str](read_json(self._lacks) or ())
        self._carriers: dict[Association, float] = {}
        self._broken_at = time.monotonic() if self._open.exists() else None
        self._objects = self._found()
        self._given: Given | None = None
        self.done = self._read_done()

    # What is there ------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many objects there are."""
        return len(self._objects)

    @property
    def given(self) -> Given:
        """Which objects there are."""
        with self.lock:
            if self._given is None:
                objects = sorted(self._objects.items())
                text = " ".join(f"{instance}-{content}" for instance, content in objects)
                digest = hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]
                self._given = Given(digest, tuple(instance for instance, _ in objects))
            return self._given

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do; an empty series was removed after it was done."""
        if not self._objects:
            return True
        return self.done is not None and self.done.digest == self.given.digest and not (self.again or self.told)

    @property
    def missing(self) -> int:
        """How many objects were there when something was done that are not there now."""
        return 0 if self.done is None else len({*read_json(self._done)["instances"]} - {*self._objects})

    @property
    def senders(self) -> frozenset[str]:
        """The AE titles that sent objects of it."""
        return frozenset(read_json(self.folder / "senders.json") or ())

    @property
    def result(self) -> Path:
        """The folder of what was made of it."""
        return self.folder / "result"

    def files(self) -> list[Path]:
        """Its objects, always in the same order."""
        with self.lock:
            return [self._file(*one) for one in sorted(self._objects.items())]

    def file_of(self, instance: str) -> Path | None:
        """The object of this name; None where there is none."""
        with self.lock:
            return self._file(instance, self._objects[instance]) if instance in self._objects else None

    # What comes ---------------------------------------------------------------------------------------------

    def add(self, instance: str, content: str, data: bytes, sender: str, association: Association) -> None:
        """Keeps an object; it is on the disk when this returns. A newer one takes the place of one of the same UID.

        Raises:
            OSError, OutputError: it cannot be written; what was there is still there.
        """
        with self.lock:
            make_folder(self.folder / "objects")
            self._carried_by(association)
            if sender not in self.senders:
                write_json(self.folder / "senders.json", sorted({*self.senders, sender}))
            before = self._objects.get(instance)
            if before != content or not self._is_whole(instance, content):
                with atomic_file(self._file(instance, content)) as file:
                    file.write(data)
                self._objects[instance], self._given = content, None
                self.tries = 0
            if before not in (None, content):
                self._file(instance, str(before)).unlink(missing_ok=True)
            if instance in self.lacks:
                self.lack(self.lacks - {instance})
            self.again = self.done is not None
            self.last, self.not_before = time.monotonic(), 0.0

    def lack(self, names: Iterable[str]) -> None:
        """Notes on the disk which objects came and are not kept. Raises OSError, OutputError."""
        with self.lock:
            if {*names} != self.lacks:
                make_folder(self.folder)
                write_json(self._lacks, sorted(names))
                self.lacks = frozenset(names)

    def is_carried(self) -> bool:
        """Whether an association that carried it is open; notes how those that are not have ended."""
        with self.lock:
            for one in [one for one in self._carriers if not one.is_alive()]:
                self.carried_to_end(one, one.is_released)
            return bool(self._carriers)

    def carried_to_end(self, association: Association, well: bool) -> None:
        """Notes that an association, which may have carried it, has ended, well or not."""
        with self.lock:
            began = self._carriers.pop(association, None)
            if began is None:
                return
            if not well:
                self._broken_at = time.monotonic()
            elif self._broken_at is not None and began > self._broken_at:
                self._broken_at = None
            if not self._carriers and self._broken_at is None:
                self._open.unlink(missing_ok=True)

    @property
    def is_cut_off(self) -> bool:
        """Whether an association that carried it broke, and none that began later and carried it has ended well."""
        return self._broken_at is not None

    def _carried_by(self, association: Association) -> None:
        if association not in self._carriers:
            self._open.touch()
            sync_folder(self.folder)
            self._carriers[association] = time.monotonic()

    # What is done -------------------------------------------------------------------------------------------

    def copy_to(self, folder: Path) -> Given:
        """Gives the objects that are there a second name in a new folder; returns which they are. Raises OSError."""
        with self.lock:
            folder.mkdir(parents=True)
            for instance, content in self._objects.items():
                file = self._file(instance, content)
                try:
                    os.link(file, folder / file.name)
                except OSError:  # a file system without links
                    shutil.copyfile(file, folder / file.name)
            return self.given

    def finish(self, given: Given, rule: str, outcome: Outcome) -> None:
        """Notes on the disk that all is done for the objects `given`. Raises OutputError."""
        with self.lock:
            done = Done(given.digest, rule, outcome, time.time())
            write_json(self._done, {**dataclasses.asdict(done), "instances": given.instances})
            self.done = done
            self.again = self.told = False
            self.tries = 0

    def begin(self, given: Given) -> int:
        """Notes that the objects `given` are begun to be segmented; returns how often they were. Raises OutputError."""
        times = 1 + self.begun(given)
        write_json(self.folder / "begun.json", {"digest": given.digest, "times": times})
        return times

    def begun(self, given: Given) -> int:
        """How often the objects `given` were begun, and it never ended."""
        noted = read_json(self.folder / "begun.json") or {}
        return int(noted["times"]) if noted.get("digest") == given.digest else 0

    def ended(self) -> None:
        """Notes that segmenting ended, well or not: the process has not died of it."""
        (self.folder / "begun.json").unlink(missing_ok=True)

    def forget_objects(self) -> None:
        """Removes objects and results, unless something is left to do with them."""
        with self.lock:
            if not self.is_done:
                return
            for each in (self.folder / "objects", self.result):
                shutil.rmtree(each, ignore_errors=True)
            self._objects, self._given = self._found(), None

    def remove(self) -> None:
        """Removes all that is known of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def oldest_wait_s(self) -> float:
        """Seconds since its newest object came, also before this process."""
        with self.lock:
            newest = max(self._file(*one).stat().st_mtime for one in self._objects.items())
        return max(0.0, time.time() - newest)

    # On the disk --------------------------------------------------------------------------------------------

    @property
    def _done(self) -> Path:
        return self.folder / "done.json"

    @property
    def _lacks(self) -> Path:
        return self.folder / "lacks.json"

    def _is_whole(self, instance: str, content: str) -> bool:
        """Whether the file of an object holds its bytes; a disk may have lost some."""
        try:
            return content_of(self._file(instance, content).read_bytes()) == content
        except OSError:
            return False

    @property
    def _open(self) -> Path:
        return self.folder / "open"

    def _file(self, instance: str, content: str) -> Path:
        return self.folder / "objects" / f"{instance}-{content}.dcm"

    def _found(self) -> dict[str, str]:
        """The contents of the objects on the disk, by their names. Of two of one name, the newer one counts."""
        found: dict[str, str] = {}
        files = [each for each in _files(self.folder / "objects") if not each.name.startswith(".")]
        for file in sorted(files, key=lambda one: (one.stat().st_mtime_ns, one.name)):
            instance, _, content = file.stem.partition("-")
            if instance in found:
                self._file(instance, found[instance]).unlink(missing_ok=True)
            found[instance] = content
        for half in _files(self.folder / "objects"):
            if half.name.startswith("."):
                half.unlink(missing_ok=True)
        return found

    def _read_done(self) -> Done | None:
        value: Any = read_json(self._done)
        try:
            return Done(value["digest"], value["rule"], value["outcome"], value["at"])
        except (KeyError, TypeError):  # there is none, or a damaged one
            return None


def _files(folder: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):
        return list(folder.iterdir())
    return []
