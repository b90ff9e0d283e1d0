"""mercure's module: what it takes from task.json, and what it leaves, through the real command and a real Triton."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import FileDataset

from docs.generate.programs import commands_of
from tests.support import dicom_findings as made
from tests.support import dicom_series as series
from tests.support.dockerfiles import ignored, instructions
from voxtile_server.embedded import EmbeddedServer

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "server" / "deploy" / "mercure" / "module.py"
CANARY = "CANARYVALUE"


def given(folder: Path, settings: Any, *several: list[FileDataset]) -> None:
    """The folders as mercure makes them: images by their UIDs, their tags beside them, and the task."""
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    for objects in several:
        for one in objects:
            file = folder / "in" / f"{one.SeriesInstanceUID}#{one.SOPInstanceUID}.dcm"
            one.save_as(file, enforce_file_format=True)
            file.with_suffix(".tags").write_text(json.dumps({"PatientName": CANARY}))
    task = {"id": "1", "info": {"patient_name": CANARY}, "process": {"module_name": "voxtile", "settings": settings}}
    (folder / "in" / "task.json").write_text(json.dumps(task))


def run(folder: Path, server: EmbeddedServer | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MERCURE_IN_DIR": str(folder / "in"), "MERCURE_OUT_DIR": str(folder / "out"),
        "VOXTILE_URL": server.grpc_url if server else "localhost:1", **variables,
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, str(MODULE)], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_study_of_two_series_gives_objects_and_a_result(server: EmbeddedServer, tmp_path: Path) -> None:
    scan = made.scan((40, 36, 34))
    wanted = series.slices(*scan, "MR", PatientName=CANARY)
    other = series.slices(*scan, "CT", PatientName=CANARY, StudyInstanceUID=wanted[0].StudyInstanceUID)
    given(tmp_path, {"model": "small-unet", "modality": "MR", "sr": True, "sc": False}, wanted, other)
    done = run(tmp_path, server)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert CANARY not in done.stderr
    objects = {dcmread(file).Modality: dcmread(file) for file in (tmp_path / "out").glob("*.dcm")}
    assert {*objects} == {"SEG", "SR"}
    seg = objects["SEG"]
    assert seg.PatientName == CANARY
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == wanted[0].SeriesInstanceUID
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["model"] == "small-unet"
    assert CANARY not in json.dumps(result)
    names = {f"{one.SeriesInstanceUID}#{one.SOPInstanceUID}.dcm" for one in objects.values()}
    assert {file.name for file in (tmp_path / "out").iterdir()} == {*names, "result.json"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "expected a model"),
        ({"model": "phantom", "to": "A@b:1"}, "setting 'to': expected one of"),
        ({"model": "phantom", "sr": "yes"}, "setting 'sr': expected true or false, found str"),
        ({"model": ["phantom"]}, "setting 'model': expected a text or a number, found list"),
        (["model"], "expected names and values"),
        ({"model": "--help", "overlap": "--quiet"}, "overlap"),
        ({"model": "phantom"}, "localhost:1"),
    ],
)
def test_what_cannot_be_is_a_failure_with_nothing_left(tmp_path: Path, settings: Any, said: str) -> None:
    given(tmp_path, settings, series.slices(*made.scan(), PatientName=CANARY))
    done = run(tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert CANARY not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_folders_and_tasks_that_are_not_there(tmp_path: Path) -> None:
    assert "MERCURE_IN_DIR" in run(tmp_path).stderr
    given(tmp_path, {})
    for text in ("", "[1]", "{"):
        (tmp_path / "in" / "task.json").write_text(text)
        done = run(tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_the_image_is_given_what_it_copies() -> None:
    dockerfile = MODULE.with_name("Dockerfile")
    steps = instructions(dockerfile)
    for word, rest in steps:
        for source in rest.split()[:-1] if word == "COPY" else ():
            assert (ROOT / source).exists()
            assert not ignored(source, dockerfile.with_name("Dockerfile.dockerignore"))
    assert ("ENTRYPOINT", '["python", "/opt/module.py"]') in steps
    assert ("COPY", "server/deploy/mercure/module.py /opt/module.py") in steps


def test_the_manual_names_every_setting() -> None:
    page = (ROOT / "docs" / "how-to" / "listener.md").read_text()
    known = page.partition("\nKnown are ")[2].partition(";")[0]
    spec = importlib.util.spec_from_file_location("mercure_module", MODULE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert {*re.findall(r"`(\w+)`", known)} == {*module.SWITCHES, *module.VALUES}
    [command] = [one for one in commands_of("voxtile") if one.name == "voxtile dicom"]
    known_to_it = {name for one in command.parameters for name in one.names.split(", ")}
    every = dict.fromkeys(module.SWITCHES, True) | dict.fromkeys(module.VALUES, 1)
    words = [*module.options_of(every), *module.NOT.values()]
    assert {word.partition("=")[0] for word in words} <= known_to_it
