"""What `segment` and `prepare` write: checked before any work, the mask first, nothing in another file's place."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest
from numpy.typing import NDArray

from tests.support.commands import refused, run
from tests.support.in_memory_commands import doubled, finish, save_scan, start, transport
from voxtile.outputs import prepared_files

MODEL = ("--model", "phantom", "--url", "memory:1")


class Counting:
    """A network that counts its tiles."""

    def __init__(self) -> None:
        self.tiles = 0

    def __call__(self, tiles: NDArray[Any]) -> NDArray[Any]:
        self.tiles += len(tiles)
        return doubled(tiles)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Counting:
    counting = Counting()
    monkeypatch.setattr("voxtile.segmenter.connect_transport", lambda *_: transport(network=counting))
    return counting


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return save_scan(tmp_path / "scan.nii.gz")


def segment(scan: Path, *arguments: object) -> Any:
    return run("segment", scan, *MODEL, "-q", *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "scan.nii.gz"], "the mask would replace the scan"),
        (["-o", "./sub/../scan.nii.gz"], "the mask would replace the scan"),
        (["-o", "link.nii.gz"], "the mask would replace the scan"),
        (["-o", "m.nii.gz", "--json", "m.nii.gz"], "ends in .json"),
        (["-o", "m.nii.gz", "--json", "link.json"], "the report would replace the scan"),
        (["-o", "m.nii.gz", "--preview", "link.png"], "the file of --preview would replace the scan"),
        (["-o", "m.nii.gz", "--json", "x.json", "--preview", "same.png"], "the report would replace the file of --pre"),
        (["-o", "m.nii.gz", "--json", "report"], "ends in .json"),
        (["-o", "m.nii.gz", "--json", ""], "ends in .json"),
        (["-o", "m.nii.gz", "--json", "sub/none/r.json"], "make it first"),
        (["-o", "m.nii.gz", "--json", "folder.json"], "found a folder"),
        (["-o", "m.nii.gz", "--json", "kept.json"], "protected"),
        (["-o", "m.nii.gz", "--json", "/dev/stdout"], "ends in .json"),
        (["-o", "m.nii.gz", "--json", "pipe.json"], "pipe"),
        (["-o", "m.nii.gz", "--preview", "p.jpg"], "ends in .png for --preview"),
        (["-o", "m.nii.gz", "--preview", ".png"], "ends in .png for --preview"),
        (["-o", "m.nii.gz", "--preview", "-"], "ends in .png for --preview"),
        (["-o", "m.nii.gz", "--probabilities", "p.nii"], "ends in .npz for --probabilities"),
        (["-o", "-"], "ends in one of .nii.gz, .nii"),
        (["-o", "m.jpg"], "ends in one of .nii.gz, .nii"),
        (["-o", ".nrrd"], "ends in one of .nii.gz, .nii"),
        (["-o", "kept.nii"], "protected"),
    ],
)
def test_every_output_is_checked_before_any_work(
    network: Counting, scan: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    folder = scan.parent
    monkeypatch.chdir(folder)
    for name in ("link.nii.gz", "link.json", "link.png"):
        (folder / name).symlink_to(scan)
    (folder / "same.png").symlink_to("x.json")
    for name in ("kept.nii", "kept.json"):
        (folder / name).write_text("kept")
        (folder / name).chmod(0o444)
    for name in ("sub", "folder.json"):
        (folder / name).mkdir()
    os.mkfifo(folder / "pipe.json")
    before, names = scan.read_bytes(), [path.name for path in folder.iterdir()]
    result = segment(scan, *arguments)
    assert said in refused(result, folder, *names)
    assert network.tiles == 0
    assert scan.read_bytes() == before


def test_a_companion_is_an_output_too(network: Counting, tmp_path: Path) -> None:
    """The properties beside the probabilities; the scan's file has their name in another spelling."""
    scan = save_scan(tmp_path / "scan.nii.gz")
    (tmp_path / "p.pkl").symlink_to(scan)
    result = segment(scan, "-o", tmp_path / "m.nii", "--probabilities", tmp_path / "p.npz")
    assert "the file of --probabilities would replace the scan" in refused(result, tmp_path, "scan.nii.gz", "p.pkl")


def test_every_channel_is_an_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxtile.segmenter.connect_transport", lambda *_: transport(("T1", "T2")))
    files = [save_scan(tmp_path / f"a_{number:04d}.nii.gz", number) for number in range(2)]
    before = files[1].read_bytes()
    result = run("segment", *files, "-o", files[1], *MODEL)
    assert "would replace the scan" in refused(result, tmp_path, "a_0000.nii.gz", "a_0001.nii.gz")
    swapped = run("segment", *files[::-1], "-o", tmp_path / "m.nii", *MODEL)
    line = refused(swapped, tmp_path, "a_0000.nii.gz", "a_0001.nii.gz")
    assert "(_0000 T1, _0001 T2), found a_0001.nii.gz, a_0000.nii.gz; give them in this order" in line
    assert files[1].read_bytes() == before
    assert run("segment", *files, "-o", tmp_path / "m.nii", *MODEL).exit_code == 0


@pytest.mark.parametrize(("channels", "output"), [(("T1",), "a_0000.nii.gz"), (("T1", "T2"), "a.nii.gz")])
def test_a_prepared_scan_does_not_take_its_scans_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: tuple[str, ...], output: str
) -> None:
    """Of several channels a.nii.gz becomes a_0000.nii.gz and a_0001.nii.gz."""
    monkeypatch.setattr("voxtile.segmenter.connect_transport", lambda *_: transport(channels))
    monkeypatch.setattr(prepared_files, "preparation_of", lambda _: "0" * 64)
    files = [save_scan(tmp_path / f"a_{number:04d}.nii.gz", number) for number in range(len(channels))]
    before = [file.read_bytes() for file in files]
    result = run("prepare", *files, "-o", tmp_path / output, *MODEL)
    assert "the prepared scan would replace the scan" in refused(result, tmp_path, *(file.name for file in files))
    assert [file.read_bytes() for file in files] == before


def fail(*_: object, **__: object) -> None:
    raise MemoryError


@pytest.mark.parametrize(
    ("place", "option"),
    [("voxtile.outputs.preview._drawn", "--preview"), ("voxtile.cli.written.write_text", "--json")],
)
def test_an_output_that_fails_costs_neither_the_mask_nor_another_output(
    network: Counting, scan: Path, monkeypatch: pytest.MonkeyPatch, place: str, option: str
) -> None:
    folder = scan.parent
    files = {"--preview": folder / "p.png", "--json": folder / "r.json"}
    monkeypatch.setattr(place, fail)
    arguments = [word for pair in files.items() for word in pair]
    result = segment(scan, "-o", folder / "m.nii.gz", *arguments)
    assert result.exit_code == 2
    assert "the mask is written to" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert nib.load(folder / "m.nii.gz").shape == (20, 18, 17)
    assert {name for name, file in files.items() if file.exists()} == set(files) - {option}


def test_an_unexpected_error_is_one_line(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("voxtile.segmenter.connect_transport", lambda *_: transport(network=broken))
    result = segment(scan, "-o", scan.parent / "m.nii.gz")
    line = refused(result, scan.parent, scan.name)
    assert line.startswith("voxtile: ZeroDivisionError: division by zero (in test_segment_outputs.py, line ")


def test_a_report_that_nobody_reads_is_told_and_the_mask_is_there(scan: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "w") as full:
        for number, stream in enumerate((writer, full)):
            mask = scan.with_name(f"m{number}.nii")
            code, _, said = finish(start("segment", scan, "-o", mask, "--json", "-", stdout=stream))
            assert code == 2
            assert said.startswith("voxtile: standard output: cannot be written")
            assert said.count("\n") == 1
            assert mask.exists()
    os.close(writer)


def test_sigterm_leaves_nothing_half_written(tmp_path: Path) -> None:
    scan = save_scan(tmp_path / "scan.nii", 1, (60, 60, 60))
    with tempfile.TemporaryDirectory() as elsewhere:
        began = Path(elsewhere) / "began"
        running = start("segment", scan, "-o", tmp_path / "m.nii.gz", seconds=0.2, began=began)
        while not began.exists():
            assert running.poll() is None, running.communicate()
            time.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        code, _, said = finish(running)
    assert (code, said) == (143, "voxtile: ended by a signal; nothing half-written is left\n")
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii"]
