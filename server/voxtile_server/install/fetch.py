"""Fetches pinned packages into the cache, once, whole or not at all, with any number of processes at it.

A folder's name holds the hash of its pins: changed pins make a new folder and never touch one in use.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from voxtile_server.errors import ServerError
from voxtile_server.install import machine

PINS = Path(__file__).with_name("requirements.txt")
SERVER_PACKAGE = "nvidia-pytriton"
STAMP = "PINS"
LINES_OF_PIP = 3

log = logging.getLogger("voxtile.server")


def cache_folder() -> Path:
    """`$VOXTILE_CACHE`, or `~/.cache/voxtile`."""
    return Path(os.environ.get("VOXTILE_CACHE") or Path.home() / ".cache" / "voxtile").absolute()


def read_pins(path: Path = PINS) -> tuple[str, ...]:
    """The `name==version` of each line, without its reason."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return tuple(line for line in lines if line)


def fetch_triton(cache: Path) -> Path:
    """The folder that holds the `pytriton` package with the tritonserver binary."""
    return _fetch(cache, "triton", [pin for pin in read_pins() if pin.startswith(SERVER_PACKAGE)])


def fetch_engines(cache: Path) -> Path:
    """The packages for the stubs' interpreter, which is this one: NumPy 1.x and the engines."""
    return _fetch(cache, "engines", [pin for pin in read_pins() if not pin.startswith(SERVER_PACKAGE)])


def check_engines(folder: Path) -> None:
    """Refuse a package folder that would make the stubs answer with empty tensors.

    Raises:
        ServerError: it is missing, has no NumPy, or has NumPy 2 or later.
    """
    found = {found.name.lower(): found.version for found in importlib.metadata.distributions(path=[str(folder)])}
    advice = f"fill it with: pip install --no-deps --target {folder} 'numpy<2' onnxruntime openvino"
    if "numpy" not in found:
        raise ServerError(f"the server's package folder {folder} holds no NumPy; {advice}")
    if int(found["numpy"].split(".")[0]) >= 2:
        raise ServerError(
            f"NumPy {found['numpy']} in the server's package folder {folder}: Triton's stub would answer "
            f"with empty tensors; it needs numpy<2. Remove the folder to have it fetched again, or {advice}"
        )


def _fetch(cache: Path, name: str, pins: Sequence[str]) -> Path:
    python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    stamp = "\n".join([python, *pins]) + "\n"

    def install(folder: Path) -> None:
        log.info("fetching %s into %s (once)", ", ".join(pins), cache)
        _pip_install(folder, pins)
        (folder / STAMP).write_text(stamp, encoding="utf-8")

    return make_once(cache / f"{name}-{python}-{short_hash(stamp.encode())}", install, lambda d: _has(d, stamp))


def make_once(folder: Path, make: Callable[[Path], None], whole: Callable[[Path], bool]) -> Path:
    """Have `folder` made by `make` beside its place and renamed, unless it is there and whole.

    Safe with several processes: one makes it, the others wait and find it. What is there but not whole (a
    file lost, a stamp of other pins) is replaced.
    """
    if whole(folder):
        return folder
    _make_cache(folder.parent)
    with _locked(folder.parent / f".{folder.name}.lock"):
        if whole(folder):
            return folder
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            fresh = Path(scratch, "new")
            fresh.mkdir()
            make(fresh)
            if folder.exists():
                folder.rename(Path(scratch, "old"))
            fresh.rename(folder)
    return folder


def short_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _has(folder: Path, stamp: str) -> bool:
    try:
        return (folder / STAMP).read_text(encoding="utf-8") == stamp
    except OSError:
        return False


def _make_cache(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServerError(f"cannot make the cache folder {folder}: {error.strerror}; set VOXTILE_CACHE") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise ServerError(f"cannot write to the cache folder {path.parent}: {error.strerror}; "
                          "set VOXTILE_CACHE to one that can be written") from error  # fmt: skip
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _pip_install(folder: Path, pins: Sequence[str]) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check",
               "--no-deps", "--only-binary", ":all:", "--target", str(folder), *pins]  # fmt: skip
    # A PYTHONPATH or a "user" install of the caller's must not count as already installed.
    environment = {**os.environ, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line and not line.startswith("WARNING")]
        raise ServerError(
            f"pip could not fetch {', '.join(pins)}: {' '.join(lines[-LINES_OF_PIP:])} "
            "(check the network or pip's index; with no pip at all: python -m ensurepip)"
        )


def main() -> int:
    """Fill the cache, so that no later start has to; a machine that cannot run the server needs nothing."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        machine.check(machine.Machine.here())
    except ServerError as error:
        log.warning("the embedded server is not fetched: %s", error)
        return 0
    try:
        fetch_triton(cache_folder())
        check_engines(fetch_engines(cache_folder()))
    except ServerError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
