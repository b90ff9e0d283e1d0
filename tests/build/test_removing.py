"""A version that is removed: all of it goes, nothing else does, and the public name stays what it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import run as voxtile
from tests.support.versioned import NAME, command, entries, files, two_versions
from voxtile_build.errors import RepositoryError
from voxtile_build.promoting import promote, rollback
from voxtile_build.removing import remove
from voxtile_build.repository.config import read_config, write_config
from voxtile_build.repository.past import past_of
from voxtile_build.repository.versions import public_version, release_of, versions_of
from voxtile_build.repository.volume import write_volume_entries

ONLY_SECOND = ["tiny", "tiny.v2", "tiny.v2_onnxruntime"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_versions(tmp_path_factory.mktemp("removing"))


@pytest.fixture
def repository(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "models")
    return tmp_path / "models"


def no_same(_: object) -> bool:
    return False


def next_number(repository: Path) -> int:
    release = release_of(NAME, None, no_same, repository)
    assert release is not None
    return release.number


def test_all_of_a_version_goes_and_nothing_of_the_others(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(repository, "tiny/config.pbtxt")
    assert command("remove", NAME, 2, "--repository", repository) == 0
    said = capsys.readouterr().out
    assert [line.split("/")[-1] for line in said.splitlines()[:2]] == ["tiny.v2", "tiny.v2_onnxruntime"]
    assert "one in the mode none must be started again" in said
    assert entries(repository) == ["tiny", "tiny.v1", "tiny_onnxruntime"]
    assert files(repository, "tiny/config.pbtxt") == {
        name: content for name, content in before.items() if not name.startswith("tiny.v2")
    }
    assert voxtile("doctor", repository).exit_code == 0


def test_the_first_version_takes_the_entries_along_that_are_called_after_the_name_alone(repository: Path) -> None:
    (repository / "tiny_others").mkdir()  # another's, which only looks like it
    promote(NAME, 2, repository)
    assert remove(NAME, 1, repository) == ("tiny.v1", "tiny_onnxruntime")
    (repository / "tiny_others").rmdir()
    assert entries(repository) == ONLY_SECOND
    assert (public_version(NAME, repository), list(versions_of(NAME, repository))) == (2, [2])
    assert voxtile("doctor", repository).exit_code == 0


def test_a_rollback_passes_a_removed_version_over(repository: Path) -> None:
    build_3(repository)
    for number in (2, 3, 1, 3):
        promote(NAME, number, repository)
    remove(NAME, 1, repository)
    assert past_of(read_config(repository / NAME)).history == (2,)
    with pytest.raises(RepositoryError, match="does not stand for"):
        remove(NAME, 3, repository)
    assert rollback(NAME, repository).now == 2


def test_a_number_is_not_given_twice_whatever_happens_to_the_name(repository: Path) -> None:
    remove(NAME, 2, repository)
    assert next_number(repository) == 3
    build_3(repository)
    assert entries(repository)[-2:] == ["tiny.v3_onnxruntime", "tiny_onnxruntime"]
    promote(NAME, 3, repository)
    remove(NAME, 1, repository)
    assert past_of(read_config(repository / NAME)).removed == (1, 2)
    assert next_number(repository) == 4


def build_3(repository: Path) -> None:
    from tests.support.build_specs import Linear, spec
    from voxtile_build.build import build

    asked = spec(
        name=NAME,
        output={"labels": ["background", "one"]},
        serving={"engines": ["onnxruntime"], "max_batch_size": 1},
    )
    build(asked, repository, network=Linear((2.0, -2.0)))


def user_of_it(repository: Path) -> None:
    config = read_config(repository / "tiny.v2")
    config.name = "by_hand"
    config.parameters.pop("card")
    shutil.copytree(repository / "tiny.v2", repository / "by_hand")
    write_config(config, repository / "by_hand")


def anothers(repository: Path) -> None:
    shutil.rmtree(repository / "tiny.v2_onnxruntime")
    (repository / "tiny.v2_onnxruntime").write_text("my notes")


def public_gone(repository: Path) -> None:
    (repository / "tiny" / "config.pbtxt").write_text("")


def nothing(_: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "words", "message"),
    [
        (nothing, (NAME, 1), "does not stand for, found that tiny is version 1; let it stand for another one first"),
        (nothing, (NAME, 3), "expected version 3 of tiny, found the versions 1, 2"),
        (nothing, ("tony", 2), "found none of that name; it has: tiny"),
        (nothing, (f"{NAME}@2", 2), "found a version behind it"),
        (nothing, (NAME, 0), "expected a number greater than or equal to 1"),
        (nothing, (NAME, "two"), "expected a number"),
        (nothing, (NAME,), "Missing argument 'VERSION'"),
        (nothing, ("tiny_onnxruntime", 1), "tiny_onnxruntime"),
        (nothing, ("../models/tiny", 2), "../models/tiny"),
        (nothing, (NAME, 2, "--url", "localhost:1"), "the repository is as it was"),
        (nothing, (NAME, 2, "--url", "localhost:1", "--tls-cert", "a.pem"), "give the key too"),
        (nothing, (NAME, 2, "--url", "localhost:1", "--header", "token"), "--header is NAME:VALUE"),
        (user_of_it, (NAME, 2), "by_hand sends tiles to tiny.v2_onnxruntime"),
        (anothers, (NAME, 2), "found another's model"),
        (public_gone, (NAME, 2), "its entry is gone or damaged; give it to a version first"),
    ],
)
def test_what_cannot_be_removed_is_refused_in_one_line(
    repository: Path,
    spoil: Callable[[Path], None],
    words: tuple[object, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(repository)
    before = files(repository)
    assert command("remove", *words, "--repository", repository) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert files(repository) == before


def test_a_repository_that_is_not_there_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("remove", NAME, 2, "--repository", tmp_path / "none") == 2
    assert "it has: no model" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_entries_for_whole_scans_of_the_public_name_stay(repository: Path) -> None:
    target = repository.with_name("models-volume")
    write_volume_entries(NAME, repository, target)
    before = files(target)
    remove(NAME, 2, repository)
    assert files(target) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("verify", f"{NAME}@2"), "tiny.v2_onnxruntime: holds"),
        (("verify", f"{NAME}@1", "--tiles-only"), "tiny_onnxruntime: holds"),
        (("point", f"{NAME}@2", "onnxruntime"), "tiny.v2 is onnxruntime"),
    ],
)
def test_a_version_is_named_as_clients_name_it(
    repository: Path, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*words, "--repository", repository) == 0
    assert said in capsys.readouterr().out
    assert command(words[0], f"{NAME}@7", *words[2:], "--repository", repository) == 2
    assert "expected version 7 of tiny, found the versions 1, 2" in capsys.readouterr().err
    assert command(words[0], f"{NAME}@new", *words[2:], "--repository", repository) == 2
    assert "expected NAME or NAME@VERSION" in capsys.readouterr().err
