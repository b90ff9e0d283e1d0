"""What one case's fault does to the others in a folder; without a server."""

from __future__ import annotations

import json
import resource
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from tests.support.heads import head, image
from tests.support.in_memory import InMemoryTransport
from tests.support.in_memory_commands import save_scan
from tests.support.phantoms import card_of
from voxtile import (
    InputError,
    NoResponseError,
    OutputError,
    Segmenter,
    ServerUnavailable,
    TileError,
    VoxtileError,
    segment_folder,
)
from voxtile.outputs.all import OUTPUTS
from voxtile.outputs.base import Output, Result
from voxtile.outputs.report import write_text

SCANS = ("a", "b", "c", "d")
TILES = 8
"""Of each scan: 2 along each axis."""


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for number, name in enumerate(SCANS):
        nib.save(image(head((20 + number, 20, 20))), folder / f"{name}.nii")
    return folder


def failing(error: BaseException, call: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """A network that fails once, at its `call`-th tile."""
    calls: list[int] = []

    def network(tiles: NDArray[Any]) -> NDArray[Any]:
        calls.append(len(tiles))
        if len(calls) == call:
            raise error
        return np.concatenate([tiles, tiles], axis=1)

    return network


def outcomes_of(inputs: Path, error: BaseException) -> tuple[list[str], int]:
    """The statuses of all cases, where `error` strikes in the second one, and the exit code."""
    outputs = inputs.with_name("masks")
    network = failing(error, TILES + 2)
    with Segmenter(transport=InMemoryTransport(card_of(), network), sw_batch_size=1) as segmenter:
        result = segment_folder(segmenter, inputs, outputs)
    rows = json.loads((outputs / "summary.json").read_text())
    assert [row["case"] for row in rows] == list(SCANS)
    assert {path.name[0] for path in outputs.glob("*.nii.gz")} == {
        row["case"] for row in rows if row["status"] == "done"
    }
    return [row["status"] for row in rows], result.exit_code


@pytest.mark.parametrize("error", [NoResponseError("no answer"), ServerUnavailable("none there")])
def test_nothing_is_tried_once_the_servers_are_lost(inputs: Path, error: VoxtileError) -> None:
    statuses, code = outcomes_of(inputs, error)
    assert statuses == ["done", "failed", "not tried", "not tried"]
    assert code == 3


def test_other_faults_are_one_cases_own(inputs: Path) -> None:
    """Whatever the words of the error."""
    statuses, code = outcomes_of(inputs, TileError("no server has answered this request well"))
    assert statuses == ["done", "failed", "done", "done"]
    assert code == 1


ANY_ERROR = [
    MemoryError(),
    RecursionError("too deep"),
    OSError(5, "Input/output error"),
    zlib.error("Error -3 while decompressing data"),
    ImageFileError("no image"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    AssertionError(),
    KeyError("a key"),
    StopIteration(),
    Warning("a library warns"),
]


@pytest.mark.parametrize("error", ANY_ERROR, ids=lambda error: type(error).__name__)
def test_any_error_in_segmenting_is_one_cases_own(inputs: Path, error: Exception) -> None:
    statuses, code = outcomes_of(inputs, error)
    assert statuses == ["done", "failed", "done", "done"]
    assert code == 1


@pytest.mark.parametrize("error", [*ANY_ERROR, SystemExit(1)], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", ["voxtile.segmenter.open_scan", "voxtile.batch.finishing.write_image"])
def test_any_error_in_reading_or_writing_is_one_cases_own(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, place: str
) -> None:
    module, _, name = place.rpartition(".")
    real = getattr(import_module(module), name)
    calls: list[object] = []

    def fail_once(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise error
        return real(*arguments)

    monkeypatch.setattr(place, fail_once)
    outputs = inputs.with_name("masks")
    with Segmenter(transport=InMemoryTransport(card_of(), healthy)) as segmenter:
        result = segment_folder(segmenter, inputs, outputs)
        rows = {row["case"]: row for row in json.loads((outputs / "summary.json").read_text())}
        assert [rows[name]["status"] for name in SCANS] == ["done", "failed", "done", "done"]
        assert rows["b"]["error"].startswith(f"{type(error).__name__}: ")
        assert (result.exit_code, rows["b"]["ml"], (outputs / "b.nii.gz").exists()) == (1, {}, False)
        assert [one.status for one in segment_folder(segmenter, inputs, outputs).outcomes] == [
            *("found", "done", "found", "found")
        ]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Every file of this process that becomes larger fails in being written, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_mask_that_the_disk_does_not_take_fails_alone(tmp_path: Path) -> None:
    inputs, outputs = tmp_path / "scans", tmp_path / "masks"
    save_scan(inputs / "a.nii.gz")
    save_scan(inputs / "b.nii.gz", 2, (130, 130, 130))
    save_scan(inputs / "c.nii.gz")
    with Segmenter(transport=InMemoryTransport(card_of(), healthy)) as segmenter:
        with files_of_at_most(2000):
            result = segment_folder(segmenter, inputs, outputs)
        assert [one.status for one in result.outcomes] == ["done", "failed", "done"]
        assert "b.nii.gz: cannot be written (File too large)" in result.outcomes[1].error
        assert sorted(path.name for path in outputs.glob("*")) == [
            *(".voxtile-batch", "a.nii.gz", "c.nii.gz", "summary.csv", "summary.json", "voxtile-batch.json")
        ]
        assert [one.status for one in segment_folder(segmenter, inputs, outputs).outcomes] == ["found", "done", "found"]


def test_a_summary_that_the_disk_does_not_take_costs_no_mask_and_is_told(inputs: Path) -> None:
    outputs = inputs.with_name("masks")
    with Segmenter(transport=InMemoryTransport(card_of(), healthy)) as segmenter:
        with files_of_at_most(600), pytest.raises(OutputError, match=r"summary\.json: cannot be written"):
            segment_folder(segmenter, inputs, outputs)
        assert {path.name for path in outputs.glob("*.nii.gz")} == {f"{name}.nii.gz" for name in SCANS}
        assert not list(outputs.rglob("*.part"))
        assert {one.status for one in segment_folder(segmenter, inputs, outputs).outcomes} == {"found"}


def test_a_record_that_the_disk_does_not_take_leaves_no_mask_that_nobody_knows(inputs: Path) -> None:
    outputs = inputs.with_name("masks")
    with Segmenter(transport=InMemoryTransport(card_of(), healthy)) as segmenter:
        with files_of_at_most(300), pytest.raises(OutputError, match="summary"):
            segment_folder(segmenter, inputs, outputs)
        assert not list(outputs.glob("*.nii.gz"))
        assert {one.status for one in segment_folder(segmenter, inputs, outputs).outcomes} == {"done"}


def test_an_output_that_fails_costs_no_other_output(inputs: Path) -> None:
    def refuse(_: Result, __: Path) -> None:
        raise RuntimeError("no")

    first = Output("first", ".one", "Fails.", refuse)
    second = Output("second", ".two", "Works.", lambda _, path: write_text("two", path))
    outputs = inputs.with_name("masks")
    with Segmenter(transport=InMemoryTransport(card_of(), healthy)) as segmenter:
        result = segment_folder(segmenter, inputs, outputs, beside=[first, second])
    assert {path.stem for path in outputs.glob("*.two")} == set(SCANS)
    assert all("the mask is written" in one.error and one.ml for one in result.outcomes)


def healthy(tiles: NDArray[Any]) -> NDArray[Any]:
    """A network that never fails."""
    return np.concatenate([tiles, tiles], axis=1)


def test_two_cases_with_one_mask_are_refused_before_any_work(inputs: Path) -> None:
    nib.save(image(head((20, 21, 20))), inputs / "a.nii.gz")
    outputs = inputs.with_name("masks")
    with (
        Segmenter(transport=InMemoryTransport(card_of(), healthy)) as segmenter,
        pytest.raises(InputError, match=r"a\.nii\.gz: two cases would have this file .*a\.nii.*a\.nii\.gz"),
    ):
        segment_folder(segmenter, inputs, outputs)
    assert not outputs.exists()


def test_an_output_that_fails_costs_no_mask_and_is_tried_again(inputs: Path) -> None:
    def draw(_: Result, path: Path) -> None:
        if fails and path.stem == "b":
            raise ValueError("no picture of this")
        path.write_text("a picture")

    picture, fails = Output("picture", ".txt", "A picture.", draw), True
    outputs = inputs.with_name("masks")
    with Segmenter(transport=InMemoryTransport(card_of(), healthy)) as segmenter:
        first = segment_folder(segmenter, inputs, outputs, beside=[picture])
        assert {path.name for path in outputs.glob("*.nii.gz")} == {f"{name}.nii.gz" for name in SCANS}
        fails = False
        again = segment_folder(segmenter, inputs, outputs, beside=[picture])
    assert [one.status for one in first.outcomes] == ["done", "failed", "done", "done"]
    assert "--picture could not be made: no picture of this" in first.outcomes[1].error
    assert [one.status for one in again.outcomes] == ["found", "done", "found", "found"]
    assert {path.stem for path in outputs.glob("*.txt")} == set(SCANS)


def test_names_in_capitals_are_found(inputs: Path) -> None:
    (inputs / "a.nii").rename(inputs / "a.NII")
    with Segmenter(transport=InMemoryTransport(card_of(), healthy)) as segmenter:
        result = segment_folder(segmenter, inputs, inputs.with_name("masks"))
    assert [one.case for one in result.outcomes] == list(SCANS)
    assert result.exit_code == 0


def test_no_two_outputs_share_an_ending() -> None:
    endings = [suffix for output in OUTPUTS for suffix in (output.suffix, *output.companions)]
    assert len(set(endings)) == len(endings)
