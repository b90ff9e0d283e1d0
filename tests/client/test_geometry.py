"""Where a header's voxels lie for each reader, worked out by hand. Equality with the readers is in the oracle."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.support.odd_headers import AFFINE, NAN, VOXELS, content
from voxtile.errors import InputError
from voxtile.io.geometry import (
    MONAI,
    NIBABEL,
    REORIENTING,
    SIMPLEITK,
    Geometry,
    check_affine,
    check_spacing,
    given_geometry,
    header_geometry,
    monai_affine,
    usable_form,
)

READERS = (MONAI, SIMPLEITK, NIBABEL, REORIENTING)
ITK = (SIMPLEITK, "another reader")
NNUNET = (SIMPLEITK, NIBABEL, REORIENTING)

SIZES = (1.0, 1.5, 2.0)
TURNED = np.diag([-1.0, -1, 1, 1])
LPS = TURNED @ AFFINE
GUESS = np.array([[-1.0, 0, 0, 4], [0, 1.5, 0, -5.25], [0, 0, 2, -6]])
"""nibabel's affine where neither form has a code: x runs to the left, and 0 is the middle of 9 x 8 x 7 voxels."""


def header_of(affine: Any = AFFINE, **fields: Any) -> Any:
    return nib.Nifti1Header.from_fileobj(io.BytesIO(content(VOXELS, affine, **fields)))


@dataclass(frozen=True)
class Found:
    """The geometry that a reader has to find in a header."""

    header: dict[str, Any]
    readers: tuple[str, ...] = READERS
    affine: Any = tuple(map(tuple, AFFINE))
    spacing: tuple[float, float, float] = SIZES
    unit: float = 1.0
    warnings: tuple[str, ...] = ()


def disagreeing(sizes: str, sform: str, counts: str, then: str) -> tuple[str, str]:
    return f"pixdim says {sizes}, the sform {sform}; {counts} counts, as in {{reader}}", then


APART = "the sform and the qform place voxels apart; the sform counts"
QFORM = "pixdim and the sform disagree, so the qform counts, as in {reader}"
AS_THEY_ARE = "xyzt_units says {unit}; the numbers are taken as they are, as in {{reader}}"
CONVERTED = "xyzt_units says {unit}; spacing and origin are converted to millimetres, as ITK does"
LARGER = Found(
    {"pixdim": [1, 3, 3.5, 4]},
    NNUNET,
    spacing=(3.0, 3.5, 4.0),
    warnings=disagreeing("3 × 3.5 × 4", "1 × 1.5 × 2", "3 × 3.5 × 4", APART),
)
METRES = Found({"affine": np.diag([1e-3, 1e-3, 1e-3, 1]) @ AFFINE, "units": 1})
MICROMETRES = Found({"affine": np.diag([100.0, 100, 100, 1]) @ AFFINE, "units": 3 | 8})

CASES = {
    "a sound header": Found({}),
    "pixdim of another size": LARGER,
    "pixdim of another size, in MONAI": replace(
        LARGER, readers=(MONAI,), affine=np.array([[3.0, 0, 0, -4], [0, 3.5, 0, 5], [0, 0, 4, 6]]),
        warnings=disagreeing("3 × 3.5 × 4", "1 × 1.5 × 2", "3 × 3.5 × 4", QFORM),
    ),
    "pixdim of another size, turned": replace(
        LARGER, readers=(SIMPLEITK, NIBABEL), header={"affine": LPS, **LARGER.header}, affine=LPS
    ),
    "pixdim of another size, turned by the reader": Found(
        {"affine": LPS, **LARGER.header}, (REORIENTING,), LPS,
        warnings=disagreeing("3 × 3.5 × 4", "1 × 1.5 × 2", "1 × 1.5 × 2", APART),
    ),
    "pixdim of another size, and no qform": replace(
        LARGER, header={**LARGER.header, "codes": [0, 1]}, warnings=LARGER.warnings[:1]
    ),
    "pixdim of another size, and no qform, in MONAI": Found(
        {**LARGER.header, "codes": [0, 1]}, (MONAI,), np.array([[3.0, 0, 0, -4], [0, 3.5, 0, 5], [0, 0, 4, 6]]),
        spacing=(3.0, 3.5, 4.0), warnings=disagreeing("3 × 3.5 × 4", "1 × 1.5 × 2", "3 × 3.5 × 4", QFORM),
    ),
    "pixdim half a millimetre off": Found(
        {"pixdim": [1, 1, 1.5, 2.5], "codes": [0, 1]}, NNUNET, spacing=(1.0, 1.5, 2.5),
        warnings=disagreeing("1 × 1.5 × 2.5", "1 × 1.5 × 2", "1 × 1.5 × 2.5", "")[:1],
    ),
    "pixdim two thousandths off": Found(
        {"pixdim": [1, 1, 1.5, 2.004], "codes": [0, 1]}, NNUNET, spacing=(1.0, 1.5, 2.004),
        warnings=disagreeing("1 × 1.5 × 2.004", "1 × 1.5 × 2", "1 × 1.5 × 2.004", "")[:1],
    ),
    "pixdim a little off": Found({"pixdim": [1, 1.0005, 1.5, 2]}, NNUNET, spacing=(1.0005, 1.5, 2.0)),
    "pixdim a little off, in MONAI": Found(
        {"pixdim": [1, 1.0005, 1.5, 2]}, (MONAI,), np.array([[1.0005, 0, 0, -4], [0, 1.5, 0, 5], [0, 0, 2, 6]]),
        spacing=(1.0005, 1.5, 2.0),
    ),
    "an sform of zeros": Found({"srow": [0.0] * 12}, warnings=("the sform is zero; the qform counts",)),
    "an sform of zeros with an origin": Found(
        {"srow": [0.0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 5]}, warnings=("the sform is zero; the qform counts",)
    ),
    "an sform of NaN": Found({"srow": [NAN] * 12}, warnings=("the sform is not finite; the qform counts",)),
    "a singular sform": Found(
        {"srow": [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 2, 0]}, warnings=("the sform is singular; the qform counts",)
    ),
    "an sform of zeros, and no qform": Found(
        {"srow": [0.0] * 12, "codes": [0, 1]}, NNUNET, GUESS,
        warnings=("the sform is zero; the voxel size (pixdim) alone counts",),
    ),
    "an sform of zeros, and no qform, in MONAI": Found(
        {"srow": [0.0] * 12, "codes": [0, 1]}, (MONAI,), warnings=("the sform is zero; the qform counts",)
    ),
    "no form": Found(
        {"codes": [0, 0]}, affine=GUESS,
        warnings=("neither the sform nor the qform has a code; the direction of the axes is nibabel's guess",),
    ),
    "a broken qform": Found(
        {"quatern": [NAN, 0, 0]}, warnings=("the qform cannot be used (its fields are not finite); the sform counts",)
    ),
    "a long quaternion": Found(
        {"quatern": [0, 0, 1.25], "codes": [1, 0]},
        affine=np.array([[-1.0, 0, 0, -4], [0, -1.5, 0, 5], [0, 0, 2, 6]]),
        warnings=("the qform's quaternion has the length 1.25, above 1; it is normalised",),
    ),
    "a long quaternion that does not count": Found({"quatern": [0, 0, 1.25]}, warnings=(APART,)),
    "forms in two places": Found({"qoffset": [0.0, 0, 0]}, warnings=(APART,)),
    "forms a hundredth of a voxel apart": Found({"qoffset": [-4.009, 5, 6]}),
    "forms a little more apart": Found({"qoffset": [-4.011, 5, 6]}, warnings=(APART,)),
    "metres": replace(
        METRES, readers=(MONAI, NIBABEL, REORIENTING), affine=METRES.header["affine"], spacing=(1e-3, 1.5e-3, 2e-3),
        unit=1000.0, warnings=(AS_THEY_ARE.format(unit="metres"),),
    ),
    "metres, in ITK": replace(METRES, readers=ITK, warnings=(CONVERTED.format(unit="metres"),)),
    "micrometres": replace(
        MICROMETRES, readers=(MONAI, NIBABEL, REORIENTING), affine=MICROMETRES.header["affine"],
        spacing=(100.0, 150.0, 200.0), unit=0.001, warnings=(AS_THEY_ARE.format(unit="micrometres"),),
    ),
    "micrometres, in ITK": replace(
        MICROMETRES, readers=ITK, affine=np.diag([0.1, 0.1, 0.1, 1]) @ AFFINE, spacing=(0.1, 0.15, 0.2),
        warnings=(CONVERTED.format(unit="micrometres"),),
    ),
    "a unit without a meaning": Found({"units": 5}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_counts_is_found_and_told(case: Found) -> None:
    for reader in case.readers:
        header = header_of(**case.header)
        before = header.copy()
        found = header_geometry(header, reader, "scan")
        np.testing.assert_allclose(found.affine[:3], case.affine[:3], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found.spacing, case.spacing, rtol=1e-6)
        assert found.affine.dtype == np.float64
        assert all(type(step) is float for step in found.spacing)
        assert found.unit == case.unit
        assert found.warnings == tuple(warning.format(reader=reader) for warning in case.warnings)
        assert header == before or np.isnan(header["quatern_b"])
        if not case.warnings:
            assert found.header == header


@pytest.mark.parametrize(("slices", "apart"), [(1, False), (2, True)])
def test_forms_that_differ_beyond_the_last_slice_place_voxels_alike(slices: int, apart: bool) -> None:
    thicker = AFFINE[:3] * np.array([1, 1, 4.5, 1])
    header = nib.Nifti1Header.from_fileobj(io.BytesIO(content(np.zeros((9, 8, slices), np.int16), srow=thicker)))
    assert (APART in header_geometry(header, NIBABEL, "scan").warnings) is apart


LARGER_SFORM = np.diag([1.0, 1.5, 9, 1])[:3]


@pytest.mark.parametrize(
    ("shape", "slices"),
    [((9, 8), 9.0),  # the size between slices of a single one is not compared
     ((9, 8, 7), 2.0), ((9, 8, 7, 1, 2), 9.0)],  # and nothing from five axes on
)  # fmt: skip
def test_monais_reader_takes_the_qform_where_the_axes_that_it_compares_disagree(
    shape: tuple[int, ...], slices: float
) -> None:
    values = np.zeros(shape, np.int16)
    header = nib.Nifti1Header.from_fileobj(io.BytesIO(content(values, srow=LARGER_SFORM)))
    found = monai_affine(header)
    np.testing.assert_allclose(np.diag(found), (1, 1.5, slices, 1))
    assert found.dtype == np.float64
    np.testing.assert_allclose(header.get_sform()[:3], LARGER_SFORM)  # the header itself is not changed


def test_monais_reader_keeps_the_sform_where_no_form_agrees() -> None:
    np.testing.assert_array_equal(monai_affine(header_of(pixdim=[1, 1, NAN, 2])), AFFINE)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("end", ["first", "last"])
@pytest.mark.parametrize(("share", "apart"), [(0.009, False), (0.011, True)])
def test_forms_are_compared_at_the_corners_of_the_grid(axis: int, end: str, share: float, apart: bool) -> None:
    """A step that is longer by a share of the smallest spacing moves the last voxel by that share, times its place."""
    steps = AFFINE.copy()
    steps[axis, axis] += share / (VOXELS.shape[axis] - 1)
    if end == "first":  # the last voxels lie at the same place
        steps[axis, 3] -= share
    found = header_geometry(header_of(srow=steps[:3]), SIMPLEITK, "scan")
    assert (APART in found.warnings) == apart


def test_a_scan_that_its_reader_turns_has_the_spacing_of_a_single_precision_header() -> None:
    """nibabel writes it there, once the scan is turned."""
    slanted = LPS.copy()
    slanted[:3, :3] = LPS[:3, :3] @ [[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]] * 1.1
    found = header_geometry(header_of(slanted), REORIENTING, "scan")
    exact = np.sqrt((found.affine[:3, :3] ** 2).sum(axis=0))
    assert found.spacing == tuple(exact.astype(np.float32).tolist())
    assert found.spacing != tuple(exact.tolist())


@pytest.mark.parametrize(
    ("fields", "codes"),
    [({}, (1, 1)), ({"codes": [0, 0]}, (0, 0)), ({"srow": [0.0] * 12}, (1, 1)), ({"quatern": [NAN, 0, 0]}, (0, 1)),
     ({"srow": [0.0] * 12, "codes": [0, 2]}, (0, 2)), ({"srow": [0.0] * 12, "codes": [3, 4]}, (3, 4))],
)  # fmt: skip
def test_a_masks_header_has_forms_that_can_be_used(fields: dict[str, Any], codes: tuple[int, int]) -> None:
    found = header_geometry(header_of(**fields), NIBABEL, "scan")
    assert (int(found.header["qform_code"]), int(found.header["sform_code"])) == codes
    np.testing.assert_allclose(found.header.get_best_affine(), found.affine)


NEITHER = (
    "scan: expected an sform or a qform that places the scan, found neither: the qform's fields are not finite, and "
    "there is no usable sform; repair the header"
)
WITHOUT_SIZE = "scan: expected a voxel size in the header's pixdim, found 1 × nan × 2; repair it"


@pytest.mark.parametrize(
    ("fields", "readers", "told"),
    [({"quatern": [NAN, 0, 0], "codes": [1, 0]}, READERS, NEITHER),
     ({"quatern": [NAN, 0, 0], "srow": [0.0] * 12}, READERS, NEITHER),
     ({"pixdim": [1, 1, NAN, 2], "codes": [0, 0]}, READERS, WITHOUT_SIZE),
     ({"pixdim": [1, 1, NAN, 2]}, NNUNET, WITHOUT_SIZE),
     ({"pixdim": [1, 1, 1e6, 2], "codes": [1, 0]}, READERS,
      "scan: expected a spacing between 0.001 and 1000 mm, found 1 × 1e+06 × 2 mm; is its unit millimetres?"),
     ({"pixdim": [1, 1, 1e6, 2], "codes": [0, 1]}, NNUNET,
      "scan: expected a spacing between 0.001 and 1000 mm, found 1 × 1e+06 × 2 mm; is its unit millimetres?"),
     ({"affine": np.diag([10.0, 10, 10, 1]) @ AFFINE, "units": 1}, ITK,
      "scan (in metres by its xyzt_units): expected a spacing between 0.001 and 1000 mm, found "
      "1e+04 × 1.5e+04 × 2e+04 mm; is its unit millimetres?")],
)  # fmt: skip
def test_what_no_form_places_is_refused(fields: dict[str, Any], readers: tuple[str, ...], told: str) -> None:
    for reader in readers:
        with pytest.raises(InputError) as caught:
            header_geometry(header_of(**fields), reader, "scan")
        assert str(caught.value) == told


@pytest.mark.filterwarnings("error")
def test_a_header_of_infinities_is_refused_without_numpys_own_warnings() -> None:
    header = header_of(pixdim=[1, np.inf, 1, 2], codes=[1, 0])
    with pytest.raises(InputError, match="neither: the qform's fields are not finite"):
        header_geometry(header, MONAI, "scan")


def test_a_voxel_of_no_size_is_told_as_what_the_header_lacks() -> None:
    header = header_of()
    header["pixdim"][2] = 0  # in a file, nibabel would take it for 1
    with pytest.raises(InputError, match="expected a voxel size in the header's pixdim, found 1 × 0 × 2; repair it"):
        header_geometry(header, SIMPLEITK, "scan")


def changed(row: int, column: int, value: float) -> Any:
    affine = AFFINE.copy()
    affine[row, column] = value
    return affine


@pytest.mark.parametrize(
    ("affine", "told"),
    [(changed(1, 2, NAN), "expected a finite affine"),
     (changed(3, 0, 1.0), r"whose last row is 0 0 0 1, found \[1.0, 0"),
     (changed(0, 0, 0.0), "expected voxels of some size, found a spacing of 0 × 1.5 × 2 mm: the affine is singular"),
     (changed(2, 2, 0.9e-3), "found 1 × 1.5 × 0.0009 mm"), (changed(1, 1, 1001.0), "found 1 × 1001 × 2 mm"),
     (changed(0, 0, 1e200), "expected a spacing between"),
     (AFFINE @ [[1, 1, 0, 0], [0, 1e-4, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "expected three independent axes"),
     (changed(0, 3, 1.1e6), r"expected an origin within 1e\+06 mm, found \[1100000.0, 5.0, 6.0\]"),
     (changed(2, 3, -1.1e6), "expected an origin within")],
)  # fmt: skip
def test_an_affine_that_no_scan_can_have_is_refused(affine: Any, told: str) -> None:
    with pytest.raises(InputError, match=f"^scan: .*{told}"):
        check_affine(affine, "scan")


def test_an_affine_at_the_limits_is_believed() -> None:
    check_affine(np.diag([1e-3, 1.0, 1e3, 1.0]), "scan")
    check_affine(changed(0, 3, 1e6), "scan")
    check_affine(AFFINE @ [[1, 1, 0, 0], [0, 2e-3, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "scan")
    check_spacing(np.array([1e-3, 1e3, 1.0]), "scan")


def test_a_form_is_usable_where_it_is_finite_and_spans_space() -> None:
    assert usable_form(AFFINE)
    assert usable_form(LPS)
    for affine in (changed(0, 3, NAN), changed(1, 1, 0.0), changed(1, 1, np.inf), changed(1, 1, 1e200)):
        with np.errstate(over="ignore"):
            assert not usable_form(affine)
    assert not usable_form(AFFINE @ [[1, 1, 0, 0], [0, 1e-4, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def test_a_stated_affine_counts_and_the_headers_voxel_size_where_it_agrees() -> None:
    rounded = given_geometry(AFFINE, header_of(pixdim=[1, 1.0005, 1.5, 2]), "scan")
    np.testing.assert_allclose(rounded.spacing, (1.0005, 1.5, 2), rtol=1e-7)
    assert given_geometry(AFFINE, header_of(pixdim=[1, 1.002, 1.5, 2]), "scan").spacing == SIZES
    header = header_of(pixdim=[1, 3, 3, 3])
    found = given_geometry(AFFINE, header, "scan")
    assert isinstance(found, Geometry)
    assert (found.spacing, found.unit, found.warnings) == (SIZES, 1.0, ())
    assert found.affine is AFFINE
    assert found.header is header
    with pytest.raises(InputError, match=r"^scan: expected a finite affine"):
        given_geometry(changed(0, 0, NAN), header, "scan")
