"""Fetches pinned packages into the cache, once, whole or not at all, also when several processes start together.

A folder's name has a hash of its pins: changed pins make a new folder and never touch one in use. It knows nothing of
models, ports or processes.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from voxtile_server.errors import ServerError
from voxtile_server.install import machine

TRITON = Path(__file__).with_name("triton.txt")
ENGINES = Path(__file__).with_name("engines.txt")
STAMP = "PINS"
LINES_OF_PIP = 3
WRONG_HASH = "DO NOT MATCH THE HASHES"  # pip's words

log = logging.getLogger("voxtile.server")


def cache_folder() -> Path:
    """`$VOXTILE_CACHE`, or `~/.cache/voxtile`."""
    return Path(os.environ.get("VOXTILE_CACHE") or Path.home() / ".cache" / "voxtile").absolute()


def read_pins(requirements: Path) -> tuple[str, ...]:
    """The pins of a requirements file.

    Returns:
        For each package one line, `name==version --hash=sha256:… …`, without comments.
    """
    text = re.sub(r"#.*", "", requirements.read_text(encoding="utf-8")).replace("\\\n", " ")
    return tuple(" ".join(line.split()) for line in text.splitlines() if line.strip())


def fetch_triton(cache: Path) -> Path:
    """The folder that holds the `pytriton` package with the tritonserver program."""
    return fetch(cache, TRITON)


def fetch_engines(cache: Path) -> Path:
    """The folder of packages for the stubs' interpreter, which is this one: NumPy 1.x and the engines."""
    return fetch(cache, ENGINES)


def fetch(cache: Path, requirements: Path) -> Path:
    """Install the packages of a requirements file into a folder of their own, unless it is there.

    Args:
        cache: the parent of that folder.
        requirements: a requirements file with hashes; its name becomes the beginning of the folder's name.

    Returns:
        The folder.

    Raises:
        ServerError: pip could not fetch a package, or a wheel is not the one that was pinned.
    """
    pins = read_pins(requirements)
    python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    stamp = "\n".join([python, *pins]) + "\n"

    def install(folder: Path) -> None:
        log.info("fetching %s into %s (once)", _names(pins), cache)
        _pip_install(folder, requirements)
        (folder / STAMP).write_text(stamp, encoding="utf-8")

    name = f"{requirements.stem}-{python}-{short_hash(stamp.encode())}"
    return make_once(cache / name, install, lambda folder: _has(folder, stamp))


def check_engines(folder: Path) -> None:
    """Refuse a package folder with which the stubs would answer with empty tensors.

    Args:
        folder: what pip has installed with --target.

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


def make_once(folder: Path, make: Callable[[Path], None], whole: Callable[[Path], bool]) -> Path:
    """Make a folder beside its place and rename it, unless it is there and whole.

    Several processes may do so at once: one makes it, the others wait and find it. A folder that is not whole (a file
    is lost, or its stamp is of other pins) is replaced.

    Args:
        folder: where it shall be.
        make: fills an empty folder.
        whole: whether a folder is there and whole.

    Returns:
        `folder`.
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
    """The first 12 hexadecimal digits of the SHA-256."""
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


def _pip_install(folder: Path, requirements: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check",
               "--no-deps", "--only-binary", ":all:", "--require-hashes", "--target", str(folder),
               "--requirement", str(requirements)]  # fmt: skip
    # A PYTHONPATH or a "user" install of the caller's must not count as already installed.
    environment = {**os.environ, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ServerError(_why_pip_failed(_names(read_pins(requirements)), result.stderr))


def _why_pip_failed(names: str, stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line and not line.startswith("WARNING")]
    told = " ".join(lines[-LINES_OF_PIP:])
    if WRONG_HASH in stderr:
        return (
            f"a wheel is not the one that voxtile-server was tested with, and was not installed: {told} "
            "(does pip's index or a folder of wheels hold a rebuilt one, or has somebody changed it?)"
        )
    return (
        f"pip could not fetch {names}: {told} (check the network or pip's index; with no pip at all: "
        "python -m ensurepip)"
    )


def _names(pins: Sequence[str]) -> str:
    return ", ".join(pin.split()[0] for pin in pins)


def main() -> int:
    """Fill the cache, so that no later start has to; nothing is fetched where the machine cannot run the server.

    Returns:
        Exit code 0, or 2 where fetching failed.
    """
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
