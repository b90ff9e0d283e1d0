"""A model repository as Triton sees it: a folder for each model, its configuration, its versions. Judges nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from voxtile.card import Card, parse_card
from voxtile.errors import ModelError

CONFIG = "config.pbtxt"
EMBEDDED_CONFIG = Path("configs", "embedded.pbtxt")
"""The embedded server reads it in place of config.pbtxt, where an entry has it."""

VERSION = re.compile(r"[1-9][0-9]*")
"""Names of folders that Triton takes for versions; it ignores all others."""

LAST_VERSION = 2**63 - 1
"""Triton ends where it reads the name of a version above this."""

MOST_WORDS = 200
"""Characters of what a parser says: it may quote the whole file."""

PLATFORMS = {
    "ensemble": "ensemble",
    "onnxruntime_onnx": "onnxruntime",
    "tensorrt_plan": "tensorrt",
    "pytorch_libtorch": "pytorch",
    "torch_aoti": "pytorch",
    "openvino": "openvino",
}
"""The backend of each platform that a configuration may name in its place."""


USUAL_FILES = {
    "model.plan": "tensorrt",
    "model.onnx": "onnxruntime",
    "model.xml": "openvino",
    "model.pt": "pytorch",
    "model.py": "python",
}
"""The backend of each file, by which Triton takes an entry that names none."""


@dataclass(frozen=True)
class Entry:
    """A folder of a repository, which Triton takes for a model.

    Attributes:
        folder: the folder; its name is the model's.
        config: its configuration; None where there is none, or where it cannot be read.
        config_file: the file with the configuration, whether it is there or not.
        fault: why it cannot be read; empty where it can, or is not there.
        versions: its version folders, ascending.
        closed: whether this user may not look into it, so that nothing is known of it.
    """

    folder: Path
    config: pb.ModelConfig | None
    config_file: Path
    fault: str = ""
    versions: tuple[int, ...] = ()
    closed: bool = False

    @property
    def name(self) -> str:
        """The model's name."""
        return self.folder.name

    @cached_property
    def backend(self) -> str:
        """The backend, `ensemble` for an ensemble; where none is named, that of the files; empty where nobody knows."""
        if self.config is None:
            return ""
        named = self.config.backend or PLATFORMS.get(self.config.platform, self.config.platform)
        return str(named or self._backend_of_files)

    @property
    def _backend_of_files(self) -> str:
        """What Triton takes an entry for that names no backend."""
        places = [version_folder(self, version) for version in self.served]
        found = [backend for name, backend in USUAL_FILES.items() if any(is_there(place / name) for place in places)]
        return found[0] if found else ""

    @property
    def is_ensemble(self) -> bool:
        """Whether it is an ensemble."""
        return self.config is not None and (self.config.platform == "ensemble" or self.backend == "ensemble")

    @property
    def served(self) -> tuple[int, ...]:
        """The versions that Triton loads, ascending, by the policy of the configuration."""
        if self.config is None:
            return ()
        policy = self.config.version_policy
        if policy.WhichOneof("policy_choice") == "specific":
            return tuple(version for version in self.versions if version in policy.specific.versions)
        if policy.WhichOneof("policy_choice") == "all":
            return self.versions
        newest = policy.latest.num_versions if policy.HasField("latest") else 1  # Triton's own where nothing is said
        return self.versions[-newest:] if newest else ()

    @cached_property
    def card(self) -> Card | None:
        """The card; None where there is none, or one that no client reads."""
        return self._card[0]

    @cached_property
    def card_fault(self) -> str:
        """Why the card cannot be read; empty where it can, or is not there."""
        return self._card[1]

    @cached_property
    def _card(self) -> tuple[Card | None, str]:
        if self.config is None or "card" not in self.config.parameters:
            return None, ""
        try:
            return parse_card(self.config.parameters["card"].string_value, self.name), ""
        except ModelError as error:
            return None, str(error)


@dataclass(frozen=True)
class Repository:
    """A repository.

    Attributes:
        folder: where it is.
        entries: by name.
    """

    folder: Path
    entries: Mapping[str, Entry]


def read_repository(folder: Path, *, embedded: bool) -> Repository:
    """Reads every entry of a repository.

    Args:
        folder: the repository.
        embedded: whether the embedded server is to serve it, which prefers configurations of its own.

    Raises:
        OSError: the folder cannot be listed.
    """
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    entries: dict[str, Entry] = {}
    for one in folders:
        try:
            entries[one.name] = _entry(one, embedded)
        except PermissionError:
            entries[one.name] = Entry(one, None, one / CONFIG, closed=True)
    return Repository(folder, entries)


def _entry(folder: Path, embedded: bool) -> Entry:
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    versions = tuple(sorted(int(name) for name in names if VERSION.fullmatch(name)))
    own = folder / EMBEDDED_CONFIG
    file = own if embedded and own.is_file() else folder / CONFIG
    if not file.is_file():
        return Entry(folder, None, file, "", versions)
    try:
        config = text_format.Parse(file.read_text(encoding="utf-8"), pb.ModelConfig())
    except PermissionError:
        raise
    except (OSError, UnicodeDecodeError, text_format.ParseError, RecursionError) as error:
        return Entry(folder, None, file, " ".join(str(error).split())[:MOST_WORDS] or type(error).__name__, versions)
    return Entry(folder, config, file, "", versions)


def is_there(path: Path) -> bool:
    """Whether something is there, or may not be looked at: what this user may not read is a finding of its own."""
    try:
        return path.exists()
    except OSError:
        return True


def may_read(path: Path) -> bool:
    """Whether this user may read a file, or look into a folder."""
    needed = os.R_OK | (os.X_OK if os.path.isdir(path) else 0)
    return os.access(path, needed, effective_ids=os.access in os.supports_effective_ids)


def version_folder(entry: Entry, version: int) -> Path:
    """The folder of a version."""
    return entry.folder / str(version)


def files_below(folder: Path) -> list[Path]:
    """Every file, folder and link below a folder, sorted; links are not followed."""
    found = []
    for place, folders, files in os.walk(folder):
        found += [Path(place, name) for name in (*folders, *files)]
    return sorted(found)


def files_in(repository: Repository) -> Iterator[Path]:
    """Every file, folder and link of a repository's models, each after the folder that it lies in.

    Of a folder without a configuration, only what lies directly in it: whoever gives a wrong folder, such as a home
    folder, would wait for hours.
    """
    for path in sorted(repository.folder.iterdir()):
        yield path
        entry = repository.entries.get(path.name)
        if entry is None or path.is_symlink():
            continue
        is_model = entry.config is not None or entry.fault or entry.closed
        yield from files_below(path) if is_model else sorted(path.iterdir())
