"""Reads scans that are in memory already: nibabel and SimpleITK images, MONAI's MetaTensor, arrays with an affine.

SimpleITK, MONAI and torch are never imported here unless an object of theirs has come in, which only a process that
has them can make. Knows nothing of files or models.
"""

from __future__ import annotations

import sys
import zlib
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from voxtile.errors import InputError
from voxtile.io.geometry import check_affine
from voxtile.io.orientation import LPS_TO_RAS
from voxtile.io.placed import nifti_header, placed, usable
from voxtile.io.stored import HEADER_ERRORS, Admit, Stored, anything


class SimpleItkImage(Protocol):
    """What is used of a `SimpleITK.Image`."""

    def GetSpacing(self) -> tuple[float, ...]: ...

    def GetOrigin(self) -> tuple[float, ...]: ...

    def GetDirection(self) -> tuple[float, ...]: ...


class AffineImage(Protocol):
    """An image that knows its affine: a nibabel image, or MONAI's MetaTensor."""

    @property
    def affine(self) -> Any: ...


def is_simpleitk(image: Any) -> bool:
    """Returns whether `image` is a SimpleITK image."""
    simpleitk = sys.modules.get("SimpleITK")
    return simpleitk is not None and isinstance(image, simpleitk.Image)


def is_meta_tensor(image: Any) -> bool:
    """Returns whether `image` is a torch tensor with an affine, as MONAI's MetaTensor is."""
    return hasattr(image, "affine") and hasattr(image, "detach")


def read_array(array: NDArray[Any], affine: ArrayLike, name: str) -> Stored:
    """Reads an array [i, j, k] or [i, j, k, channel] that `affine` [4, 4] places (voxel to RAS millimetres).

    Raises:
        InputError: the affine places no grid, or the array holds no real numbers.
    """
    matrix = np.asarray(affine)
    if matrix.shape != (4, 4) or matrix.dtype.kind not in "iuf":
        raise InputError(f"{name}: expected an affine of 4 × 4 numbers, found {matrix.dtype} {matrix.shape}")
    matrix = matrix.astype(np.float64)
    check_affine(matrix, name)
    return placed(array, matrix, name)


def read_nibabel(image: Any, name: str, admit: Admit = anything) -> Stored:
    """Reads a nibabel image; numbers of a file behind it are not scaled to float64 on the way.

    Args:
        image: the image.
        name: what messages call it.
        admit: asked before a voxel is read; see `voxtile.io.stored.Admit`.

    Raises:
        InputError: it is no nibabel image, has no usable affine, or its file cannot be read.
    """
    from nibabel.arrayproxy import ArrayProxy
    from nibabel.nifti1 import Nifti1Pair
    from nibabel.nifti2 import Nifti2Pair
    from nibabel.spatialimages import HeaderDataError, ImageDataError, SpatialImage

    if not isinstance(image, SpatialImage):
        raise InputError(
            f"{name}: expected a path, bytes of a NIfTI file, a nibabel or SimpleITK image, a MetaTensor, or an array "
            f"with its affine, found {type(image).__name__}"
        )
    if image.affine is None:
        raise InputError(f"{name}: expected an image with an affine, found none")
    try:
        affine = np.asarray(image.affine, np.float64)
        header = nifti_header(image.header)
        # Of an image of a NIfTI file, the header counts as it does for the file; see `voxtile.io.geometry`.
        from_file = isinstance(image, (Nifti1Pair, Nifti2Pair)) and _repeats(header, affine)
        if not from_file:
            check_affine(affine, name)  # before a voxel is read
        proxy = image.dataobj
        slope, inter = None, None
        if isinstance(proxy, ArrayProxy):
            admit(image.shape, proxy.dtype, (proxy.slope, proxy.inter) != (1.0, 0.0))
            slope, inter = float(proxy.slope), float(proxy.inter)
        raw = np.asarray(proxy.get_unscaled() if isinstance(proxy, ArrayProxy) else proxy)
        if from_file:
            return Stored(usable(raw, name), slope, inter, header, None)
        return placed(raw, affine, name, header, slope=slope, inter=inter, missing=_left_open(image, affine))
    except (OSError, EOFError, zlib.error, MemoryError, HeaderDataError, ImageDataError, *HEADER_ERRORS) as error:
        raise InputError(f"{name}: cannot be read ({' '.join(str(error).split())})") from None


def read_simpleitk(image: Any, name: str) -> Stored:
    """Reads a SimpleITK image of three or four axes; components of a voxel, or the fourth axis, are channels.

    Its geometry is in LPS and becomes RAS here. The voxels are copied, because SimpleITK frees them with the image.

    Raises:
        InputError: it has two axes, no usable geometry, or no real numbers.
    """
    spacing, origin = image.GetSpacing(), image.GetOrigin()
    axes = len(spacing)
    if axes < 3:
        raise InputError(f"{name}: expected a 3D scan, found {axes} axes {image.GetSize()}")
    direction = np.reshape(image.GetDirection(), (axes, axes))
    affine = np.eye(4)
    affine[:3, :3] = direction[:3, :3] * spacing[:3]
    affine[:3, 3] = origin[:3]
    array = sys.modules["SimpleITK"].GetArrayFromImage(image)  # [(t,) z, y, x(, component)]
    components = array.ndim - axes
    order = (*reversed(range(axes)), *range(axes, axes + components))
    stored = read_array(array.transpose(order), LPS_TO_RAS @ affine, name)
    return replace(stored, spacing=(spacing[0], spacing[1], spacing[2]))


def read_meta_tensor(tensor: Any, name: str) -> Stored:
    """Reads MONAI's MetaTensor: [channel, i, j, k] as MONAI's transforms give it, or [i, j, k].

    Raises:
        InputError: it has another number of axes, no usable affine, or a type that NumPy does not know.
    """
    try:
        array, affine = tensor.detach().cpu().numpy(), tensor.affine.detach().cpu().numpy()
    except TypeError as error:
        raise InputError(f"{name}: cannot be read ({error}); convert it to float32 first") from None
    if array.ndim not in (3, 4):
        raise InputError(f"{name}: expected a tensor [channel, i, j, k], found {array.ndim} axes {array.shape}")
    space = str(getattr(tensor, "meta", {}).get("space", "RAS"))
    channels_last = np.moveaxis(array, 0, 3) if array.ndim == 4 else array
    return read_array(channels_last, LPS_TO_RAS @ affine if space == "LPS" else affine, name)


def _left_open(image: Any, affine: NDArray[np.float64]) -> tuple[str, ...]:
    """What the file of an image does not say: an affine that nibabel has made up for Analyze says nothing."""
    from nibabel.analyze import AnalyzeHeader
    from nibabel.nifti1 import Nifti1Header

    header = image.header
    is_analyze = isinstance(header, AnalyzeHeader) and not isinstance(header, Nifti1Header)
    return ("orientation",) if is_analyze and np.array_equal(header.get_base_affine(), affine) else ()


def _repeats(header: Any, affine: NDArray[np.float64]) -> bool:
    """Returns whether `header` states `affine` to the last bit, as that of an image from a file does."""
    with np.errstate(all="ignore"):
        return np.array_equal(header.get_best_affine(), affine, equal_nan=True)
