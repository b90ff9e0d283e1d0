"""A folder of scans: one broken scan, a run that is killed and started again, channels by nnU-Net's naming."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.support.heads import head, image
from tests.support.in_memory import InMemoryTransport
from tests.support.phantoms import card_of
from voxtile import InputError, ModelError, OutputError, ScanInput, Segmenter
from voxtile.batch.cases import find_cases
from voxtile.batch.run import segment_folder
from voxtile.io.writing import write_image
from voxtile.job import Progress
from voxtile.outputs.probabilities import PROBABILITIES
from voxtile.segmenter import LoadedScan, Segmentation
from voxtile_server.embedded import EmbeddedServer


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    inputs, outputs = tmp_path / "scans", tmp_path / "masks"
    inputs.mkdir()
    return inputs, outputs


@pytest.fixture
def segmenter(server: EmbeddedServer) -> Iterator[Segmenter]:
    with Segmenter(server.grpc_url, "small-unet") as one:
        yield one


def fill(inputs: Path, count: int, shape: tuple[int, int, int] = (33, 32, 32)) -> list[str]:
    """`count` scans in two folders; returns their names."""
    names = []
    for number in range(count):
        folder = inputs / ("left" if number % 2 else "right")
        folder.mkdir(exist_ok=True)
        names.append(f"{folder.name}/scan{number:02d}")
        nib.save(image(head(shape, seed=number)), inputs / f"{names[-1]}.nii.gz")
    return names


def test_every_scan_has_the_mask_that_it_has_alone(segmenter: Segmenter, folders: tuple[Path, Path]) -> None:
    inputs, outputs = folders
    names = fill(inputs, 5)
    result = segment_folder(segmenter, inputs, outputs)
    assert result.exit_code == 0
    for name in names:
        mask = nib.load(outputs / f"{name}.nii.gz")
        alone = segmenter(inputs / f"{name}.nii.gz")
        np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(alone.dataobj))
    rows = json.loads((outputs / "summary.json").read_text())
    assert sorted(row["case"] for row in rows) == sorted(names)
    with (outputs / "summary.csv").open() as file:
        table = list(csv.DictReader(file))
    assert {row["status"] for row in table} == {"done"}
    assert all(float(row["one ml"]) > 0 for row in table)


def test_one_broken_scan_among_fifty(segmenter: Segmenter, folders: tuple[Path, Path]) -> None:
    inputs, outputs = folders
    names = fill(inputs, 50)
    broken = inputs / f"{names[20]}.nii.gz"
    broken.write_bytes(broken.read_bytes()[:200])
    told: list[str] = []
    result = segment_folder(segmenter, inputs, outputs, on_result=lambda outcome, *_: told.append(outcome.case))
    assert result.exit_code == 1
    assert sorted(told) == sorted(names)
    assert sum(outcome.status == "done" for outcome in result.outcomes) == 49
    assert {str(mask.relative_to(outputs))[: -len(".nii.gz")] for mask in outputs.rglob("*.nii.gz")} == set(names) - {
        names[20]
    }
    failed = [outcome for outcome in result.outcomes if outcome.status == "failed"]
    assert [outcome.case for outcome in failed] == [names[20]]
    assert broken.name in failed[0].error


def test_killed_and_started_again_each_mask_is_written_once(server: EmbeddedServer, folders: tuple[Path, Path]) -> None:
    inputs, outputs = folders
    names = fill(inputs, 20, (60, 50, 50))
    (inputs / f"{names[3]}.nii.gz").write_bytes(b"no scan")
    command = [
        sys.executable,
        "-c",
        "from voxtile.__main__ import main; main()",
        "batch",
        str(inputs),
        str(outputs),
    ]
    command += ["--model", "small-unet", "--url", server.grpc_url, "--quiet"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(outputs.rglob("*.nii.gz"))) < 4:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = {mask: mask.stat().st_mtime_ns for mask in outputs.rglob("*.nii.gz")}
    assert 4 <= len(before) < 19
    second = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert second.returncode == 1
    assert f"{19 - len(before)} segmented, {len(before)} found finished, 1 failed" in second.stdout
    assert f"{names[3]}: " in second.stderr
    assert {mask: mask.stat().st_mtime_ns for mask in before} == before
    assert len(list(outputs.rglob("*.nii.gz"))) == 19
    assert {row["status"] for row in json.loads((outputs / "summary.json").read_text())} == {"done", "found", "failed"}


def test_another_model_does_not_mix_its_masks_in(
    server: EmbeddedServer, segmenter: Segmenter, folders: tuple[Path, Path]
) -> None:
    inputs, outputs = folders
    fill(inputs, 1)
    segment_folder(segmenter, inputs, outputs)
    with (
        Segmenter(server.grpc_url, "small-unet", overlap=0.1) as other,
        pytest.raises(OutputError, match="of another build or with other options"),
    ):
        segment_folder(other, inputs, outputs)


def test_folders_that_cannot_be_used(segmenter: Segmenter, folders: tuple[Path, Path]) -> None:
    inputs, outputs = folders
    with pytest.raises(InputError, match="found none"):
        segment_folder(segmenter, inputs, outputs)
    with pytest.raises(InputError, match="found nothing"):
        segment_folder(segmenter, inputs / "nowhere", outputs)
    fill(inputs, 1)
    outputs.write_text("a file")
    with pytest.raises(OutputError, match="expected a folder"):
        segment_folder(segmenter, inputs, outputs)


def test_probabilities_are_for_nnunets_models(segmenter: Segmenter, folders: tuple[Path, Path]) -> None:
    inputs, outputs = folders
    with pytest.raises(ModelError, match="not an nnU-Net model"):
        segment_folder(segmenter, inputs, outputs, beside=[PROBABILITIES])
    assert not outputs.exists()


def test_channels_are_gathered_by_nnunets_naming(folders: tuple[Path, Path]) -> None:
    inputs, outputs = folders
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        (inputs / f"{name}.nii.gz").touch()
    cases = find_cases(inputs, outputs, ["T1", "T2"]).cases
    assert [(case.name, [file.name for file in case.files]) for case in cases] == [
        ("a", ["a_0000.nii.gz", "a_0001.nii.gz"]),
        ("b", ["b_0000.nii.gz", "b_0001.nii.gz"]),
    ]
    assert [case.mask for case in cases] == [outputs / "a.nii.gz", outputs / "b.nii.gz"]


def test_masks_inside_the_input_folder_are_no_scans(segmenter: Segmenter, folders: tuple[Path, Path]) -> None:
    inputs, _ = folders
    fill(inputs, 2)
    for _ in range(2):
        assert len(segment_folder(segmenter, inputs, inputs / "masks").outcomes) == 2


def test_a_limit_on_memory_is_for_everything_that_a_batch_holds(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading ahead and writing behind would hold two further scans beside the one that the limit is meant for."""
    inputs, outputs = folders
    fill(inputs, 3)
    done: list[str] = []

    class Watched(Segmenter):
        def load(self, image: ScanInput) -> LoadedScan:
            done.append("read")
            return super().load(image)

        def run(self, loaded: LoadedScan, progress: Progress | None = None) -> Segmentation:
            done.append("run")
            return super().run(loaded, progress)

    def write(image: nib.Nifti1Image, path: Path) -> None:
        time.sleep(0.05)  # a reader that does not wait comes first
        write_image(image, path)
        done.append("written")

    monkeypatch.setattr("voxtile.batch.finishing.write_image", write)
    network = InMemoryTransport(card_of(), lambda tiles: np.concatenate([100 - tiles, tiles], axis=1))
    with Watched(transport=network, max_ram_mib=4096) as segmenter:
        assert segment_folder(segmenter, inputs, outputs, ahead=2).exit_code == 0
    assert done == ["read", "run", "written"] * 3
