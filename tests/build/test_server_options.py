"""How commands of the build reach servers: the client's options, and its words for what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.versioned import NAME, command, files, two_versions
from voxtile_build.cli.server_options import Measured, Servers


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_versions(tmp_path_factory.mktemp("reached"))


@pytest.mark.parametrize("kind", [Servers, Measured])
def test_no_server_is_asked_unless_one_is_named(kind: type[Servers | Measured]) -> None:
    assert kind().url == []


@pytest.mark.parametrize("words", [("promote", NAME, 2), ("rollback", NAME), ("remove", NAME, 2), ("verify", NAME)])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tls-cert", "own.pem"), "key"),
        (("--header", "no colon"), "--header"),
        (("--tls-ca", "gone.pem"), "gone.pem"),
        (("--tls-ca", "s3://bucket/ca.pem"), "found an address"),
    ],
)
def test_what_is_wrong_with_them_is_one_line_and_changes_nothing(
    repository: Path, words: tuple[object, ...], options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(repository)
    assert command(*words, "--repository", repository, "--url", "localhost:1", *options) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert files(repository) == before
