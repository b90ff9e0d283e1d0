"""What one case's fault does to the others in a folder; without a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.heads import head, image
from tests.support.in_memory import InMemoryTransport
from tests.support.phantoms import card_of
from voxtile import NoResponseError, Segmenter, ServerUnavailable, TileError, VoxtileError, segment_folder

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


def failing(error: VoxtileError, call: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """A network that fails once, at its `call`-th tile."""
    calls: list[int] = []

    def network(tiles: NDArray[Any]) -> NDArray[Any]:
        calls.append(len(tiles))
        if len(calls) == call:
            raise error
        return np.concatenate([tiles, tiles], axis=1)

    return network


def outcomes_of(inputs: Path, error: VoxtileError) -> tuple[list[str], int]:
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
