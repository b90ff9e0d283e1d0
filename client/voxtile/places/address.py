"""Reads addresses of files and folders that lie elsewhere: `s3://BUCKET/KEY`, `gs://BUCKET/KEY`, `https://HOST/PATH`.

What messages and records call an address has no query: a signature may stand there. Knows nothing of what lies there.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote

from voxtile.errors import InputError

MARK = "://"
WEB = ("http", "https")
BUCKETS = ("s3", "gs")
SCHEMES = (*BUCKETS, *WEB)
FORMS = ", ".join(f"{scheme}{MARK}" for scheme in SCHEMES)
WITH_ONE_SLASH = re.compile(rf"({'|'.join(SCHEMES)}):/(?!/)", re.IGNORECASE)
"""How an address begins that has lost a slash: one that was taken for a path, or mistyped."""


def is_address(text: str) -> bool:
    """Whether a text is meant as an address, and not as a path."""
    return MARK in text or WITH_ONE_SLASH.match(text) is not None


def check_is_path(path: str | os.PathLike[str]) -> None:
    """Raises InputError for an address: as a path it would be a folder `s3:` of this machine."""
    text = WITH_ONE_SLASH.sub(rf"\1{MARK}", os.fspath(path))
    if is_address(text):
        raise InputError(
            f"{text.partition('?')[0]}: expected a path of this machine, found an address; copy what is there, or name "
            "addresses to voxtile manifest, voxtile batch --manifest and voxtile collect"
        )


def check_paths(values: Iterable[object]) -> None:
    """Raises InputError where one of a command's values, or one in a list of them, is a path that is an address."""
    for value in values:
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(one, Path):
                check_is_path(one)


def path_or_address(text: str | os.PathLike[str]) -> Path | Address:
    """What a text names: a file or a folder here, or one at an address. Raises InputError."""
    return parse_address(text) if isinstance(text, str) and is_address(text) else Path(text)


@dataclass(frozen=True)
class Address:
    """Where a file or a folder lies.

    Attributes:
        scheme: one of SCHEMES.
        path: bucket or host, and what follows, without a slash at its end.
        query: what follows a question mark in an address of the web; no message repeats it.
    """

    scheme: str
    path: str
    query: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.scheme}{MARK}{self.path}"

    @property
    def is_web(self) -> bool:
        """Whether it can be read only, and is no folder."""
        return self.scheme in WEB

    @property
    def root(self) -> str:
        """The bucket or the host."""
        return self.path.partition("/")[0]

    @property
    def name(self) -> str:
        """The name of the file."""
        name = posixpath.basename(self.path)
        return unquote(name) if self.is_web else name

    @property
    def parent(self) -> Address:
        """The folder in which it lies."""
        return replace(self, path=posixpath.dirname(self.path) or self.path, query="")

    def __truediv__(self, name: str) -> Address:
        """A file below this folder; `name` may climb with `..`, but not out of the bucket.

        Raises:
            InputError: it does.
        """
        parts = self.path.split("/")
        for part in name.split("/"):
            if part == "..":
                parts.pop()
            elif part not in ("", "."):
                parts.append(part)
            if not parts:
                raise InputError(f"{self}: expected a name that stays in {self.root}, found {name!r}; leave out ..")
        return replace(self, path="/".join(parts), query="")

    def below(self, folder: Address) -> str | None:
        """Its name relative to a folder; None where it does not lie there."""
        inside = self.scheme == folder.scheme and self.path.startswith(f"{folder.path}/")
        return self.path[len(folder.path) + 1 :] if inside else None


def parse_address(text: str) -> Address:
    """Reads an address.

    Raises:
        InputError: nobody knows its scheme, it names no bucket or host, or it holds a password.
    """
    scheme, _, rest = text.partition(MARK)
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        shown = text.partition("?")[0]
        if "@" in shown:
            shown = f"{scheme}{MARK}…"
        raise InputError(
            f"expected an address that begins with {FORMS}, found {shown!r}; copy it there, or name a path"
        )
    query = ""
    if scheme in WEB:
        rest, _, query = rest.partition("#")[0].partition("?")
    root = rest.partition("/")[0]
    if scheme in WEB and "@" in root:
        raise InputError(
            f"{scheme}{MARK}…@{root.rpartition('@')[2]}: expected an address without a password, found one; keep it in "
            "~/.netrc, where others cannot read it"
        )
    path = rest.rstrip("/")
    if not root or any(ord(letter) < 32 for letter in text):
        raise InputError(f"expected {scheme}{MARK} and then a name, found {text.partition('?')[0]!r}")
    if scheme in BUCKETS and ("@" in root or ":" in root):
        raise InputError(
            f"{scheme}{MARK}…: expected the name of a bucket without a key or a password before it, found another; "
            "credentials come from the environment or from a file"
        )
    return Address(scheme, path, query)
