"""What MONAI Label's clients have sent: images with their labels, and sessions, bounded in bytes and in time.

What a caller calls an image is a key here and never a part of a path. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import filecmp
import math
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voxtile_server.gateway.failures import HttpFailure

FINAL = "final"
"""MONAI Label's tag of a label that a person has finished."""

LEAST_BYTES = 4096
"""What a thing counts for at least, so that a number of bytes is a number of things too."""

LONGEST_NAME = 200
RETRY_AFTER_S = 60


@dataclass(eq=False)
class Stored:
    """The files of one upload.

    Attributes:
        folder: where they lie; removed with them.
        files: one, or one a channel.
        ending: how the names of such files end, such as `.nii.gz`.
        info: what the caller says of it.
        size: the bytes that it counts for.
        made_at: seconds since 1970.
        used_at: seconds of the monotonic clock, at its last use.
        keep_s: seconds for which it is kept after that.
        labels: of an image, its labels by their tags.
    """

    folder: Path
    files: list[Path] = field(default_factory=list)
    ending: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    size: int = LEAST_BYTES
    made_at: float = field(default_factory=time.time)
    used_at: float = field(default_factory=time.monotonic)
    keep_s: float = math.inf
    labels: dict[str, Stored] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Its bytes with those of its labels."""
        return self.size + sum(label.size for label in self.labels.values())


class Store:
    """All of it. What one caller has sent, no other one sees.

    Args:
        folder: where files lie.
        most_bytes: of all together; 0 to take nothing.
        keep_s: seconds for which a thing is kept after its last use.
    """

    def __init__(self, folder: Path, most_bytes: int, keep_s: float) -> None:
        self._folder, self._most, self._keep_s = folder, most_bytes, keep_s
        self._images: dict[tuple[bytes, str], Stored] = {}
        self._sessions: dict[tuple[bytes, str], Stored] = {}
        self._arriving: set[Stored] = set()
        self._used = 0

    @property
    def open(self) -> bool:
        """Whether it takes anything."""
        return self._most > 0

    @property
    def keep_s(self) -> float:
        """Seconds for which a thing is kept after its last use."""
        return self._keep_s

    # Taking ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def arriving(self, announced: int = 0) -> Iterator[Stored]:
        """A place for an upload; what nobody keeps within the block is removed at its end.

        Args:
            announced: the bytes that will come, as far as the caller says it.

        Raises:
            HttpFailure: 403, where the store takes nothing; 507, where there is no room for it.
        """
        if not self.open:
            raise HttpFailure(403, "expected an operator who allows a datastore, found --datastore 0")
        self.forget_old()
        self._check_room(LEAST_BYTES + announced)  # before a session gives way to what is refused in the end
        one = Stored(Path(tempfile.mkdtemp(dir=self._folder)), keep_s=self._keep_s)
        self._arriving.add(one)
        self._used += one.size
        try:
            self.grow(one, 0)
            yield one
        finally:
            if one in self._arriving:
                self._drop(one)

    def grow(self, one: Stored, size: int) -> None:
        """Counts bytes that have come for an upload; sessions give way to it, those unused for longest first.

        Raises:
            HttpFailure: 507, where there is no room left.
        """
        one.size += size
        self._used += size
        if self._used > self._most:
            self._check_room(0)
        while self._used > self._most:
            oldest = min(self._sessions, key=lambda key: self._sessions[key].used_at)
            self._drop(self._sessions.pop(oldest))

    async def keep_image(self, caller: bytes, name: str, one: Stored) -> str:
        """Keeps an image under a name, or under one that is made up where it is empty.

        Returns:
            The name.

        Raises:
            HttpFailure: 422, a name that no image can have; 409, where another image has it.
        """
        name = name or f"image-{secrets.token_hex(6)}"
        check_name(name)
        before = self._images.get((caller, name))
        if before is not None and not await asyncio.to_thread(_same, before.files, one.files):
            text = f"expected an image that is not there yet, found another one of the name {name!r}; take another name"
            raise HttpFailure(409, f"{text}, or remove that one first with DELETE")
        kept = self._images.setdefault((caller, name), one)
        self._keep(kept)
        return name

    def keep_session(self, caller: bytes, one: Stored, expiry_s: float = 0) -> str:
        """Keeps a session, for `expiry_s` at most where that is not 0; returns its number, which cannot be guessed."""
        one.keep_s = min(expiry_s or math.inf, self._keep_s)
        self._keep(one)
        number = secrets.token_urlsafe(16)
        self._sessions[caller, number] = one
        return number

    def keep_label(self, caller: bytes, name: str, tag: str, one: Stored) -> None:
        """Keeps a label of an image, in place of an earlier one with the same tag.

        Raises:
            HttpFailure: 404, no such image; 422, a tag that no label can have.
        """
        check_name(tag)
        labels = self.image(caller, name).labels
        self._keep(one)
        if before := labels.pop(tag, None):
            self._drop(before)
        labels[tag] = one

    # Finding -----------------------------------------------------------------------------------------------------

    def images(self, caller: bytes) -> dict[str, Stored]:
        """A caller's images by their names, in the order in which they came."""
        self.forget_old()
        return {name: one for (whose, name), one in self._images.items() if whose == caller}

    def image(self, caller: bytes, name: str) -> Stored:
        """An image. Raises HttpFailure 404."""
        return self._found(self._images, caller, name, "image of this name")

    def session(self, caller: bytes, number: str) -> Stored:
        """A session. Raises HttpFailure 404."""
        return self._found(self._sessions, caller, number, "session of this number")

    def label(self, caller: bytes, name: str, tag: str) -> Stored:
        """A label of an image. Raises HttpFailure 404."""
        found = self.image(caller, name).labels.get(tag)
        if found is None:
            raise HttpFailure(404, f"there is no label {tag!r} of this image")
        return found

    # Removing ----------------------------------------------------------------------------------------------------

    def remove_image(self, caller: bytes, name: str) -> None:
        """Removes an image and its labels. Raises HttpFailure 404."""
        self.image(caller, name)
        self._drop(self._images.pop((caller, name)))

    def remove_session(self, caller: bytes, number: str) -> None:
        """Removes a session. Raises HttpFailure 404."""
        self.session(caller, number)
        self._drop(self._sessions.pop((caller, number)))

    def remove_label(self, caller: bytes, name: str, tag: str) -> None:
        """Removes a label. Raises HttpFailure 404."""
        self.label(caller, name, tag)
        self._drop(self.image(caller, name).labels.pop(tag))

    def forget_old(self) -> None:
        """Removes what has not been used for too long."""
        now = time.monotonic()
        for things in (self._images, self._sessions):
            for key in [key for key, one in things.items() if one.used_at + one.keep_s < now]:
                self._drop(things.pop(key))

    # -------------------------------------------------------------------------------------------------------------

    def _check_room(self, size: int) -> None:
        """Checks that `size` more bytes would have room if all sessions gave way. Raises HttpFailure 507."""
        if self._used - sum(one.size for one in self._sessions.values()) + size > self._most:
            text = (
                f"the datastore of {self._most:,} bytes is full; remove images with DELETE, wait until some are "
                f"{self._keep_s:g} s unused, or let the operator raise --datastore"
            )
            raise HttpFailure(507, text, {"Retry-After": str(RETRY_AFTER_S), "Connection": "close"})

    def _found(self, things: dict[tuple[bytes, str], Stored], caller: bytes, name: str, what: str) -> Stored:
        self.forget_old()
        if (caller, name) not in things:
            text = f"there is no {what}; one that is not used for {self._keep_s:g} s is removed: send it again"
            raise HttpFailure(404, text)
        found = things[caller, name]
        found.used_at = time.monotonic()
        return found

    def _keep(self, one: Stored) -> None:
        self._arriving.discard(one)
        one.used_at = time.monotonic()

    def _drop(self, one: Stored) -> None:
        self._arriving.discard(one)
        self._used -= one.total
        for each in (one, *one.labels.values()):
            shutil.rmtree(each.folder, ignore_errors=True)


def check_name(name: str) -> None:
    """Checks the name of an image or the tag of a label, which other callers' programs make file names of.

    Raises:
        HttpFailure: 422.
    """
    if 0 < len(name) <= LONGEST_NAME and name.isprintable() and not set(name) & set("/\\") and name[0] != ".":
        return
    raise HttpFailure(
        422,
        f"expected a name of at most {LONGEST_NAME} letters without / and \\, not beginning with a dot, found "
        f"{name[:40]!r}",
    )


def _same(ones: list[Path], others: list[Path]) -> bool:
    """Whether files hold the same bytes; not where they are removed meanwhile."""
    with contextlib.suppress(OSError):
        return len(ones) == len(others) and all(map(lambda a, b: filecmp.cmp(a, b, shallow=False), ones, others))
    return False
