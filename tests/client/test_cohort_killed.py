"""Cohorts killed at any call to the file system, over and over, while scans, models and outputs change meanwhile.

Whatever happened: the next undisturbed run ends with the right masks, its table is theirs, and it is the last one.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.dying_files import dying
from tests.support.in_memory import InMemoryTransport
from tests.support.in_memory_commands import save_scan
from tests.support.phantoms import card_of
from voxtile import InputError, Segmenter
from voxtile.batch.cohort.collect import collect
from voxtile.batch.cohort.run import Redo, segment_manifest
from voxtile.batch.sums import sha256_of
from voxtile.outputs.base import Output
from voxtile.outputs.report import write_text

FORMS = 3
"""Of each scan, and of the model."""

CALLS = 30
"""Within which a run of one case is killed; it makes some 25 calls."""

WORDS = Output("words", ".txt", "Words.", lambda result, path: write_text(result.report.model_dump_json(), path))
"""Other words each time."""


def transport(form: int) -> InMemoryTransport:
    """A model that marks what is above 50 times its form."""

    def network(tiles: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([np.full_like(tiles[:, :1], 50.0 * form), tiles[:, :1]], axis=1)

    labels = ({"name": "background", "value": 0}, {"name": f"above {50 * form}", "value": 1})
    return InMemoryTransport(card_of(labels=labels), network)


def run(work: Path, form: int, beside: Sequence[Output] = (), redo: Redo | None = None) -> dict[str, str]:
    """The status of each case, of one that failed its error."""
    with Segmenter(transport=transport(form)) as segmenter:
        result = segment_manifest(segmenter, work / "cases.csv", work / "masks", beside=beside, redo=redo)
    return {one.case: one.error or one.status for one in result.outcomes}


def files(work: Path) -> dict[str, tuple[int, str]]:
    """When each file for users was written, and its checksum."""
    return {path.name: (path.stat().st_mtime_ns, sha256_of(path)) for path in (work / "masks").glob("a.*")}


def check_table(work: Path) -> None:
    """Checks that a table, at any time, says nothing of a mask but what is true of the one that is there."""
    try:
        rows = collect(work / "masks").rows
    except InputError:
        return  # no shard has got so far
    for row in rows:
        if row["status"] == "done":
            assert row["output_sha256"] == files(work)["a.nii.gz"][1]


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("forms")
    return [save_scan(folder / f"{form}.nii.gz", form, (12 + form, 9, 8)) for form in range(FORMS)]


def test_a_run_that_is_killed_twice_at_the_same_call_knows_its_masks(tmp_path: Path, forms: list[Path]) -> None:
    (tmp_path / "cases.csv").write_text("case,any\na,a.nii.gz\n")
    scan, masks = tmp_path / "a.nii.gz", tmp_path / "masks"
    shutil.copy(forms[0], scan)
    run(tmp_path, 0, [WORDS])
    shutil.copytree(masks, tmp_path / "before")
    shutil.copy(forms[1], scan)
    for at in range(1, CALLS):
        shutil.rmtree(masks)
        shutil.copytree(tmp_path / "before", masks)
        for _ in range(2):
            with dying(masks, at):
                run(tmp_path, 0, [WORDS])
        assert run(tmp_path, 0, [WORDS]) in ({"a": "done"}, {"a": "found"}), at


@pytest.mark.parametrize("seed", range(12))
def test_whatever_kills_a_cohort_its_next_run_is_right(tmp_path: Path, forms: list[Path], seed: int) -> None:
    chance, scan, model = random.Random(seed), tmp_path / "a.nii.gz", 0
    (tmp_path / "cases.csv").write_text("case,any\na,a.nii.gz\n")
    shutil.copy(forms[0], scan)
    for _ in range(chance.randint(2, 16)):
        if chance.random() < 0.3:
            shutil.copy(chance.choice(forms), scan)
        if chance.random() < 0.2:
            model = chance.randrange(FORMS)
        beside, redo = [WORDS] if chance.random() < 0.7 else [], Redo(everything=chance.random() < 0.1)
        with dying(tmp_path / "masks", at=chance.randint(1, CALLS)):
            run(tmp_path, model, beside, redo)
        check_table(tmp_path)
    assert run(tmp_path, model, [WORDS]) in ({"a": "done"}, {"a": "found"})
    made = files(tmp_path)
    (row,) = collect(tmp_path / "masks").rows
    assert (row["status"], row["output_sha256"]) == ("done", made["a.nii.gz"][1])
    assert row["scan_sha256"] == sha256_of(scan)
    assert run(tmp_path, model, [WORDS]) == {"a": "found"}
    assert files(tmp_path) == made, "nothing is written twice"
    shutil.rmtree(tmp_path / "masks")
    assert run(tmp_path, model, [WORDS]) == {"a": "done"}
    assert files(tmp_path)["a.nii.gz"][1] == made["a.nii.gz"][1], "the mask is that of a run that nothing disturbed"
