"""Scans in, masks out: files, nibabel images and arrays to a Volume, and labels to an image on the scan's own grid.

Knows nothing of models beyond the names of their channels. Bad input ends in one InputError of one line; an output
appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from voxtile.errors import InputError, OutputError
from voxtile.io.atomic import atomic_file
from voxtile.io.atomic import check_writable as check_writable
from voxtile.io.nifti import HEADER_ERRORS, Stored, check_real, read_nifti
from voxtile.io.scaling import apply_scaling, memory_order
from voxtile.io.volume import Volume, spacing_of

LOGGER = logging.getLogger(__name__)

SPACING_LIMITS = (1e-3, 1e3)
"""Millimetres between voxels that are believed: from a micrometre (microscopy) to a metre; beyond lies a wrong unit."""

ORIGIN_LIMIT = 1e6
"""Millimetres from the origin that are believed: a kilometre; beyond it, positions lose all precision."""

SKEW_LIMIT = 1e-3
"""Volume spanned by the axes' unit vectors (1: at right angles) below which they practically lie in one plane."""

SAME_GRID = 0.01
"""How far, in shares of the smallest spacing, corners of two channels may lie apart: header rounding, no motion."""

GEOMETRY_FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip

SUFFIXES = (".nii", ".nii.gz")

GZIP_LEVEL = 1
"""Masks are runs of equal bytes: with run lengths alone (Z_RLE), this level packs them smaller than level 3 else."""

TRANSPOSE_ROWS = 16
"""Rows exchanged at a time while axes are put into a file's order: 512 × 64 × 16 bytes stay in the cache."""

WRITE_BYTES = 1 << 24


def read_scan(paths: Sequence[str | Path], channels: Sequence[str]) -> Volume:
    """A scan from one file a channel, in the order of `channels`, or from one 4D file with a channel a frame.

    Raises InputError, in one line, for whatever is not a scan of so many channels on one grid (see `nifti`).
    """
    if not paths:
        raise InputError(f"expected {_wanted(channels)}, found no file")
    names = [str(path) for path in paths]
    _check_count(names, channels)
    return _assemble(((name, read_nifti(Path(name))) for name in names), channels)


def volume_from_image(images: Any, channels: Sequence[str]) -> Volume:
    """A scan from a nibabel image, or a sequence of them, one a channel; files behind them are read as they are.

    Raises InputError as `read_scan` does.
    """
    listed = list(images) if isinstance(images, Sequence) else [images]
    names = [_name_of(image, number) for number, image in enumerate(listed)]
    if not listed:
        raise InputError(f"expected {_wanted(channels)}, found no image")
    _check_count(names, channels)
    return _assemble(((name, _stored(image, name)) for name, image in zip(names, listed, strict=True)), channels)


def volume_from_array(data: ArrayLike, affine: ArrayLike, channels: Sequence[str]) -> Volume:
    """A scan from an array: [i, j, k], or [i, j, k, channel] where the model takes several channels.

    affine: [4, 4], voxel to RAS millimetres. Raises InputError as `read_scan` does.
    """
    from nibabel.nifti1 import Nifti1Header

    array, matrix = np.asarray(data), np.asarray(affine)
    if matrix.shape != (4, 4) or matrix.dtype.kind not in "iuf":
        raise InputError(f"array: expected an affine of 4 × 4 numbers, found {matrix.dtype} {matrix.shape}")
    matrix = matrix.astype(np.float64)
    _check_affine(matrix, "array")
    return _assemble([("array", _stored_array(array, matrix, Nifti1Header(), "array"))], channels)


def mask_image(labels: NDArray[Any], volume: Volume) -> Any:
    """A nibabel image of `labels` [i, j, k] (integers, or float32 scores) with the geometry of `volume`.

    Affine, qform, sform, their codes, units and the version of NIfTI are the scan's; nothing else of its header is
    repeated (descriptions may name a patient). Integers and truth values become uint8, or uint16 beyond 255.
    """
    from nibabel.nifti1 import Nifti1Image
    from nibabel.nifti2 import Nifti2Header, Nifti2Image

    if labels.shape[:3] != volume.shape:
        raise ValueError(f"labels of shape {labels.shape} for a scan of shape {volume.shape}")
    if labels.dtype.kind in "biu" and labels.dtype not in (np.uint8, np.uint16):
        labels = labels.astype(np.uint16 if labels.max(initial=0) > 255 else np.uint8)
    klass = Nifti2Image if isinstance(volume.header, Nifti2Header) else Nifti1Image
    header = _mask_header(klass.header_class, labels, volume)
    # The header's own affine, to the bit: nibabel then leaves both forms and their codes as they are.
    return klass(labels, header.get_best_affine(), header)


def check_mask_name(path: str | Path) -> None:
    """Raises OutputError for a name that does not end in .nii or .nii.gz."""
    if not str(path).endswith(SUFFIXES):
        raise OutputError(f"{path}: expected a name that ends in .nii or .nii.gz")


def write_image(image: Any, path: str | Path) -> None:
    """Writes a nibabel NIfTI image to `path` (`.nii` or `.nii.gz`), atomically; the same image gives the same bytes.

    Voxels are stored as they are (slope 1, intercept 0); header extensions are left out. Raises OutputError.
    """
    write_images([(image, path)])


def write_images(images: Iterable[tuple[Any, str | Path]]) -> None:
    """As `write_image`, each to its path; none of them takes its name before all are written."""
    with contextlib.ExitStack() as whole:
        for image, path in images:
            check_mask_name(path)
            _write_image(image, whole.enter_context(atomic_file(path)), compressed=str(path).endswith(".gz"))


def _write_image(image: Any, file: BinaryIO, compressed: bool) -> None:
    header = image.header.as_byteswapped("<" if sys.byteorder == "little" else ">")
    data = np.asanyarray(image.dataobj)
    header.set_data_dtype(data.dtype)
    header.set_slope_inter(1.0, 0.0)
    header["vox_offset"] = header.single_vox_offset
    padding = bytes(header.single_vox_offset - len(header.binaryblock))
    pieces = _pieces(header.binaryblock + padding, data)
    _write_all(file, _deflated(pieces, masks=data.dtype.kind in "iu") if compressed else pieces)


def _assemble(sources: Iterator[tuple[str, Stored]] | list[tuple[str, Stored]], channels: Sequence[str]) -> Volume:
    """Checks and scales each source as it comes, and puts them on one grid."""
    parts: list[NDArray[Any]] = []
    names: list[str] = []
    first: Volume | None = None
    for name, stored in sources:
        _check_affine(stored.affine, name)
        if first is None:
            first = Volume(np.empty((0, *stored.raw.shape[:3])), stored.affine, stored.header, (name,))
        split = _split_channels(stored.raw, name, channels, alone=not names)
        _check_same_grid(first, stored, name)
        parts.append(np.moveaxis(apply_scaling(split, stored.slope, stored.inter, name), 3, 0))
        names.append(name)
    if first is None:
        raise InputError(f"expected {_wanted(channels)}, found none")
    _check_channels(sum(part.shape[0] for part in parts), names, channels)
    return Volume(_joined(parts), first.affine, first.header, tuple(names))


def _split_channels(raw: NDArray[Any], name: str, channels: Sequence[str], alone: bool) -> NDArray[Any]:
    """[i, j, k, channel] of an array of three or more axes, where those beyond the third have a meaning."""
    if raw.ndim < 3:
        raise InputError(f"{name}: expected a 3D scan, found {raw.ndim} axes {raw.shape}")
    frames = [size for size in raw.shape[3:] if size > 1]
    if not frames:
        return raw.reshape(*raw.shape[:3], 1, order="F")
    if len(frames) > 1 or len(channels) == 1 or not alone:
        raise InputError(
            f"{name}: expected a 3D scan, found 4D without a channel meaning {raw.shape}; extract the volume wanted"
        )
    return raw.reshape(*raw.shape[:3], frames[0], order="F")


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """[channel, i, j, k]; several files are copied into one array, each channel with i fastest."""
    if len(parts) == 1:
        return parts[0]
    kinds = [part.dtype for part in parts]
    dtype = np.dtype(np.float32) if any(kind.kind == "f" for kind in kinds) else np.result_type(*kinds)
    count, (i, j, k) = sum(part.shape[0] for part in parts), parts[0].shape[1:]
    result = np.empty((count, k, j, i), dtype).transpose(0, 3, 2, 1)
    position = 0
    for part in parts:
        result[position : position + part.shape[0]] = part
        position += part.shape[0]
    return result


def _check_affine(affine: NDArray[np.float64], name: str) -> None:
    """Raises InputError for an affine that places no grid of voxels in space."""
    if not np.isfinite(affine).all():
        raise InputError(
            f"{name}: expected a finite affine, found NaN or infinite entries; repair the header's sform or qform"
        )
    if not np.array_equal(affine[3], (0, 0, 0, 1)):
        raise InputError(f"{name}: expected an affine whose last row is 0 0 0 1, found {affine[3].tolist()}")
    low, high = SPACING_LIMITS
    with np.errstate(over="ignore"):  # becomes infinite, and is refused below
        spacing = spacing_of(affine)
    shown = " × ".join(f"{step:.4g}" for step in spacing)
    if spacing.min() == 0:
        raise InputError(f"{name}: expected voxels of some size, found a spacing of {shown} mm: the affine is singular")
    if spacing.min() < low or spacing.max() > high:
        raise InputError(
            f"{name}: expected a spacing between {low:g} and {high:g} mm, found {shown} mm; is its unit millimetres?"
        )
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < SKEW_LIMIT:
        raise InputError(f"{name}: expected three independent axes, found a singular affine; repair the sform or qform")
    if np.abs(affine[:3, 3]).max() > ORIGIN_LIMIT:
        raise InputError(f"{name}: expected an origin within {ORIGIN_LIMIT:g} mm, found {affine[:3, 3].tolist()}")


def _check_same_grid(first: Volume, stored: Stored, name: str) -> None:
    one, other = first.shape, stored.raw.shape[:3]
    if one != other:
        raise InputError(
            f"{name}: expected the grid of {first.names[0]}, {one} voxels, found {other}; resample one onto the other"
        )
    min_max = np.array([[i, j, k, 1] for i in (0, one[0]) for j in (0, one[1]) for k in (0, one[2])], np.float64)
    apart = np.linalg.norm((min_max @ (first.affine - stored.affine).T)[:, :3], axis=1).max()
    if apart > SAME_GRID * spacing_of(first.affine).min():
        raise InputError(
            f"{name}: expected the grid of {first.names[0]}, found one that lies up to {apart:.3g} mm off; "
            "resample one onto the other"
        )


def _check_count(names: Sequence[str], channels: Sequence[str]) -> None:
    if len(names) not in (1, len(channels)):
        raise InputError(f"expected {_wanted(channels)}, found {len(names)}: {', '.join(names)}")


def _check_channels(found: int, names: Sequence[str], channels: Sequence[str]) -> None:
    if found != len(channels):
        raise InputError(f"{names[0]}: expected {_wanted(channels)}, found {found}")


def _wanted(channels: Sequence[str]) -> str:
    count = "one channel" if len(channels) == 1 else f"{len(channels)} channels, one file each"
    return f"{count} ({', '.join(channels)})"


def _name_of(image: Any, number: int) -> str:
    get = getattr(image, "get_filename", None)
    return str((get and get()) or f"image {number + 1}")


def _stored(image: Any, name: str) -> Stored:
    """A nibabel image as stored numbers; a NIfTI file behind it is not scaled to float64 on the way."""
    from nibabel.arrayproxy import ArrayProxy
    from nibabel.spatialimages import HeaderDataError, ImageDataError, SpatialImage

    if not isinstance(image, SpatialImage):
        raise InputError(f"{name}: expected a nibabel image, found {type(image).__name__}")
    if image.affine is None:
        raise InputError(f"{name}: expected an image with an affine, found none")
    try:
        affine = np.asarray(image.affine, np.float64)
        _check_affine(affine, name)
        header = _nifti_header(image.header)
        proxy = image.dataobj
        if isinstance(proxy, ArrayProxy):
            stored = _stored_array(np.asarray(proxy.get_unscaled()), affine, header, name)
            return Stored(stored.raw, float(proxy.slope), float(proxy.inter), stored.header, stored.affine)
        return _stored_array(np.asarray(proxy), affine, header, name)
    except (OSError, EOFError, zlib.error, MemoryError, HeaderDataError, ImageDataError, *HEADER_ERRORS) as error:
        raise InputError(f"{name}: cannot be read ({' '.join(str(error).split())})") from None


def _stored_array(array: NDArray[Any], affine: NDArray[np.float64], header: Any, name: str) -> Stored:
    array = array.astype(np.uint8) if array.dtype == bool else array
    check_real(array.dtype, name)
    if array.size == 0:
        raise InputError(f"{name}: expected at least one voxel along each axis, found an empty volume {array.shape}")
    native = np.asarray(array, array.dtype.newbyteorder("="))
    if not native.flags.f_contiguous and not native.flags.c_contiguous:
        native = np.asfortranarray(native)
    with np.errstate(all="ignore"):
        if not np.allclose(header.get_best_affine(), affine):
            header.set_sform(affine, code="aligned")
            header.set_qform(affine, code="unknown")
    return Stored(native, None, None, header, affine)


def _nifti_header(header: Any) -> Any:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    if isinstance(header, Nifti2Header):
        return header.copy()
    return header.copy() if isinstance(header, Nifti1Header) else Nifti1Header.from_header(header)


def _mask_header(klass: Any, data: NDArray[Any], volume: Volume) -> Any:
    """A fresh header with the scan's geometry, field by field, so that no bit of it is computed anew."""
    header, scan = klass(), volume.header
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    for field in GEOMETRY_FIELDS:
        header[field] = scan[field]
    header["pixdim"][:4] = scan["pixdim"][:4]
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    return header


def _pieces(header: bytes, data: NDArray[Any]) -> Iterator[bytes | memoryview]:
    """The file's bytes: the header, then the voxels with the first axis running fastest, a few planes at a time."""
    yield header
    for volume in [data] if data.ndim == 3 else np.moveaxis(data, 3, 0):
        step = max(WRITE_BYTES * volume.shape[2] // max(volume.nbytes, 1), 1)
        for first in range(0, volume.shape[2], step):
            yield _in_file_order(volume[:, :, first : first + step]).T.data.cast("B")


def _in_file_order(values: NDArray[Any]) -> NDArray[Any]:
    """`values` [i, j, k] with i fastest in memory.

    Block by block, each exchanged within the cache: copied in one go, every byte would come from a memory page of its
    own, which takes six times as long.
    """
    fastest = memory_order(values)[-1]
    if fastest == 0:
        return np.asfortranarray(values)
    middle = 3 - fastest
    result = np.empty(values.shape[::-1], values.dtype).T
    source, target = values.transpose(middle, 0, fastest), result.transpose(middle, fastest, 0)
    for first in range(0, len(source), TRANSPOSE_ROWS):
        rows = slice(first, first + TRANSPOSE_ROWS)
        block = np.ascontiguousarray(source[rows])
        target[rows] = np.ascontiguousarray(block.transpose(0, 2, 1))
    return result


def _deflated(pieces: Iterator[bytes | memoryview], masks: bool) -> Iterator[bytes | memoryview]:
    """A gzip stream without a time or a name in it, so that equal masks are equal files."""
    strategy = zlib.Z_RLE if masks else zlib.Z_DEFAULT_STRATEGY
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31, zlib.DEF_MEM_LEVEL, strategy)
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()


def _write_all(file: BinaryIO, pieces: Iterator[bytes | memoryview]) -> None:
    for piece in pieces:
        file.write(piece)
