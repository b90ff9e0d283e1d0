"""Scans that the client prepares for voxtile-build: nnU-Net's own values, and nothing else is taken for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray
from typer.testing import CliRunner

from tests.support.importing import import_nnunet
from tests.support.nnunet_folders import SCHEMES, Training, configuration, write_folder, write_scan
from voxtile.cli.app import app
from voxtile_build.errors import BuildError, ScanError, SourceError, SpecError
from voxtile_build.evaluation.samples import gather_scans
from voxtile_build.importers.nnunet.models import models_of
from voxtile_build.importers.settings import read_settings
from voxtile_server.embedded import EmbeddedServer

FULL = configuration((16, 16, 16), (1.2, 1.2, 1.2))
TRAININGS = {
    "plain": Training("3d_fullres", {"3d_fullres": FULL}),
    "turned": Training(
        "3d_fullres",
        {
            "3d_fullres": configuration(
                (16, 12, 16), (1.3, 4.5, 0.9), normalization_schemes=list(SCHEMES), use_mask_for_norm=[False, True] * 2
            )
        },
        channels=("CT", "T1", "any", "T2"),
        transpose_forward=(1, 0, 2),
    ),
    "flat": Training("2d", {"2d": configuration((24, 20), (1.2, 0.8))}),
    "oriented": Training("3d_fullres", {"3d_fullres": FULL}, reader="NibabelIOWithReorient"),
}
SERVING = {"warm_up": False, "max_batch_size": 1, "threads": 1}
SHAPE, SPACING = (34, 31, 21), (1.0, 1.1, 1.7)


@dataclass(frozen=True)
class Served:
    folders: dict[str, Path]
    url: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("prepared")
    folders = {name: write_folder(root / name, training, 3) for name, training in TRAININGS.items()}
    for name, folder in folders.items():
        import_nnunet(folder, name, root / "models", engines=["onnxruntime"], settings={"serving": SERVING})
    with EmbeddedServer(root / "models") as server:
        yield Served(folders, server.grpc_url)
        server.kill()


def prepare(served: Served, model: str, folder: Path, codes: str = "LPS") -> tuple[list[Path], list[Path]]:
    """The files of a scan, and those that the command made of them."""
    files = write_scan(folder / "scans", "case", SHAPE, SPACING, len(TRAININGS[model].channels), codes)
    target = folder / "ready.nii.gz"
    arguments = ["prepare", *map(str, files), "--model", model, "--output", str(target), "--url", served.url]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return files, [Path(line) for line in done.stdout.splitlines()]


def by_nnunet(folder: Path, name: str, files: list[Path]) -> NDArray[np.float32]:
    """[channel, *the plan's axes], by nnU-Net's own preprocessor."""
    plans = PlansManager(str(folder / "plans.json"))
    dataset = json.loads((folder / "dataset.json").read_text())
    chosen = plans.get_configuration(name)
    return np.asarray(
        DefaultPreprocessor(verbose=False).run_case(list(map(str, files)), None, plans, chosen, dataset)[0]
    )


def settings_with(files: list[Path], **precision: Any) -> dict[str, Any]:
    scans = [[str(file) for file in files]]
    return {
        "serving": SERVING,
        "acceptance": {"scans": scans, "min_dice": 0.0, "max_changed": 1.0},
        "precision": {"calibration": scans, **precision},
    }


@pytest.mark.parametrize(
    ("model", "codes"), [("plain", "LPS"), ("turned", "LPS"), ("flat", "LPS"), ("oriented", "PIR")]
)
def test_the_build_side_reads_what_nnunet_prepares(served: Served, tmp_path: Path, model: str, codes: str) -> None:
    files, written = prepare(served, model, tmp_path, codes)
    assert len(written) == len(files)
    (chosen,) = models_of(served.folders[model], model, settings=settings_with(written))
    scan = gather_scans(chosen.spec)[0]
    wanted = by_nnunet(served.folders[model], TRAININGS[model].name, files)
    np.testing.assert_allclose(scan.volume, wanted, atol=1e-4 * np.ptp(wanted))
    spacing = TRAININGS[model].configurations[TRAININGS[model].name]["spacing"]
    np.testing.assert_allclose(scan.spacing[-len(spacing) :], spacing, rtol=1e-6)


def test_certificate_and_calibration_are_of_the_scan(served: Served, tmp_path: Path) -> None:
    _, written = prepare(served, "plain", tmp_path)
    settings = settings_with(written, openvino="int8")
    import_nnunet(served.folders["plain"], "p", tmp_path / "models", engines=["openvino"], settings=settings)
    certificate = json.loads((tmp_path / "models/p_openvino/1/certificate.json").read_text())
    calibration = certificate["precision_facts"]["calibration"]
    assert calibration["generated"] is False
    for scans in (calibration["scans"], certificate["scans"]):
        assert [scan["name"] for scan in scans] == ["ready.nii.gz"]


@pytest.mark.parametrize("key", ["acceptance", "precision"])
def test_a_raw_scan_is_refused_and_nothing_is_built(served: Served, tmp_path: Path, key: str) -> None:
    files, _ = prepare(served, "plain", tmp_path)
    settings = {"serving": SERVING, key: settings_with(files)[key]}
    with pytest.raises(ScanError, match=r"case_0000.*prepared by this nnU-Net plan, found one that is not prepared"):
        import_nnunet(served.folders["plain"], "p", tmp_path / "models", engines=["openvino"], settings=settings)
    assert not list((tmp_path / "models").glob("p*"))


def test_another_plans_scan_is_refused(served: Served, tmp_path: Path) -> None:
    _, written = prepare(served, "oriented", tmp_path)
    with pytest.raises(ScanError, match="found one prepared by another plan"):
        import_nnunet(served.folders["plain"], "p", tmp_path / "models", settings=settings_with(written))


def test_two_trainings_of_one_plan_prepare_alike(tmp_path: Path) -> None:
    made = [write_folder(tmp_path / str(seed), TRAININGS["plain"], seed) for seed in (1, 2)]
    first, second = (models_of(folder, "m")[0].spec.nnunet for folder in made)
    assert first is not None
    assert second is not None
    assert first["preparation"] == second["preparation"]


def test_a_cascade_takes_no_scans(tmp_path: Path) -> None:
    stages = {"3d_lowres": FULL, "3d_cascade_fullres": {**FULL, "previous_stage": "3d_lowres"}}
    training = Training("3d_cascade_fullres", stages)
    folder = write_folder(tmp_path, training)
    write_folder(tmp_path, replace(training, name="3d_lowres"))
    with pytest.raises(SourceError, match=r"a cascade or a set is certified .* on a generated volume"):
        models_of(folder, "c", settings=settings_with([tmp_path / "a.nii.gz"]))
    for settings in ({"acceptance": 3}, {"precision": "scans"}):
        with pytest.raises(SpecError):
            models_of(folder, "c", settings=settings)


def test_a_file_that_is_not_there_is_named(served: Served, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"nothing.nii.gz: no such file"):
        import_nnunet(
            served.folders["plain"], "p", tmp_path / "models", settings=settings_with([tmp_path / "nothing.nii.gz"])
        )


def test_files_in_settings_lie_beside_them(tmp_path: Path) -> None:
    file = tmp_path / "some" / "settings.toml"
    file.parent.mkdir()
    file.write_text('[acceptance]\nscans = ["a.nii.gz", ["b.nii.gz", "/c.nii.gz"]]\n[precision]\ncalibration = "d"\n')
    found = read_settings(file)
    beside = str(file.parent)
    assert found["acceptance"]["scans"] == [f"{beside}/a.nii.gz", [f"{beside}/b.nii.gz", "/c.nii.gz"]]
    assert found["precision"]["calibration"] == f"{beside}/d"


# Errors of the command ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "message"),
    [("ready.mha", "ends in .nii or .nii.gz"), ("nowhere/ready.nii", "expected a folder"), ("", "ends in .nii")],
)
def test_a_place_that_cannot_be_written(served: Served, tmp_path: Path, output: str, message: str) -> None:
    (file,) = write_scan(tmp_path / "scans", "case", SHAPE, SPACING)
    arguments = ["prepare", str(file), "--model", "plain", "--output", str(tmp_path / output), "--url", served.url]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scans"]


def test_too_few_channels(served: Served, tmp_path: Path) -> None:
    (file,) = write_scan(tmp_path / "scans", "case", SHAPE, SPACING)
    target = tmp_path / "ready.nii"
    arguments = ["prepare", str(file), "--model", "turned", "--output", str(target), "--url", served.url]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "4" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scans"]
