"""Scans come from a real Orthanc, and objects go into it, by DICOMweb and by DIMSE, whole or not at all."""

from __future__ import annotations

import ssl
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.uid import JPEG2000Lossless, RLELossless, generate_uid

from tests.support.dicom_series import saved, slices
from tests.support.orthanc import AET, Orthanc, free_ports, orthanc, rest, upload
from tests.support.phantoms import affine_of, sampled
from tests.support.tcp_relay import tcp_relay
from tests.support.tls_server import make_authority, make_identity
from voxtile.errors import AccessError, InputError, OutputError, ServerUnavailable, VoxtileError
from voxtile.io.scan import open_scan
from voxtile.pacs.access import Access
from voxtile.pacs.address import Address, Wanted, parse_source, parse_target
from voxtile.pacs.fetch import fetched
from voxtile.pacs.store import check_reachable, store
from voxtile.triton.connection import TlsConfig

pytestmark = [
    pytest.mark.system,
    # pynetdicom leaves the socket of a connection that was refused to the garbage collector.
    pytest.mark.filterwarnings("ignore:Exception ignored in.*<socket:pytest.PytestUnraisableExceptionWarning"),
]

SHAPE = (38, 33, 12)
AFFINE = affine_of(SHAPE, (1.2, 1.4, 2.5), codes="LPS", angles=(12.0, -7.0, 4.0))
VOXELS = np.rint(sampled(SHAPE, AFFINE)).astype(np.int16)

QUICK = Access(pauses_s=(0.05, 0.05))
CANARY = "CANARYVALUE"


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture(autouse=True)
def spools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where spools are made; whatever happens, nothing is left there."""
    place = tmp_path / "spools"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    assert not list(place.iterdir())


def made(**tags: Any) -> list[FileDataset]:
    return slices(VOXELS, AFFINE, PatientName=f"{CANARY}^Egg", **{"PatientID": generate_uid()[-20:], **tags})


def pushed(pacs: Orthanc, folder: Path, objects: list[FileDataset] | None = None) -> Wanted:
    """A series in the PACS, and in `folder`."""
    objects = made() if objects is None else objects
    upload(pacs, saved(objects, folder))
    return Wanted(objects[0].StudyInstanceUID, objects[0].SeriesInstanceUID)


def ways(pacs: Orthanc) -> dict[str, str]:
    return {"web": pacs.web, "node": pacs.node}


def source(way: str, wanted: Wanted) -> tuple[Address, Wanted]:
    """The address as a user writes it."""
    if "@" in way:
        return parse_source(way, wanted.study, wanted.series)
    series = "" if wanted.series is None else f"/series/{wanted.series}"
    return parse_source(f"{way}/studies/{wanted.study}{series}")


def refused(way: str, wanted: Wanted, access: Access = QUICK) -> VoxtileError:
    """What is said where a series is not fetched: one line without a UID or a name."""
    with pytest.raises(VoxtileError) as caught, fetched(*source(way, wanted), access):
        pass
    said = str(caught.value)
    assert not any(what in said for what in ("\n", CANARY, wanted.study, "/studies"))
    assert caught.value.exit_code == 2
    return caught.value


# Fetching ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["web", "node"])
@pytest.mark.parametrize("syntax", [None, JPEG2000Lossless, RLELossless])
def test_what_comes_is_the_scan_of_the_folder(pacs: Orthanc, tmp_path: Path, way: str, syntax: str | None) -> None:
    objects = made()
    for one in objects if syntax else ():
        one.compress(syntax, generate_instance_uid=False)
    wanted = pushed(pacs, tmp_path / "in", objects)
    there = open_scan(tmp_path / "in", ["scan"])
    with fetched(*source(ways(pacs)[way], wanted), QUICK) as came:
        assert stat.S_IMODE(came.folder.stat().st_mode) == 0o700
        assert came.warnings == ()
        volume = open_scan(came.folder, ["scan"])
        kept = {one.file_meta.TransferSyntaxUID for one in map(_read, came.folder.iterdir())}
        assert kept == {objects[0].file_meta.TransferSyntaxUID}  # as it is stored, not unpacked on the way
    assert not came.folder.exists()
    np.testing.assert_array_equal(volume.data, there.data)
    np.testing.assert_array_equal(volume.data[0], VOXELS)
    np.testing.assert_array_equal(volume.affine, there.affine)


def _read(file: Path) -> Any:
    return dcmread(file)


@pytest.mark.parametrize("way", ["web", "node"])
def test_a_study_comes_with_all_its_series(pacs: Orthanc, tmp_path: Path, way: str) -> None:
    study = generate_uid()
    for number, size in ((1, 12), (2, 5)):
        pushed(
            pacs,
            tmp_path / str(number),
            made(StudyInstanceUID=study, PatientID=study[-20:], SeriesNumber=number)[:size],
        )
    with fetched(*source(ways(pacs)[way], Wanted(study)), QUICK) as came:
        assert len(list(came.folder.iterdir())) == 17


@pytest.mark.parametrize("way", ["web", "node"])
def test_an_error_while_it_is_used_leaves_nothing(pacs: Orthanc, tmp_path: Path, way: str) -> None:
    wanted = pushed(pacs, tmp_path / "in")
    with pytest.raises(ZeroDivisionError), fetched(*source(ways(pacs)[way], wanted), QUICK):
        raise ZeroDivisionError


@pytest.mark.parametrize("way", ["web", "node"])
def test_a_uid_that_is_not_there(pacs: Orthanc, tmp_path: Path, way: str) -> None:
    wanted = pushed(pacs, tmp_path / "in")
    for other in (Wanted(wanted.study, generate_uid()), Wanted(generate_uid(), wanted.series), Wanted(generate_uid())):
        error = refused(ways(pacs)[way], other)
        assert isinstance(error, InputError)
        assert "found none there" in str(error)


def test_nobody_answers(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    for way in (f"http://localhost:{port}/dicom-web", f"{AET}@localhost:{port}", "A@no-such-host.invalid:104"):
        assert isinstance(refused(way, Wanted("1.2.3", "1.2.4")), ServerUnavailable)
        with pytest.raises(ServerUnavailable):
            check_reachable(parse_target(way), QUICK)


def test_what_is_no_such_service(pacs: Orthanc) -> None:
    wanted = Wanted("1.2.3", "1.2.4")
    refused(f"{AET}@localhost:{pacs.web_port}", wanted)
    refused(f"http://localhost:{pacs.node_port}/dicom-web", wanted)
    refused(f"{pacs.root}/none", wanted)
    refused(f"{pacs.root}/app", wanted)
    refused(f"https://localhost:{pacs.web_port}/dicom-web", wanted)


def test_a_title_that_it_does_not_have(pacs: Orthanc) -> None:
    error = refused(f"OTHER@localhost:{pacs.node_port}", Wanted("1.2.3"))
    assert isinstance(error, AccessError)
    assert "Called AE title not recognised" in str(error)


@pytest.mark.parametrize("way", ["web", "node"])
@pytest.mark.parametrize("after", [300, 12_000, 25_000])
def test_a_connection_that_breaks_once_is_made_again(pacs: Orthanc, tmp_path: Path, way: str, after: int) -> None:
    wanted = pushed(pacs, tmp_path / "in")
    port = pacs.web_port if way == "web" else pacs.node_port
    for skip in range(3):
        with tcp_relay(port, after, times=1, skip=skip) as relay:
            address = ways(pacs)[way].replace(str(port), str(relay))
            with fetched(*source(address, wanted), QUICK) as came:
                np.testing.assert_array_equal(open_scan(came.folder, ["scan"]).data[0], VOXELS)


@pytest.mark.parametrize("way", ["web", "node"])
@pytest.mark.parametrize("after", [0, 12_000])
def test_a_connection_that_always_breaks(pacs: Orthanc, tmp_path: Path, way: str, after: int) -> None:
    wanted = pushed(pacs, tmp_path / "in")
    port = pacs.web_port if way == "web" else pacs.node_port
    with tcp_relay(port, after) as relay:
        error = refused(ways(pacs)[way].replace(str(port), str(relay)), wanted)
    assert isinstance(error, ServerUnavailable)


# Storing ----------------------------------------------------------------------------------------------------


def one_file(folder: Path, **tags: Any) -> tuple[Path, FileDataset]:
    (one,) = made(**tags)[:1]
    return saved([one], folder) / "0000.dcm", one


def in_pacs(pacs: Orthanc, one: FileDataset) -> bytes | None:
    """An object as it is in the PACS, by WADO; None where it is not there once."""
    found = rest(pacs, "/tools/lookup", one.SOPInstanceUID.encode())
    if len(found) != 1:
        assert not found
        return None
    path = f"/studies/{one.StudyInstanceUID}/series/{one.SeriesInstanceUID}/instances/{one.SOPInstanceUID}"
    accept = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
    with urlopen(Request(pacs.web + path, headers=accept), timeout=60) as answer:
        _, _, body = answer.read().partition(b"\r\n\r\n")
    return bytes(body[: body.rindex(b"\r\n--")])


def test_what_is_stored_by_dicomweb_is_there_byte_for_byte_and_once(pacs: Orthanc, tmp_path: Path) -> None:
    file, one = one_file(tmp_path / "out")
    target = parse_target(pacs.web)
    check_reachable(target, QUICK)
    assert store([file], target, QUICK).stored == (file,)
    assert in_pacs(pacs, one) == file.read_bytes()
    assert store([file], target, QUICK).there == (file,)
    assert in_pacs(pacs, one) == file.read_bytes()


def test_what_is_stored_by_dimse_is_there_and_once(pacs: Orthanc, tmp_path: Path) -> None:
    file, one = one_file(tmp_path / "out")
    target = parse_target(pacs.node)
    check_reachable(target, QUICK)
    assert store([file], target, QUICK).stored == (file,)
    kept = in_pacs(pacs, one)
    assert kept is not None
    (tmp_path / "kept.dcm").write_bytes(kept)
    assert _read(tmp_path / "kept.dcm") == _read(file)
    assert store([file], target, QUICK).there == (file,)
    assert store([file], parse_target(pacs.web), QUICK).there == (file,)


def test_a_compressed_object_is_stored_as_it_is(pacs: Orthanc, tmp_path: Path) -> None:
    _, one = one_file(tmp_path / "out")
    one.compress(RLELossless, generate_instance_uid=False)
    file = saved([one], tmp_path / "rle") / "0000.dcm"
    store([file], parse_target(pacs.node), QUICK)
    kept = in_pacs(pacs, one)
    assert kept is not None
    (tmp_path / "kept.dcm").write_bytes(kept)
    assert _read(tmp_path / "kept.dcm").file_meta.TransferSyntaxUID == RLELossless
    assert _read(tmp_path / "kept.dcm").PixelData == one.PixelData


def test_a_labelmap_that_an_old_pacs_does_not_take(pacs: Orthanc, tmp_path: Path) -> None:
    labelmap = "1.2.840.10008.5.1.4.1.1.66.7"
    file, one = one_file(tmp_path / "out")
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = labelmap
    one.save_as(file, enforce_file_format=True)
    with pytest.raises(OutputError, match=r"does not take Label Map.*--seg binary, or its DICOMweb.*0 of 1 are"):
        store([file], parse_target(pacs.node), QUICK)
    assert in_pacs(pacs, one) is None
    store([file], parse_target(pacs.web), QUICK)
    assert in_pacs(pacs, one) == file.read_bytes()


@pytest.mark.parametrize("way", ["web", "node"])
def test_storing_over_a_connection_that_breaks(pacs: Orthanc, tmp_path: Path, way: str) -> None:
    port = pacs.web_port if way == "web" else pacs.node_port
    for skip in range(3):
        file, one = one_file(tmp_path / f"out{skip}")
        with tcp_relay(port, 5, times=1, skip=skip) as relay:
            store([file], parse_target(ways(pacs)[way].replace(str(port), str(relay))), QUICK)
        assert in_pacs(pacs, one) is not None
    file, one = one_file(tmp_path / "never")
    with tcp_relay(port, 5) as relay, pytest.raises(ServerUnavailable, match="0 of 1 are"):
        store([file], parse_target(ways(pacs)[way].replace(str(port), str(relay))), QUICK)


# Tokens and TLS ---------------------------------------------------------------------------------------------

PASSWORD = "Basic dm94dGlsZTpzZWNyZXQ="  # voxtile:secret


@dataclass(frozen=True)
class Guarded:
    """A PACS behind TLS that asks for a password by DICOMweb, and for a certificate by DIMSE."""

    web: str
    node: str
    plain_node: str
    tls: TlsConfig


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    authority = make_authority(folder)
    identity = make_identity(folder, "server", authority)
    tls = TlsConfig(authority.certificate, identity.certificate, identity.key)
    settings = {
        "AuthenticationEnabled": True, "RegisteredUsers": {"voxtile": "secret"}, "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(identity.certificate), "DicomTlsPrivateKey": str(identity.key),
        "DicomTlsTrustedCertificates": str(authority.certificate), "DicomTlsRemoteCertificateRequired": True,
    }  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(identity.certificate, identity.key)
    with orthanc(folder / "db", **settings) as pacs, tcp_relay(pacs.web_port, None, tls=context) as port:
        yield Guarded(f"https://localhost:{port}/dicom-web", f"dicoms://{pacs.node}", pacs.node, tls)


def test_a_guarded_pacs(guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/etc/ssl/certs/ca-certificates.crt")
    objects = made()
    files = sorted(saved(objects, tmp_path / "in").iterdir())
    wanted = Wanted(objects[0].StudyInstanceUID, objects[0].SeriesInstanceUID)
    web = Access(PASSWORD, guarded.tls, pauses_s=())
    node = Access(tls=guarded.tls, pauses_s=())
    assert len(store(files[:6], parse_target(guarded.web), web).stored) == 6
    assert len(store(files, parse_target(guarded.node), node).stored) == len(files) - 6
    for way, access in ((guarded.web, web), (guarded.node, node)):
        with fetched(*source(way, wanted), access) as came:
            np.testing.assert_array_equal(open_scan(came.folder, ["scan"]).data[0], VOXELS)


def test_a_guarded_pacs_refuses_others(guarded: Guarded) -> None:
    wanted = Wanted("1.2.3", "1.2.4")
    for token in (None, "Basic d3Jvbmc6d3Jvbmc=", "a-bearer's"):
        error = refused(guarded.web, wanted, Access(token, guarded.tls, pauses_s=()))
        assert isinstance(error, AccessError)
        assert "401" in str(error)
        assert str(token) not in str(error)
    assert "certificate" in str(refused(guarded.web, wanted, Access(PASSWORD, pauses_s=())))
    for access in (Access(pauses_s=()), Access(tls=TlsConfig(guarded.tls.ca), pauses_s=())):
        refused(guarded.node, wanted, access)
    refused(guarded.plain_node, wanted, Access(pauses_s=()))
