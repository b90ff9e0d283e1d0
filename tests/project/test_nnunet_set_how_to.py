"""docs/how-to/nnunet-set.md: every fenced command is run, in order, on generated models."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tomllib

from tests.support import pages
from tests.support.nnunet_folders import Training, configuration, write_folder, write_scan
from tests.support.totalsegmentator import OraclePart, segment
from voxtile_build.importers.nnunet.part_set import Cleaning, CropTable, Part, SetFile

PAGE = pages.ROOT / "docs" / "how-to" / "nnunet-set.md"
PLAN = {"3d_fullres": configuration((16, 16, 16), (1.5, 1.5, 1.5))}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_page_from_models_to_one_mask(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    (content,) = pages.files(text).values()
    (tmp_path / "total.toml").write_text(content, encoding="utf-8")
    parts = []
    for number, part in enumerate(tomllib.loads(content)["parts"]):
        training = Training("3d_fullres", PLAN, labels={"background": 0, f"first {number}": 1, f"second {number}": 2})
        folder = write_folder(tmp_path / part["folder"], training, seed=number)
        parts.append(OraclePart(folder, {1: 2 * number + 1, 2: 2 * number + 2}))
    (file,) = write_scan(tmp_path, "ct", (24, 20, 17), (1.1, 0.9, 1.7))
    file.rename(tmp_path / "ct.nii.gz")
    build, serve, *rest = pages.commands(text)
    pages.run(build, tmp_path)
    with pages.served(serve, tmp_path) as address:
        for command in rest:
            pages.run(command, tmp_path, address)
    wanted = segment(nib.load(tmp_path / "ct.nii.gz"), parts, (1.5, 1.5, 1.5), tmp_path / "oracle")
    found = np.asarray(nib.load(tmp_path / "ct-total.nii.gz").dataobj)
    assert (found != wanted).sum() <= wanted.size // 20_000
    assert len(np.unique(wanted)) > 5
    assert len(json.loads((tmp_path / "report.json").read_text())["parts"]) == 5


def test_page_names_every_key() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for prefix, table in (("", SetFile), ("parts.", Part)):
        for key in table.model_fields:
            assert f"`{prefix}{key}`" in text, key
    for key in (*Cleaning.model_fields, *CropTable.model_fields):
        assert f"\n{key} = " in text, key


def test_examples_are_files_that_the_command_reads() -> None:
    examples = [block.partition("```")[0] for block in PAGE.read_text(encoding="utf-8").split("```toml\n")[1:]]
    assert len(examples) == 3
    for example in examples:
        SetFile.model_validate(tomllib.loads(example))
