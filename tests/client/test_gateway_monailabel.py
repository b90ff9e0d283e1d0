"""MONAI Label's own client, unchanged, gets the client's mask from the gateway, and one line for what there is not."""

from __future__ import annotations

import json
import re
import resource
import socket
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import requests
import SimpleITK as sitk

from tests.support.dicom_series import saved, slices
from tests.support.gateways import MODEL, Gateway, executions, gateway, settled, write_scan
from tests.support.tls_server import make_authority, make_identity
from tests.support.whole_scans import LONG_BATCHES
from voxtile import Segmenter
from voxtile.io.writing import write_image
from voxtile_server.embedded import EmbeddedServer

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it imports cgi
    from monailabel.client import MONAILabelClient
    from monailabel.client.client import MONAILabelClientException

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
"""The client leaves its connections and files to the garbage collector."""

LABELS = {"one": 1, "two": 2}
PAGE = Path(__file__).parents[2] / "docs/how-to/slicer.md"


@dataclass(frozen=True)
class Scans:
    """A scan in two formats and the client's masks of it, another scan of the same size, and a long one."""

    nifti: Path
    nrrd: Path
    other: Path
    long: Path
    masks: dict[str, bytes]


@pytest.fixture(scope="module")
def scans(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Scans:
    root = tmp_path_factory.mktemp("scans")
    nifti = write_scan(root / "DOE^JOHN.nii.gz", (41, 50, 38))
    nrrd, other = root / "DOE^JOHN.nrrd", root / "other.nii.gz"
    sitk.WriteImage(sitk.ReadImage(nifti), nrrd)
    nib.save(nib.Nifti1Image(np.asarray(nib.load(nifti).dataobj)[::-1], nib.load(nifti).affine), other)
    masks = {}
    with Segmenter(server.grpc_url, MODEL) as segmenter:
        for scan in (nifti, nrrd, other):
            loaded = segmenter.load(scan)
            found = segmenter.run(loaded).mask
            for ending in (".nii.gz", ".nrrd", ".mgz"):
                mask = root / f"mask{ending}"
                write_image(found, mask, loaded.volume)
                masks[scan.name + ending] = mask.read_bytes()
    assert masks[nifti.name + ".nii.gz"] != masks[other.name + ".nii.gz"]
    assert masks[nifti.name + ".nrrd"] != masks[nrrd.name + ".nrrd"]  # which repeats the scan's own words
    return Scans(nifti, nrrd, other, write_scan(root / "long.nii.gz", (150, 150, 140)), masks)


@pytest.fixture(scope="module")
def one(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One scan at once, one waiting."""
    limits = ("--waiting", "1", "--max-upload", "20", "--max-ram", "700")
    with gateway(tmp_path_factory.mktemp("gateway"), "--url", server.grpc_url, *limits) as running:
        yield running


@pytest.fixture
def client(one: Gateway, tmp_path: Path) -> MONAILabelClient:
    return MONAILabelClient(one.url, str(tmp_path), "somebody")


def refused(call: Any) -> str:
    """What the client tells of a call that the gateway refuses."""
    with pytest.raises(MONAILabelClientException) as caught:
        call()
    told = str(caught.value.msg)
    assert "\n" not in told
    return told


def test_info_has_what_clients_build_their_menus_from(client: MONAILabelClient) -> None:
    info = client.info()
    assert set(info) >= {"name", "version", "labels", "models", "trainers", "strategies", "train_stats", "datastore"}
    assert "config" not in info  # 3D Slicer takes a server that has it for one that is too old
    model = info["models"][MODEL]
    assert (model["type"], model["dimension"], model["labels"]) == ("segmentation", 3, LABELS)
    assert {"one", "two"} <= set(info["labels"])
    assert "background" not in info["labels"]
    assert model["description"]
    assert not client.auth_enabled()
    assert not client.train_status(check_if_running=True)


def test_a_file_gives_the_clients_mask_in_the_format_that_is_asked_for(client: MONAILabelClient, scans: Scans) -> None:
    for ending in (".nii.gz", ".nrrd", ".mgz"):
        params = {"result_extension": ending, **client.info()["models"][MODEL]["config"]}
        mask, told = client.infer(MODEL, "unused", params, file=str(scans.nifti))
        assert mask.endswith(ending)
        assert Path(mask).read_bytes() == scans.masks[scans.nifti.name + ending]
        assert told["label_names"] == LABELS
        assert told["report"]["model"] == MODEL
        assert told["report"]["changes"] == []


def test_a_session_as_3d_slicer_has_one(client: MONAILabelClient, scans: Scans) -> None:
    number = client.create_session(str(scans.nrrd))["session_id"]
    assert client.get_session(number)["name"] == number
    params = {"result_extension": ".nrrd", "result_dtype": "uint8"}
    for _ in range(2):
        # Slicer names the volume as well, whatever it is called
        mask, _ = client.infer(MODEL, "3: HEAD/T1 <ax>", dict(params), session_id=number)
        assert Path(mask).read_bytes() == scans.masks[scans.nrrd.name + ".nrrd"]
    scan, found = sitk.ReadImage(scans.nrrd), sitk.ReadImage(mask)
    assert (found.GetSize(), found.GetSpacing()) == (scan.GetSize(), scan.GetSpacing())
    assert (found.GetOrigin(), found.GetDirection()) == (scan.GetOrigin(), scan.GetDirection())
    client.remove_session(number)
    assert "404" in refused(lambda: client.get_session(number))
    assert "404" in refused(lambda: client.infer(MODEL, "HEAD", {}, session_id=number))


def test_a_dicom_series_in_an_archive(
    one: Gateway, client: MONAILabelClient, server: EmbeddedServer, tmp_path: Path
) -> None:
    affine = np.array([[0, -1.2, 0, 9], [-1, 0, 0, 4], [0, 0, 2.5, -7], [0, 0, 0, 1.0]])
    voxels = np.random.default_rng(3).integers(1, 900, (33, 35, 34)).astype(np.int16)
    folder, archive = saved(slices(voxels, affine), tmp_path / "series"), tmp_path / "series.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in folder.iterdir():
            packed.write(file, file.name)
    with Segmenter(server.grpc_url, MODEL) as segmenter:
        write_image(segmenter.segment(folder).mask, tmp_path / "mask.nii.gz")
    number = json.loads(one.curl("/session/?uncompress=true", "-X", "PUT", "-F", f"files=@{archive}")[2])["session_id"]
    mask, _ = client.infer(MODEL, "any", {}, session_id=number)
    assert Path(mask).read_bytes() == (tmp_path / "mask.nii.gz").read_bytes()


def test_an_image_is_sent_segmented_labelled_and_found_again(
    client: MONAILabelClient, scans: Scans, tmp_path: Path
) -> None:
    name = "Ärm 3: DOE^JOHN"
    before = client.datastore()["objects"]
    assert client.upload_image(str(scans.nifti), name) == {"image": name}
    assert client.upload_image(str(scans.nifti), name) == {"image": name}  # the same bytes once more
    assert set(client.datastore()["objects"]) - set(before) == {name}
    assert client.next_sample("first", {})["id"] == name
    mask, _ = client.infer(MODEL, name, {"overlap": 0.25})
    assert Path(mask).read_bytes() != scans.masks[scans.nifti.name + ".nii.gz"]
    mask, _ = client.infer(MODEL, name, {})
    assert Path(mask).read_bytes() == scans.masks[scans.nifti.name + ".nii.gz"]

    first = tmp_path / "first.nii.gz"
    first.write_bytes(b"an earlier label")
    client.save_label(name, str(first), params={"label_info": [{"name": "one", "idx": 1}]})
    saved = client.save_label(name, mask, params={"label_info": [{"name": "one", "idx": 1}]})
    assert saved["label"] == name
    assert "3600 s" in saved["note"]
    assert Path(client.download_label(name, "final")).read_bytes() == Path(mask).read_bytes()
    entry = client.datastore()["objects"][name]
    assert entry["image"]["ext"] == entry["labels"]["final"]["ext"] == ".nii.gz"
    assert entry["labels"]["final"]["info"]["label_info"] == [{"name": "one", "idx": 1}]
    assert client.info()["datastore"]["completed"] == 1
    assert client.next_sample("first", {}) == {}
    assert "404" in refused(lambda: client.download_label(name, "original"))


def test_a_name_never_stands_for_two_images(one: Gateway, client: MONAILabelClient, scans: Scans) -> None:
    client.upload_image(str(scans.nifti), "CT")
    assert "409" in refused(lambda: client.upload_image(str(scans.other), "CT"))
    mask, _ = client.infer(MODEL, "CT", {})
    assert Path(mask).read_bytes() == scans.masks[scans.nifti.name + ".nii.gz"]
    assert one.curl("/datastore/image?image=CT")[2] == scans.nifti.read_bytes()
    look = ("-I", "-o", "/dev/null")
    assert one.curl("/datastore/image?image=CT", *look)[0] == 200
    assert one.curl("/datastore/?id=CT", "-X", "DELETE")[0] == 200
    assert one.curl("/datastore/image?image=CT", *look)[0] == 404
    assert "404" in refused(lambda: client.infer(MODEL, "CT", {}))
    client.upload_image(str(scans.other), "CT")
    mask, _ = client.infer(MODEL, "CT", {})
    assert Path(mask).read_bytes() == scans.masks[scans.other.name + ".nii.gz"]
    one.curl("/datastore/image?id=CT", "-X", "DELETE")


@pytest.mark.parametrize("output", ["image", "json", "all"])
def test_an_answer_is_the_mask_or_what_there_is_to_say_or_both(one: Gateway, scans: Scans, output: str) -> None:
    status, headers, body = one.curl(f"/infer/{MODEL}?output={output}", "-F", f"file=@{scans.nifti}")
    assert status == 200
    mask = scans.masks[scans.nifti.name + ".nii.gz"]
    if output == "image":
        assert body == mask
        assert headers["content-disposition"].endswith('.nii.gz"')
    elif output == "json":
        assert json.loads(body)["label_names"] == LABELS
    else:
        assert mask in body
        assert headers["content-type"].startswith("multipart/form-data")
    (spool,) = one.folder.iterdir()
    while any(spool.glob("*/mask*")):  # the files of a mask that was sent go just after it
        time.sleep(0.05)


FILE = ("-F", "file=@SCAN")
INFER = f"/infer/{MODEL}"


@pytest.mark.parametrize(
    ("path", "arguments", "status", "said"),
    [
        ("/infer/nothing", FILE, 404, "'nothing' is not offered"),
        (INFER, ("-X", "POST"), 422, "found none"),
        (INFER, ("-d", "params={}"), 422, "found none"),
        (INFER, ("-F", "file=no scan at all;filename=scan.nii.gz"), 422, "expected a NIfTI"),
        (INFER, ("-F", "file=;filename=scan.nii.gz"), 422, "empty"),
        (INFER, (*FILE, *FILE), 422, "expected one channel"),
        (INFER, (*FILE, "-F", "label=@SCAN"), 422, "label"),
        (INFER, ("-F", "scan=@SCAN"), 422, "'scan'"),
        (INFER, ("--data-binary", "@SCAN"), 422, "found none"),
        (INFER, ("--data-binary", "@SCAN", "-H", "Content-Type: application/gzip"), 422, "multipart/form-data"),
        (INFER, (*FILE, "-F", "params=nothing"), 422, "JSON"),
        (INFER, (*FILE, "-F", "params=[1]"), 422, "JSON"),
        (INFER, (*FILE, "-F", 'params={"overlap": 7}'), 422, "overlap"),
        (INFER, (*FILE, "-F", 'params={"overlpa": 0.5}'), 422, "'overlpa'"),
        (INFER, (*FILE, "-F", 'params={"foreground": [[1, 2, 3]]}'), 422, "'foreground'"),
        (INFER, (*FILE, "-F", 'params={"save_label": true}'), 422, "'save_label'"),
        (INFER, (*FILE, "-F", 'params={"result_extension": "/../../x.nii.gz"}'), 422, "result_extension"),
        (INFER, (*FILE, "-F", 'params={"result_extension": ".nhdr"}'), 422, "result_extension"),
        (INFER, (*FILE, "-F", 'params={"result_extension": 7}'), 422, "result_extension"),
        (f"{INFER}?output=dicom_seg", FILE, 501, "json"),
        (f"{INFER}?output=png", FILE, 422, "'png'"),
        (f"{INFER}?image=..%2f..%2fetc%2fpasswd", ("-X", "POST"), 404, "no image"),
        (f"{INFER}?session_id=guessed", ("-X", "POST"), 404, "no session"),
        (f"{INFER}?session_id=guessed", FILE, 422, "found two"),
        ("/infer/wsi/other", ("-X", "POST"), 501, "whole-slide"),
        ("/datastore/?image=..%2fetc", ("-X", "PUT", *FILE), 422, "without /"),
        ("/datastore/?image=.hidden", ("-X", "PUT", *FILE), 422, "dot"),
        ("/datastore/?image=a%0d%0ab", ("-X", "PUT", *FILE), 422, "letters"),
        ("/datastore/?image=two", ("-X", "PUT", *FILE, *FILE), 422, "found 2"),
        ("/datastore/?image=none", ("-X", "PUT"), 422, "found 0"),
        ("/datastore/?output=everything", (), 422, "stats"),
        ("/datastore/image?image=..%2f..%2fetc%2fpasswd", (), 404, "no image"),
        ("/datastore/image", (), 404, "no image"),
        ("/datastore/label?label=none&tag=final", (), 404, "no image"),
        ("/datastore/label?image=none", ("-X", "PUT", "-F", "label=@SCAN"), 404, "no image"),
        ("/datastore/dataset", (), 501, "datastore"),
        ("/session/", ("-X", "PUT"), 422, "'files'"),
        ("/session/?expiry=soon", ("-X", "PUT", "-F", "files=@SCAN"), 422, "'soon'"),
        ("/session/guessed", (), 404, "no session"),
        ("/session/guessed", ("-X", "DELETE"), 404, "no session"),
        ("/activelearning/random", ("-X", "POST"), 404, "first"),
        ("/train/", (), 501, "training"),
        ("/train/any", ("-X", "POST"), 501, "training"),
        ("/logs/", (), 501, "log"),
        ("/scoring/dice", ("-X", "POST"), 501, "scoring"),
        ("/batch/infer/any", ("-X", "POST"), 501, "voxtile batch"),
    ],
)
def test_refusals_are_one_line_with_the_right_status(
    one: Gateway, scans: Scans, path: str, arguments: tuple[str, ...], status: int, said: str
) -> None:
    found, told = one.error(path, *(word.replace("SCAN", str(scans.nifti)) for word in arguments))
    assert (found, said in told) == (status, True), told
    assert str(one.folder) not in told


def test_a_full_queue_refuses_at_once_and_whoever_goes_away_ends_the_work(
    one: Gateway, client: MONAILabelClient, scans: Scans, server: EmbeddedServer, tmp_path: Path
) -> None:
    before = settled(server)
    command = ["curl", "-sS", "-F", f"file=@{scans.long}", f"{one.url}{INFER}"]
    callers = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    while executions(server) < before + 3 or b"voxtile_jobs 2.0" not in one.curl("/metrics")[2]:
        time.sleep(0.05)
    large = tmp_path / "large.nii"
    large.write_bytes(bytes(15_000_000))
    assert "429" in refused(lambda: client.infer(MODEL, "any", {}, file=str(large)))
    for caller in callers:
        caller.kill()
        caller.wait()
    assert settled(server) < before + LONG_BATCHES
    mask, _ = client.infer(MODEL, "any", {}, file=str(scans.nifti))
    assert Path(mask).read_bytes() == scans.masks[scans.nifti.name + ".nii.gz"]


def test_what_is_not_used_goes_away_by_itself(server: EmbeddedServer, scans: Scans, tmp_path: Path) -> None:
    with gateway(tmp_path / "run", "--url", server.grpc_url, "--datastore-keep", "4") as short:
        client = MONAILabelClient(short.url, str(tmp_path))
        number = client.create_session(str(scans.nifti))["session_id"]
        client.upload_image(str(scans.nifti), "CT")
        (spool,) = short.folder.iterdir()
        assert list(spool.iterdir())
        while list(spool.iterdir()):  # nobody asks for it
            time.sleep(0.1)
        assert "404" in refused(lambda: client.infer(MODEL, "CT", {}, session_id=number))
        assert "404" in refused(lambda: client.infer(MODEL, "CT", {}))
        assert client.datastore()["objects"] == {}


def test_the_datastore_is_bounded_and_sessions_give_way(server: EmbeddedServer, scans: Scans, tmp_path: Path) -> None:
    size = scans.nifti.stat().st_size + 10_000
    with gateway(tmp_path / "run", "--url", server.grpc_url, "--datastore", str(2.5 * size / 2**20)) as small:
        client = MONAILabelClient(small.url, str(tmp_path))
        numbers = [client.create_session(str(scans.nifti))["session_id"] for _ in range(3)]
        (spool,) = small.folder.iterdir()
        assert len(list(spool.iterdir())) == 2
        assert "404" in refused(lambda: client.get_session(numbers[0]))
        client.infer(MODEL, "any", {}, session_id=numbers[1])  # used just now, so the other one gives way
        client.upload_image(str(scans.nifti), "first")
        assert "404" in refused(lambda: client.get_session(numbers[2]))
        assert client.get_session(numbers[1])
        client.upload_image(str(scans.nifti), "second")
        assert "507" in refused(lambda: client.upload_image(str(scans.nifti), "third"))
        assert "507" in refused(lambda: client.save_label("first", str(scans.nifti)))
        assert set(client.datastore()["objects"]) == {"first", "second"}
        assert len(list(spool.iterdir())) == 2


def test_an_upload_that_is_cut_off_leaves_nothing(one: Gateway, client: MONAILabelClient) -> None:
    client.info()
    host, port = one.url.removeprefix("http://").split(":")
    (spool,) = one.folder.iterdir()
    before = set(spool.iterdir())
    for path in ("/session/", "/datastore/?image=cut"):
        with socket.create_connection((host, int(port))) as caller:
            head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n"
            kind = "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
            part = 'Content-Disposition: form-data; name="file"; filename="a.nii"\r\n\r\nthe beginning'
            caller.sendall(f"{head}{kind}{part}".encode())
            while set(spool.iterdir()) == before:
                time.sleep(0.02)
        while set(spool.iterdir()) != before:
            time.sleep(0.02)
    assert "cut" not in client.datastore()["objects"]


def test_an_operator_may_have_no_datastore(server: EmbeddedServer, scans: Scans, tmp_path: Path) -> None:
    with gateway(tmp_path / "run", "--url", server.grpc_url, "--datastore", "0") as closed:
        client = MONAILabelClient(closed.url, str(tmp_path))
        assert "403" in refused(lambda: client.create_session(str(scans.nifti)))
        assert "403" in refused(lambda: client.upload_image(str(scans.nifti), "CT"))
        assert client.datastore()["objects"] == client.next_sample("first", {}) == {}
        mask, _ = client.infer(MODEL, "any", {}, file=str(scans.nifti))
        assert Path(mask).read_bytes() == scans.masks[scans.nifti.name + ".nii.gz"]


def test_a_token_is_a_password_and_one_caller_sees_nothing_of_another(
    server: EmbeddedServer, scans: Scans, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("first-one\nsecond-öne\n", encoding="utf-8")

    def signed_in(url: str, password: str) -> MONAILabelClient:
        client = MONAILabelClient(url, str(tmp_path), "somebody")
        assert client.auth_enabled()
        client.update_auth(client.auth_token("somebody", password))
        return client

    with gateway(tmp_path / "run", "--url", server.grpc_url, "--token-file", str(tokens)) as closed:
        nobody = MONAILabelClient(closed.url, str(tmp_path))
        assert "401" in refused(lambda: nobody.auth_token("somebody", "third-one"))
        assert not nobody.auth_valid_token()
        sign_in = ("/auth/token", "-F", "password=first-one", "-F")
        assert closed.error(*sign_in, "file=a scan;filename=scan.nii")[0] == 422
        assert closed.error(*sign_in, f"username={'x' * 100_000}")[0] == 413
        assert "401" in refused(nobody.info)
        assert "401" in refused(lambda: nobody.upload_image(str(scans.nifti), "CT"))
        assert signed_in(closed.url, "first-one").auth_valid_token()
        signed_in(closed.url, "first-one").upload_image(str(scans.nifti), "CT")
        number = signed_in(closed.url, "first-one").create_session(str(scans.nifti))["session_id"]

        def first() -> MONAILabelClient:
            return signed_in(closed.url, "first-one")  # the client sends the headers of one call again with the next

        known = ("-H", "Authorization: Bearer second-öne")
        assert json.loads(closed.curl("/datastore/?output=all", *known)[2])["objects"] == {}
        assert closed.error("/datastore/image?image=CT", *known)[0] == 404
        assert closed.error(f"/session/{number}", *known)[0] == 404
        assert closed.error(f"{INFER}?session_id={number}", "-X", "POST", *known)[0] == 404
        assert closed.error("/datastore/?id=CT", "-X", "DELETE", *known)[0] == 404
        assert closed.curl("/datastore/?image=CT", "-X", "PUT", "-F", f"file=@{scans.other}", *known)[0] == 200
        mask, _ = first().infer(MODEL, "CT", {})
        assert Path(mask).read_bytes() == scans.masks[scans.nifti.name + ".nii.gz"]


def test_whoever_is_refused_while_sending_reads_why(server: EmbeddedServer, tmp_path: Path) -> None:
    tokens, large = tmp_path / "tokens.txt", tmp_path / "large.nii"
    tokens.write_text("a-token\n")
    large.write_bytes(bytes(30_000_000))
    limits = ("--token-file", str(tokens), "--max-upload", "1")
    with gateway(tmp_path / "run", "--url", server.grpc_url, *limits) as closed:
        client = MONAILabelClient(closed.url, str(tmp_path))
        assert "401" in refused(lambda: client.infer(MODEL, "any", {}, file=str(large)))
        assert "401" in refused(lambda: client.create_session(str(large)))
        client.update_auth(client.auth_token("", "a-token"))
        assert "413" in refused(lambda: client.infer(MODEL, "any", {}, file=str(large)))


def test_a_disk_that_refuses_is_named_and_nothing_stays_on_it(
    server: EmbeddedServer, scans: Scans, tmp_path: Path
) -> None:
    with gateway(tmp_path / "run", "--url", server.grpc_url) as full:
        client = MONAILabelClient(full.url, str(tmp_path))
        assert client.info()["datastore"]["total"] == 0
        (spool,) = full.folder.iterdir()
        most = resource.prlimit(full.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(full.process.pid, resource.RLIMIT_FSIZE, (4096, most[1]))
        for call in (
            lambda: client.create_session(str(scans.nifti)),
            lambda: client.upload_image(str(scans.nifti), "CT"),
            lambda: client.infer(MODEL, "any", {}, file=str(scans.nifti)),
        ):
            told = refused(call)
            assert "507" in told
            assert str(full.folder) not in told
            assert list(spool.iterdir()) == []
        resource.prlimit(full.process.pid, resource.RLIMIT_FSIZE, most)
        mask, _ = client.infer(MODEL, "any", {}, file=str(scans.nifti))
        assert Path(mask).read_bytes() == scans.masks[scans.nifti.name + ".nii.gz"]


def test_over_https_the_client_checks_the_certificate_when_it_sends_a_session_as_the_page_says(
    server: EmbeddedServer, scans: Scans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = make_authority(tmp_path)
    own = make_identity(tmp_path, "gateway", authority)
    tls = ("--tls-certificate", str(own.certificate), "--tls-key", str(own.key))
    with gateway(tmp_path / "run", "--url", server.grpc_url, *tls) as encrypted:
        client = MONAILabelClient(encrypted.url.replace("http:", "https:"), str(tmp_path))
        assert MODEL in client.info()["models"]
        with pytest.raises(requests.exceptions.SSLError):
            client.create_session(str(scans.nifti))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.certificate))
        number = client.create_session(str(scans.nifti))["session_id"]
        mask, _ = client.infer(MODEL, "any", {}, session_id=number)
        assert Path(mask).read_bytes() == scans.masks[scans.nifti.name + ".nii.gz"]


def test_without_a_server_every_call_is_answered_in_one_line(scans: Scans, tmp_path: Path) -> None:
    with gateway(tmp_path / "run", "--url", "127.0.0.1:9") as alone:
        client = MONAILabelClient(alone.url, str(tmp_path))
        assert "503" in refused(client.info)
        assert "503" in refused(lambda: client.infer(MODEL, "any", {}, file=str(scans.nifti)))
        assert client.datastore()["objects"] == {}


def test_many_callers_at_once_get_their_own_masks(server: EmbeddedServer, scans: Scans, tmp_path: Path) -> None:
    found: dict[int, bytes] = {}
    with gateway(tmp_path / "run", "--url", server.grpc_url, "--at-once", "2") as open_one:

        def call(number: int) -> None:
            scan = (scans.nifti, scans.other)[number % 2]
            client = MONAILabelClient(open_one.url, str(tmp_path))
            session = client.create_session(str(scan))["session_id"]
            mask, _ = client.infer(MODEL, "the same name", {}, session_id=session)
            found[number] = Path(mask).read_bytes()

        threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    wanted = [scans.masks[scan.name + ".nii.gz"] for scan in (scans.nifti, scans.other)]
    assert found == {number: wanted[number % 2] for number in range(4)}


def test_the_pages_program_gives_the_clients_mask(one: Gateway, scans: Scans, tmp_path: Path) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "scan.nii.gz").write_bytes(scans.nifti.read_bytes())
    program = program.replace("http://localhost:8080", one.url).replace("brain-unet", MODEL)
    run = [sys.executable, "-W", "ignore", "-c", program]
    told = subprocess.run(run, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    mask = Path(told.split()[0])
    assert mask.read_bytes() == scans.masks[scans.nifti.name + ".nii.gz"]
    mask.unlink()
    assert str(LABELS) in told
