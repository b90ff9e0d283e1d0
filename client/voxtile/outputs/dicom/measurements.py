"""Writes volumes and intensities of the structures as a DICOM structured report (TID 1500) that refers to the SEG.

Knows nothing of servers.
"""

from __future__ import annotations

from typing import Any

from voxtile.outputs.dicom.codes import SIDES
from voxtile.outputs.dicom.finding import Finding
from voxtile.outputs.dicom.frames import Frames
from voxtile.outputs.dicom.items import concept
from voxtile.outputs.dicom.provenance import MANUFACTURER, algorithm_parameters, serial_number, series_number, sign
from voxtile.outputs.dicom.seg import check_installed
from voxtile.outputs.dicom.structures import Structure
from voxtile.outputs.dicom.texts import fitted, quietly
from voxtile.outputs.statistics import Statistics, statistics

DIGITS = 6
"""Significant digits of a measurement: more than any scan gives, and within the 16 characters of DICOM's numbers."""


def report_of(finding: Finding, seg: Any) -> Any:
    """The structured report of a segmentation.

    Args:
        finding: the segmentation.
        seg: its SEG, which the report refers to.

    Returns:
        The object, a pydicom Dataset with its file's header.

    Raises:
        MissingExtraError: a package is missing.
        OutputError: it cannot be made of this scan.
    """
    check_installed()
    with quietly("the structured report"):
        return _report(finding, seg)


def _report(finding: Finding, seg: Any) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    found = statistics(finding.volume.data[0], finding.labels, [one.value for one in finding.structures])
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=finding.identity.other("observer"),
        name=MANUFACTURER,
        manufacturer_name=MANUFACTURER,
        model_name=fitted(finding.card.name),
        serial_number=serial_number(finding.passport),
    )
    observer = hd.sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
    report = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion if _is_ct(finding.frames) else codes.SCT.ImagingProcedure,
        title=codes.DCM.ImagingMeasurementReport,
        imaging_measurements=[_group(finding, seg, one, found[one.value]) for one in finding.structures],
    )
    sr = hd.sr.Comprehensive3DSR(
        evidence=[seg, *_evidence(finding.frames)],
        content=report,
        series_instance_uid=finding.identity.series("sr"),
        series_number=series_number("sr"),
        sop_instance_uid=finding.identity.instance(f"sr {seg.SOPInstanceUID}"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        is_final=False,
    )
    sign(sr, finding, "measurements")
    return sr


def _evidence(frames: Frames) -> list[Any]:
    """A header for each object of the scan, with what names it."""
    from pydicom.dataset import Dataset

    headers = []
    for reference in frames.objects():
        header = Dataset()
        header.StudyInstanceUID, header.SeriesInstanceUID = (
            frames.first.StudyInstanceUID,
            frames.first.SeriesInstanceUID,
        )
        header.SOPClassUID, header.SOPInstanceUID = reference.sop_class, reference.sop_instance
        headers.append(header)
    return headers


def _group(finding: Finding, seg: Any, structure: Structure, found: Statistics) -> Any:
    import highdicom as hd

    code, passport = structure.code, finding.passport
    what, side = concept(code.value, code.meaning, code.scheme), code.laterality and concept(*SIDES[code.laterality])
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=finding.identity.tracking(structure.value), identifier=fitted(structure.name)
        ),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=seg.SOPClassUID,
            sop_instance_uid=seg.SOPInstanceUID,
            segment_number=structure.number,
            source_series=hd.sr.SourceSeriesForSegmentation(
                referenced_series_instance_uid=finding.frames.first.SeriesInstanceUID
            ),
        ),
        finding_type=what,
        finding_sites=[hd.sr.FindingSite(what, laterality=side)] if code.category == "anatomy" else None,
        algorithm_id=hd.sr.AlgorithmIdentification(
            name=fitted(finding.card.name),
            version=fitted(passport.version) or "1",
            parameters=[f"{key}: {value}" for key, value in algorithm_parameters(passport).items()],
        ),
        measurements=_measurements(finding, found),
    )


def _measurements(finding: Finding, found: Statistics) -> list[Any]:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    volume = found.voxels * finding.volume.voxel_ml
    result = [hd.sr.Measurement(codes.SCT.Volume, _rounded(volume), hd.sr.CodedConcept("ml", "UCUM", "milliliter"))]
    name, unit = _intensity(finding.frames)
    for derivation, value in (
        (codes.SCT.Mean, found.mean),
        (codes.SCT.Minimum, found.minimum),
        (codes.SCT.Maximum, found.maximum),
        (codes.SCT.StandardDeviation, found.deviation),
    ):
        if found.voxels:
            result.append(hd.sr.Measurement(name, _rounded(value), unit, derivation=derivation))
    return result


def _intensity(frames: Frames) -> tuple[Any, Any]:
    """What the voxels of a scan measure, and its unit. Only CT has one that all scanners share."""
    from pydicom.sr.codedict import codes

    if _is_ct(frames):
        return codes.DCM.AttenuationCoefficient, concept("[hnsf'U]", "Hounsfield unit", "UCUM")
    no_unit = concept("1", "no units", "UCUM")
    if frames.modality == "MR":
        return codes.DCM.MRSignalIntensity, no_unit
    return concept("voxtile-intensity", "Intensity as stored in the scan", "99VOXTILE"), no_unit


def _is_ct(frames: Frames) -> bool:
    return frames.modality == "CT"


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
