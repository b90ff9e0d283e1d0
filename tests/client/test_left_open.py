"""What a file does not say of a scan's place is asked for, never guessed: a side could be taken for the other."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from tests.support.phantoms import affine_of
from tests.support.stored_formats import WRITERS, read_back
from tests.support.stored_scans import AFFINE, SHAPE, refused, values
from voxtile.errors import InputError, MissingExtraError
from voxtile.io.given import Given
from voxtile.io.scan import open_scan
from voxtile.io.writing import mask_image, write_image

X, Y, Z = SHAPE
RAW = values("i2").tobytes(order="F")


def nrrd(path: Path, *lines: str, dimension: int = 3, sizes: str = f"{X} {Y} {Z}", raw: bytes = RAW) -> Path:
    head = [
        "NRRD0004",
        "type: short",
        f"dimension: {dimension}",
        *lines,
        f"sizes: {sizes}",
        "endian: little",
        "encoding: raw",
    ]
    path.write_bytes("\n".join([*head, "", ""]).encode() + raw)
    return path


def meta(path: Path, *lines: str) -> Path:
    head = ["ObjectType = Image", "NDims = 3", *lines, f"DimSize = {X} {Y} {Z}", "ElementType = MET_SHORT"]
    path.write_bytes("\n".join([*head, "ElementDataFile = LOCAL", ""]).encode() + RAW)
    return path


def analyze(path: Path) -> Path:
    nib.save(nib.AnalyzeImage(values("i2"), np.diag([-0.7, 0.8, 3.0, 1.0])), path)
    return path


def tiff(path: Path) -> Path:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values("u1").T), str(path))
    return path


def mgh(path: Path) -> Path:
    WRITERS["a.mgh"](path, values("i2"), AFFINE)
    content = bytearray(path.read_bytes())
    content[28:30] = b"\0\0"
    path.write_bytes(bytes(content))
    return path


DIRECTIONS = "space directions: (0.7,0,0) (0,0.8,0) (0,0,3)"
WITHOUT_SIDES: dict[str, Any] = {
    "no space": lambda folder: nrrd(folder / "a.nrrd", "space dimension: 3", DIRECTIONS),
    "a scanner's space": lambda folder: nrrd(folder / "a.nrrd", "space: scanner-xyz", DIRECTIONS),
    "a right-handed space": lambda folder: nrrd(folder / "a.nrrd", "space: 3D-right-handed", DIRECTIONS),
    "spacings alone": lambda folder: nrrd(folder / "a.nrrd", "spacings: 0.7 0.8 3"),
    "no matrix": lambda folder: meta(folder / "a.mha", "ElementSpacing = 0.7 0.8 3", "AnatomicalOrientation = RAI"),
    "Analyze": lambda folder: analyze(folder / "a.hdr"),
}
WITHOUT_PLACE: dict[str, Any] = {
    "TIFF": lambda folder: tiff(folder / "a.tif"),
    "no spacings": lambda folder: nrrd(folder / "a.nrrd"),
    "no fields": lambda folder: meta(folder / "a.mha"),
    "MGH without a good place": lambda folder: mgh(folder / "a.mgh"),
}


@pytest.mark.parametrize("kind", [*WITHOUT_SIDES, *WITHOUT_PLACE])
def test_a_scan_without_sides_is_refused(tmp_path: Path, kind: str) -> None:
    refused(
        r"where its axes run \(left could be taken for right\).*--orientation",
        (WITHOUT_SIDES | WITHOUT_PLACE)[kind](tmp_path),
    )


@pytest.mark.parametrize("codes", ["RAS", "LPS", "las", "PIR", "ASL"])
@pytest.mark.parametrize("kind", [*WITHOUT_SIDES, *WITHOUT_PLACE])
def test_what_is_told_places_it(tmp_path: Path, kind: str, codes: str) -> None:
    path = (WITHOUT_SIDES | WITHOUT_PLACE)[kind](tmp_path)
    spacing = (0.7, 0.8, 3.0)
    volume = open_scan(
        [path], ["T1"], given=Given(orientation=codes, spacing=None if kind in WITHOUT_SIDES else spacing)
    )
    assert "".join(nib.aff2axcodes(volume.affine)) == codes.upper()
    assert volume.header_spacing == pytest.approx(spacing, rel=1e-7)
    assert any("--orientation counts" in warning for warning in volume.warnings)
    np.testing.assert_array_equal(volume.data[0], values("u1" if kind == "TIFF" else "i2"))
    made = mask_image(np.zeros(SHAPE, np.uint8), volume)
    np.testing.assert_allclose(made.affine, volume.affine, atol=1e-6)
    for ending in (".nii.gz", *path.suffixes):
        write_image(made, tmp_path / f"mask{ending}", volume)
        assert read_back(tmp_path / f"mask{ending}")[0].shape == SHAPE


@pytest.mark.parametrize("kind", WITHOUT_PLACE)
def test_a_scan_without_spacing_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match=r"says its spacing, found none .* --spacing"):
        open_scan([WITHOUT_PLACE[kind](tmp_path)], ["T1"], given=Given(orientation="LAS"))


@pytest.mark.parametrize("name", WRITERS)
def test_what_a_file_says_is_not_told_otherwise(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path, values("i2"), AFFINE)
    for given, match in (
        (Given(orientation="LAS"), "its orientation itself"),
        (Given(spacing=(1, 1, 1)), "its spacing itself"),
    ):
        with pytest.raises(InputError, match=match):
            open_scan([path], ["T1"], given=given)


@pytest.mark.parametrize("codes", ["", "RA", "RAR", "RASA", "XYZ", "R S", "RLA"])
def test_impossible_orientations_are_refused(codes: str) -> None:
    with pytest.raises(InputError, match="three letters for --orientation"):
        Given(orientation=codes)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, -1.0, 1.0), (1.0, float("nan"), 1.0)])
def test_impossible_spacings_are_refused(spacing: Any) -> None:
    with pytest.raises(InputError, match="three numbers above 0 for --spacing"):
        Given(spacing=spacing)


# NRRD ------------------------------------------------------------------------------------------------------------

VECTORS = np.array([[0.6, 0.2, -0.1], [-0.3, 0.8, 0.2], [0.4, 0.1, 3.0]])
PLACE = f"space directions: {' '.join('(' + ','.join(map(str, row)) + ')' for row in VECTORS)}"


@pytest.mark.parametrize(
    ("space", "signs"),
    [("left-posterior-superior", (-1, -1, 1)), ("LPS", (-1, -1, 1)), ("right-anterior-superior", (1, 1, 1)),
     ("RAS", (1, 1, 1)), ("left-anterior-superior", (-1, 1, 1)), ("las", (-1, 1, 1))],
)  # fmt: skip
def test_nrrds_spaces(tmp_path: Path, space: str, signs: tuple[int, int, int]) -> None:
    """The definition of the format: a vector for each axis, in the space that is named; and ITK's reading of it."""
    path = nrrd(tmp_path / "a.nrrd", f"space: {space}", PLACE, "space origin: (1,2,3)")
    volume = open_scan([path], ["T1"])
    expected = np.eye(4)
    expected[:3, :3], expected[:3, 3] = VECTORS.T, (1, 2, 3)
    np.testing.assert_allclose(volume.affine, np.diag([*signs, 1.0]) @ expected, atol=1e-12)
    write_image(mask_image(np.ones(SHAPE, np.uint8), volume), tmp_path / "m.nrrd", volume)
    assert PLACE.encode() in (tmp_path / "m.nrrd").read_bytes()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", ["list", "vector"])
def test_nrrds_axis_of_channels_may_be_any(tmp_path: Path, kind: str, first: bool) -> None:
    both = np.stack([values("i2", 1), values("i2", 2)], 0 if first else 3)
    vectors = PLACE.partition(": ")[2]
    path = nrrd(
        tmp_path / "a.nrrd", "space: RAS",
        f"space directions: {'none ' + vectors if first else vectors + ' none'}",
        f"kinds: {kind + ' domain domain domain' if first else 'domain domain domain ' + kind}",
        dimension=4, sizes=f"2 {X} {Y} {Z}" if first else f"{X} {Y} {Z} 2", raw=both.tobytes(order="F"),
    )  # fmt: skip
    volume = open_scan([path], ["a", "b"])
    np.testing.assert_array_equal(volume.data, both if first else np.moveaxis(both, 3, 0))
    write_image(mask_image(np.ones(SHAPE, np.uint8), volume), tmp_path / "m.nrrd", volume)
    assert read_back(tmp_path / "m.nrrd")[0].shape == SHAPE
    refused("4D without a channel meaning", path)


@pytest.mark.parametrize(
    ("lines", "match"),
    [(["space: RAS", PLACE, 'space units: "um" "um" "um"'], "in millimetres"),
     (["space: RAS", PLACE, "kinds: domain domain"], "expected 3 kinds"),
     (["space: RAS", PLACE.rpartition("(")[0]], "expected 3 space directions"),
     (["space: RAS", PLACE.replace("0.6", "nan")], "numbers for 'space directions'"),
     (["space: RAS", "space directions: (1,0,0) (0,1,0) (0,0)"], "numbers for 'space directions'"),
     (["space: RAS", "space directions: (1,0,0) (1,0,0) (0,0,1)"], "singular"),
     (["spacings: 0 2 3"], "singular|spacing"), (["spacings: nan 2 3"], "numbers for 'spacings'"),
     (["space: RAS", PLACE, "byte skip: x"], "for 'byte skip'"), (["type: int"], "says 'type' twice")],
)  # fmt: skip
def test_odd_nrrd_headers_are_refused(tmp_path: Path, lines: list[str], match: str) -> None:
    refused(match, nrrd(tmp_path / "a.nrrd", *lines))


def test_colours_and_tensors_are_refused_by_name(tmp_path: Path) -> None:
    for kind, match in (
        ("RGB-color", "colours"),
        ("3D-symmetric-matrix", "the kind 3d-symmetric-matrix"),
        ("complex", "complex"),
    ):
        lines = [
            "space: RAS",
            f"space directions: none {PLACE.partition(': ')[2]}",
            f"kinds: {kind} domain domain domain",
        ]
        refused(match, nrrd(tmp_path / "a.nrrd", *lines, dimension=4, sizes=f"3 {X} {Y} {Z}", raw=RAW * 3))
    picture = SimpleITK.GetImageFromArray(np.zeros((5, 6, 7, 3), np.uint8), isVector=True)
    SimpleITK.WriteImage(picture, str(tmp_path / "a.tif"))
    refused("colours", tmp_path / "a.tif")


# MetaImage and TIFF ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("letters", ["RAI", "LPS", "RAS", "???"])
def test_metaimages_matrix_counts_whatever_the_letters_say(tmp_path: Path, letters: str) -> None:
    affine = affine_of(SHAPE, (0.7, 0.8, 3.0), "RAS", (10.0, 20.0, -5.0))
    WRITERS["b.mha"](tmp_path / "a.mha", values("i2"), affine)
    head, mark, rest = (tmp_path / "a.mha").read_bytes().partition(b"AnatomicalOrientation = ")
    (tmp_path / "a.mha").write_bytes(head + mark + letters.encode() + rest[3:])
    np.testing.assert_allclose(open_scan([tmp_path / "a.mha"], ["T1"]).affine, affine, atol=1e-9)
    np.testing.assert_allclose(read_back(tmp_path / "a.mha")[1], affine, atol=1e-9)


def test_a_tiffs_spacing_may_lie_beside_it_as_nnunet_has_it(tmp_path: Path) -> None:
    (tmp_path / "case_0000.json").write_text("{}")
    path = tiff(tmp_path / "case_0000.tif")
    (tmp_path / "case.json").write_text(json.dumps({"spacing": [3.0, 0.8, 0.7]}))
    volume = open_scan([path], ["T1"], given=Given(orientation="LPS"))
    assert volume.header_spacing == (0.7, 0.8, 3.0)
    (tmp_path / "case.json").write_text(json.dumps({"spacing": [3.0, 0.8]}))
    refused("case.json: expected a spacing of three numbers", path)


def test_without_simpleitk_tiff_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxtile.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'voxtile\[formats\]'"):
        open_scan([tiff(tmp_path / "a.tif")], ["T1"])
    with pytest.raises(MissingExtraError, match=r"a TIFF mask needs SimpleITK"):
        write_image(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), AFFINE), tmp_path / "m.tif")


# Analyze ---------------------------------------------------------------------------------------------------------


def test_an_analyze_image_in_memory_is_asked_too(tmp_path: Path) -> None:
    image = nib.load(analyze(tmp_path / "a.hdr"))
    with pytest.raises(InputError, match="where its axes run"):
        open_scan(image, ["T1"])
    np.testing.assert_array_equal(open_scan(image, ["T1"], given=Given(orientation="LAS")).data[0], values("i2"))


def test_spms_scale_counts_as_in_nibabel(tmp_path: Path) -> None:
    image = nib.Spm2AnalyzeImage(values("f4"), np.diag([-1.0, 1.0, 2.0, 1.0]))
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "a.img")
    (tmp_path / "a.mat").unlink()
    expected = nib.load(tmp_path / "a.img").get_fdata().astype(np.float32)
    found = open_scan([tmp_path / "a.img"], ["T1"], given=Given(orientation="LAS")).data[0]
    np.testing.assert_array_equal(found, expected)


def test_spms_orientation_beside_it_is_not_passed_over(tmp_path: Path) -> None:
    analyze(tmp_path / "a.hdr")
    (tmp_path / "a.mat").touch()
    refused(r"its orientation stands in a\.mat", tmp_path / "a.hdr")


# Odd files that are right --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.nhdr", "a.mhd"])
def test_names_of_files_may_have_any_letters(tmp_path: Path, name: str) -> None:
    volume = open_scan((values("i2"), AFFINE), ["T1"])
    path = tmp_path / name.replace("a.", "kopf ä 頭.")
    write_image(mask_image(np.ones(SHAPE, np.uint8), volume), path, volume)
    assert open_scan([path], ["T1"]).data.all()


def test_lines_may_end_as_in_windows(tmp_path: Path) -> None:
    for made in (
        nrrd(tmp_path / "a.nrrd", "space: LPS", PLACE),
        meta(tmp_path / "a.mha", MATRIX, "ElementSpacing = 1 2 3"),
    ):
        expected = open_scan([made], ["T1"])
        head, raw = made.read_bytes()[: -len(RAW)], RAW
        made.write_bytes(head.replace(b"\n", b"\r\n") + raw)
        found = open_scan([made], ["T1"])
        np.testing.assert_array_equal(found.data, expected.data)
        np.testing.assert_array_equal(found.affine, expected.affine)


def test_a_packed_nrrd_is_read(tmp_path: Path) -> None:
    path = nrrd(tmp_path / "a.nrrd", "space: LPS", PLACE)
    (tmp_path / "b.nrrd.gz").write_bytes(gzip.compress(path.read_bytes()))
    np.testing.assert_array_equal(open_scan([tmp_path / "b.nrrd.gz"], ["T1"]).data[0], values("i2"))


@pytest.mark.parametrize("encoding", ["ascii", "gzip", "bzip2", "raw"])
def test_nrrds_encodings(tmp_path: Path, encoding: str) -> None:
    """ITK reads them alike; a byte skip of -1 means that the voxels end with the file."""
    pack: dict[str, Any] = {"gzip": gzip.compress, "bzip2": bz2.compress, "raw": lambda raw: b"left out" + raw}
    text = " ".join(map(str, values("i2").ravel(order="F").tolist())).encode()
    path = nrrd(tmp_path / "a.nrrd", "space: LPS", PLACE, raw=b"")
    head = path.read_bytes().replace(b"encoding: raw", f"encoding: {encoding}".encode())
    head = head[:-1] + b"byte skip: -1\n\n" if encoding == "raw" else head
    path.write_bytes(head + (text if encoding == "ascii" else pack[encoding](RAW)))
    np.testing.assert_array_equal(open_scan([path], ["T1"]).data[0], values("i2"))
    if encoding != "bzip2":  # which ITK is built without
        np.testing.assert_array_equal(read_back(path)[0], values("i2"))


def test_metaimages_text_and_its_header_size(tmp_path: Path) -> None:
    text = " ".join(map(str, values("i2").ravel(order="F").tolist())).encode()
    path = meta(tmp_path / "a.mha", "BinaryData = False", MATRIX, "ElementSpacing = 1 2 3")
    path.write_bytes(path.read_bytes()[: -len(RAW)] + text)
    np.testing.assert_array_equal(open_scan([path], ["T1"]).data[0], values("i2"))
    path = meta(tmp_path / "a.mhd", "HeaderSize = -1", MATRIX, "ElementSpacing = 1 2 3")
    path.write_bytes(path.read_bytes()[: -len(RAW)].replace(b"LOCAL", b"a.raw"))
    (tmp_path / "a.raw").write_bytes(bytes(99) + RAW)
    np.testing.assert_array_equal(open_scan([path], ["T1"]).data[0], values("i2"))
    np.testing.assert_array_equal(read_back(path)[0], values("i2"))


MATRIX = "TransformMatrix = 1 0 0 0 1 0 0 0 1"


@pytest.mark.parametrize(
    ("lines", "match"),
    [([MATRIX, "ElementSpacing = 1 -2 3"], "ElementSpacing above 0"), ([MATRIX, "ElementSpacing = 1 2"], "3 numbers"),
     (["TransformMatrix = 2 0 0 0 1 0 0 0 1", "ElementSpacing = 1 2 3"], "directions of length 1"),
     (["TransformMatrix = 1 0 0 1 0 0 0 0 1", "ElementSpacing = 1 2 3"], "singular"),
     ([MATRIX, "ElementSpacing = 1 2 3", "DistanceUnits = cm"], "in millimetres"),
     ([MATRIX, "no equals sign"], "expected 'key = value'"), (["NDims = 2"], "says 'NDims' twice")],
)  # fmt: skip
def test_odd_metaimage_headers_are_refused(tmp_path: Path, lines: list[str], match: str) -> None:
    refused(match, meta(tmp_path / "a.mha", *lines))


def test_mgh_with_a_negative_step_lies_where_nibabel_puts_it(tmp_path: Path) -> None:
    WRITERS["a.mgh"](tmp_path / "a.mgh", values("i2"), AFFINE)
    content = bytearray((tmp_path / "a.mgh").read_bytes())
    content[30:34] = np.array([-1.0], ">f4").tobytes()
    (tmp_path / "a.mgh").write_bytes(bytes(content))
    volume = open_scan([tmp_path / "a.mgh"], ["T1"])
    np.testing.assert_array_equal(volume.affine, read_back(tmp_path / "a.mgh")[1])
    assert min(volume.header_spacing) > 0


def with_first_step(path: Path, size: float) -> Path:
    content = bytearray(analyze(path).read_bytes())
    content[80:84] = np.array([size], "<f4").tobytes()
    path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize("size", [np.nan, np.inf, 1e-7, 1e9])
def test_analyzes_voxel_size_is_checked(tmp_path: Path, size: float) -> None:
    path = with_first_step(tmp_path / "a.hdr", size)
    with pytest.raises(InputError, match=r"a\.hdr: expected"):
        open_scan([path], ["T1"], given=Given(orientation="LAS"))


@pytest.mark.parametrize(("size", "expected"), [(0.0, 1.0), (-2.0, 2.0)])
def test_analyzes_voxel_size_is_repaired_as_nibabel_does(tmp_path: Path, size: float, expected: float) -> None:
    path = with_first_step(tmp_path / "a.hdr", size)
    assert open_scan([path], ["T1"], given=Given(orientation="LAS")).header_spacing[0] == expected
