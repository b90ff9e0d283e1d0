"""What the page about a batch shows of one case: measured when its mask is written, and kept beside its record.

Knows nothing of HTML.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from voxtile.batch.record import RECORDS
from voxtile.errors import OutputError
from voxtile.extras import require
from voxtile.io.volume import Volume
from voxtile.outputs.base import Result
from voxtile.outputs.report import write_text
from voxtile.outputs.thumbnail import thumbnail

ROW_SUFFIX = ".row"
"""Of the files of rows; records end in .json."""


class Row(BaseModel):
    """One case on the page.

    Attributes:
        mask_sha256: the checksum of the mask's file.
        thumbnail: a JPEG in base64.
        components: connected pieces of all structures together, over faces, edges and corners.
        surface_cm2: the surface of all structures as one body, along the faces of its voxels.
    """

    mask_sha256: str
    thumbnail: str
    components: int
    surface_cm2: float


class Rows:
    """The rows in a folder of masks.

    Args:
        outputs: the folder.
    """

    def __init__(self, outputs: Path) -> None:
        self._folder = outputs / RECORDS

    def measure(self, case: str, mask_sha256: str, result: Result) -> None:
        """Measures a case and keeps its row. Raises OutputError."""
        write_text(row_of(result, mask_sha256).model_dump_json() + "\n", self._file(case))

    def read(self, case: str, mask_sha256: str | None) -> Row | None:
        """The row of a case; None where there is none of this mask."""
        try:
            row = Row.model_validate_json(self._file(case).read_bytes())
        except (OSError, ValidationError):
            return None
        return row if row.mask_sha256 == mask_sha256 else None

    def _file(self, case: str) -> Path:
        return self._folder / f"{case}{ROW_SUFFIX}"


def check_row_installed() -> None:
    """Checks, before any work, that the packages are there. Raises MissingExtraError."""
    require("matplotlib", "preview", "--index")
    require("scipy", "nnunet", "--index")


def row_of(result: Result, mask_sha256: str) -> Row:
    """Measures a case. Raises OutputError where its picture cannot be made."""
    try:
        picture = thumbnail(result.volume, result.labels, result.card.labels)
        pieces, surface = components(result.labels), surface_cm2(result.labels > 0, result.volume)
    except (ValueError, MemoryError) as error:
        raise OutputError(f"the row of --index could not be made: {error}") from error
    return Row(
        mask_sha256=mask_sha256,
        thumbnail=base64.b64encode(picture).decode(),
        components=pieces,
        surface_cm2=surface,
    )


def components(labels: NDArray[Any]) -> int:
    """How many connected pieces the structures of `labels` [i, j, k] have, each structure by itself."""
    from scipy import ndimage

    everywhere = np.ones((3, 3, 3))
    return sum(
        int(ndimage.label(labels[box] == value, everywhere)[1])
        for value, box in enumerate(ndimage.find_objects(labels.astype(np.int32, copy=False)), 1)
        if box is not None
    )


def surface_cm2(body: NDArray[np.bool_], volume: Volume) -> float:
    """The area of the faces between `body` [i, j, k] and what is around it, in square centimetres."""
    columns = volume.affine[:3, :3] * volume.unit
    total = 0.0
    for axis in range(3):
        faces = np.count_nonzero(np.diff(body, axis=axis)) + sum(
            int(np.count_nonzero(body.take(end, axis=axis))) for end in (0, -1)
        )
        first, second = (columns[:, other] for other in range(3) if other != axis)
        total += faces * float(np.linalg.norm(np.cross(first, second)))
    return total / 100
