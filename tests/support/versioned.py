"""A model of two versions that anybody can tell apart: what the first one marks, the second one leaves out.

It imports torch: import it inside a fixture or a test where torch-free tests share the module.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from tests.support.build_specs import Linear, spec
from tests.support.exporting import share_operators
from voxtile_build.build import Published, build
from voxtile_build.cli.commands import main

NAME = "tiny"
SHAPE = (40, 30, 36)
ABOVE = {1: (-1.0, 1.0), 2: (1.0, -1.0)}
"""By the version, what the two logits are multiples of: version 1 marks what is above zero, version 2 what is below."""


def build_version(repository: Path, number: int, name: str = NAME) -> Published:
    """Build a version of the model: the first build in a repository is version 1, of other weights the next one."""
    share_operators()
    asked = spec(
        name=name,
        output={"labels": ["background", "one"]},
        serving={"engines": ["onnxruntime"], "max_batch_size": 1},
    )
    return build(asked, repository, network=Linear(ABOVE[number]))


def two_versions(folder: Path) -> Path:
    """A repository `models` in a folder, with two versions of the model, of which the first is public."""
    build_version(folder / "models", 1)
    build_version(folder / "models", 2)
    return folder / "models"


def command(*words: object) -> int:
    """`voxtile-build` with these words."""
    return main([str(word) for word in words])


def entries(repository: Path) -> list[str]:
    """The names of a repository's entries."""
    return sorted(path.name for path in repository.iterdir() if path.is_dir())


def files(folder: Path, without: str = "") -> dict[str, bytes]:
    """The files below a folder with what is in them, hidden ones and one other left out."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    named = {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
    return {name: content for name, content in named.items() if name != without}


def scan(seed: int = 3) -> Nifti1Image:
    """A scan of noise around zero; no voxel is zero."""
    values = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    values[values == 0] = 1
    return Nifti1Image(values, np.eye(4))


def mask_of(number: int, image: Nifti1Image) -> NDArray[np.bool_]:
    """What a version marks in a scan."""
    values = np.asarray(image.dataobj)
    return values > 0 if number == 1 else values < 0
