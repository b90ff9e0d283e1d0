"""A Dockerfile as its instructions, and its steps without Docker: paths below /opt lie in a folder. Knows no image."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

INSIDE = "/opt/"
"""Where the steps may write."""


@dataclass
class Built:
    """What the steps have made.

    Attributes:
        opt: the folder that stands for /opt.
        environment: the variables that the image sets.
    """

    opt: Path
    environment: dict[str, str] = field(default_factory=dict)


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """The instructions in order, each with its words; a line that ends in a backslash goes on in the next."""
    lines = [line for line in dockerfile.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ").splitlines()
    split = [line.partition(" ") for line in whole if line.strip()]
    return [(word, " ".join(rest.split()) if word != "RUN" else rest) for word, _, rest in split]


def ignored(path: str, ignore: Path) -> bool:
    """Whether a path of the context is kept from the build: the last line that fits it, or a folder of it, decides."""
    verdict = False
    for line in ignore.read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!")
        if not line or line.startswith("#"):
            continue
        parts = path.split("/")
        folders = ["/".join(parts[: end + 1]) for end in range(len(parts))]
        if any(fnmatch(folder, pattern) or fnmatch(f"/{folder}", pattern.replace("**", "*")) for folder in folders):
            verdict = not line.startswith("!")
    return verdict


def build(dockerfile: Path, context: Path, opt: Path) -> Built:
    """Runs the steps with this Python; COPY takes what the ignore file beside the Dockerfile leaves."""
    built = Built(opt)
    ignore = dockerfile.with_name(f"{dockerfile.name}.dockerignore")
    for word, rest in instructions(dockerfile):
        match word:
            case "ENV":
                name, _, value = rest.partition("=")
                built.environment[name] = value.replace(INSIDE, f"{opt}/")
            case "COPY":
                source, target = rest.split()
                _copy(context, source, Path(target.replace(INSIDE, f"{opt}/")), ignore)
            case "RUN":
                command = rest.replace(INSIDE, f"{opt}/").replace("python3 ", f"{sys.executable} ")
                environment = {**os.environ, **built.environment}
                subprocess.run(["sh", "-ec", command], env=environment, check=True, capture_output=True)
            case "FROM" | "USER":
                pass
            case _:
                raise ValueError(f"{dockerfile}: {word} is not known here")
    return built


def _copy(context: Path, source: str, target: Path, ignore: Path) -> None:
    files = [context / source] if (context / source).is_file() else sorted((context / source).rglob("*"))
    taken = [file for file in files if file.is_file() and not ignored(str(file.relative_to(context)), ignore)]
    if not taken:
        raise FileNotFoundError(f"COPY {source}: the build is given nothing of it")
    for file in taken:
        place = target / file.relative_to(context / source) if (context / source).is_dir() else target
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
