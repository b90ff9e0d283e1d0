"""The `docker` command that runs a command of voxtile-build in another image, with the files that it names."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import voxtile_build
from voxtile_build.cache import VARIABLE

SOURCES = Path(voxtile_build.__file__).resolve().parents[2]
"""The folder of the distributions, where this package is installed from its sources."""

COPY = "/tmp/voxtile"
NNUNETS_NETWORKS = "dynamic_network_architectures"


def container_command(
    image: str, arguments: Sequence[str], files: Iterable[Path] = (), cache: Path | None = None
) -> str:
    """The command line that runs `voxtile-build ARGUMENTS` in `image`, from the working directory.

    Every folder that is needed has the same path in the container, so that relative and absolute paths mean there what
    they mean here. What is written belongs to this user afterwards.

    Args:
        image: of the container.
        arguments: of voxtile-build.
        files: what the command reads beside its arguments.
        cache: a folder that the command keeps files in for the next one; it is made, and left out where it cannot be.
    """
    folder = Path.cwd()
    build = shlex.join(["voxtile-build", *arguments])
    kept = [cache] if cache is not None and _made(cache) else []
    written = shlex.join(map(str, [_repository(arguments), *kept]))
    # Whoever runs docker is another user in the container.
    return_files = f"chown --recursive {os.getuid()}:{os.getgid()} {written}"
    script = f"{_install(arguments)} && {{ {build}; code=$?; {return_files}; exit $code; }}"
    mounts = [word for path, mode in _mounts(folder, arguments, files) for word in ("--volume", f"{path}:{path}{mode}")]
    for one in kept:
        mounts += ["--volume", f"{one}:{one}", "--env", f"{VARIABLE}={one.parent}"]
    words = ["docker", "run", "--rm", "--gpus", "all", *mounts, "--workdir", str(folder), image, "bash", "-c", script]
    return shlex.join(words)


def _made(folder: Path) -> bool:
    """Makes a folder for this user, because docker would make it for root; whether it is there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return True


def _install(arguments: Sequence[str]) -> str:
    steps = []
    if _from_sources():
        sources = " ".join(shlex.quote(str(SOURCES / name)) for name in ("client", "build"))
        # Copied, because an installation writes into the folder that it installs from.
        steps += [
            f"mkdir {COPY}",
            f"cp --recursive {sources} {COPY}",
            f"pip install --quiet {COPY}/client {COPY}/build",
        ]
    else:
        steps.append(f"pip install --quiet voxtile-build=={voxtile_build.__version__}")
    # nnU-Net's networks; a spec can name them too, and then they were made here before the container was needed.
    if arguments[:1] in (["nnunet"], ["nnunet-set"]) or NNUNETS_NETWORKS in sys.modules:
        steps.append("pip install --quiet --no-deps dynamic-network-architectures==0.4.4")
    return " && ".join(steps)


def _from_sources() -> bool:
    return (SOURCES / "build" / "pyproject.toml").is_file()


def _mounts(folder: Path, arguments: Sequence[str], files: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Folders, each with the end of its mount: the working directory and the repository can be written, no other."""
    written = dict.fromkeys([folder, _existing(_repository(arguments))])
    named = [word.partition("=")[2] if word.startswith("--") else word for word in arguments]
    read = [SOURCES] if _from_sources() else []
    read += [_existing(Path(word).absolute()) for word in named if word and Path(word).exists()]
    read += [_existing(file.absolute()) for file in files]
    for path in written:
        if not any(path.is_relative_to(other) for other in written if other != path):
            yield path, ""
    for path in dict.fromkeys(read):
        if not any(path.is_relative_to(other) for other in (*written, *(one for one in read if one != path))):
            yield path, ":ro"


def _repository(arguments: Sequence[str]) -> Path:
    """The model repository that the arguments name, as an absolute path."""
    words = iter(arguments)
    for word in words:
        name, _, value = word.partition("=")
        if name == "--repository":
            return Path(value or next(words, "")).absolute()
    return Path.cwd()


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists; the folder of a file.

    The root is no folder to mount: docker makes what is missing below it.
    """
    found = next(one for one in (path, *path.parents) if one.is_dir())
    return found if found.parent != found else path
