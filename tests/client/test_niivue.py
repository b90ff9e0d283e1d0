"""NiiVue, which draws scans on pages: only the pinned file is packed, and an installation carries it."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from voxtile.outputs.page import pack
from voxtile.outputs.page.pack import PLACE, SHA256, PackError

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "client" / "voxtile"
NIIVUE = PLACE.relative_to(SOURCE)
SHIPPED = (".py", ".txt", ".html", ".css", ".js")


def fake_npm(folder: Path, program: str) -> None:
    """A program `npm` that runs some Python with `folder`, the place for the archive."""
    npm = folder / "npm"
    npm.write_text(
        f"#!{sys.executable}\nimport sys\nfolder = sys.argv[sys.argv.index('--pack-destination') + 1]\n{program}"
    )
    npm.chmod(0o755)


def archive_of(content: bytes, name: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as opened:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        opened.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


WRITES = "open(folder + '/a.tgz', 'wb').write({!r})"


@pytest.mark.parametrize(
    ("program", "said"),
    [
        pytest.param(
            WRITES.format(archive_of(b"other", pack.MEMBER)), "expected a file with SHA-256", id="another file"
        ),
        pytest.param(WRITES.format(archive_of(b"other", "package/else.js")), "found none", id="without the file"),
        pytest.param(WRITES.format(b"no archive"), "found none", id="no archive"),
        pytest.param("pass", "could not fetch", id="nothing"),
        pytest.param("sys.exit('ENOTFOUND')", "ENOTFOUND", id="refused"),
        pytest.param(None, "npm is not there", id="no npm"),
    ],
)
def test_only_the_pinned_file_is_packed(
    program: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if program is not None:
        fake_npm(tmp_path, program)
    monkeypatch.setenv("PATH", str(tmp_path))
    place = tmp_path / "static" / "niivue.js"
    place.parent.mkdir()
    for before in (None, b"an older one"):
        if before is not None:
            place.write_bytes(before)
        with pytest.raises(PackError, match=re.escape(said)) as caught:
            pack.pack(place)
        assert "\n" not in str(caught.value)
        assert (place.read_bytes() if place.exists() else None) == before
        assert [file.name for file in place.parent.iterdir()] == ([] if before is None else ["niivue.js"])


def test_what_is_packed_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack.pack()
    place = tmp_path / "niivue.js"
    place.write_bytes(pack.PLACE.read_bytes())
    monkeypatch.setenv("PATH", str(tmp_path))
    pack.pack(place)


def test_the_distribution_carries_it_without_its_dependencies_when_it_is_built(tmp_path: Path) -> None:
    # As a fresh clone is: NiiVue is packed by the build, in an environment of its own.
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "client", clone / "client", ignore=shutil.ignore_patterns(PLACE.name, "__pycache__"))
    shutil.copy(ROOT / ".gitignore", clone)
    (clone / ".git").mkdir()
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    subprocess.run([*pip, str(clone / "client")], check=True, timeout=300)
    package = target / "voxtile"
    wanted = {path.relative_to(SOURCE) for path in SOURCE.rglob("*") if path.suffix in SHIPPED} | {NIIVUE}
    assert {path.relative_to(package) for path in package.rglob("*") if path.suffix in SHIPPED} == wanted
    assert hashlib.sha256((package / NIIVUE).read_bytes()).hexdigest() == SHA256
