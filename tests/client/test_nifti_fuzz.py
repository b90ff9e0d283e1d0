"""Two thousand damaged or odd NIfTI files: each gives the values that nibabel reads, or one InputError of one line.

The reader runs in a process of its own, whose memory is measured: whatever a header claims, no more is taken than the
file could fill. The files come from a seeded generator; a number in a failure's message names its file again.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pytest

FILES = 2000
SEED = 20_240_611
MEMORY_MIB = 64
"""What reading any of these files, of at most 100 KiB each, may take beyond the interpreter and its libraries."""

ADDRESS_MIB = 512
"""Address space the reader may ask for on top of what it starts with; a larger claim would end in a MemoryError."""

DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "c8", "c16")
SCALARS = ("sizeof_hdr", "datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter", "qform_code", "sform_code")
PLACES = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "srow_x", "srow_y", "srow_z", "pixdim", "dim", "magic")
EXTREMES = (0, -1, 1, 2, 7, 32767, -32768, 65536, 1e-30, 1e30, float("nan"), float("inf"), -float("inf"))


def plain_file(rng: random.Random) -> bytes:
    """A sound NIfTI-1 or NIfTI-2 file, or pair in one piece, of any type, byte order, number of axes and scaling."""
    version = rng.choice((1, 2))
    order: Literal["<", ">"] = rng.choice(("<", ">"))
    shape = tuple(rng.randint(1, 9) for _ in range(rng.choice((2, *(3,) * 16, 4))))
    dtype = np.dtype(rng.choice(DTYPES)).newbyteorder(order)
    header = (nib.Nifti1Header if version == 1 else nib.Nifti2Header)(endianness=order)
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    affine = np.eye(4)
    affine[:3] = np.random.default_rng(rng.getrandbits(32)).normal(0, 1, (3, 4))
    with np.errstate(all="ignore"):
        header.set_qform(affine, code=rng.randint(0, 4))
        header.set_sform(affine, code=rng.randint(0, 4))
    header["scl_slope"], header["scl_inter"] = rng.choice(((1, 0), (0, 0), (2.5, -7), (float("nan"), 1), (1, -1024)))
    header["vox_offset"] = offset = header.single_vox_offset + 16 * rng.choice((0, 0, 0, 1, 5))
    values = np.random.default_rng(rng.getrandbits(32)).integers(0, 255, int(np.prod(shape)) * dtype.itemsize, np.uint8)
    if dtype.kind in "fc":
        with np.errstate(all="ignore"):
            values = np.linspace(-1e3, 1e3, int(np.prod(shape))).astype(dtype).view(np.uint8)
    block: bytes = header.binaryblock
    return block + bytes(offset - len(block)) + values.tobytes()


def header_of(content: bytes) -> Any:
    """The header at the front of a file, to be changed in place, unchecked; None where there is none."""
    for klass in (nib.Nifti1Header, nib.Nifti2Header):
        for order in "<>":
            if len(content) >= klass.sizeof_hdr:
                header = klass(content[: klass.sizeof_hdr], endianness=order, check=False)
                if int(header["sizeof_hdr"]) == klass.sizeof_hdr:
                    return header
    return None


def with_odd_field(content: bytes, rng: random.Random) -> bytes:
    header = header_of(content)
    field, value = rng.choice(SCALARS + PLACES), rng.choice(EXTREMES)
    entry = header[field]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        changed = np.array(rng.choice(EXTREMES) if entry.dtype.kind == "f" else 0).astype(entry.dtype)
        if entry.dtype.kind == "i":
            limits = np.iinfo(entry.dtype)
            changed = np.array(min(max(int(np.nan_to_num(value)), limits.min), limits.max)).astype(entry.dtype)
    if entry.dtype.kind == "S":
        header[field] = rng.choice((b"ni1", b"n+1", b"n+2", b"xyz"))
    elif entry.ndim:
        header[field][rng.randrange(entry.size)] = changed
    else:
        header[field] = changed
    return bytes(header.binaryblock) + content[header.sizeof_hdr :]


def with_flipped_bits(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 40))):
        damaged[rng.randrange(min(len(damaged), 540))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def with_huge_shape(content: bytes, rng: random.Random) -> bytes:
    header = header_of(content)
    most = 32_767 if header.sizeof_hdr == 348 else 10 ** rng.randint(4, 18)
    header["dim"][1:4] = [rng.randint(1_000, most) for _ in range(3)]
    return bytes(header.binaryblock) + content[header.sizeof_hdr :]


def truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def untouched(content: bytes, rng: random.Random) -> bytes:
    return content


def fuzzed(number: int) -> tuple[str, bytes]:
    """The name and the content of file `number`."""
    rng = random.Random(SEED + number)
    change = rng.choice((untouched, with_odd_field, with_odd_field, with_flipped_bits, with_huge_shape, truncated))
    content = change(plain_file(rng), rng)
    suffix = rng.choice((".nii", ".nii.gz", ".nii.gz"))
    if suffix == ".nii.gz":
        content = gzip.compress(content, rng.choice((1, 9)), mtime=0)
        content = rng.choice((untouched,) * 10 + (truncated, with_flipped_bits))(content, rng)
    return f"{number}{suffix}", content


def reference(name: str, content: bytes) -> np.ndarray[Any, Any] | None:
    """What nibabel reads, in float32; None where it reads nothing."""
    try:
        data = gzip.decompress(content) if name.endswith(".gz") else content
        klass = nib.Nifti2Image if int.from_bytes(data[:4], "little") in (540, 0x1C020000) else nib.Nifti1Image
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            image = klass.from_file_map({"image": nib.FileHolder(fileobj=io.BytesIO(data))}, mmap=False)
            values: np.ndarray[Any, Any] = image.get_fdata().astype(np.float32)
            return values
    except Exception:  # whatever nibabel does with a broken file is its own affair
        return None


READER = """
import json, resource, sys, tracemalloc
from pathlib import Path
import nibabel, numpy as np
from voxtile.errors import InputError
from voxtile.io.scan import open_scan

folder, address = Path(sys.argv[1]), int(sys.argv[2])
tracemalloc.start(1)
pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (pages + address, pages + address))
results = {}
for path in sorted(folder.iterdir()):
    try:
        volume = open_scan([path], ["any"])
        np.save(path.with_suffix(".npy"), volume.data[0].astype(np.float32))
        results[path.name] = "read"
    except InputError as error:
        results[path.name] = str(error)
print(json.dumps([results, tracemalloc.get_traced_memory()[1]]))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], int]:
    """The folder of the values read, what became of each file, and the peak of bytes allocated while reading."""
    folder = tmp_path_factory.mktemp("fuzz")
    for number in range(FILES):
        name, content = fuzzed(number)
        (folder / name).write_bytes(content)
    command = [sys.executable, "-W", "error", "-c", READER, str(folder), str(ADDRESS_MIB << 20)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""
    results, peak = json.loads(done.stdout)
    return folder, results, peak


def test_every_file_is_read_right_or_refused_in_one_line(outcome: tuple[Path, dict[str, str], int]) -> None:
    folder, results, _ = outcome
    assert len(results) == FILES
    counts: Counter[str] = Counter()
    for number in range(FILES):
        name, content = fuzzed(number)
        result = results[name]
        if result != "read":
            counts["refused"] += 1
            assert "\n" not in result
            assert name in result
            continue
        expected = reference(name, content)
        counts["equal" if expected is not None else "read, and nibabel does not"] += 1
        if expected is not None:
            read = np.load((folder / name).with_suffix(".npy"))
            np.testing.assert_array_equal(read, expected.reshape(read.shape, order="F"), err_msg=name)
    assert counts["equal"] > FILES / 3, counts
    assert counts["refused"] > FILES / 3, counts
    assert counts["read, and nibabel does not"] < FILES / 50, counts


def test_files_that_nobody_touched_are_all_read(outcome: tuple[Path, dict[str, str], int]) -> None:
    """Refusing everything would pass the test above: sound scans of three axes and real numbers have to be read."""
    _, results, _ = outcome
    for number in range(200):
        content = plain_file(random.Random(SEED + number))
        name, fuzzy = fuzzed(number)
        header = header_of(content)
        sound = fuzzy == content and len(header.get_data_shape()) == 3 and header.get_data_dtype().kind in "iuf"
        with np.errstate(all="ignore"):
            known = header["sform_code"] > 0 or header["qform_code"] > 0
        if sound and known and results[name] != "read":
            assert "spacing" in results[name] or "singular" in results[name], results[name]


def test_memory_stays_within_its_bound(outcome: tuple[Path, dict[str, str], int]) -> None:
    assert outcome[2] < MEMORY_MIB << 20
