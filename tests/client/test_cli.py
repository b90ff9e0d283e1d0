"""The commands, as a user calls them: real server, exit codes, one line for each error, no file left by a failure."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient

from tests.support.commands import refused, run
from tests.support.fake_triton import FakeTriton
from tests.support.heads import AFFINE, head, image
from voxtile_server.embedded import EmbeddedServer

REPORT_KEYS = {
    "model", "version", "shape", "tiles", "seconds", "bytes_sent", "bytes_received", "peak_rss_bytes", "retries",
    "labels", "certificate",
}  # fmt: skip


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "head.nii.gz"
    nib.save(image(head((40, 37, 33))), path)
    return path


def test_segment_writes_mask_report_and_preview(server: EmbeddedServer, scan: Path) -> None:
    folder = scan.parent
    result = run(
        "segment", scan, "-o", folder / "mask.nii.gz", "--model", "small-unet", "--url", server.grpc_url,
        "--json", folder / "report.json", "--preview", folder / "preview.png",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    mask = nib.load(folder / "mask.nii.gz")
    assert mask.shape == (40, 37, 33)
    assert mask.get_data_dtype() == np.uint8
    report = json.loads((folder / "report.json").read_text())
    assert set(report) >= REPORT_KEYS
    assert set(report["seconds"]) == {"read", "prepare", "infer", "stitch", "restore", "write", "total"}
    assert report["seconds"]["write"] > 0
    assert report["labels"]["one"]["voxels"] == int((np.asarray(mask.dataobj) == 1).sum())
    assert (folder / "preview.png").read_bytes().startswith(b"\x89PNG")


def test_an_output_that_fails_does_not_cost_the_mask(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no font was found")

    monkeypatch.setattr("voxtile.outputs.preview.draw_preview", broken)
    values = np.zeros((70, 70, 1), np.int16)
    values[10:20] = np.arange(10, 20)[:, None, None]
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 1.0, 0.1, 1.0])), tmp_path / "thin.nii.gz")
    result = run(
        "segment", tmp_path / "thin.nii.gz", "-o", tmp_path / "mask.nii.gz", "-m", "small-unet",
        "--url", server.grpc_url, "--preview", tmp_path / "preview.png",
    )  # fmt: skip
    assert result.exit_code == 2
    assert "--preview could not be made" in result.stderr
    assert nib.load(tmp_path / "mask.nii.gz").shape == (70, 70, 1)
    assert not (tmp_path / "preview.png").exists()


def test_the_name_of_an_output_is_checked_before_any_work(server: EmbeddedServer, scan: Path) -> None:
    done = tiles_done(server.grpc_url)
    result = run(
        "segment", scan, "-o", scan.parent / "mask.nii.gz", "-m", "small-unet", "--url", server.grpc_url,
        "--preview", scan.parent / "preview.jpg",
    )  # fmt: skip
    assert result.exit_code == 2
    assert "ends in .png for --preview" in result.stderr
    assert tiles_done(server.grpc_url) == done


def test_report_on_standard_output(server: EmbeddedServer, scan: Path) -> None:
    mask = scan.parent / "mask.nii"
    result = run("segment", scan, "-o", mask, "-m", "small-unet", "--url", server.grpc_url, "--json", "-")
    assert json.loads(result.stdout)["shape"] == [40, 37, 33]


def test_models_lists_public_names_only(server: EmbeddedServer) -> None:
    listed = json.loads(run("models", "--url", server.grpc_url, "--json").stdout)
    assert [entry["name"] for entry in listed] == ["identity", "identity-int16", "small-unet", "small-unet-int16"]
    assert all(entry["usable"] for entry in listed)
    assert listed[2]["card"]["roi_size"] == [32, 32, 32]
    table = run("models", "--url", server.grpc_url).stdout
    assert "three labels of nothing in particular" in table  # a pipe is wide enough for a row in one line


@pytest.mark.parametrize("dead_first", [True, False])
def test_a_server_that_does_not_answer_hides_no_other_ones_models(server: EmbeddedServer, dead_first: bool) -> None:
    urls = ["127.0.0.1:9", server.grpc_url] if dead_first else [server.grpc_url, "127.0.0.1:9"]
    given = [word for url in urls for word in ("--url", url)]
    result = run("models", "--json", *given)
    assert result.exit_code == 2
    assert {entry["url"] for entry in json.loads(result.stdout)} == {server.grpc_url}
    assert len(result.stderr.strip().splitlines()) == 1
    assert "127.0.0.1:9" in result.stderr
    assert server.grpc_url in run("models", *given).stdout  # of several servers, the table says whose a model is


def test_models_of_no_server_are_no_empty_list() -> None:
    result = run("models", "--json", "--url", "127.0.0.1:9", "--url", "127.0.0.1:19")
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.strip().splitlines()) == 2


def test_the_table_of_models_shows_names_as_they_are() -> None:
    title = "lesion [core] [/] :heart: [red]T1"
    with FakeTriton(title=title) as fake:
        assert title in run("models", "--url", fake.url).stdout


@pytest.mark.parametrize("command", ["models", "models --json", "doctor"])
def test_an_output_that_nobody_can_take_is_one_line(server: EmbeddedServer, command: str) -> None:
    words = [sys.executable, "-m", "voxtile", *command.split(), "--url", server.grpc_url]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "voxtile: standard output: cannot be written (No space left on device)\n"


@pytest.mark.parametrize("name", ["small\udcff", "small\nunet", "small\0"])
def test_what_can_be_no_models_name_is_said_so(server: EmbeddedServer, scan: Path, name: str) -> None:
    result = run("segment", scan, "-o", scan.parent / "mask.nii.gz", "-m", name, "--url", server.grpc_url)
    assert "expected the name of a model" in refused(result, scan.parent, scan.name)


def test_doctor(server: EmbeddedServer, scan: Path) -> None:
    well = run("doctor", scan, "--model", "small-unet", "--url", server.grpc_url)
    assert well.exit_code == 0, well.output
    assert "certificate accepted" in well.stdout
    assert "27 tiles" not in well.stdout
    assert "shared memory" in well.stdout
    ill = run("doctor", "--model", "nothing", "--url", server.grpc_url, "--url", "127.0.0.1:9")
    assert ill.exit_code == 2
    assert ill.stdout.count("FAIL") == 2


def test_a_scan_without_a_model_is_not_left_out_in_silence(scan: Path) -> None:
    result = run("doctor", scan, "--url", "127.0.0.1:9")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "expected --model with a scan" in result.stderr


def bad_files(folder: Path) -> dict[str, Path]:
    """One file for each way in which a scan cannot be used."""
    values = head((20, 21, 22))
    files = {}

    def save(name: str, data: np.ndarray, affine: np.ndarray = AFFINE, **fields: object) -> None:
        one = nib.Nifti1Image(data, affine)
        for key, value in fields.items():
            one.header[key] = value
        files[name] = folder / f"{name}.nii"
        nib.save(one, files[name])

    files["text"] = folder / "text.nii"
    files["text"].write_text("not a scan")
    whole = gzip.compress(nib.Nifti1Image(values, AFFINE).to_bytes())
    files["truncated"] = folder / "truncated.nii.gz"
    files["truncated"].write_bytes(whole[: len(whole) // 2])
    save("four", np.zeros((8, 8, 8, 5), np.float32))
    poisoned = values.copy()
    poisoned[3, 4, 5] = np.nan
    save("nan", poisoned)
    save("empty", np.zeros((0, 4, 4), np.float32))
    save("singular", values, np.diag([1.0, 1, 1, 1]))
    raw = bytearray(files["singular"].read_bytes())
    raw[280:328] = bytes(48)  # srow_x, srow_y, srow_z
    raw[252:256] = (1).to_bytes(2, "little") * 2  # qform_code, sform_code
    raw[256:260] = np.float32(np.nan).tobytes()  # quatern_b
    files["singular"].write_bytes(raw)
    save("huge spacing", values, np.diag([1e7, 1, 1, 1]))
    save("all zero", np.zeros_like(values))
    files["missing"] = folder / "missing.nii"
    return files


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("text", "NIfTI"),
        ("truncated", "truncated|ends"),
        ("four", "4D|5"),
        ("nan", "NaN"),
        ("empty", "empty|voxel"),
        ("singular", "neither"),
        ("huge spacing", "spacing"),
        ("all zero", "zero"),
        ("missing", "found nothing of that name"),
    ],
)
def test_bad_scans(server: EmbeddedServer, tmp_path: Path, name: str, said: str) -> None:
    inputs = tmp_path / "in"
    outputs = tmp_path / "out"
    inputs.mkdir()
    outputs.mkdir()
    file = bad_files(inputs)[name]
    result = run("segment", file, "-o", outputs / "mask.nii.gz", "-m", "small-unet", "--url", server.grpc_url)
    line = refused(result, outputs)
    assert file.name in line
    assert any(word in line for word in said.split("|")), line


def test_wrong_channel_count(server: EmbeddedServer, scan: Path) -> None:
    result = run("segment", scan, scan, "-o", scan.parent / "m.nii", "-m", "small-unet", "--url", server.grpc_url)
    assert "T1" in refused(result, scan.parent, scan.name)


def test_unwritable_outputs_are_found_before_any_work(scan: Path) -> None:
    for output in (scan.parent / "nowhere" / "mask.nii.gz", scan.parent / "mask.png"):
        result = run("segment", scan, "-o", output, "-m", "small-unet", "--url", "127.0.0.1:9")
        assert output.name in refused(result, scan.parent, scan.name)


def test_unknown_model_and_absent_server(server: EmbeddedServer, scan: Path) -> None:
    mask = scan.parent / "mask.nii.gz"
    unknown = run("segment", scan, "-o", mask, "-m", "nothing", "--url", server.grpc_url)
    assert "it offers: " in refused(unknown, scan.parent, scan.name)
    absent = run("segment", scan, "-o", mask, "-m", "small-unet", "--url", "127.0.0.1:9")
    assert "make serve" in refused(absent, scan.parent, scan.name)


def test_an_old_mask_survives_a_failure(server: EmbeddedServer, scan: Path) -> None:
    mask = scan.parent / "mask.nii.gz"
    mask.write_bytes(b"the old one")
    result = run("segment", scan, "-o", mask, "-m", "nothing", "--url", server.grpc_url)
    assert result.exit_code == 2
    assert mask.read_bytes() == b"the old one"


@pytest.mark.parametrize(
    "option", [["--header", "no colon"], ["--compression", "zip"], ["--overlap", "1"], ["--mode", "x"]]
)
def test_options_that_say_nothing(server: EmbeddedServer, scan: Path, option: list[str]) -> None:
    mask = scan.parent / "mask.nii.gz"
    result = run("segment", scan, "-o", mask, "-m", "small-unet", "--url", server.grpc_url, *option)
    assert result.exit_code == 2
    assert not mask.exists()


def tiles_done(url: str) -> int:
    with contextlib.closing(InferenceServerClient(url)) as client:
        return int(client.get_inference_statistics("small-unet").model_stats[0].inference_count)


def wait_for_tiles(url: str, wanted: int) -> None:
    """Until the server has segmented so many tiles in all."""
    until = time.monotonic() + 60
    while tiles_done(url) < wanted:
        assert time.monotonic() < until, "no tile came"
        time.sleep(0.02)


def test_interrupting_leaves_no_file_region_or_process(server: EmbeddedServer, tmp_path: Path) -> None:
    scan = tmp_path / "large.nii"
    nib.save(image(head((320, 320, 320))), scan)
    command = [sys.executable, "-c", "from voxtile.__main__ import main; main()", "segment", str(scan)]
    command += ["--overlap", "0.75"]  # 50,000 small tiles: far from done, however late the signal comes
    done = tiles_done(server.grpc_url)
    client = subprocess.Popen(
        [*command, "-o", str(tmp_path / "mask.nii.gz"), "-m", "small-unet", "--url", server.grpc_url],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        # A shell starts what it runs in the background with SIGINT ignored, and that is inherited.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    wait_for_tiles(server.grpc_url, done + 5)
    client.send_signal(signal.SIGINT)
    _, said = client.communicate(timeout=30)
    assert client.returncode == 130, said
    assert "interrupted" in said
    assert "Traceback" not in said
    assert {path.name for path in tmp_path.iterdir()} == {"large.nii"}
    assert not list(Path("/dev/shm").glob(f"voxtile-{client.pid}-*"))
