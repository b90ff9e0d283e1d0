"""Unpacks a zip file of `nnUNetv2_export_model_to_zip` into a temporary folder.

Of its members only the files that are read are written, each by a name that is checked first. Knows nothing of what
they hold.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import nn

from voxtile_build.errors import BuildError, SourceError
from voxtile_build.repository.folds import Fold, Model

PART = r"[A-Za-z0-9][A-Za-z0-9 ._+-]*"
WANTED = re.compile(
    rf"((?:{PART}/){{0,3}}?)({PART}__{PART})/"
    rf"(?:plans\.json|dataset\.json|postprocessing\.(?:json|pkl)|fold_[a-z0-9]+/{PART}\.pth"
    r"|crossval_results_folds_[a-z0-9_]+/postprocessing\.(?:json|pkl))"
)
"""The files of trained models; no part of a name begins with a dot, so none leads out of the folder."""
RATIO = 20
SPARE_BYTES = 64 << 20
"""The members may unpack to so many times the bytes of the file, and these bytes: weights hardly compress."""


def is_zip(path: Path) -> bool:
    """Whether the path is a zip file; a checkpoint, which is one too, is not meant."""
    return path.is_file() and path.suffix.lower() != ".pth" and zipfile.is_zipfile(path)


@dataclass(frozen=True)
class Unpacked:
    """A zip file's trained models in a temporary folder.

    Attributes:
        path: the zip file.
        root: the temporary folder.
        models: the folder in it that holds the trained models.
    """

    path: Path
    root: Path
    models: Path

    def later(self, model: Model) -> Model:
        """The model, whose networks are made when the folder is gone; their errors name the zip file."""
        return replace(model, folds=tuple(replace(fold, load=partial(self._load, fold)) for fold in model.folds))

    def _load(self, fold: Fold) -> nn.Module:
        with _named(self.path, self.root):
            return fold.load()


@contextmanager
def unpacked(path: Path) -> Iterator[Unpacked]:
    """The trained models of a zip file in a folder that is gone afterwards; errors inside name the zip file.

    Raises:
        SourceError: the file is damaged, holds no trained model or those of several data sets, or unpacks to more than
            weights could.
    """
    with tempfile.TemporaryDirectory(prefix="voxtile-nnunet-") as folder, _named(path, Path(folder)):
        yield Unpacked(path, Path(folder), _unpack(path, Path(folder)))


@contextmanager
def _named(path: Path, root: Path) -> Iterator[None]:
    try:
        yield
    except BuildError as error:
        error.args = tuple(str(one).replace(str(root), str(path)) for one in error.args)
        raise


def _unpack(path: Path, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(path, archive.infolist())
            _check_room(path, members, folder)
            for member in members:
                _write(archive, member, folder)
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(f"{path}: cannot be unpacked into {folder.parent}: {error.strerror or error}") from None
    except Exception as error:  # damaged archives raise many kinds of errors
        raise SourceError(
            f"{path}: expected a zip file of a trained nnU-Net model, found a damaged one: {error}"
        ) from None
    return folder / _place(path, members)


def _members(path: Path, found: Sequence[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    members = [member for member in found if WANTED.fullmatch(member.filename)]
    if not members:
        raise SourceError(
            f"{path}: expected a zip file of nnUNetv2_export_model_to_zip, which holds "
            "DATASET/TRAINER__PLANS__CONFIGURATION/plans.json, found none; give the trained folder itself"
        )
    if len({member.filename for member in members}) < len(members):
        raise SourceError(f"{path}: expected one member of each name, found two; export the model again")
    return members


def _check_room(path: Path, members: Sequence[zipfile.ZipInfo], folder: Path) -> None:
    size = sum(member.file_size for member in members)
    if size > RATIO * path.stat().st_size + SPARE_BYTES:
        raise SourceError(
            f"{path}: expected weights, found {size >> 20} MiB in {path.stat().st_size >> 20} MiB of file"
        )
    free = shutil.disk_usage(folder).free
    if size > free:
        raise SourceError(
            f"{path}: unpacks to {size >> 20} MiB, and {folder.parent} has {free >> 20} MiB left; unpack it elsewhere, "
            "and give the folder"
        )


def _write(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    target = folder / member.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, target.open("xb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)


def _place(path: Path, members: Sequence[zipfile.ZipInfo]) -> Path:
    """The folder that holds all trained models."""
    places = {match[1] for member in members if (match := WANTED.fullmatch(member.filename))}
    if len(places) > 1:
        raise SourceError(
            f"{path}: expected the models of one data set, found those of {', '.join(sorted(places))}; unpack it, and "
            "give the folder of one of them"
        )
    return Path(places.pop())
