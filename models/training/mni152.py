"""The MNI152 T1 template and its tissue maps, taken out of the nilearn wheel on PyPI.

Downloads, checks and unpacks files. Knows nothing of training; needs only the standard library and pip.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

WHEEL = "nilearn==0.14.1"


class TemplateFile(NamedTuple):
    """One file of the wheel: its path inside, the name it gets on disk, and its SHA-256."""

    member: str
    name: str
    sha256: str


def _template_file(kind: str, sha256: str) -> TemplateFile:
    member = f"nilearn/datasets/data/mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
    return TemplateFile(member, f"mni152_{kind}.nii.gz", sha256)


FILES: Mapping[str, TemplateFile] = MappingProxyType(
    {
        "t1": _template_file("t1", "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6"),
        "gm": _template_file("gm", "97a5ca69bd24db37a9cb7b32525e1733a209af904129bf1cd36da06d24243bed"),
        "wm": _template_file("wm", "382d92812de4744f9c86c7a0e4f680dc317a0a50e4da1f0153618a6798c7b7db"),
    }
)


class TemplateError(RuntimeError):
    """The template could not be had, or is not the one that the demo models were trained on."""


def fetch_mni152(folder: Path | str) -> dict[str, Path]:
    """Put the template into `folder` (made if absent) and return its paths by kind: `t1`, `gm`, `wm`.

    Each is a NIfTI file, uint8, shape (197, 233, 189), 1 mm, RAS. `t1` is a skull-stripped T1-weighted
    MR; `gm` and `wm` are the probabilities of grey and white matter, 0 to 255. Files that are already
    there and right are kept, so a second call needs no network.

    Raises:
        TemplateError: the wheel cannot be downloaded, or a file in it has another SHA-256.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    paths = {kind: target / file.name for kind, file in FILES.items()}
    if not all(_is_right(paths[kind], file) for kind, file in FILES.items()):
        with tempfile.TemporaryDirectory(dir=target) as scratch:
            unpack_wheel(_download_wheel(Path(scratch)), target)
    return paths


def unpack_wheel(wheel: Path, folder: Path) -> None:
    """Write the three files of `wheel` into `folder`, each checked first and then put in place at once.

    Raises:
        TemplateError: the wheel lacks a file, or the file has another SHA-256.
    """
    with zipfile.ZipFile(wheel) as archive:
        for file in FILES.values():
            try:
                content = archive.read(file.member)
            except KeyError:
                raise TemplateError(f"{wheel.name} holds no {file.member}; expected {WHEEL}") from None
            _check(content, file, wheel.name)
            partial = folder / (file.name + ".partial")
            partial.write_bytes(content)
            partial.replace(folder / file.name)


def _download_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("nilearn-*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise TemplateError(
            f"pip could not download {WHEEL}, which carries the MNI152 template: {reason}. "
            "Check that the package index can be reached and that this Python has pip."
        )
    return wheels[0]


def _is_right(path: Path, file: TemplateFile) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256


def _check(content: bytes, file: TemplateFile, where: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise TemplateError(
            f"{file.member} in {where}: expected SHA-256 {file.sha256}, found {found}. "
            "It is not the file that the demo models were trained on; download it again."
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: `mni152.py FOLDER` writes mni152_t1.nii.gz, mni152_gm.nii.gz and mni152_wm.nii.gz."""
    parser = argparse.ArgumentParser(description="Fetch the MNI152 T1 template and its tissue maps.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    try:
        paths = fetch_mni152(parser.parse_args(arguments).folder)
    except TemplateError as error:
        sys.stderr.write(f"mni152: {error}\n")
        return 2
    sys.stdout.writelines(f"{path}\n" for path in paths.values())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
