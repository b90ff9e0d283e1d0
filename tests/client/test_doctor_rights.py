"""`voxtile doctor` by a user who may not read all of a repository: one finding for each, and no guess of the rest."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.doctored import change_config, model
from tests.support.umask import usual_umask
from voxtile.doctor.finding import Finding
from voxtile.doctor.lint import Server, lint
from voxtile.doctor.releases import EMBEDDED, release_named
from voxtile_build.engines.release import RELEASE

NOBODY = 65534
CONTAINER = 1000


@contextlib.contextmanager
def another_user() -> Iterator[None]:
    """What is done within is done by a user without rights of its own; who runs the tests is one already, or root."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def models() -> Iterator[Path]:
    """A repository with one model, in a folder that others reach, as one of pytest's own may not be."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    with usual_umask():
        model(folder / "models", "tiny")
    yield folder / "models"
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


def faults_in(folder: Path, release: str = EMBEDDED) -> list[Finding]:
    server = Server(release_named(release))
    list(lint([folder], server))  # imports all that it needs, which the other user may not be able to
    with another_user():
        found = list(lint([folder], server))
    return [one for one in found if one.severity not in ("ok", "note")]


def closed(path: str, mode: int) -> Callable[[Path], Path]:
    """Takes rights away; returns what they were taken from."""

    def make(repository: Path) -> Path:
        (repository / path).chmod(mode)
        return repository / path

    return make


def labels_in_a_closed_folder(repository: Path) -> Path:
    entry = repository / "tiny_onnxruntime"
    change_config(entry, lambda config: setattr(config.output[0], "label_filename", "labels/names.txt"))
    (entry / "labels").mkdir()
    (entry / "labels").chmod(0)
    return entry / "labels"


CASES: dict[str, Callable[[Path], Path]] = {
    "an engine": closed("tiny_onnxruntime/1/model.onnx", 0),
    "a certificate": closed("tiny_onnxruntime/1/certificate.json", 0),
    "a reference": closed("tiny_onnxruntime/1/samples.npz", 0),
    "a configuration": closed("tiny_onnxruntime/config.pbtxt", 0),
    **{
        f"{title}, mode {mode:o}": closed(path, mode)
        for mode in (0, 0o444, 0o111)
        for title, path in (("a version", "tiny_onnxruntime/1"), ("an entry", "tiny_onnxruntime"), ("a name", "tiny"))
    },
    "labels": labels_in_a_closed_folder,
}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_what_this_user_may_not_read_is_one_finding(make: Callable[[Path], Path], models: Path) -> None:
    place = make(models)
    (found,) = faults_in(models)
    assert (found.severity, found.code, found.where) == ("error", "not-readable", str(place))
    assert "this user" in found.what
    place.chmod(0o755)
    assert [one for one in faults_in(models) if one.code == "not-readable"] == []


def test_a_container_may_read_what_this_user_may_not(models: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives a file to another user")
    engine = models / "tiny_onnxruntime" / "1" / "model.onnx"
    os.chown(engine, CONTAINER, CONTAINER)
    engine.chmod(0o600)
    (found,) = faults_in(models, RELEASE)
    assert (found.severity, found.code) == ("warning", "not-readable")
    assert "not examined" in found.why
