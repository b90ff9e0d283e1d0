"""Every command that takes a path refuses an address: as a path it would be a folder `s3:` of this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from voxtile.cli.local_paths import paths_only
from voxtile.errors import InputError
from voxtile_build.cli import commands as build
from voxtile_server import cli as server
from voxtile_server.gateway import cli as gateway
from voxtile_server.listener import cli as listener

BUILD = (
    ("spec", "s3://b/model.toml", "--repository", "models"),
    ("spec", "model.toml", "--repository", "s3://b/models"),
    ("nnunet", "gs://b/results", "--name", "ball", "--repository", "models"),
    ("bundle", "https://host/bundle.zip?signature=secret", "--name", "ball", "--repository", "models"),
    ("promote", "ball", "2", "--repository", "s3:/b/models"),
    ("remove", "ball", "2", "--repository", "s3:/b/models"),
    ("verify", "ball", "--repository", "s3:/b/models"),
    ("point", "ball", "fastest", "--repository", "s3:/b/models"),
    ("distil", "t.toml", "--width", "0.5", "--scans", "s3://b/scans", "--output", "out"),
    ("distil", "t.toml", "--width", "0.5", "--scans", "scans", "--output", "s3://b/out"),
)
SERVERS: dict[str, tuple[Callable[[list[str]], int], tuple[str, ...]]] = {
    "server": (server.main, ("--repository", "s3://b/models")),
    "ready file": (server.main, ("--repository", "models", "--ready-file", "gs://b/ready")),
    "gateway": (gateway.main, ("--folder", "s3:/b/spool")),
    "listener": (listener.main, ("https://host/settings.toml?signature=secret",)),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def is_refused(error: str, folder: Path) -> bool:
    """Whether one line says that a path was expected, without a secret, and nothing was made."""
    assert len(error.strip().splitlines()) == 1, error
    return (
        "expected a path of this machine, found an address" in error
        and "secret" not in error
        and not any(folder.iterdir())
    )


def test_a_path_in_a_list_counts_and_a_word_does_not() -> None:
    called = paths_only(lambda **values: values, contextlib.nullcontext)
    assert called(model="s3://b/m", scans=[Path("a.nii")], none=None) == {
        "model": "s3://b/m", "scans": [Path("a.nii")], "none": None,
    }  # fmt: skip
    for values in ({"scans": [Path("a.nii"), Path("s3://b/a.nii")]}, {"scans": (Path("GS:/b/a.nii"),)}):
        with pytest.raises(InputError, match="found an address"):
            called(**values)


@pytest.mark.parametrize("arguments", BUILD, ids=lambda words: " ".join(words))
def test_the_build_takes_paths_only(
    folder: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main(arguments) == 2
    assert is_refused(capsys.readouterr().err, folder)


@pytest.mark.parametrize("case", SERVERS)
def test_servers_take_paths_only(folder: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    main, arguments = SERVERS[case]
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    assert is_refused(capsys.readouterr().err, folder)
