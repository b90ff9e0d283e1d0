"""Packed scans: damage and claims end in one line, and nothing is unpacked further than a scan is long."""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from backports import zstd

from tests.support.stored_scans import AFFINE, refused, values
from voxtile.errors import MissingExtraError
from voxtile.io.formats.packing import PACKINGS, packing_for
from voxtile.io.scan import open_scan
from voxtile.io.writing import write_image

PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1}),
}


def scan() -> bytes:
    return bytes(nib.Nifti1Image(values("i2"), AFFINE).to_bytes())


@pytest.mark.parametrize("ending", PACK)
def test_several_streams_are_one(tmp_path: Path, ending: str) -> None:
    content, pack = scan(), PACK[ending]
    path = tmp_path / f"a.nii{ending}"
    path.write_bytes(pack(content[:200]) + pack(content[200:]))
    np.testing.assert_array_equal(open_scan([path], ["T1"]).data[0], values("i2"))


@pytest.mark.parametrize("ending", PACK)
def test_a_flipped_bit_is_refused_or_does_no_harm(tmp_path: Path, ending: str) -> None:
    whole = PACK[ending](scan())
    path = tmp_path / f"a.nii{ending}"
    for place in range(0, len(whole), max(len(whole) // 40, 1)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(bytes(damaged))
        try:
            read = open_scan([path], ["T1"]).data[0]
        except Exception:
            refused("damaged|truncated|expected|claims|cannot", path)
        else:
            np.testing.assert_array_equal(read, values("i2"))


@pytest.mark.parametrize("ending", PACK)
def test_a_claim_beyond_what_the_file_can_hold_is_refused_before_anything_is_allocated(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = nib.Nifti2Header()
    header.set_data_shape((10_000, 10_000, 10_000))
    header.set_sform(np.eye(4), code=1)
    header["vox_offset"] = 544
    path = tmp_path / f"a.nii{ending}"
    path.write_bytes(PACK[ending](header.binaryblock + bytes(2000)))
    monkeypatch.setattr(np, "empty", lambda *_: pytest.fail("something was allocated"))
    refused("can hold", path)


@pytest.mark.parametrize("ending", PACK)
def test_a_bomb_is_not_unpacked(tmp_path: Path, ending: str) -> None:
    """64 MiB of zeros behind a small scan, and in place of one."""
    path = tmp_path / f"a.nii{ending}"
    zeros = PACK[ending](bytes(1 << 26))
    for content, match in ((PACK[ending](scan()) + zeros, None), (zeros, "nothing but zeros")):
        path.write_bytes(content)
        tracemalloc.start()
        if match is None:
            assert open_scan([path], ["T1"]).data.size == values().size
        else:
            refused(match, path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 24 << 20


def test_no_stream_unpacks_to_more_than_its_limit() -> None:
    for packing in PACKINGS:
        size = 1 << 25
        assert size / len(PACK[packing.ending](bytes(size))) < packing.limit


@pytest.mark.parametrize("ending", PACK)
def test_equal_masks_are_equal_files(tmp_path: Path, ending: str) -> None:
    image = nib.Nifti1Image(values("u1"), AFFINE)
    first, second = tmp_path / f"a.nii{ending}", tmp_path / f"b.NII{ending.upper()}"
    write_image(image, first)
    write_image(image, second)
    assert first.read_bytes() == second.read_bytes()
    packing = packing_for(first.name)
    assert packing is not None
    assert first.read_bytes().startswith(packing.magic)


def test_without_zstandard_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.nii.zst").write_bytes(zstd.compress(scan()))
    for name in ("backports", "backports.zstd", "compression", "compression.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'voxtile\[formats\]'"):
        open_scan([tmp_path / "a.nii.zst"], ["T1"])
    with pytest.raises(MissingExtraError, match=r"pip install 'voxtile\[formats\]'"):
        write_image(nib.Nifti1Image(values("u1"), AFFINE), tmp_path / "m.nii.zst")
    assert not (tmp_path / "m.nii.zst").exists()
