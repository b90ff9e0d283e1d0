"""Whatever a PACS answers by DIMSE, a series comes whole or not at all, and only what is stored is called so."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import RLELossless, generate_uid
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind, Verification

from tests.support.dicom_series import saved, slices
from tests.support.node_pacs import Node, node_pacs
from voxtile.errors import AccessError, InputError, OutputError, ServerUnavailable, VoxtileError
from voxtile.io.scan import open_scan
from voxtile.pacs.access import Access
from voxtile.pacs.address import parse_source, parse_target
from voxtile.pacs.fetch import fetched
from voxtile.pacs.store import check_reachable, store

# pynetdicom leaves the socket of a connection that was refused to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in.*<socket:pytest.PytestUnraisableExceptionWarning")

QUICK = Access(pauses_s=(0.0, 0.0))
CANARY = "CANARYVALUE"
VOXELS = np.arange(120, dtype=np.int16).reshape(6, 5, 4)
OBJECTS = slices(VOXELS, np.eye(4), PatientName=CANARY)
STUDY, SERIES = OBJECTS[0].StudyInstanceUID, OBJECTS[0].SeriesInstanceUID


@pytest.fixture(autouse=True)
def _spools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    place = tmp_path / "spools"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield
    assert not list(place.iterdir())


def fetch(node: Node, access: Access = QUICK, series: str | None = SERIES) -> tuple[Any, tuple[str, ...]]:
    with node_pacs(node) as address, fetched(*parse_source(address, STUDY, series), access) as came:
        return open_scan(came.folder, ["scan"]), came.warnings


def refusal(node: Node) -> VoxtileError:
    with pytest.raises(VoxtileError) as caught:
        fetch(node)
    said = str(caught.value)
    assert said.startswith("NODE@127.0.0.1:")
    assert not any(what in said for what in ("\n", CANARY, STUDY, SERIES))
    assert caught.value.exit_code == 2
    return caught.value


def test_a_series_and_a_study_come_whole() -> None:
    for series in (SERIES, None):
        volume, warnings = fetch(Node(OBJECTS, len(OBJECTS)), series=series)
        there = open_scan(saved(OBJECTS, Path(tempfile.gettempdir()).parent / generate_uid()), ["scan"])
        np.testing.assert_array_equal(volume.data, there.data)
        np.testing.assert_array_equal(volume.affine, there.affine)
        assert warnings == ()


def test_a_pacs_that_does_not_count_is_named() -> None:
    assert "does not say how many objects" in fetch(Node(OBJECTS, None))[1][0]


def test_slices_that_are_missing() -> None:
    assert "expected the 4 objects that it has of the series, found 3" in str(refusal(Node(OBJECTS, 4, sends=[3])))
    assert "found none" in str(refusal(Node(OBJECTS, 4, sends=[0])))
    assert "found none there" in str(refusal(Node(OBJECTS, 0)))


def test_a_connection_that_is_broken_is_made_again() -> None:
    node = Node(OBJECTS, 4, sends=[-1, -1, None])
    assert fetch(node)[0].data.shape[1:] == VOXELS.shape
    assert node.calls.count("C-GET") == 3
    node = Node(OBJECTS, 4, sends=[-1])
    assert isinstance(refusal(node), ServerUnavailable)
    assert node.calls.count("C-GET") == 3


def test_services_that_it_does_not_offer() -> None:
    for services, name in (
        ((Verification,), "C-FIND"),
        ((Verification, StudyRootQueryRetrieveInformationModelFind), "C-GET"),
    ):
        error = refusal(Node(OBJECTS, 4, services=services))
        assert isinstance(error, InputError)
        assert f"offers {name}, found none; use its DICOMweb" in str(error)


def stored(tmp_path: Path, node: Node) -> Any:
    """Stores an object; gives what is told, or the error."""
    files = sorted(saved(OBJECTS[:1], tmp_path / generate_uid()).iterdir())
    with node_pacs(node) as address:
        try:
            return store(files, parse_target(address), QUICK)
        except VoxtileError as error:
            said = str(error)
            assert not any(what in said for what in ("\n", CANARY, STUDY, OBJECTS[0].SOPInstanceUID))
            assert "0000.dcm is not stored, 0 of 1 are" in said
            return error


@pytest.mark.parametrize("status", [0x0000, 0xB000])
def test_an_object_is_stored_once(tmp_path: Path, status: int) -> None:
    node = Node(statuses=[status])
    assert len(stored(tmp_path, node).stored) == 1
    assert len(stored(tmp_path, node).there) == 1
    assert [one.SOPInstanceUID for one in node.stored] == [OBJECTS[0].SOPInstanceUID]
    assert node.stored[0].PixelData == OBJECTS[0].PixelData


def test_a_node_without_queries_takes_objects_too(tmp_path: Path) -> None:
    assert len(stored(tmp_path, Node(services=(Verification,))).stored) == 1


@pytest.mark.parametrize("status", [0x0122, 0xA900, 0xC123, 0x0124])
def test_what_is_not_stored_is_not_called_stored(tmp_path: Path, status: int) -> None:
    node = Node(statuses=[status])
    error = stored(tmp_path, node)
    assert isinstance(error, OutputError)
    assert f"status {status:04X}" in str(error)
    assert node.calls.count("C-STORE") == 1


def test_storing_is_tried_again(tmp_path: Path) -> None:
    node = Node(statuses=[0xA700, None, 0])
    assert len(stored(tmp_path, node).stored) == 1
    assert node.calls.count("C-STORE") == 3
    assert isinstance(stored(tmp_path, Node(statuses=[0xA700])), OutputError)
    assert isinstance(stored(tmp_path, Node(statuses=[None])), ServerUnavailable)


def test_a_kind_that_it_does_not_take(tmp_path: Path) -> None:
    assert "does not take CT Image Storage in Explicit VR Little Endian" in str(stored(tmp_path, Node(kinds=())))
    (one,) = slices(VOXELS[:, :, :1], np.eye(4))
    one.compress(RLELossless, generate_instance_uid=False)
    file = saved([one], tmp_path / "rle") / "0000.dcm"
    with node_pacs(Node()) as address, pytest.raises(OutputError, match="does not take CT Image Storage in RLE"):
        store([file], parse_target(address), QUICK)


def test_titles_that_it_does_not_know() -> None:
    def strict(entity: Any) -> None:
        entity.require_called_aet = True
        entity.require_calling_aet = ["KNOWN"]

    with node_pacs(Node(), strict) as address:
        check_reachable(parse_target(address), Access(aet="KNOWN", pauses_s=()))
        for other, access in ((address, QUICK), (address.replace("NODE", "OTHER"), Access(aet="KNOWN", pauses_s=()))):
            with pytest.raises(AccessError, match="AE title not recognised"):
                check_reachable(parse_target(other), access)


def test_nothing_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    fetch(Node(OBJECTS, 4))
    stored(tmp_path, Node())
    assert not any(what in caplog.text for what in (STUDY, SERIES, CANARY, OBJECTS[0].SOPInstanceUID))
