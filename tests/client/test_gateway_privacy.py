"""A scan full of canaries, sent to the gateway by every door, leaves no canary in answers, logs, metrics and names."""

from __future__ import annotations

import io
import json
import os
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support import dicom_series as series
from tests.support.canaries import NAMED, canaries, marked, names
from tests.support.gateways import Gateway, gateway
from tests.support.in_memory_gateway import NOTES
from tests.support.phantoms import affine_of, sampled
from voxtile.io.dicom.objects.quiet import quietly

SHAPE = (16, 17, 6)
AFFINE = affine_of(SHAPE, (2.0, 2.0, 4.0), "LPS")
GROUPS = (0x0008, 0x0010, 0x0018, 0x0020, 0x0040)
"""What a scanner and a department say of study, patient, series and order."""

NAME = NAMED.format(1)
"""What the caller calls a scan. A name may stand for a patient; only this caller hears it again."""


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Archives by what is odd about them."""
    root = tmp_path_factory.mktemp("scans")
    voxels = np.rint(sampled(SHAPE, AFFINE)).astype(np.int16)
    objects = marked(series.slices(voxels, AFFINE), *GROUPS)
    kinds = {"plain": objects, "a gap": [*objects[:2], *objects[3:]]}
    found = {}
    for kind, given in kinds.items():
        with quietly():
            series.saved(given, root / kind, lambda number: f"{NAMED.format(10 + number)}.dcm")
        found[kind] = packed(root / kind)
    damaged = sorted((root / "plain").iterdir())[2]
    damaged.write_bytes(damaged.read_bytes()[:9_000])
    return {**found, "damaged": packed(root / "plain", "damaged")}


def packed(folder: Path, name: str | None = None) -> Path:
    archive = folder.parent / (name or folder.name) / f"{NAME}.zip"
    archive.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(archive, "w") as written:
        for file in sorted(folder.glob("*.dcm")):
            written.write(file, file.name)
    return archive


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notes") / "files"


@pytest.fixture(scope="module")
def one(notes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose log is empty in the end, and which has touched no file that is called after a scan."""
    os.environ[NOTES] = str(notes)
    arguments = ("--url", "memory:1")
    with gateway(tmp_path_factory.mktemp("gateway"), *arguments, module="tests.support.in_memory_gateway") as running:
        yield running
        _, _, metrics = running.curl("/metrics")
        assert b"phantom" in metrics
        assert_clean(metrics)
    touched = notes.read_text()
    assert "/voxtile-gateway-" in touched
    assert_clean(touched.encode())
    del os.environ[NOTES]


def assert_clean(*answers: bytes) -> None:
    for answer in answers:
        assert canaries(answer) == set()
        assert names(answer) == set()


def asked(one: Gateway, path: str, *arguments: str | Path) -> tuple[int, bytes]:
    """Status and body, in which no canary of a tag is, nor in the headers."""
    status, headers, body = one.curl(path, *arguments)
    assert canaries(json.dumps(headers)) == canaries(body) == set()
    return status, body


KINDS = {"plain": 200, "a gap": 422, "damaged": 422}


@pytest.mark.parametrize("kind", KINDS)
def test_the_doors_of_the_gateway(one: Gateway, scans: dict[str, Path], kind: str) -> None:
    scan = scans[kind]
    for sent in (("-T", scan, "-X", "POST"), ("-F", f"scan=@{scan};filename={NAME}.zip")):
        status, body = asked(one, "/v1/models/phantom/mask", *sent)
        assert status == KINDS[kind], body
        assert NAME.encode() not in body
        status, body = asked(one, "/v1/models/phantom/mask", "-H", "Accept: text/event-stream", *sent)
        assert status == 200
        status, body = asked(one, "/v1/models/phantom/jobs", *sent)
        assert status == 202
        job = json.loads(body)["id"]
        while json.loads(asked(one, f"/v1/jobs/{job}")[1])["state"] in ("waiting", "running"):
            time.sleep(0.05)
        asked(one, f"/v1/jobs/{job}/mask")
        asked(one, f"/v1/jobs/{job}", "-X", "DELETE")


@pytest.mark.parametrize("kind", KINDS)
def test_the_doors_of_monai_label(one: Gateway, scans: dict[str, Path], kind: str) -> None:
    scan, sent = scans[kind], f"@{scans[kind]};filename={NAME}.zip"
    status, _ = asked(one, f"/datastore/?image={NAME}", "-X", "PUT", "-F", f"file={sent}")
    assert status == 200
    for path in ("/datastore/?output=all", "/datastore/?output=stats", f"/datastore/image/info?image={NAME}"):
        asked(one, path)
    status, _ = asked(one, f"/infer/phantom?image={NAME}", "-X", "POST")
    assert status == KINDS[kind]
    status, _ = asked(one, "/infer/phantom?output=json", "-F", f"file={sent}")
    assert status == KINDS[kind]
    label = ("-X", "PUT", "-F", f"label=@{scan};filename={NAME}.nii.gz", "-F", f'params={{"who": "{NAME}"}}')
    assert asked(one, f"/datastore/label?image={NAME}", *label)[0] == 200
    status, body = asked(one, "/session/", "-X", "PUT", "-F", f"files={sent}")
    assert status == 200
    session = json.loads(body)["session_id"]
    assert asked(one, f"/infer/phantom?session_id={session}", "-X", "POST")[0] == KINDS[kind]
    for path in (f"/session/{session}", f"/datastore/?id={NAME}"):
        asked(one, path, "-X", "DELETE")
    for path in ("/info/", "/logs/", "/train/", "/v1/nothing"):
        asked(one, path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_door_of_dicom(one: Gateway, scans: dict[str, Path], kind: str) -> None:
    """What is made holds the patient; headers, refusals and what is told of a job do not."""
    sent = ("-X", "POST", "-H", "Content-Type: application/zip", "-T", scans[kind])
    for query in ("", "?sr=true&sc=true&rtstruct=true"):
        status, headers, body = one.curl(f"/v1/models/phantom/dicom{query}", *sent)
        assert status == KINDS[kind], body
        assert_clean(json.dumps(headers).encode())
        assert names(body) == set() or status == 422  # the caller's own files
        assert (canaries(body) == set()) is (status == 422 or headers["content-type"] == "application/zip")
        if headers["content-type"] == "application/zip":
            assert set(zipfile.ZipFile(io.BytesIO(body)).namelist()) == {"seg.dcm", "sr.dcm", "sc.dcm", "rtstruct.dcm"}
    status, told = asked(one, "/v1/models/phantom/dicom/jobs", *sent)
    assert status == 202
    job = json.loads(told)["id"]
    while json.loads(told := asked(one, f"/v1/jobs/{job}")[1])["state"] in ("waiting", "running"):
        time.sleep(0.05)
    assert one.curl(f"/v1/jobs/{job}/dicom")[0] == KINDS[kind]
    asked(one, f"/v1/jobs/{job}", "-X", "DELETE")
    status, told = asked(one, "/v1/models/phantom/dicom", "-H", "Accept: text/event-stream", *sent)
    assert status == 200
