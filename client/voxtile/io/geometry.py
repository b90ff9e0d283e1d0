"""Says where the voxels of a scan lie, by the header fields that a model's own reader believes.

A NIfTI header states the same thing several times: spacing in `pixdim` and in two forms, the place in both forms, and a
unit for all of them. Where they disagree, readers differ. Knows nothing of voxels, files or models beyond the name of
the reader.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.errors import InputError
from voxtile.io.orientation import Orientation

MONAI = "NibabelReader"
"""MONAI's reader of NIfTI files. Where `pixdim` contradicts the sform, it takes the qform."""

SIMPLEITK = "SimpleITKIO"
"""nnU-Net's reader by default: spacing from `pixdim`, in millimetres whatever the header's unit."""

NIBABEL = "NibabelIO"
"""nnU-Net's reader through nibabel: spacing from `pixdim`, whatever its unit."""

REORIENTING = "NibabelIOWithReorient"
"""nnU-Net's reader that turns scans to RAS: spacing from the affine once turned, else from `pixdim`."""

MILLIMETRES = "millimetres"
UNITS = {1: ("metres", 1000.0), 3: ("micrometres", 0.001)}
"""By the lower three bits of `xyzt_units`: units other than millimetres, and what they are in millimetres."""

SAME_VOXEL_SIZE = 1e-3
"""How far, as a share, two statements of a voxel's size may differ and still agree: headers are rounded."""

SAME_PLACE = 0.01
"""How far, in shares of a voxel, two statements may place a corner apart and still agree: rounding, no motion."""

SPACING_LIMITS = (1e-3, 1e3)
"""Millimetres between voxels that are believed, from a micrometre (microscopy) to a metre; others have a wrong unit."""

ORIGIN_LIMIT = 1e6
"""Millimetres from the origin that are believed: a kilometre. Beyond it, positions lose all precision."""

SKEW_LIMIT = 1e-3
"""Volume spanned by the axes' unit vectors (1: at right angles) below which they practically lie in one plane."""

Triple = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where a scan's voxels lie.

    Attributes:
        affine: [4, 4] float64, voxel (i, j, k) to RAS.
        spacing: distances between neighbours along i, j, k, as the model's reader gives them; they can differ from the
            lengths of the affine's columns.
        header: the NIfTI header (nibabel) for a mask: the scan's, or a copy whose unusable forms are replaced.
        unit: millimetres that one unit of `affine` and `spacing` stands for by the header; 1 where they are
            millimetres, or where the header says nothing.
        warnings: what the header contradicts itself in, and what counted, in words; without a file's name.
    """

    affine: NDArray[np.float64]
    spacing: Triple
    header: Any
    unit: float = 1.0
    warnings: tuple[str, ...] = ()


def spacing_of(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns [3] float64: the lengths of the columns of `affine` [4, 4], millimetres a step along each voxel axis."""
    lengths: NDArray[np.float64] = np.sqrt(np.sum(affine[:3, :3] ** 2, axis=0))
    return lengths


def given_geometry(affine: NDArray[np.float64], header: Any, name: str) -> Geometry:
    """Returns the geometry of a source that states its affine itself, in millimetres, beside a header that repeats it.

    The header's voxel size, which is rounded, is kept where it agrees: nnU-Net rounds grid sizes by it.

    Raises:
        InputError: the affine places no grid.
    """
    check_affine(affine, name)
    lengths = spacing_of(affine)
    sizes = np.asarray(header["pixdim"][1:4], np.float64)
    agrees = np.allclose(sizes, lengths, rtol=SAME_VOXEL_SIZE, atol=0)
    return Geometry(affine, _triple(sizes if agrees else lengths), header)


def header_geometry(header: Any, reader: str, name: str) -> Geometry:
    """Returns the geometry that the model's `reader` takes from a NIfTI header.

    Args:
        header: a NIfTI-1 or NIfTI-2 header (nibabel), its fields repaired as nibabel repairs them.
        reader: MONAI, SIMPLEITK, NIBABEL or REORIENTING; another name is treated as SIMPLEITK.
        name: what messages call the scan.

    Raises:
        InputError: no form places the scan, or the spacing that counts is not believed.
    """
    with np.errstate(all="ignore"):
        header = header.copy()
        warnings = _mend_quaternion(header)
        usable, more = _with_usable_forms(header, reader, name)
        warnings += more
        affine = monai_affine(usable) if reader == MONAI else usable.get_best_affine()
        sizes = np.asarray(usable["pixdim"][1:4], np.float64)
        if not np.isfinite(affine).all():  # neither form has a code, and there is no voxel size
            raise _without_size(sizes, name)
        warnings += _contradictions(usable, affine, sizes, reader)
        unit_name, unit = UNITS.get(int(usable["xyzt_units"]) & 7, (MILLIMETRES, 1.0))
        spacing = _reader_spacing(affine, sizes, reader)
    if not (np.isfinite(spacing).all() and min(spacing) > 0):
        raise _without_size(sizes, name)
    if unit != 1 and reader in (MONAI, NIBABEL, REORIENTING):
        warnings.append(f"xyzt_units says {unit_name}; the numbers are taken as they are, as in {reader}")
    elif unit != 1:
        warnings.append(f"xyzt_units says {unit_name}; spacing and origin are converted to millimetres, as ITK does")
        affine, spacing, unit = np.diag([unit, unit, unit, 1.0]) @ affine, spacing * unit, 1.0
    named = name if unit_name == MILLIMETRES else f"{name} (in {unit_name} by its xyzt_units)"
    check_affine(affine, named)
    check_spacing(spacing, named)
    return Geometry(affine, _triple(spacing), usable, unit, tuple(warnings))


def monai_affine(header: Any) -> NDArray[np.float64]:
    """Returns the affine [4, 4] that MONAI's NibabelReader gives (`correct_nifti_header_if_necessary`, MONAI 1.6)."""
    best: NDArray[np.float64] = header.get_best_affine()
    axes = int(header["dim"][0])
    sizes = np.asarray(header.get_zooms())[:axes]

    def agrees(affine: NDArray[np.float64]) -> bool:
        lengths = np.sqrt(np.sum(affine[:axes, :axes] ** 2, axis=0))
        return bool(np.allclose(sizes, np.where(lengths == 0, 1.0, lengths)))

    if axes >= 5 or agrees(best):
        return best
    if header["sform_code"] != 0 and agrees(header.get_qform()):
        changed = header.copy()
        changed.set_sform(header.get_qform())
        best = changed.get_best_affine()
    return best


def check_affine(affine: NDArray[np.float64], name: str) -> None:
    """Checks that `affine` [4, 4] places a grid of voxels in space.

    Raises:
        InputError: it does not, or its spacing or origin is not believed.
    """
    if not np.isfinite(affine).all():
        raise InputError(
            f"{name}: expected a finite affine, found NaN or infinite entries; repair the header's sform or qform"
        )
    if not np.array_equal(affine[3], (0, 0, 0, 1)):
        raise InputError(f"{name}: expected an affine whose last row is 0 0 0 1, found {affine[3].tolist()}")
    with np.errstate(over="ignore"):  # becomes infinite, and is refused below
        spacing = spacing_of(affine)
    if spacing.min() == 0:
        raise InputError(
            f"{name}: expected voxels of some size, found a spacing of {_shown(spacing)} mm: the affine is singular"
        )
    check_spacing(spacing, name)
    if not _independent(affine, spacing):
        raise InputError(f"{name}: expected three independent axes, found a singular affine; repair the sform or qform")
    if np.abs(affine[:3, 3]).max() > ORIGIN_LIMIT:
        raise InputError(f"{name}: expected an origin within {ORIGIN_LIMIT:g} mm, found {affine[:3, 3].tolist()}")


def check_spacing(spacing: NDArray[np.float64], name: str) -> None:
    """Checks that `spacing` [3] is one that a scan can have.

    Raises:
        InputError: it lies beyond SPACING_LIMITS.
    """
    low, high = SPACING_LIMITS
    if spacing.min() < low or spacing.max() > high:
        raise InputError(
            f"{name}: expected a spacing between {low:g} and {high:g} mm, found {_shown(spacing)} mm; "
            "is its unit millimetres?"
        )


def usable_form(affine: NDArray[np.float64]) -> bool:
    """Returns whether `affine` [4, 4] of an sform or qform places voxels: finite, with three independent axes."""
    if not np.isfinite(affine).all():
        return False
    spacing = spacing_of(affine)
    return bool(np.isfinite(spacing).all() and spacing.min() > 0 and _independent(affine, spacing))


def _independent(affine: NDArray[np.float64], spacing: NDArray[np.float64]) -> bool:
    return bool(abs(np.linalg.det(affine[:3, :3] / spacing)) >= SKEW_LIMIT)


def _mend_quaternion(header: Any) -> list[str]:
    """Makes a quaternion that is too long one of length 1, as ITK does; nibabel would refuse it."""
    try:
        header.get_qform()
    except ValueError:
        fields = ("quatern_b", "quatern_c", "quatern_d")
        length = float(np.linalg.norm([float(header[field]) for field in fields]))
        for field in fields:
            header[field] = float(header[field]) / length
        if header["sform_code"] == 0 and header["qform_code"] != 0:
            return [f"the qform's quaternion has the length {length:.9g}, above 1; it is normalised"]
    return []


def _with_usable_forms(header: Any, reader: str, name: str) -> tuple[Any, list[str]]:
    """Returns `header`, in which every form that has a code can be used, and what was changed."""
    sform, qform = header.get_sform(), header.get_qform()
    code = int(header["sform_code"])
    broken_sform = code != 0 and not usable_form(sform)
    if header["qform_code"] != 0 and not usable_form(qform):
        if code == 0 or broken_sform:
            raise InputError(
                f"{name}: expected an sform or a qform that places the scan, found neither: the qform's fields are "
                "not finite, and there is no usable sform; repair the header"
            )
        header["qform_code"] = 0
        return header, ["the qform cannot be used (its fields are not finite); the sform counts"]
    if broken_sform:
        # MONAI's reader takes the qform here also where its code is 0.
        by_qform = header["qform_code"] != 0 or (reader == MONAI and usable_form(qform))
        header["sform_code"] = 0
        header.set_sform(qform if by_qform else header.get_base_affine(), code=code)
        what = "is zero" if not sform[:3, :3].any() else "is singular" if np.isfinite(sform).all() else "is not finite"
        return header, [f"the sform {what}; {'the qform' if by_qform else 'the voxel size (pixdim) alone'} counts"]
    if code == 0 and header["qform_code"] == 0:
        return header, ["neither the sform nor the qform has a code; the direction of the axes is nibabel's guess"]
    return header, []


def _contradictions(header: Any, affine: NDArray[np.float64], sizes: NDArray[np.float64], reader: str) -> list[str]:
    """Says where the statements of a header disagree, and which of them counts for `reader`."""
    found = []
    best = header.get_best_affine()
    lengths = spacing_of(best)
    if not np.allclose(sizes, lengths, rtol=SAME_VOXEL_SIZE, atol=0):
        counts = _shown(_reader_spacing(affine, sizes, reader))
        found.append(f"pixdim says {_shown(sizes)}, the sform {_shown(lengths)}; {counts} counts, as in {reader}")
    if not _same_place(header, best, affine):
        found.append(f"pixdim and the sform disagree, so the qform counts, as in {reader}")
    elif header["sform_code"] and header["qform_code"] and not _same_place(header, best, header.get_qform()):
        found.append("the sform and the qform place voxels apart; the sform counts")
    return found


def _same_place(header: Any, one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Returns whether two affines place the corners of the header's grid within SAME_PLACE of a voxel."""
    ends = [(0, max(int(size) - 1, 0)) for size in header["dim"][1:4]]
    corners = np.array([[*corner, 1] for corner in itertools.product(*ends)])
    apart = float(np.linalg.norm((corners @ (one - other).T)[:, :3], axis=1).max())
    return apart <= SAME_PLACE * float(spacing_of(one).min())


def _reader_spacing(affine: NDArray[np.float64], sizes: NDArray[np.float64], reader: str) -> NDArray[np.float64]:
    """Returns [3] the distances along i, j, k that `reader` gives; `sizes` are those of `pixdim`."""
    if reader == MONAI:
        return spacing_of(affine)
    if reader == REORIENTING:
        # nibabel writes the affine's voxel sizes into the header of an image that it turns, and only then.
        turned = Orientation.towards("RAS", affine) != Orientation()
        return spacing_of(affine).astype(np.float32).astype(np.float64) if turned else sizes
    return sizes


def _without_size(sizes: NDArray[np.float64], name: str) -> InputError:
    return InputError(f"{name}: expected a voxel size in the header's pixdim, found {_shown(sizes)}; repair it")


def _triple(values: NDArray[np.float64]) -> Triple:
    i, j, k = values.tolist()
    return i, j, k


def _shown(sizes: NDArray[np.float64]) -> str:
    return " × ".join(f"{step:.4g}" for step in sizes)
