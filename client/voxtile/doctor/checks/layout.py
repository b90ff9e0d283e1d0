"""Faults of a repository's folders and files: what Triton does not start with. Knows no format."""

from __future__ import annotations

import fcntl
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from voxtile.doctor.checks.named_files import check_named_files
from voxtile.doctor.checks.rights import LOCK, check_rights
from voxtile.doctor.entry import LAST_VERSION, Entry, Repository, files_in, is_there, may_read, version_folder
from voxtile.doctor.finding import Finding
from voxtile.doctor.releases import Release

PLAIN = re.compile(r"[A-Za-z0-9_.+-]+")
"""Names that Triton 24.10 can hand to its stubs: it does so through a shell, without quotes."""

JOURNAL = ".journal.json"
MODEL_FILES = {
    "onnxruntime": ("model.onnx",),
    "openvino": ("model.xml", "model.bin"),
    "tensorrt": ("model.plan",),
    "python": ("model.py",),
}
"""What a backend opens in a version folder, unless the configuration says otherwise."""


FOLDERS = ("onnxruntime",)
"""Backends of the containers that take a folder in the place of their file, with the file in it."""


def check_repository(repository: Repository, release: Release) -> Iterator[Finding]:
    """Faults of a repository and of the folders in it."""
    folder = repository.folder
    if not repository.entries:
        yield Finding(
            "error",
            "no-model",
            str(folder),
            "holds no model",
            "Triton would serve nothing",
            "build one with voxtile-build, or give the folder that holds the models' folders",
        )
    yield from _staging(folder)
    yield from _clashes(repository)
    yield from _links(repository)
    yield from check_rights(repository, release)
    for entry in repository.entries.values():
        yield from _entry(entry, release)


def check_twice(repositories: Sequence[Repository]) -> Iterator[Finding]:
    """Names that several repositories have."""
    places: dict[str, list[Path]] = defaultdict(list)
    for repository in repositories:
        for name in repository.entries:
            places[name].append(repository.folder)
    for name, folders in places.items():
        if len(folders) > 1:
            yield Finding(
                "error",
                "name-twice",
                str(folders[1] / name),
                f"{name!r} is a model of {folders[0]} too",
                "Triton serves neither of two models with one name",
                "remove or rename one of them",
            )


def files_of(entry: Entry) -> tuple[str, ...]:
    """The files that an entry's backend opens in each version folder; none where nobody knows them."""
    if entry.config is None or entry.is_ensemble:
        return ()
    named = (entry.config.default_model_filename,) if entry.config.default_model_filename else ()
    own = (*named, *entry.config.cc_model_filenames.values())
    if entry.backend == "openvino" and len(own) == 1 and own[0].endswith(".xml"):
        return (own[0], own[0].removesuffix(".xml") + ".bin")
    if own:
        return tuple(dict.fromkeys(own))
    if entry.backend == "pytorch":
        return ("model.pt2",) if entry.config.platform == "torch_aoti" else ("model.pt",)
    return MODEL_FILES.get(entry.backend, ())


def files_with_weights(entry: Entry) -> tuple[str, ...]:
    """The files of `files_of`, and those in which voxtile-build keeps the weights of a large ONNX graph."""
    return tuple(name for file in files_of(entry) for name in (file, f"{file}.data"))


def _entry(entry: Entry, release: Release) -> Iterator[Finding]:
    where = str(entry.folder)
    if entry.config is None:
        if not entry.closed:
            yield _no_config(entry)
        return
    if entry.config.name and entry.config.name != entry.name:
        yield Finding(
            "error",
            "name-differs",
            where,
            f"expected name: {entry.name!r} in config.pbtxt, found {entry.config.name!r}",
            "Triton refuses a model whose name is not that of its folder",
            "rename the folder back, or build it again",
        )
    if release.before("25.01") and not PLAIN.fullmatch(entry.name):
        yield Finding(
            "error",
            "odd-name",
            where,
            f"expected letters, digits and _ . + - in a model's name, found {entry.name!r}",
            f"{release.title} hands names to a shell without quotes",
            "publish the model under another name",
        )
    yield from _versions(entry)
    yield from check_named_files(entry)
    for version in entry.served:
        yield from _files(entry, version, release)


def _no_config(entry: Entry) -> Finding:
    where = str(entry.config_file)
    if entry.fault:
        return Finding(
            "error",
            "config-unreadable",
            where,
            f"no configuration of a model: {entry.fault}",
            "Triton does not start with it",
            "build the model again",
        )
    hidden = entry.name.startswith(".")
    return Finding(
        "error",
        "no-config",
        str(entry.folder),
        "a folder without config.pbtxt",
        f"Triton takes every folder{', hidden ones too,' if hidden else ''} for a model, and does not start",
        "move it out of the repository, or build the model again",
    )


def _versions(entry: Entry) -> Iterator[Finding]:
    where = str(entry.folder)
    policy = entry.config.version_policy if entry.config is not None else None
    wanted = tuple(policy.specific.versions) if policy is not None else ()
    missing = [version for version in wanted if version not in entry.versions]
    if not entry.versions:
        yield Finding(
            "error",
            "no-version",
            where,
            "holds no version folder (a number from 1)",
            "Triton does not load it",
            "build the model again",
        )
    elif missing:
        yield Finding(
            "warning" if entry.served else "error",
            "version-missing",
            where,
            f"version_policy asks for {_numbers(missing)}, found {_numbers(entry.versions)}",
            "who asks for it is refused" if entry.served else "Triton does not load the model",
            "bring the version back, or build the model again",
        )
    elif not entry.served:
        yield Finding(
            "error",
            "version-missing",
            where,
            f"version_policy takes none of the versions {_numbers(entry.versions)}",
            "Triton does not load the model",
            "take version_policy out, or build the model again",
        )
    if entry.versions and entry.versions[-1] > LAST_VERSION:
        yield Finding(
            "error",
            "odd-version",
            str(version_folder(entry, entry.versions[-1])),
            f"expected a version up to {LAST_VERSION}, found {entry.versions[-1]}",
            "the whole server ends when it reads this name",
            "give the folder a smaller number, or move it out of the repository",
        )


def _files(entry: Entry, version: int, release: Release) -> Iterator[Finding]:
    folder = version_folder(entry, version)
    if not may_read(folder):
        return  # `rights` speaks of it
    if not any(folder.iterdir()) and not (entry.is_ensemble or entry.backend == "voxtile"):
        yield Finding(
            "error",
            "version-empty",
            str(folder),
            f"expected {' and '.join(files_of(entry)) or 'a model'}, found nothing",
            "Triton does not load it",
            "build the model again",
        )
        return
    for name in files_of(entry):
        file = folder / name
        if file.is_symlink() and not file.exists():
            continue  # `_links` speaks of it
        if not file.is_file() and not (entry.backend in FOLDERS and not release.embedded and (file / name).is_file()):
            yield Finding(
                "error",
                "file-missing",
                str(file),
                "no plain file" if file.exists() else "missing",
                f"the backend {entry.backend} opens it when the server starts",
                "build the model again",
            )
        elif file.is_file() and not file.stat().st_size:
            yield Finding(
                "error",
                "file-empty",
                str(file),
                "empty",
                "the backend cannot load it",
                "copy it again, or build the model again",
            )


def _staging(repository: Path) -> Iterator[Finding]:
    """What a build that was cut off has left beside the repository."""
    real = Path(os.path.realpath(repository))
    work = real.parent / f".{real.name}.building"
    if not work.exists() or _build_runs(real):
        return
    half = (work / JOURNAL).exists()
    yield Finding(
        "error" if half else "warning",
        "staging-left",
        str(work),
        "a build was cut off and left its folder",
        "it was publishing, so old and new entries may be mixed" if half else "it takes room, and nobody uses it",
        "build any model into this repository again: voxtile-build undoes and removes what is left",
    )


def _build_runs(repository: Path) -> bool:
    """Whether a build holds the repository's lock at this moment."""
    try:
        lock = os.open(repository / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(lock)


def _clashes(repository: Repository) -> Iterator[Finding]:
    alike: dict[str, list[str]] = defaultdict(list)
    for name in repository.entries:
        alike[name.casefold()].append(name)
    for names in alike.values():
        if len(names) > 1:
            yield Finding(
                "warning",
                "case-clash",
                str(repository.folder),
                f"{' and '.join(names)} differ in capitals alone",
                "on a disk that does not tell them apart (Windows, macOS) one overwrites the other",
                "rename one of them",
            )


def _links(repository: Repository) -> Iterator[Finding]:
    real = Path(os.path.realpath(repository.folder))
    for path in files_in(repository):
        if not os.path.islink(path):
            continue
        target = Path(os.path.realpath(path))
        if not is_there(target):
            yield Finding(
                "error",
                "link-broken",
                str(path),
                f"a link to {os.readlink(path)}, which is not there",
                "Triton finds nothing behind it",
                "copy what it should lead to, or build the model again",
            )
        elif not target.is_relative_to(real):
            yield Finding(
                "error",
                "link-outside",
                str(path),
                f"a link to {target}, outside the repository",
                "a container, a volume or a copy has the repository alone, and the link leads nowhere there",
                "put a copy in its place",
            )


def _numbers(versions: Sequence[int]) -> str:
    return ", ".join(map(str, versions))
