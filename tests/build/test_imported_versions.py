"""The number of a version for what is imported: `nnunet --version` and `bundle --version`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.bundles import write_bundle
from tests.support.nnunet_folders import Training, configuration, write_folder
from voxtile_build.cli.commands import main
from voxtile_build.repository.versions import public_version, versions_of

SMALL = Training("2d", {"2d": configuration((16, 12), (1.0, 1.0))}, folds=(0, 1))
FULL = configuration((8, 8, 8), (1.0, 1.0, 1.0))


def numbers(repository: Path) -> tuple[list[int], int | None]:
    return list(versions_of("m", repository)), public_version("m", repository)


def digest(repository: Path, number: int) -> str:
    return versions_of("m", repository)[number].card.provenance.weights_sha256


def test_an_nnunet_folder_becomes_the_version_that_is_asked_for(tmp_path: Path) -> None:
    folder, repository = write_folder(tmp_path / "results" / "Dataset042_Mine", SMALL), tmp_path / "r"
    given = ["nnunet", str(folder), "--name", "m", "--repository", str(repository), "--engines", "onnxruntime"]
    assert main([*given, "--folds", "0", "--version", "3"]) == 0
    assert numbers(repository) == ([3], 3)
    assert main([*given, "--folds", "1"]) == 0
    assert numbers(repository) == ([3, 4], 3)
    second = digest(repository, 4)
    assert main([*given, "--folds", "1", "--version", "3"]) == 0
    assert numbers(repository) == ([3, 4], 3), "the version that is asked for is replaced, the other stays"
    assert digest(repository, 3) == second


def test_a_bundle_becomes_the_version_that_is_asked_for(tmp_path: Path) -> None:
    folder, repository, file = write_bundle(tmp_path / "b"), tmp_path / "r", tmp_path / "m.toml"
    given = ["bundle", str(folder), "--name", "m", "--repository", str(repository), "--engines", "onnxruntime"]
    assert main([*given, "--version", "7", "--write-spec", str(file)]) == 0
    assert numbers(repository) == ([7], 7)
    assert "version = 7\n" in file.read_text()
    assert main([*given, "--version", "8"]) == 0
    assert numbers(repository) == ([7, 8], 7)


def test_a_cascade_has_no_versions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"3d_lowres": FULL, "3d_cascade_fullres": {**FULL, "previous_stage": "3d_lowres"}}
    for name in settings:
        write_folder(tmp_path / "Dataset001_A", Training(name, settings))
    folder = tmp_path / "Dataset001_A" / "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres"
    assert main(["nnunet", str(folder), "--name", "m", "--repository", str(tmp_path / "r"), "--version", "2"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"voxtile-build: --version: {folder} is a cascade, which has no versions")
    assert said.count("\n") == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "two", "1000000000", ""])
@pytest.mark.parametrize("kind", ["nnunet", "bundle"])
def test_what_is_no_version_is_refused(
    kind: str, number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [kind, str(tmp_path), "--name", "m", "--repository", str(tmp_path / "r"), "--version", number]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("voxtile-build: ")
    assert "'--version': expected a number" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "r").exists()
