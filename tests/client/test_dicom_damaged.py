"""A damaged DICOM object gives a scan or one clear line: no other error, no hang, no memory beyond what it claims."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
from pydicom.dataset import FileDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from tests.support.dicom_series import saved, slices
from tests.support.phantoms import affine_of, sampled
from voxtile.errors import VoxtileError
from voxtile.io.dicom.objects.quiet import quietly
from voxtile.io.scan import open_scan
from voxtile.io.volume import Volume

SHAPE = (34, 33, 3)
AFFINE = affine_of(SHAPE, (1.0, 1.2, 2.0), "LPS", (5.0, 3.0, 0.0))
VOXELS = np.rint(sampled(SHAPE, AFFINE)).astype(np.int16)
KINDS = ("plain", "implicit", "deflated", "JPEG 2000", "JPEG-LS", "RLE", "enhanced")
FEW, MANY = 25, 150
MOST_BYTES = 400 << 20


def objects(kind: str) -> list[FileDataset]:
    """The objects of a series stored in one way."""
    made = slices(VOXELS, AFFINE, "MR", ImageType=["ORIGINAL", "PRIMARY", "M", "NONE"])
    if kind == "enhanced":
        made = [highdicom.legacy.LegacyConvertedEnhancedMRImage(made, highdicom.UID(), 9, highdicom.UID(), 1)]
    syntaxes = {"JPEG 2000": JPEG2000Lossless, "JPEG-LS": JPEGLSLossless, "RLE": RLELossless}
    for one in made:
        if kind in syntaxes:
            one.compress(syntaxes[kind], generate_instance_uid=False)
        elif kind in ("implicit", "deflated"):
            implicit = kind == "implicit"
            one.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else DeflatedExplicitVRLittleEndian
    return made


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The content, damaged: cut off, bits turned, a length changed, a part left out, doubled, or zeroed."""
    data = bytearray(content)
    kind = chance.randrange(6)
    place = chance.randrange(len(data)) if chance.random() < 0.5 else chance.randrange(132, min(len(data), 2500))
    if kind == 0:
        return bytes(data[:place])
    if kind == 1:
        for _ in range(chance.choice((1, 3, 30))):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif kind == 2:
        data[place : place + 4] = chance.choice(
            (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\x10\x27\0\0")
        )
    elif kind == 3:
        del data[place : place + chance.choice((1, 2, 17, 400))]
    elif kind == 4:
        data[place:place] = data[place : place + chance.choice((1, 8, 300))]
    else:
        data[place : place + chance.choice((1, 16, 500))] = bytes(chance.choice((1, 16, 500)))
    return bytes(data)


def tried(folder: Path) -> Volume | str:
    """The scan, or the error in its words."""
    try:
        return open_scan(folder, ["scan"])
    except VoxtileError as error:
        return str(error)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_it_gives_a_scan_or_one_line(count: int, kind: str, tmp_path: Path, caplog: Any) -> None:
    with quietly():  # highdicom tells what it makes
        folder = saved(objects(kind), tmp_path / "series")
    paths = sorted(folder.iterdir())
    chance = random.Random(f"damage {kind}")
    outcomes = {"scan": 0, "line": 0}
    for _ in range(count):
        path = chance.choice(paths)
        content = path.read_bytes()
        path.write_bytes(damaged(content, chance))
        tracemalloc.start()
        outcome = tried(folder)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        path.write_bytes(content)
        assert peak < MOST_BYTES, outcome
        if isinstance(outcome, str):
            assert "\n" not in outcome
            assert len(outcome) < 1000
            outcomes["line"] += 1
        else:
            assert np.isfinite(outcome.affine).all()
            outcomes["scan"] += 1
    assert min(outcomes.values()) > 0, outcomes
    assert {record.name.partition(".")[0] for record in caplog.records} <= {"voxtile"}
