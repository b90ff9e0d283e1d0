"""The command that is printed where an engine needs a container: it works when it is pasted."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.build_specs import ROI
from voxtile_build.cache import VARIABLE
from voxtile_build.cli import commands, container
from voxtile_build.engines.release import TENSORRT_IMAGE

SPEC = f"""
name = "tiny"
[network]
name = "UNet"
args = {{ spatial_dims = 3, in_channels = 1, out_channels = 3, channels = [4, 8], strides = [2] }}
[weights]
file = "../weights/tiny.pt"
sha256 = "{"0" * 64}"
[input]
channels = ["t1"]
intensity = {{ rule = "none" }}
[output]
labels = ["background", "a", "b"]
[tiling]
roi_size = {list(ROI)}
"""


class Printed(NamedTuple):
    """A docker command: its mounts by folder, its working directory, its image, and the script inside."""

    mounts: dict[str, str]
    folder: str
    image: str
    script: str
    environment: list[str]


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Printed:
    """What the command says on a machine without a GPU."""
    assert commands.main(arguments) == 3
    first, *_, command = capsys.readouterr().err.strip().splitlines()
    assert first.startswith("voxtile-build: ")
    words = shlex.split(command)
    assert words[:5] == ["docker", "run", "--rm", "--gpus", "all"]
    volumes = [words[at + 1] for at, word in enumerate(words) if word == "--volume"]
    mounts = {}
    for volume in volumes:
        here, there, *mode = volume.split(":")
        assert here == there
        mounts[here] = mode[0] if mode else "rw"
    bash = words.index("bash")
    environment = [words[at + 1] for at, word in enumerate(words) if word == "--env"]
    return Printed(mounts, words[words.index("--workdir") + 1], words[bash - 1], words[bash + 2], environment)


def build_words(script: str) -> list[str]:
    """The arguments of voxtile-build inside the script."""
    words = shlex.split(script.partition("{ ")[2].partition(";")[0])
    assert words[0] == "voxtile-build"
    return words[1:]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a blank in its name, without a GPU, and the spec's weights beside it."""
    folder = tmp_path / "my models"
    (folder / "specs").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (folder / "weights").mkdir()
    (folder / "weights" / "tiny.pt").write_bytes(b"")
    (folder / "specs" / "tiny.toml").write_text(SPEC)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr("voxtile_build.engines.gpu.shutil.which", lambda _: None)
    monkeypatch.setenv(VARIABLE, str(folder / "cache"))
    return folder


def test_it_runs_the_same_command_in_the_servers_release(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["spec", "specs/tiny.toml", "--repository", "a repository", "--engines", "tensorrt"]
    found = printed(arguments, capsys)
    assert found.image == TENSORRT_IMAGE
    assert found.folder == str(place)
    assert found.mounts[str(place)] == "rw"
    assert build_words(found.script) == arguments
    # The arguments inside mean what they meant: the same command comes to the same point.
    assert printed(build_words(found.script), capsys) == found


def test_what_lies_elsewhere_has_the_same_path_inside(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = place.parent / "elsewhere"
    (elsewhere / "tiny.pt").write_bytes(b"")
    (place.parent / "specs").mkdir()
    spec = place.parent / "specs" / "tiny.toml"
    spec.write_text(SPEC.replace("../weights", str(elsewhere)))
    repository = place.parent / "published" / "models"
    repository.parent.mkdir()
    found = printed(["spec", str(spec), f"--repository={repository}", "--engines", "tensorrt"], capsys)
    assert found.mounts[str(spec.parent)] == "ro"
    assert found.mounts[str(elsewhere)] == "ro"
    assert found.mounts[str(repository)] == "rw"
    assert f"chown --recursive {os.getuid()}:{os.getgid()} {repository}" in found.script
    assert "exit $code" in found.script


def test_timings_of_earlier_builds_are_there_too(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = place.parent / "a cache"
    monkeypatch.setenv(VARIABLE, str(cache))
    arguments = ["spec", "specs/tiny.toml", "--repository", "r", "--engines", "tensorrt"]
    found = printed(arguments, capsys)
    assert found.mounts[str(cache / "tensorrt")] == "rw"
    assert found.environment == [f"{VARIABLE}={cache}"]
    assert (cache / "tensorrt").owner() == place.owner()  # docker would make it for root
    chown = shlex.split(found.script.partition("chown ")[2].partition(";")[0])
    assert chown[-2:] == [str(place / "r"), str(cache / "tensorrt")]
    monkeypatch.setenv(VARIABLE, str(place / "specs" / "tiny.toml"))  # no folder can be made there
    without = printed(arguments, capsys)
    assert (without.environment, list(without.mounts)) == ([], [one for one in found.mounts if "cache" not in one])


def test_sources_are_installed_from_a_copy(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(["spec", "specs/tiny.toml", "--repository", "r", "--engines", "tensorrt"], capsys)
    assert found.mounts[str(container.SOURCES)] == "ro"
    install = found.script.partition("{ ")[0]
    for name in ("client", "build"):
        assert (container.SOURCES / name / "pyproject.toml").is_file()
        assert f"{container.SOURCES}/{name}" in install
        assert f"{container.COPY}/{name}" in install


def test_an_installed_package_is_installed_there_in_the_same_version(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(container, "SOURCES", tmp_path)
    found = printed(["spec", "specs/tiny.toml", "--repository", "r", "--engines", "tensorrt"], capsys)
    assert found.script.startswith("pip install --quiet voxtile-build==")
    assert list(found.mounts) == [str(place), str(place / "cache" / "tensorrt")]
