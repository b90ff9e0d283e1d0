"""A promotion that dies at any system call, and two at once: the name stands for a whole version, and repeating helps.

The two doors of a model, its public name and its entries for whole scans, end with the same version.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.versioned import NAME, two_versions
from voxtile_build.errors import RepositoryError
from voxtile_build.promoting import promote, rollback
from voxtile_build.repository.config import read_config
from voxtile_build.repository.past import past_of
from voxtile_build.repository.publishing import LOCK
from voxtile_build.repository.versions import public_version, same_build
from voxtile_build.repository.volume import volume_names, volume_repository, write_volume_entries


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions, of which the first is public, and entries for whole scans."""
    folder = two_versions(tmp_path_factory.mktemp("cut-off"))
    write_volume_entries(NAME, folder, volume_repository(folder))
    return folder


def scanned_by(repository: Path) -> set[tuple[str, str]]:
    """Entry and version that the entries for whole scans send tiles to."""
    found = set()
    for entry in volume_names(NAME):
        (network,) = json.loads(read_config(volume_repository(repository) / entry).parameters["networks"].string_value)
        found.add((network["entry"], network["version"]))
    return found


def check_whole(repository: Path) -> int:
    """The version that the name stands for now; its entry is a whole copy of that version's own."""
    number = public_version(NAME, repository)
    assert number is not None
    assert same_build(NAME, repository) == (NAME, f"{NAME}.v{number}")
    assert (repository / NAME / str(number) / "README").is_file()
    return number


def check_settled(repository: Path, number: int) -> None:
    assert check_whole(repository) == number
    assert scanned_by(repository) == {(f"{NAME}.v{number}", str(number))}
    assert [path.name for path in repository.parent.iterdir() if path.name.startswith(".")] == []
    assert [path.name for path in repository.iterdir() if not path.is_dir()] == [LOCK]


@pytest.mark.parametrize("what", ["promote", "rollback"])
def test_a_move_that_is_killed_anywhere_is_mended_by_the_next(built: Path, tmp_path: Path, what: str) -> None:
    wanted = 2 if what == "promote" else 1
    if what == "rollback":
        promote(NAME, 2, built)
    try:
        command = [sys.executable, "-m", "tests.support.cut_off_promoting", str(built), str(tmp_path), what]
        count = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    finally:
        promote(NAME, 1, built)
    seen, out_of_step = set(), 0
    for number in range(1, count + 1):
        repository = tmp_path / str(number) / "models"
        public = check_whole(repository)
        seen.add(public)
        out_of_step += scanned_by(repository) != {(f"{NAME}.v{public}", str(public))}
        promote(NAME, wanted, repository)
        check_settled(repository, wanted)
        if what == "promote":
            assert past_of(read_config(repository / NAME)).history == (1,)
            assert rollback(NAME, repository).now == 1
            check_settled(repository, 1)
    assert seen == {1, 2}, "some were killed before the name had moved, and some after"
    assert out_of_step > 0, "some were killed between the two doors"


def leads_here(repository: Path) -> bool:
    """Whether the entries for whole scans read the cards of this repository."""
    for entry in volume_names(NAME):
        folder = volume_repository(repository) / entry
        (network,) = json.loads(read_config(folder).parameters["networks"].string_value)
        if (folder / network["config"]).resolve().parent.parent != repository.resolve():
            return False
    return True


@pytest.mark.parametrize("how", ["moved", "renamed", "copied", "copied and renamed", "behind a link"])
def test_a_repository_that_has_moved_elsewhere_keeps_its_doors_in_step(built: Path, tmp_path: Path, how: str) -> None:
    first = tmp_path / "first" / "models"
    other = (
        tmp_path / ("first" if how == "copied and renamed" else "second") / ("served" if "named" in how else "models")
    )
    other.parent.mkdir(exist_ok=True, parents=True)
    for place in (lambda one: one, volume_repository):
        shutil.copytree(place(built), place(first))
        if how == "behind a link":
            place(other).symlink_to(place(first))
        elif "copied" in how:
            shutil.copytree(place(first), place(other))
        else:
            place(first).rename(place(other))
    promote(NAME, 2, other)
    assert check_whole(other) == 2
    assert scanned_by(other) == {(f"{NAME}.v2", "2")}
    assert leads_here(other)
    if "copied" in how:
        check_settled(first, 1)
        assert leads_here(first)


def test_moves_at_once_wait_for_each_other_or_are_refused(built: Path) -> None:
    def move(number: int) -> str:
        try:
            promote(NAME, number, built)
        except RepositoryError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(8) as at_once:
        said = list(at_once.map(move, [2, 1] * 16))
    assert "" in said
    assert all(not one or "another build is at work" in one for one in said)
    check_settled(built, check_whole(built))
    promote(NAME, 1, built)
