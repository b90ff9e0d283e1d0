"""Writes a mask as a DICOM segmentation (SEG) on the frames that the scan was read from, by highdicom.

BINARY is what every viewer reads: a bit for each voxel of each structure. LABELMAP, of 2024, holds one number a voxel:
smaller and quicker where there are many structures. Knows nothing of servers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from voxtile.extras import require
from voxtile.outputs.dicom.codes import CATEGORIES
from voxtile.outputs.dicom.finding import Finding
from voxtile.outputs.dicom.items import add_side, concept, object_items, refer_to_frames
from voxtile.outputs.dicom.provenance import MANUFACTURER, algorithm_parameters, serial_number, series_number, sign
from voxtile.outputs.dicom.structures import Structure
from voxtile.outputs.dicom.texts import fitted, quietly

SegKind = Literal["binary", "labelmap"]

MANY = 10
"""Structures from which on LABELMAP is worth proposing: BINARY then takes several times its space and time."""

CONTENT_LABEL = "VOXTILE"


def check_installed() -> None:
    """Checks, before any work, that the packages are there.

    Raises:
        MissingExtraError: one is not.
    """
    for module in ("pydicom", "highdicom"):
        require(module, "dicom", "DICOM")


def advice_of(finding: Finding, kind: SegKind) -> str | None:
    """Why the other kind would suit better, in one line; None where it would not."""
    if kind == "labelmap":
        return None
    columns = finding.numbers.shape[0]
    reasons = [f"{len(finding.structures)} structures"] if len(finding.structures) >= MANY else []
    reasons += [f"{columns} columns, which some viewers cannot read as bits"] if columns % 8 else []
    if not reasons:
        return None
    return (
        f"{' and '.join(reasons)}: --seg labelmap suits better where the archive and the viewer know it (DICOM of 2024)"
    )


def seg_of(finding: Finding, kind: SegKind = "binary") -> Any:
    """The SEG of a segmentation.

    Args:
        finding: the segmentation.
        kind: BINARY (bits, uncompressed) or LABELMAP (numbers, RLE).

    Returns:
        The object, a pydicom Dataset with its file's header.

    Raises:
        MissingExtraError: a package is missing.
        OutputError: it cannot be made of this scan.
    """
    check_installed()
    with quietly("the DICOM SEG"):
        return _seg(finding, kind)


def _seg(finding: Finding, kind: SegKind) -> Any:
    import highdicom as hd
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless

    seg = hd.seg.Segmentation(
        source_images=list(finding.frames.headers),
        pixel_array=finding.numbers.transpose(2, 1, 0),  # [frame, row, column]
        segmentation_type=kind.upper(),
        segment_descriptions=_descriptions(finding),
        series_instance_uid=finding.identity.series(f"seg {kind}"),
        series_number=series_number("seg"),
        sop_instance_uid=finding.identity.instance(f"seg {kind}"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=fitted(finding.card.name),
        software_versions=fitted(finding.passport.voxtile),
        device_serial_number=serial_number(finding.passport),
        content_label=CONTENT_LABEL,
        content_description=fitted(f"segmentation by {finding.card.name}"),
        transfer_syntax_uid=RLELossless if kind == "labelmap" else ExplicitVRLittleEndian,
    )
    sign(seg, finding, "segmentation")
    refer_to_frames(_frame_items(seg), finding.frames.references)
    _refer_to_objects(seg, finding)
    _name_dimensions(seg, finding.identity.other(f"dimensions {kind}"))
    if kind == "labelmap":
        _background_last(seg)
    return seg


def _descriptions(finding: Finding) -> list[Any]:
    """What each segment is, and the algorithm that found them all."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    algorithm = hd.AlgorithmIdentificationSequence(
        name=fitted(finding.card.name),
        family=codes.cid7162.ArtificialIntelligence,
        version=fitted(finding.passport.version) or "1",
        source=MANUFACTURER,
        parameters=algorithm_parameters(finding.passport),
    )
    return [_description(finding, one, algorithm) for one in finding.structures]


def _description(finding: Finding, structure: Structure, algorithm: Any) -> Any:
    import highdicom as hd

    code = structure.code
    item = hd.seg.SegmentDescription(
        segment_number=structure.number,
        segment_label=fitted(structure.name),
        segmented_property_category=concept(*CATEGORIES[code.category]),
        segmented_property_type=concept(code.value, code.meaning, code.scheme),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_uid=finding.identity.tracking(structure.value),
        tracking_id=fitted(structure.name),
        display_color=hd.color.CIELabColor.from_rgb(*structure.rgb),
    )
    item.SegmentDescription = f"value {structure.value} in the mask of the model"
    add_side(item.SegmentedPropertyTypeCodeSequence[0], code)
    return item


def _frame_items(seg: Any) -> Iterator[Any]:
    """Everything in a SEG that names a frame of the scan."""
    for frame in seg.PerFrameFunctionalGroupsSequence:
        for derivation in frame.get("DerivationImageSequence", ()):
            yield from derivation.SourceImageSequence


def _refer_to_objects(seg: Any, finding: Finding) -> None:
    """Names the objects that the mask as a whole was made from."""
    seg.SourceImageSequence = object_items(finding.frames.objects())
    seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence = object_items(finding.frames.objects())


def _name_dimensions(seg: Any, uid: str) -> None:
    """Replaces the random UID of the dimensions, so that the same mask is the same object."""
    for item in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid


def _background_last(seg: Any) -> None:
    """Moves the background behind the structures: viewers that count items would shift every colour by one."""
    items = list(seg.SegmentSequence)
    seg.SegmentSequence = [item for item in items if item.SegmentNumber] + [
        item for item in items if not item.SegmentNumber
    ]
