"""Which machines and interpreters can run the embedded server."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from voxtile_server.errors import ServerError
from voxtile_server.install import machine

GOOD = machine.Machine.here()


def test_this_machine_is_good() -> None:
    assert (machine.check(GOOD) / f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"system": "Darwin"}, "Linux x86_64, this is Darwin x86_64; use the official container"),
        ({"architecture": "aarch64"}, "this is Linux aarch64"),
        ({"libc": "glibc 2.31"}, r"glibc 2\.35 or newer .*, found glibc 2\.31"),
        ({"libc": "glibc 2.4"}, r"found glibc 2\.4;"),
        ({"libc": ""}, "found another C library"),
        ({"python": (3, 13)}, r"Python 3\.11, 3\.12 .*, found 3\.13"),
        ({"python": (3, 10)}, r"found 3\.10"),
        ({"libraries": (Path("/nowhere"),)}, r"libpython3\.\d+\.so\.1\.0 is in none of /nowhere: .* is static"),
    ],
)
def test_a_machine_that_cannot_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ServerError, match=message):
        machine.check(replace(GOOD, **change))


@pytest.mark.parametrize("libc", ["glibc 2.35", "glibc 2.100", "glibc 3.0"])
def test_a_newer_glibc_is_taken(libc: str) -> None:
    machine.check(replace(GOOD, libc=libc))
