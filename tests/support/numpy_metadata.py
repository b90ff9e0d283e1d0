"""A folder of packages that says which NumPy it holds, without holding one."""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path


def copy_metadata(package: str, folder: Path) -> None:
    """Copy what this environment says of a package, and nothing of the package."""
    found = importlib.metadata.distribution(package)
    name = f"{package}-{found.version}.dist-info"
    shutil.copytree(Path(str(found.locate_file(name))), folder / name)
