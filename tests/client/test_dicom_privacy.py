"""Nothing of a patient leaves by a way that nobody looks at: a canary in every tag, and none in what is said or left.

The patient and the study stand in the objects that are written, for an archive files them by these, and nowhere else.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import sys
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataset import FileDataset
from pydicom.tag import Tag

from tests.support import dicom_findings as made
from tests.support import dicom_series as series
from tests.support.canaries import NAMED, canaries, elements, marked, names, retyped, with_text
from tests.support.commands import run
from tests.support.in_memory import InMemoryTransport
from tests.support.node_pacs import Node, node_pacs
from tests.support.web_pacs import Answer, Call, parts, web_pacs
from voxtile import Segmenter
from voxtile.errors import VoxtileError
from voxtile.io.dicom.choice import SeriesChoice
from voxtile.io.dicom.objects.quiet import quietly
from voxtile.io.dicom.source import Source
from voxtile.io.given import Given
from voxtile.io.scan import open_scan
from voxtile.outputs.dicom.frames import CHECKED, OPTIONAL, VERBATIM, frames_of
from voxtile.outputs.page import pack

MODEL = ("--model", "phantom", "--url", "memory:1")
CARD = made.card_for(["liver", "kidney_left", "odd"])
SHAPE = (16, 16, 5)
USUAL = (0x0008, 0x0010, 0x0020)
"""The groups of study, patient and series."""

FOLDER, ARCHIVE = NAMED.format(1), NAMED.format(2)

PATIENT_AND_STUDY = frozenset(
    {
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "IssuerOfPatientID", "PatientAge", "PatientSize",
        "PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod", "LongitudinalTemporalInformationModified",
        "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID",
        "ClinicalTrialSiteName", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID", "StudyInstanceUID",
        "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber", "ReferringPhysicianName",
        "FrameOfReferenceUID", "ReferencedFrameOfReferenceUID", "PositionReferenceIndicator", "SeriesInstanceUID",
        "ReferencedSOPInstanceUID", "UID", "BodyPartExamined", "LossyImageCompression",
    }
)  # fmt: skip
"""What an object may repeat of its source: whom and what it belongs to, and what it refers to."""


def levels(tiles: NDArray[Any]) -> NDArray[Any]:
    """Scores by brightness."""
    value = tiles[:, :1]
    return np.concatenate(
        [np.full_like(value, 50.0), *(np.where(value > limit, limit, 0.0) for limit in (100.0, 400.0, 600.0))], axis=1
    ).astype(np.float32)


class Watch(logging.Handler):
    """Notes all that is said and every file that is touched, but for the scan's own."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.said: list[str] = []
        self.touched: set[str] = set()
        self.on = False
        self.scan = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(f"{record.getMessage()} {logging.Formatter().formatException(record.exc_info)}"
                         if record.exc_info else record.getMessage())  # fmt: skip

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python calls it before it opens, makes or renames anything."""
        if self.on and event.partition(".")[0] in ("open", "os", "tempfile", "subprocess", "shutil"):
            self.touched |= {str(one) for one in arguments if isinstance(one, (str, bytes, Path))}

    def check(self, *texts: str | bytes) -> None:
        """Nothing that was said or touched, nor `texts`, has a canary; no file elsewhere is named after the scan."""
        for text in (*self.said, *texts):
            assert canaries(text) == set(), text[:2000]
        for place in self.touched:
            assert canaries(place) == set()
            assert names(place) == set() or place.startswith(self.scan), place


WATCH = Watch()
sys.addaudithook(WATCH.hook)  # there is no way to take it out again


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Watches the test, with all loggers at their most talkative."""
    monkeypatch.setattr("voxtile.segmenter.connect_transport", lambda *_: InMemoryTransport(CARD, levels))
    WATCH.said, WATCH.touched, WATCH.scan = [], set(), str(tmp_path / NAMED[:4])
    root = logging.getLogger()
    level = root.level
    root.addHandler(WATCH)
    root.setLevel(logging.NOTSET)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        WATCH.on = True
        yield WATCH
        WATCH.on = False
    root.setLevel(level)
    root.removeHandler(WATCH)
    WATCH.check(*(str(one.message) for one in warned))


def objects(*groups: int) -> list[FileDataset]:
    """A series full of canaries; with `groups` only in these, which is quicker."""
    voxels, affine = made.scan(SHAPE)
    return marked(series.slices(voxels, affine), *groups)


def saved(folder: Path, given: Sequence[FileDataset]) -> Path:
    """A series in a folder whose own name and whose files' names are canaries of their kind."""
    with quietly():  # pydicom would complain here, of what this test does
        return series.saved(given, folder / FOLDER, lambda number: f"{NAMED.format(10 + number)}.dcm")


def zipped(folder: Path) -> Path:
    """The archive of a folder, beside it."""
    archive = folder.with_name(f"{ARCHIVE}.zip")
    with zipfile.ZipFile(archive, "w") as written:
        for file in sorted(folder.iterdir()):
            written.write(file, file.name)
    return archive


def in_full(file: Path) -> list[str | bytes]:
    """What a file says, and what is packed in it as Base64, as a page packs the scan."""
    content = file.read_bytes()
    packed = PACKED.findall(content) if file.suffix == ".html" else []
    assert len(packed) >= 2 or file.suffix != ".html"
    return [content, *(base64.b64decode(one) for one in packed)]


PACKED = re.compile(rb"(?<=>)H4sI[A-Za-z0-9+/]{100,}=*")
"""Something that gzip packed, as Base64."""


def test_only_patient_and_study_are_in_what_is_written(watch: Watch, tmp_path: Path) -> None:
    pack.pack()
    scan, out = saved(tmp_path, objects()), tmp_path / "out"
    out.mkdir()
    said = run(
        "dicom", scan, out, *MODEL, "--sr", "--sc", "--rtstruct", "--nifti", "--preview", out / "p.png", "--json",
        out / "r.json", "--page", out / "p.html",
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    watch.check(said.output)
    assert names(said.output) == set()
    written = sorted(out.iterdir())
    assert len(written) == 8
    for file in written:
        assert names(file.read_bytes()) == set(), file.name
        if file.suffix != ".dcm":
            watch.check(*in_full(file))
            continue
        whole = dcmread(file)
        bearing = {Tag(one.tag): one.keyword for one in elements(whole) if canaries(str(one.value))}
        assert set(bearing.values()) <= PATIENT_AND_STUDY, file.name
        assert {"PatientName", "PatientID", "StudyInstanceUID"} <= set(bearing.values())
        why = run("why", file, "--json")
        assert why.exit_code == 0, why.output
        watch.check(why.output)


def test_masks_in_other_formats_and_what_python_returns(watch: Watch, tmp_path: Path) -> None:
    scan = saved(tmp_path, objects())
    for place in (scan, zipped(scan)):
        said = run("segment", place, *MODEL, "-o", tmp_path / "mask.nii.gz", "--json", "-", "-q")
        assert said.exit_code == 0, said.output
        watch.check(said.output)
        assert canaries((tmp_path / "mask.nii.gz").read_bytes()) == set()
        assert names(said.output) == set()
    with Segmenter("memory:1", "phantom") as segmenter:
        loaded = segmenter.load(scan)
        found = segmenter.segment(scan)
    watch.check(repr(loaded), repr(loaded.volume))
    watch.check(repr(found), repr(found.report), repr(found.passport), repr(found.mask.header))


# What is refused, or read for all that -----------------------------------------------------------------------

Change = Callable[[list[FileDataset]], list[FileDataset]]


def each(change: Callable[[int, FileDataset], object]) -> Change:
    """Changes every object of a series by its number."""

    def changed(given: list[FileDataset]) -> list[FileDataset]:
        for number, one in enumerate(given):
            change(number, one)
        return given

    return changed


def moved(axis: int, by: Callable[[int], float]) -> Change:
    """Moves every slice along an axis of LPS by so many millimetres."""

    def move(number: int, one: FileDataset) -> None:
        place = list(map(float, one.ImagePositionPatient))
        place[axis] += by(number)
        one.ImagePositionPatient = [f"{value:.6g}" for value in place]

    return each(move)


def without(keyword: str) -> Change:
    return each(lambda _, one: one.__delattr__(keyword))


def as_two_series(given: list[FileDataset]) -> list[FileDataset]:
    for one in given[2:]:
        one.add_new("SeriesInstanceUID", "UI", f"{one.SeriesInstanceUID}.2")
    return given


CHANGES: dict[str, Change] = {
    "nothing": lambda given: given,
    "a gap": lambda given: [*given[:2], *given[2:]],
    "uneven": moved(2, lambda number: 0.7 * number**2),
    "two at one place": moved(2, lambda number: -4.0 if number == 1 else 0.0),
    "a tilt": moved(1, lambda number: 1.5 * number),
    "a moved table": moved(0, lambda number: 5.0 if number > 1 else 0.0),
    "two series": as_two_series,
    "no position": without("ImagePositionPatient"),
    "no spacing": without("PixelSpacing"),
    "no orientation": without("ImageOrientationPatient"),
    "no pixels": without("PixelData"),
    "one slice": lambda given: given[:1],
    "one slice without thickness": lambda given: without("SliceThickness")(given[:1]),
    "colours": each(lambda _, one: setattr(one, "PhotometricInterpretation", "RGB")),
    "too few pixels": each(lambda _, one: setattr(one, "PixelData", one.PixelData[:20])),
    "old bits": each(lambda _, one: setattr(one, "HighBit", 3)),
    "a localizer": each(lambda _, one: setattr(one, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"])),
    "a report": each(lambda _, one: setattr(one, "Modality", "SR")),
    "a report beside": lambda given: [*given[:-1], *each(lambda _, one: setattr(one, "Modality", "SR"))(given[-1:])],
    "a name as modality": each(lambda _, one: setattr(one, "Modality", "ZQ7X")),
    "UIDs that are words": each(lambda _, one: one.add_new("StudyInstanceUID", "LO", one.PatientID)),
}

PLACES = {
    "US": ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
    "DS": ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept",
           "SliceThickness"),
    "IS": ("NumberOfFrames", "SeriesNumber", "InstanceNumber"),
    "CS": ("Modality", "ImageType", "PhotometricInterpretation", "SpecificCharacterSet"),
    "UI": ("SOPClassUID", "TransferSyntaxUID"),
    "SQ": ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ModalityLUTSequence"),
}  # fmt: skip
"""What a scan is read by, by the kind of value."""


def said_of(place: Path, choice: SeriesChoice | None = None) -> str:
    """All that a program is told of a scan: its warnings and changes, or the error's whole traceback."""
    try:
        volume = open_scan(place, ["scan"], given=given_of(choice))
        assert isinstance(volume.native, Source)
        return repr((volume.warnings, volume.changes, frames_of(volume.native, "00").warnings))
    except VoxtileError as error:
        return "".join(traceback.format_exception(error))


def given_of(choice: SeriesChoice | None) -> Given:
    return Given(dicom=choice or SeriesChoice())


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_said_of_odd_series(watch: Watch, tmp_path: Path, change: str) -> None:
    place = saved(tmp_path, CHANGES[change](objects(*USUAL)))
    watch.check(said_of(place), said_of(place, SeriesChoice(gaps="fill", tilt="straighten")), said_of(zipped(place)))


@pytest.mark.parametrize(("kind", "keyword"), [(kind, one) for kind, all_of in PLACES.items() for one in all_of])
def test_what_is_said_of_words_in_place_of_numbers(watch: Watch, tmp_path: Path, kind: str, keyword: str) -> None:
    given = objects(*USUAL)
    with_text(given[1:], keyword)
    place = saved(tmp_path, given)
    _, *odd = sorted(place.iterdir())
    for file in odd:
        retyped(file, keyword, kind)
    watch.check(said_of(place), said_of(odd[0]))


@pytest.mark.parametrize("cut", [200, 5_000, 60_000, -100])
def test_what_is_said_of_damaged_files(watch: Watch, tmp_path: Path, cut: int) -> None:
    place = saved(tmp_path, objects(*USUAL))
    file = sorted(place.iterdir())[1]
    file.write_bytes(file.read_bytes()[:cut])
    watch.check(said_of(place), said_of(file))
    content = bytearray(file.read_bytes())
    content[150:-20:97] = b"\xff" * len(content[150:-20:97])
    file.write_bytes(content)
    watch.check(said_of(place), said_of(file), said_of(zipped(place)))


@pytest.mark.parametrize("change", ["a gap", "two series", "no pixels", "UIDs that are words"])
def test_what_commands_say_of_odd_series(watch: Watch, tmp_path: Path, change: str) -> None:
    place = saved(tmp_path, CHANGES[change](objects(*USUAL)))
    said = run("dicom", place, tmp_path / "out", *MODEL, "--json", tmp_path / "r.json", "--sr")
    watch.check(said.output)
    said = run("segment", place, *MODEL, "-o", tmp_path / "mask.nii.gz", "--json", "-")
    watch.check(said.output)


REPEATED = (
    *VERBATIM, *CHECKED, *OPTIONAL, "StudyInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID",
    "PositionReferenceIndicator", "BodyPartExamined", "LossyImageCompression", "SliceThickness", "RescaleType", "Units",
)  # fmt: skip
"""What the objects that are written repeat or look at, beside the series' place."""


def test_what_is_said_of_words_in_what_is_repeated(watch: Watch, tmp_path: Path) -> None:
    """Also where they are none of the kind that their tags should have, and the objects cannot be made of them."""
    given = objects(*USUAL)
    kinds = {keyword: kind for keyword in REPEATED if (kind := dictionary_VR(keyword)) != "SQ"}
    for keyword in kinds:
        with_text(given, keyword)
    place = saved(tmp_path, given)
    for file in place.iterdir():
        for keyword, kind in kinds.items():
            retyped(file, keyword, kind)
    options = ("--sr", "--sc", "--rtstruct", "--nifti", "--json", tmp_path / "r.json")
    said = run("dicom", place, tmp_path / "out", *MODEL, *options)
    assert "no valid form" in said.output
    watch.check(said.output, (tmp_path / "r.json").read_text())
    for file in (tmp_path / "out").glob("*.dcm"):
        watch.check(run("why", file).output)


# From a PACS and into it -------------------------------------------------------------------------------------


def holds(given: Sequence[FileDataset], posted: Answer) -> Callable[[Call], Answer]:
    """A PACS that has these objects, tells all of them when it is asked, and answers STOW-RS by `posted`."""
    with quietly():
        files = [encoded(one) for one in given]
        texts = given[0].copy()
        del texts.PixelData
        told = texts.to_json_dict(suppress_invalid_tags=True)
    told |= {"00201209": {"vr": "IS", "Value": [len(files)]}}

    def answer(call: Call) -> Answer:
        if call.method == "POST":
            return posted
        if "SOPInstanceUID" in call.path:
            return Answer(204)
        return parts(files) if "/series/" in call.path else Answer(body=json.dumps([told]).encode())

    return answer


def encoded(one: FileDataset) -> bytes:
    stream = io.BytesIO()
    one.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


WORDS = json.dumps({"00081198": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2.7719.1"]},
    "00081197": {"vr": "US", "Value": [272]}, "00000902": {"vr": "LO", "Value": ["ZQ7X9004"]}}]}})  # fmt: skip
"""An object that is not stored, in DICOM's JSON, with words of the PACS."""


FORBIDDEN, PAGE = Answer(409, WORDS.encode()), Answer(400, b"<p>ZQ7X9004 1.2.7719.1</p>", "text/html")


@pytest.mark.parametrize(("change", "posted"), [("nothing", FORBIDDEN), ("nothing", PAGE), ("a gap", FORBIDDEN)])
def test_what_is_said_on_the_way_from_and_to_a_pacs(watch: Watch, tmp_path: Path, change: str, posted: Answer) -> None:
    given = CHANGES[change](objects(*USUAL))
    wanted = ("--study", given[0].StudyInstanceUID, "--series", given[0].SeriesInstanceUID)
    with web_pacs(holds(given, posted)) as pacs:
        place = f"{pacs.web}/studies/{wanted[1]}/series/{wanted[3]}"
        said = run("dicom", tmp_path / "out", *MODEL, "--from", place, "--to", pacs.web, "--json", tmp_path / "r.json")
        assert said.exit_code == 2
        watch.check(said.output)
        if change == "nothing":
            assert "not store" in said.output or "400" in said.output
            watch.check((tmp_path / "r.json").read_text())
    node = Node(given, len(given) + 1)
    with node_pacs(node) as address:
        said = run("dicom", tmp_path / "none", *MODEL, "--from", address, *wanted)
        assert said.exit_code == 2
        watch.check(said.output)
