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


def scan(seed: int = 3) -> Nifti1Image:
    """A scan of noise around zero; no voxel is zero."""
    values = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    values[values == 0] = 1
    return Nifti1Image(values, np.eye(4))


def mask_of(number: int, image: Nifti1Image) -> NDArray[np.bool_]:
    """What a version marks in a scan."""
    values = np.asarray(image.dataobj)
    return values > 0 if number == 1 else values < 0
