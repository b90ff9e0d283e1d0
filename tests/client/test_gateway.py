"""The gateway: the client's mask for a file in a request, a bounded number of them, and nothing left behind."""

from __future__ import annotations

import gzip
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.support.gateways import MODEL, Gateway, executions, gateway, put, settled, write_scan
from tests.support.whole_scans import LONG_BATCHES
from voxtile import Segmenter
from voxtile.io.writing import write_image
from voxtile_server.embedded import EmbeddedServer

PAGE = Path(__file__).parents[2] / "docs/how-to/gateway.md"


@dataclass(frozen=True)
class Scans:
    """Two scans, the long one of many batches, and what the client makes of the short one."""

    short: Path
    long: Path
    mask: bytes


@pytest.fixture(scope="module")
def scans(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Scans:
    root = tmp_path_factory.mktemp("scans")
    short = write_scan(root / "DOE^JOHN.nii.gz", (41, 50, 38))
    with Segmenter(server.grpc_url, MODEL) as segmenter:
        write_image(segmenter.segment(short).mask, root / "mask.nii.gz")
    return Scans(short, write_scan(root / "long.nii.gz", (150, 150, 140)), (root / "mask.nii.gz").read_bytes())


@pytest.fixture(scope="module")
def one(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One scan at once, one waiting."""
    limits = ("--waiting", "1", "--max-upload", "20", "--max-ram", "700", "--upload-timeout", "2")
    with gateway(tmp_path_factory.mktemp("gateway"), "--url", server.grpc_url, *limits) as running:
        yield running


def test_a_file_in_the_body_gives_the_clients_mask_and_the_report(one: Gateway, scans: Scans) -> None:
    status, headers, body = one.curl(f"/v1/models/{MODEL}/mask", *put(scans.short))
    assert (status, body) == (200, scans.mask)
    report = json.loads(headers["voxtile-report"])
    assert report["model"] == MODEL
    assert report["changes"] == []
    (spool,) = one.folder.iterdir()
    while list(spool.iterdir()):  # the files of a mask that was sent go just after it
        time.sleep(0.05)


def test_a_form_and_options_in_the_address(one: Gateway, scans: Scans, server: EmbeddedServer, tmp_path: Path) -> None:
    path = f"/v1/models/{MODEL}/mask?overlap=0.25&skip-empty=true"
    status, headers, body = one.curl(path, "-F", "note=not a file", "-F", f"scan=@{scans.short}")
    assert status == 200
    assert json.loads(headers["voxtile-report"])["changes"] == ["overlap 0.5 -> 0.25", "empty tiles skipped"]
    with Segmenter(server.grpc_url, MODEL, overlap=0.25, skip_empty=True) as segmenter:
        write_image(segmenter.segment(scans.short).mask, tmp_path / "mask.nii.gz")
    assert body == (tmp_path / "mask.nii.gz").read_bytes() != scans.mask


def test_events_tell_progress_and_the_masks_address(one: Gateway, scans: Scans) -> None:
    status, headers, body = one.curl(
        f"/v1/models/{MODEL}/mask", *put(scans.short), "-N", "-H", "Accept: text/event-stream"
    )
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    events = [json.loads(text) for text in re.findall(r"^data: (.*)$", body.decode(), re.MULTILINE)]
    shares = [event["progress"] for event in events]
    assert shares == sorted(shares)
    assert events[-1]["state"] == "done"
    assert one.curl(events[-1]["mask"])[2] == scans.mask
    assert one.curl(f"/v1/jobs/{events[-1]['id']}", "-X", "DELETE")[0] == 204
    assert one.error(events[-1]["mask"])[0] == 404


def test_a_job_is_taken_at_once_watched_and_fetched(one: Gateway, scans: Scans) -> None:
    status, headers, body = one.curl(f"/v1/models/{MODEL}/jobs", *put(scans.short))
    address = headers["location"]
    assert status == 202
    assert address == f"/v1/jobs/{json.loads(body)['id'].lower()}"
    address = f"/v1/jobs/{json.loads(body)['id']}"
    watched = one.curl(address, "-N", "-H", "Accept: text/event-stream")[2]
    assert b"event: done" in watched
    told = json.loads(one.curl(address)[2])
    assert told["report"]["labels"]
    assert one.curl(told["mask"])[2] == scans.mask
    one.curl(address, "-X", "DELETE")


@pytest.mark.parametrize("how", ["disconnect", "disconnect events", "delete"])
def test_whoever_goes_away_ends_the_work(one: Gateway, scans: Scans, server: EmbeddedServer, how: str) -> None:
    before = settled(server)
    if how == "delete":
        job = json.loads(one.curl(f"/v1/models/{MODEL}/jobs", *put(scans.long))[2])["id"]
        caller = None
    else:
        accept = "text/event-stream" if "events" in how else "*/*"
        command = ["curl", "-sS", "-N", *put(scans.long), "-H", f"Accept: {accept}"]
        caller = subprocess.Popen([*command, f"{one.url}/v1/models/{MODEL}/mask"], stdout=subprocess.DEVNULL)
    while executions(server) < before + 3:
        time.sleep(0.05)
    if caller is None:
        assert one.error(f"/v1/jobs/{job}/mask")[0] == 409
        assert one.curl(f"/v1/jobs/{job}", "-X", "DELETE")[0] == 204
    else:
        caller.kill()
        caller.wait()
    assert settled(server) < before + LONG_BATCHES
    assert one.curl(f"/v1/models/{MODEL}/mask", *put(scans.short))[2] == scans.mask


def test_of_six_callers_two_are_served_and_four_are_refused_at_once(one: Gateway, scans: Scans) -> None:
    answers: list[tuple[int, dict[str, str], bytes]] = []

    def call() -> None:
        answers.append(one.curl(f"/v1/models/{MODEL}/jobs", *put(scans.long)))

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = [json.loads(body)["id"] for status, _, body in answers if status == 202]
    refused = [headers for status, headers, _ in answers if status == 429]
    assert (len(taken), len(refused)) == (2, 4)
    assert all(int(headers["retry-after"]) > 0 for headers in refused)
    states = {json.loads(one.curl(f"/v1/jobs/{job}")[2])["state"] for job in taken}
    assert states <= {"waiting", "running"}
    for job in taken:
        assert one.curl(f"/v1/jobs/{job}", "-X", "DELETE")[0] == 204


@pytest.mark.parametrize(
    ("path", "arguments", "status", "said"),
    [
        (f"/v1/models/{MODEL}/mask", ("-d", "no scan at all"), 422, "scan: expected a NIfTI"),
        (f"/v1/models/{MODEL}/mask", ("-X", "POST"), 422, "found none"),
        (f"/v1/models/{MODEL}/mask", ("-F", "a=text"), 422, "found none"),
        (f"/v1/models/{MODEL}/mask", ("-d", "x", "-H", "Content-Type: multipart/form-data"), 422, "boundary"),
        (
            f"/v1/models/{MODEL}/mask",
            ("-d", "x", "-H", "Content-Type: multipart/form-data; boundary=b"),
            422,
            "multipart form",
        ),
        (f"/v1/models/{MODEL}/mask?overlap=7", ("-d", "x"), 422, "overlap lies in"),
        (f"/v1/models/{MODEL}/mask?overlaps=0.5", ("-d", "x"), 422, "unknown option 'overlaps'"),
        (f"/v1/models/{MODEL}/mask?mirror=perhaps", ("-d", "x"), 422, "option mirror"),
        ("/v1/models/nothing/mask", ("-d", "x"), 404, "'nothing' is not offered"),
        ("/v1/models/..%2f..%2fetc/mask", ("-d", "x"), 404, ""),
        ("/v1/jobs/guessed", (), 404, "no such job"),
        ("/v1/nothing", (), 404, "/openapi.json"),
        (f"/v1/models/{MODEL}/mask", (), 405, "Not Allowed"),
    ],
)
def test_refusals_are_one_line_with_the_right_status(
    one: Gateway, path: str, arguments: tuple[str, ...], status: int, said: str
) -> None:
    found, told = one.error(path, *arguments)
    assert found == status
    assert said in told
    assert str(one.folder) not in told


def test_voxels_that_are_no_numbers_are_replaced_where_the_caller_says_by_what(one: Gateway, tmp_path: Path) -> None:
    values = np.random.default_rng(3).uniform(1, 900, (34, 36, 38)).astype(np.float32)
    values[20, 20, 20] = np.nan
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "scan.nii.gz")
    path = f"/v1/models/{MODEL}/mask"
    status, told = one.error(path, *put(tmp_path / "scan.nii.gz"))
    assert status == 422
    assert told.endswith("nan=VALUE"), "as a request says it"
    status, headers, _ = one.curl(f"{path}?nan=0", *put(tmp_path / "scan.nii.gz"))
    assert status == 200
    assert "1 voxel" in " ".join(json.loads(headers["voxtile-report"])["changes"])


def test_bodies_are_bounded_whether_they_tell_their_size_or_not(one: Gateway, tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(3_000_000_000)
    assert one.error(f"/v1/models/{MODEL}/mask", *put(large))[0] == 413
    with large.open("wb") as file:
        file.truncate(30_000_000)
    assert one.error(f"/v1/models/{MODEL}/mask", *put(large), "-H", "Transfer-Encoding: chunked")[0] == 413


def test_a_small_file_that_unpacks_to_a_huge_one_is_refused_before_it_is_read(one: Gateway, tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((1000, 1000, 500))
    header.set_data_dtype(np.int16)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    bomb = tmp_path / "bomb.nii.gz"
    bomb.write_bytes(gzip.compress(header.binaryblock + bytes(4)) + gzip.compress(bytes(10_000_000)) * 100)
    status, told = one.error(f"/v1/models/{MODEL}/mask", *put(bomb))
    assert status == 413
    assert "MiB" in told


def test_an_upload_that_stops_is_given_up(one: Gateway, scans: Scans) -> None:
    host, port = one.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(f"POST /v1/models/{MODEL}/mask HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n12".encode())
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")
    assert one.curl(f"/v1/models/{MODEL}/mask", *put(scans.short))[2] == scans.mask


def test_models_health_metrics_and_description(one: Gateway) -> None:
    assert one.curl("/health/live")[0] == one.curl("/health/ready")[0] == 200
    cards = {listing["name"]: listing["card"] for listing in json.loads(one.curl("/v1/models")[2])}
    assert cards[MODEL]["labels"]
    described = json.loads(one.curl("/openapi.json")[2])
    assert "/v1/models/{name}/mask" in described["paths"]
    measured = one.curl("/metrics")[2].decode()
    assert f'voxtile_scans_total{{model="{MODEL}"}}' in measured
    assert "voxtile_jobs 0.0" in measured


def test_a_scan_is_counted_under_its_models_name_whichever_version_was_asked_for(one: Gateway, scans: Scans) -> None:
    """As reports name it: what is divided by scans, such as seconds, is counted under that name too."""

    def counted() -> dict[str, float]:
        lines = one.curl("/metrics")[2].decode().splitlines()
        return {
            line.partition("{")[2].partition("}")[0]: float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith("voxtile_scans_total{")
        }

    before = counted()
    assert one.curl(f"/v1/models/{MODEL}@1/mask", *put(scans.short))[2] == scans.mask
    assert one.error(f"/v1/models/{MODEL}@999/mask", *put(scans.short))[0] == 404
    assert counted() == {**before, f'model="{MODEL}"': before[f'model="{MODEL}"'] + 1}


def test_without_a_server_the_gateway_lives_and_is_not_ready(scans: Scans, tmp_path: Path) -> None:
    with gateway(tmp_path, "--url", "127.0.0.1:9") as alone:
        assert alone.curl("/health/live")[0] == 200
        assert alone.error("/health/ready")[0] == 503
        status, told = alone.error(f"/v1/models/{MODEL}/mask", *put(scans.short))
        assert status == 503
        assert "127.0.0.1:9" in told


def test_only_callers_with_a_token_and_pages_of_the_allowed_origin(
    server: EmbeddedServer, scans: Scans, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("first-one\nsecond-one\n")
    origin = "https://viewer.example"
    with gateway(
        tmp_path / "run", "--url", server.grpc_url, "--token-file", str(tokens), "--allow-origin", origin
    ) as closed:
        assert closed.curl("/health/ready")[0] == 200
        for words in ((), ("-H", "Authorization: Bearer second"), ("-H", "Authorization: Bearer ")):
            assert closed.error(f"/v1/models/{MODEL}/mask", *put(scans.short), *words)[0] == 401
        known = ("-H", "Authorization: Bearer second-one", "-H", f"Origin: {origin}")
        status, headers, body = closed.curl(f"/v1/models/{MODEL}/mask", *put(scans.short), *known)
        assert (status, body) == (200, scans.mask)
        assert headers["access-control-allow-origin"] == origin
        asked = ("-X", "OPTIONS", "-H", "Access-Control-Request-Method: POST")
        assert closed.curl("/v1/models", *asked, "-H", f"Origin: {origin}")[0] == 200
        assert closed.curl("/v1/models", *asked, "-H", "Origin: https://other.example")[0] == 400


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--port", "TAKEN"), "cannot listen on 127.0.0.1:"),
        (("--port", "0", "--token-file", "nothing.txt"), "nothing.txt cannot be read"),
        (("--port", "0", "--at-once", "0"), "at least 1 scan at once"),
        (("--port", "0", "--tls-key", "key.pem"), "go together"),
        (("--port", "0", "--folder", "/nowhere/at/all"), "/nowhere/at/all"),
        (("--port", "0", "--folder", "/proc"), "/proc: no folder can be made there"),  # not even by root
    ],
)
def test_a_gateway_that_cannot_start_says_why_in_one_line(words: tuple[str, ...], said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        real = [port if word == "TAKEN" else word for word in words]
        run = subprocess.run(
            [sys.executable, "-m", "voxtile_server.gateway", *real], capture_output=True, text=True, timeout=60
        )
    assert run.returncode == 2
    assert said in run.stderr
    assert run.stderr.count("\n") == 1


def test_the_pages_line_gives_the_clients_mask(one: Gateway, scans: Scans, tmp_path: Path) -> None:
    (line,) = re.findall(r"^curl -f -T .*/mask .*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    (tmp_path / "scan.nii.gz").write_bytes(scans.short.read_bytes())
    line = line.replace("http://localhost:8080", one.url).replace("brain-unet", MODEL)
    subprocess.run(line, shell=True, cwd=tmp_path, check=True)
    assert (tmp_path / "mask.nii.gz").read_bytes() == scans.mask


def test_nodes_fetch_gives_the_clients_mask(one: Gateway, scans: Scans, tmp_path: Path) -> None:
    program = f"""
        const fs = require("fs");
        fetch("{one.url}/v1/models/{MODEL}/mask", {{method: "POST", body: fs.readFileSync("{scans.short}")}})
            .then(answer => answer.arrayBuffer())
            .then(mask => fs.writeFileSync("{tmp_path}/mask.nii.gz", Buffer.from(mask)));
    """
    subprocess.run(["node", "-e", program], check=True)
    assert (tmp_path / "mask.nii.gz").read_bytes() == scans.mask
