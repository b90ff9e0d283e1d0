"""A scan in, its mask out, by one request to Triton: the client's mask, to the byte, in every way that a page shows."""

from __future__ import annotations

import base64
import gzip
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput

from tests.support.whole_scans import clients_mask, mask_and_report, streamed, tensor, write_scan
from voxtile_build.repository.volume import VolumeSettings, write_volume_entries
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.options import ServerOptions

MODELS = ("small-unet", "identity")
EXTENT = (41, 50, 38)
LIMIT_MIB = 250
"""Of the whole process, which has some 80 MiB before its first scan."""


@dataclass(frozen=True)
class Served:
    """A server with scan entries, a scan, and the masks that the client writes for it."""

    server: EmbeddedServer
    scan: Path
    masks: dict[str, bytes]


@pytest.fixture(scope="module")
def served(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("volumes")
    for name in MODELS:
        # Room for a caller that runs and two that wait.
        write_volume_entries(name, repository, root / "scans here", VolumeSettings(queue=2, max_ram_mib=LIMIT_MIB))
    scan = write_scan(root / "scan.nii.gz", EXTENT)
    with EmbeddedServer(repository, ServerOptions(http_port=0, volume_repository=root / "scans here")) as server:
        yield Served(server, scan, {name: clients_mask(server.grpc_url, name, scan) for name in MODELS})
        server.kill()


def curl(served: Served, name: str, *arguments: str, scan: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    command = ["curl", "-sS", "-i", "-X", "POST", "-H", "Inference-Header-Content-Length: 0", *arguments]
    url = f"http://{served.server.http_url}/v2/models/{name}_scan/infer"
    return subprocess.run([*command, "-T", str(scan or served.scan), url], capture_output=True, check=True)


@pytest.mark.parametrize("name", MODELS)
def test_one_line_of_curl_gives_the_clients_mask(served: Served, name: str) -> None:
    mask, report = mask_and_report(curl(served, name).stdout)
    assert mask == served.masks[name]
    assert report["model"] == name
    assert report["shape"] == list(EXTENT)
    assert report["changes"] == []
    assert report["bytes_received"] > 0


def test_options_travel_as_headers_and_are_named(served: Served) -> None:
    mask, report = mask_and_report(curl(served, "small-unet", "-H", "Voxtile-Overlap: 0.25").stdout)
    assert report["changes"] == ["overlap 0.5 -> 0.25"]
    wanted = clients_mask(served.server.grpc_url, "small-unet", served.scan, overlap=0.25)
    assert mask == wanted != served.masks["small-unet"]


def test_a_mask_may_come_uncompressed(served: Served) -> None:
    mask, _ = mask_and_report(curl(served, "small-unet", "-H", "voxtile-compressed: false").stdout)
    plain = nib.Nifti1Image.from_bytes(mask)
    packed = nib.Nifti1Image.from_bytes(gzip.decompress(served.masks["small-unet"]))
    assert np.array_equal(plain.dataobj, packed.dataobj)


@pytest.mark.parametrize(
    ("arguments", "content", "said"),
    [
        (("-H", "voxtile-overlap: 2"), None, "overlap lies in [0, 1)"),
        (("-H", "voxtile-overlap: much"), None, "option overlap"),
        (("-H", "voxtile-overlaps: 0.5"), None, "unknown option 'overlaps'"),
        (("-H", "voxtile-max-ram-mib: 0.5"), None, "MiB"),
        ((), b"no scan at all", "image 1"),
        ((), b"", "image 1"),
    ],
)
def test_what_cannot_be_segmented_is_one_line_of_the_clients(
    served: Served, tmp_path: Path, arguments: tuple[str, ...], content: bytes | None, said: str
) -> None:
    scan = None if content is None else tmp_path / "scan.nii.gz"
    if scan is not None and content is not None:
        scan.write_bytes(content)
    answer = curl(served, "small-unet", *arguments, scan=scan).stdout
    assert b"HTTP/1.1 400" in answer
    text = json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"]
    assert said in text or content == b""  # Triton itself refuses an empty body
    assert "\n" not in text
    assert "Traceback" not in text


def test_the_entrys_limit_holds_whatever_a_caller_asks_for(served: Served, tmp_path: Path) -> None:
    """The file of this scan alone has more than LIMIT_MIB."""
    scan = tmp_path / "large.nii"
    header = nib.Nifti1Header()
    header.set_data_shape((400, 400, 600))
    header.set_data_dtype(np.int16)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    with scan.open("wb") as file:
        file.write(header.binaryblock + bytes(4))
        file.truncate(352 + 2 * 400 * 400 * 600)
    answer = curl(served, "small-unet", "-H", "voxtile-max-ram-mib: 100000", scan=scan).stdout
    assert b"HTTP/1.1 400" in answer
    assert b"MiB" in answer
    assert curl(served, "small-unet").stdout.endswith(served.masks["small-unet"])


def test_a_stream_tells_its_progress_and_then_the_mask(served: Served, tmp_path: Path) -> None:
    write_scan(tmp_path / "longer.nii.gz", (90, 80, 70))
    scan = tmp_path / "longer.nii.gz"
    with InferenceServerClient(served.server.grpc_url) as client:
        *before, last = streamed(client, "small-unet", [tensor(scan.read_bytes())])
    shares = [float(answer.as_numpy("progress")[0, 0]) for answer in (*before, last)]
    assert before  # how many there are is a matter of time
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert last.as_numpy("mask").tobytes() == clients_mask(served.server.grpc_url, "small-unet", scan)


def test_a_stream_of_no_scan_ends_with_the_clients_line(served: Served) -> None:
    with InferenceServerClient(served.server.grpc_url) as client:
        (error,) = streamed(client, "small-unet", [tensor(b"no scan")])
    assert "image 1" in str(error)


def text(value: str) -> InferInput:
    given = InferInput("scan_base64", [1, 1], "BYTES")
    given.set_data_from_numpy(np.array([[value]], object))
    return given


def test_a_stream_takes_a_scan_in_one_form_and_no_other(served: Served) -> None:
    scan = served.scan.read_bytes()
    with InferenceServerClient(served.server.grpc_url) as client:
        *_, last = streamed(client, "small-unet", [text(base64.encodebytes(scan).decode())])
        assert base64.b64decode(last.as_numpy("mask_base64").item()) == served.masks["small-unet"]
        assert last.as_numpy("mask") is None
        (both,) = streamed(client, "small-unet", [tensor(scan), text("AAAA")])
    assert "expected the scan in scan (bytes) or in scan_base64 (a text), found 2 of them" in str(both)


def events(served: Served, body: object) -> tuple[int, list[dict[str, object]]]:
    """Status and events of a call of `generate_stream`."""
    url = f"http://{served.server.http_url}/v2/models/small-unet_scan_stream/generate_stream"
    command = ["curl", "-sS", "-N", "-i", "-H", "Content-Type: application/json", "--data-binary", "@-", url]
    answer = subprocess.run(command, input=json.dumps(body).encode(), capture_output=True, check=True).stdout
    told = [json.loads(data) for data in re.findall(rb"^data: (.*)$", answer, re.MULTILINE)]
    return int(re.findall(rb"^HTTP/1.1 (?!100)(\d+)", answer, re.MULTILINE)[0]), told


def test_server_sent_events_tell_progress_and_then_the_mask(served: Served, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "longer.nii.gz", (90, 80, 70))
    body = {"scan_base64": base64.b64encode(scan.read_bytes()).decode(), "overlap": 0.25, "mode": "constant"}
    status, (*before, last) = events(served, body)
    assert status == 200
    assert before  # how many there are is a matter of time
    shares = [event["progress"] for event in (*before, last)]
    assert shares == sorted(shares, key=float)  # type: ignore[arg-type]
    assert shares[-1] == 1
    assert "mask" not in last
    changes = json.loads(str(last["report"]))["changes"]
    assert changes == ["overlap 0.5 -> 0.25", "mode gaussian -> constant"]
    wanted = clients_mask(served.server.grpc_url, "small-unet", scan, overlap=0.25, mode="constant")
    assert base64.b64decode(str(last["mask_base64"])) == wanted


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"scan_base64": "no base64*"}, "scan_base64: expected the bytes of a scan's file in base64"),
        ({"scan_base64": "data:;base64,AAAA"}, "scan_base64: expected the bytes of a scan's file in base64"),
        ({"scan_base64": ""}, "image 1"),
        ({"scan_base64": "AAAA"}, "image 1"),
        ({"scan_base64": "AAAA", "overlap": 7}, "overlap lies in [0, 1)"),
        ({"scan_base64": "AAAA", "overlaps": "0.5"}, "unknown option 'overlaps'"),
        ({"scan": [1, 2, 3]}, "image 1"),
        ({"scn": "AAAA"}, "no scan"),
    ],
)
def test_an_event_says_why_there_is_no_mask(served: Served, body: object, said: str) -> None:
    status, (event,) = events(served, body)
    assert status == 400
    line = str(event["error"])
    assert said in line or (said == "no scan" and "0 inputs" in line)  # Triton itself refuses a request without any
    assert "\n" not in line
    assert "Traceback" not in line


def test_a_file_larger_than_the_limit_is_refused_before_it_is_copied(served: Served, tmp_path: Path) -> None:
    padded = tmp_path / "padded.nii"
    with padded.open("wb") as file:
        file.write(gzip.decompress(served.scan.read_bytes()))
        file.truncate(300 << 20)
    answer = curl(served, "small-unet", scan=padded).stdout
    assert b"HTTP/1.1 400" in answer
    assert b"the scan's file has 300 MiB, and 100 MiB are left for reading it" in answer


def blocks_of_the_page(served: Served) -> list[tuple[str, str]]:
    """Language and text of each block of the page, for the server here."""
    page = (Path(__file__).parents[2] / "docs/how-to/volume.md").read_text(encoding="utf-8")
    for written, real in (
        ("localhost:8000", served.server.http_url),
        ("localhost:8001", served.server.grpc_url),
        ("brain-unet", "small-unet"),
    ):
        page = page.replace(written, real)
    return re.findall(r"```(sh|python|js)\n(.*?)```", page, re.DOTALL)


def test_the_lines_of_the_page_give_the_clients_mask(served: Served, tmp_path: Path) -> None:
    blocks = blocks_of_the_page(served)
    shell = [text for kind, text in blocks if kind == "sh"]
    plain = "\n".join(text for text in shell if "/infer" in text or "perl" in text)
    (generated,) = (text for text in shell if "generate_stream" in text)
    (python,) = (text for kind, text in blocks if kind == "python")
    (script,) = (text for kind, text in blocks if kind == "js")
    (tmp_path / "segment.mjs").write_text(script)
    (tmp_path / "scan.nii.gz").write_bytes(served.scan.read_bytes())
    for command in (
        ["sh", "-ec", plain],
        ["sh", "-ec", generated],
        [sys.executable, "-c", python],
        ["node", "segment.mjs"],
    ):
        (tmp_path / "mask.nii.gz").unlink(missing_ok=True)
        subprocess.run(command, cwd=tmp_path, check=True)
        assert (tmp_path / "mask.nii.gz").read_bytes() == served.masks["small-unet"], command
