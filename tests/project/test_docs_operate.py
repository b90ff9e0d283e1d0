"""The page about operation: its commands work in their order, on the server that it starts."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from tests.support import pages
from tests.support.versioned import build_version, mask_of, scan

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "operate.md").read_text(encoding="utf-8")
RULES = ROOT / "server" / "deploy" / "monitoring" / "rules.yml"


def test_the_commands_of_the_page_work_in_their_order(tmp_path: Path) -> None:
    for number in (1, 2):
        build_version(tmp_path / "model_repository", number, "mine")
    image = scan()
    nib.save(image, tmp_path / "scan.nii.gz")
    examine, start, *others = pages.commands(PAGE)
    pages.run(examine, tmp_path)
    with pages.served(start, tmp_path) as address:
        said = [pages.run(command, tmp_path, address) for command in others]
    assert "mine" in said[0]
    for name, number in (("mask", 1), ("second", 2)):
        np.testing.assert_array_equal(
            np.asarray(nib.load(tmp_path / f"{name}.nii.gz").dataobj) == 1, mask_of(number, image)
        )


@pytest.mark.parametrize("alert", sorted(set(re.findall(r"\b([A-Z][a-z]+(?:[A-Z][a-z]+)+)\b(?=[^|]*\|)", PAGE))))
def test_the_alerts_of_the_page_are_those_of_the_rules(alert: str) -> None:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    assert alert in {rule["alert"] for group in groups for rule in group["rules"]}
