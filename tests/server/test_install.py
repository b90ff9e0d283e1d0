"""Fetching, with wheels made here in place of the network's, and the backend folder."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import re
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.numpy_metadata import copy_metadata
from voxtile_server.errors import ServerError
from voxtile_server.install import fetch, layout, machine

PIN = r"[a-z-]+==[\d.]+( --hash=sha256:[0-9a-f]{64})+"


def test_every_pin_is_exact_has_hashes_and_says_why() -> None:
    for file in (fetch.TRITON, fetch.ENGINES):
        assert all(re.fullmatch(PIN, pin) for pin in fetch.read_pins(file))
        blocks = file.read_text().strip().split("\n\n")[1:]
        assert len(blocks) == len(fetch.read_pins(file))
        assert all(re.match(r"# .{20,}", block) for block in blocks)


def test_a_compiled_package_has_a_hash_for_each_python() -> None:
    for pin in fetch.read_pins(fetch.ENGINES):
        assert len(set(re.findall("sha256:(.*?)( |$)", pin))) == len(machine.PYTHONS)


def test_the_engines_are_those_that_certificates_are_made_with() -> None:
    pins = dict(pin.split()[0].split("==") for pin in fetch.read_pins(fetch.ENGINES))
    assert set(pins) == {"numpy", "onnxruntime", "openvino"}
    for name in ("onnxruntime", "openvino"):
        assert importlib.metadata.version(name) == pins[name]


def test_what_is_fetched_is_apart_from_the_environment(cache: Path) -> None:
    assert not cache.is_relative_to(sys.prefix)
    assert layout.binary(fetch.fetch_triton(cache)).is_file()
    fetch.check_engines(fetch.fetch_engines(cache))


def test_backends_are_copies(cache: Path) -> None:
    folder = layout.lay_out_backends(cache, fetch.fetch_triton(cache))
    assert {path.name for path in folder.iterdir()} == {"python", *layout.backend_names()}
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    package = folder / "python" / layout.PACKAGE
    ours = {path.relative_to(layout.OURS): path.read_bytes() for path in layout.OURS.rglob("*.py")}
    assert {path.relative_to(package): path.read_bytes() for path in package.rglob("*.py")} == ours


def test_a_folder_is_made_once_whole_or_not_at_all(tmp_path: Path) -> None:
    folder, made = tmp_path / "thing", []

    def make(fresh: Path) -> None:
        made.append(fresh)
        (fresh / "part").touch()
        time.sleep(0.05)
        (fresh / "whole").touch()

    def whole(there: Path) -> bool:
        assert not there.exists() or (there / "whole").exists(), "a half-made folder was seen"
        return there.exists()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: fetch.make_once(folder, make, whole), range(8)))
    assert len(made) == 1
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["thing"]


def test_what_failed_leaves_nothing_and_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "thing"

    def fail(fresh: Path) -> None:
        (fresh / "part").touch()
        raise ServerError("no network")

    with pytest.raises(ServerError, match="no network"):
        fetch.make_once(folder, fail, Path.exists)
    assert not folder.exists()
    fetch.make_once(folder, lambda fresh: (fresh / "whole").touch(), Path.exists)
    # A folder that lost its stamp, or has another, is replaced.
    fetch.make_once(folder, lambda fresh: (fresh / "new").touch(), lambda there: (there / "new").exists())
    assert [path.name for path in folder.iterdir()] == ["new"]


def write_wheel(folder: Path, name: str = "thing") -> Path:
    """A wheel of one module; pip can install it with no network."""
    files = {
        f"{name}.py": "ANSWER = 42\n",
        f"{name}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{name}-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{path},sha256={_digest(text)},{len(text)}" for path, text in files.items()]
    files[f"{name}-1.0.dist-info/RECORD"] = "\n".join([*record, f"{name}-1.0.dist-info/RECORD,,"]) + "\n"
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel in the only place where pip may look."""
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return write_wheel(tmp_path / "wheels")


def requirements_for(wheel: Path) -> Path:
    """Pins of the wheel as it is now."""
    file = wheel.parents[1] / "things.txt"
    file.write_text(f"# why\nthing==1.0 \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    return file


def test_the_pinned_wheel_is_installed(wheel: Path, tmp_path: Path) -> None:
    requirements = requirements_for(wheel)
    folder = fetch.fetch(tmp_path / "cache", requirements)
    assert folder.name.startswith("things-cp3")
    assert (folder / "thing.py").read_text() == "ANSWER = 42\n"
    wheel.unlink()
    assert fetch.fetch(tmp_path / "cache", requirements) == folder


def test_a_tampered_wheel_is_refused(wheel: Path, tmp_path: Path) -> None:
    requirements = requirements_for(wheel)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("thing_extra.py", "print('not what was pinned')\n")
    told = r"not the one that voxtile-server was tested with.* thing==1\.0 .*Expected sha256 \w{64}.*Got +\w{64}"
    with pytest.raises(ServerError, match=told):
        fetch.fetch(tmp_path / "cache", requirements)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_pin_without_a_hash_is_refused(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "things.txt").write_text("thing==1.0\n")
    with pytest.raises(ServerError, match=r"pip could not fetch thing==1\.0: .*[Hh]ash"):
        fetch.fetch(tmp_path / "cache", tmp_path / "things.txt")


def test_two_processes_fetch_once(wheel: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from voxtile_server.install import fetch\n"
        "print(fetch.fetch(Path(sys.argv[1]), Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "cache"), str(requirements_for(wheel))]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    [folder] = {process.communicate(timeout=120)[0].strip() for process in both}
    assert Path(folder, "thing.py").is_file()
    assert "thing==1.0 --hash=sha256:" in Path(folder, fetch.STAMP).read_text()


def test_numpy_2_for_the_stubs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="holds no NumPy; fill it with: pip install"):
        fetch.check_engines(tmp_path)
    version = importlib.metadata.version("numpy")
    assert version.startswith("2."), "the environment's own NumPy is the bad example here"
    copy_metadata("numpy", tmp_path)
    with pytest.raises(ServerError, match=rf"NumPy {version} .* answer with empty tensors; it needs numpy<2"):
        fetch.check_engines(tmp_path)
