"""Several nnU-Net models as one public model, on the real server, against TotalSegmentator's steps with nnU-Net."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from tests.support.nnunet_folders import Training, configuration, write_folder, write_scan
from tests.support.nnunet_folders import architecture as network_architecture
from tests.support.totalsegmentator import OraclePart, segment
from voxtile import InputError, ModelError, RemoteNetwork, Segmenter
from voxtile.cli.app import app
from voxtile_build.cli.commands import main
from voxtile_server.embedded import EmbeddedServer

pytestmark = pytest.mark.usefixtures("one_thread")

PLAN = configuration((16, 16, 16), (1.5, 1.5, 1.5))
COARSE = configuration((12, 16, 12), (3.0, 3.0, 3.0))
SETTINGS = "[serving]\nwarm_up = false\nmax_batch_size = 2\nthreads = 1\n"


def training(labels: dict[str, int], plan: dict[str, Any] = PLAN, **changes: Any) -> Training:
    settings = {"labels": {"background": 0, **labels}, "reader": "NibabelIOWithReorient", **changes}
    return Training("3d_fullres", {"3d_fullres": plan}, **settings)


RESIDUAL = {**PLAN, "architecture": network_architecture(3, "ResidualEncoderUNet")}
TRAININGS = {
    "organs": training({"spleen": 1, "kidney": 2, "liver": 3}, mirror_axes=(0, 1, 2)),
    "bones": training({"sacrum": 1, "helper": 2, "rib": 3}, RESIDUAL),
    "heart": training({"aorta": 1, "heart": 2}, reader="SimpleITKIO"),
    "coarse": training({"trunk": 1, "limbs": 2}, COARSE),
}
FINE = """
title = "all of it"
spacing = 1.5
tile_step_size = 0.8

[[parts]]
name = "organs"
folder = "results/organs"
folds = [0]

[[parts]]
name = "bones"
folder = "results/bones"
labels = { 1 = "sacrum", 3 = "rib" }

[[parts]]
name = "heart"
folder = "results/heart"
"""
BODY = """
spacing = 3
parts = [{ folder = "results/coarse" }]
[[cleaning]]
keep_largest = ["trunk"]
[[cleaning]]
remove_small = ["limbs"]
volume_mm3 = 500
"""
CROPPED = """
order = 3
spacing = [2.0, 1.5, 1.75]
tile_step_size = 0.5
[[parts]]
folder = "results/heart"
labels = { 2 = "heart" }
[[parts]]
folder = "results/organs"
labels = { 1 = "spleen" }
[labels]
spleen = 300
heart = 7
[crop]
model = "fine"
labels = ["aorta"]
margin_mm = 4
"""
FILES = {"fine": FINE, "body": BODY, "cropped": CROPPED}


@dataclass(frozen=True)
class Served:
    """The trained folders by name, the repository, and the server's address."""

    folders: dict[str, Path]
    repository: Path
    url: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("sets")
    folders = {
        name: write_folder(root / "results" / name, one, seed) for seed, (name, one) in enumerate(TRAININGS.items(), 11)
    }
    (root / "settings.toml").write_text(SETTINGS)
    for name, text in FILES.items():
        (root / f"{name}.toml").write_text(text)
        words = ["nnunet-set", str(root / f"{name}.toml"), "--name", name, "--repository", str(root / "models")]
        assert main([*words, "--engines", "onnxruntime", "--settings", str(root / "settings.toml")]) == 0
    with EmbeddedServer(root / "models") as server:
        yield Served(folders, root / "models", server.grpc_url)
        server.kill()


def parts(served: Served, **values: dict[int, int]) -> list[OraclePart]:
    return [OraclePart(served.folders[name], labels) for name, labels in values.items()]


FINE_PARTS = {"organs": {1: 1, 2: 2, 3: 3}, "bones": {1: 4, 3: 5}, "heart": {1: 6, 2: 7}}


def check(found: Any, wanted: Any, least: int) -> None:
    """Equal but for ties, and with several labels to see."""
    labels = np.asarray(found.mask.dataobj)
    different = int((labels != wanted).sum())
    print(f"{different} of {wanted.size} voxels differ; {np.bincount(wanted.ravel())}")
    assert labels.shape == wanted.shape
    assert different <= wanted.size // 20_000
    assert (np.bincount(wanted.ravel()) > 10).sum() >= least, "a mask of few labels proves nothing"


@pytest.mark.parametrize(
    ("shape", "spacing", "codes"),
    [
        pytest.param((38, 31, 21), (1.1, 0.9, 2.2), "LPS", id="resampled, turned"),
        pytest.param((26, 30, 22), (1.5, 1.5, 1.5), "PIR", id="of the grid's spacing"),
        pytest.param((9, 30, 9), (1.0, 1.3, 1.7), "RAS", id="smaller than a tile"),
    ],
)
def test_a_set_gives_totalsegmentators_mask(
    served: Served, tmp_path: Path, shape: tuple[int, int, int], spacing: tuple[float, float, float], codes: str
) -> None:
    (file,) = write_scan(tmp_path, "case", shape, spacing, 1, codes)
    wanted = segment(nib.load(file), parts(served, **FINE_PARTS), (1.5, 1.5, 1.5), tmp_path / "oracle")
    with Segmenter(served.url, "fine") as segmenter:
        found = segmenter.segment(file)
    check(found, wanted, 5)
    np.testing.assert_array_equal(found.mask.affine, nib.load(file).affine)
    assert found.mask.get_data_dtype() == np.uint8


def test_the_mask_is_cleaned_on_the_common_grid(served: Served, tmp_path: Path) -> None:
    (file,) = write_scan(tmp_path, "case", (60, 51, 45), (1.4, 1.2, 1.9), 1, "LPS")
    image, body = nib.load(file), parts(served, coarse={1: 1, 2: 2})
    cleaned = {"largest": [1], "small": {2: 500.0}}
    raw = segment(image, body, (3.0,) * 3, tmp_path / "raw", tile_step_size=0.5)
    wanted = segment(image, body, (3.0,) * 3, tmp_path / "oracle", tile_step_size=0.5, **cleaned)  # type: ignore[arg-type]
    assert ((raw == 1) & (wanted != 1)).any()
    assert ((raw == 2) & (wanted != 2)).any()
    with Segmenter(served.url, "body") as segmenter:
        check(segmenter.segment(file), wanted, 3)


def test_a_set_looks_where_another_model_says(served: Served, tmp_path: Path) -> None:
    (file,) = write_scan(tmp_path, "case", (44, 39, 27), (1.1, 0.9, 1.7), 1, "PIR")
    image = nib.load(file)
    with Segmenter(served.url, "fine") as segmenter:
        fine = np.asarray(segmenter.segment(file).mask.dataobj)
    chosen = parts(served, heart={2: 7}, organs={1: 9})
    options: dict[str, Any] = {"order": 3, "tile_step_size": 0.5, "margin": 4.0, "box_labels": fine == 6}
    wanted = segment(image, chosen, (2.0, 1.5, 1.75), tmp_path / "oracle", **options).astype(np.uint16)
    wanted[wanted == 9] = 300
    with Segmenter(served.url, "cropped") as segmenter:
        found = segmenter.segment(file)
    check(found, wanted, 3)
    assert found.mask.get_data_dtype() == np.uint16


def test_nothing_to_look_at_is_background(served: Served, tmp_path: Path) -> None:
    (file,) = write_scan(tmp_path, "case", (20, 21, 22), (1.1, 0.9, 2.2))
    with Segmenter(served.url, "cropped") as cropped, Segmenter(served.url, "body") as without_aorta:
        wrong = Segmenter(transport=cropped.transport, parts=cropped.parts, crop=without_aorta)
        found = wrong.segment(file)
    assert not np.asarray(found.mask.dataobj).any()
    assert found.labels.shape == (20, 21, 22)
    assert found.report.tiles == 0


def test_memory_is_limited_for_one_model_after_the_other(served: Served, tmp_path: Path) -> None:
    (file,) = write_scan(tmp_path, "case", (60, 51, 45), (1.1, 0.9, 1.7), 1, "LPS")
    with Segmenter(served.url, "fine") as segmenter:
        plain = segmenter.segment(file)
    most = max(part.predicted_peak_bytes for part in plain.report.parts)
    with Segmenter(served.url, "fine", max_ram_mib=(most - 1) / 2**20) as segmenter:
        tight = segmenter.segment(file)
    assert tight.report.predicted_peak_bytes < most
    np.testing.assert_array_equal(np.asarray(tight.mask.dataobj), np.asarray(plain.mask.dataobj))


def test_the_report_adds_up_what_the_models_did(served: Served, tmp_path: Path) -> None:
    (file,) = write_scan(tmp_path, "case", (38, 31, 21), (1.1, 0.9, 2.2))
    steps: list[tuple[int, int]] = []
    with Segmenter(served.url, "fine") as segmenter:
        report = segmenter.segment(file, lambda done, total: steps.append((done, total))).report
    assert [part.model for part in report.parts] == ["fine_organs", "fine_bones", "fine_heart"]
    assert report.tiles == sum(part.tiles for part in report.parts) == len(steps)
    assert steps[-1] == (report.tiles, report.tiles)
    assert report.model == "fine"
    assert report.shape == (38, 31, 21)
    assert report.grid == (28, 19, 31)
    assert list(report.labels) == ["background", "spleen", "kidney", "liver", "sacrum", "rib", "aorta", "heart"]
    assert report.certificate["accepted"]
    assert report.tiling["overlap"] == 0.2


def test_commands_take_a_set_as_any_model(served: Served, tmp_path: Path) -> None:
    (file,) = write_scan(tmp_path / "in", "case", (30, 31, 21), (1.1, 0.9, 2.2))
    run = CliRunner().invoke
    mask, report = tmp_path / "mask.nii.gz", tmp_path / "report.json"
    words = ["--model", "fine", "--url", served.url]
    assert run(app, ["segment", str(file), "-o", str(mask), "--json", str(report), *words]).exit_code == 0
    assert json.loads(report.read_text())["parts"][0]["model"] == "fine_organs"
    assert run(app, ["batch", str(tmp_path / "in"), str(tmp_path / "out"), *words]).exit_code == 0
    assert np.array_equal(nib.load(tmp_path / "out" / "case.nii.gz").dataobj, nib.load(mask).dataobj)
    listed = json.loads(run(app, ["models", "--json", "--url", served.url]).output)
    assert {"fine", "fine_organs", "fine_bones", "fine_heart"} <= {one["name"] for one in listed if one["usable"]}
    doctor = run(app, ["doctor", str(file), *words])
    assert doctor.exit_code == 0
    assert "fine_bones at" in doctor.output
    assert f"{json.loads(report.read_text())['tiles']} tiles" in doctor.output


def test_what_a_set_cannot_do_is_refused_in_words(served: Served, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a set of models, which gives labels and no scores"):
        Segmenter(served.url, "fine", keep_scores=True)
    with pytest.raises(InputError, match="give one of its networks: fine_organs, fine_bones, fine_heart"):
        RemoteNetwork(served.url, "fine")
    words = ["prepare", str(tmp_path / "a.nii.gz"), "--model", "fine", "--url", served.url]
    found = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "b.nii.gz")])
    assert found.exit_code == 2
    assert "give one of them: fine_organs" in found.output


def test_a_model_that_was_built_anew_is_not_taken_for_one_of_the_set(served: Served, tmp_path: Path) -> None:
    with Segmenter(served.url, "fine") as segmenter, Segmenter(served.url, "fine_organs") as other:
        swapped = (other, *segmenter.parts[1:])
        with pytest.raises(ModelError, match="expected 'fine_bones' as it was built for this set, found other weights"):
            Segmenter(transport=segmenter.transport, parts=(segmenter.parts[0], swapped[0], segmenter.parts[2]))
