"""The masks of regions: what is in the file, and which models have one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.support.phantoms import card_of, phantom_volume
from voxtile.errors import ModelError, OutputError
from voxtile.outputs.base import Result
from voxtile.outputs.regions import REGIONS

LABELS = [{"name": "core", "value": 1}, {"name": "whole", "value": 2}]


def regions_card(**changes: Any) -> Any:
    output = {"kind": "logits", "scores": 2, **changes.pop("output", {})}
    return card_of(output=output, labels=LABELS, regions=True, **changes)


def result(card: Any, scores: Any) -> Result:
    volume = phantom_volume((6, 5, 4), (1.0, 2.0, 3.0), "LPS")
    return Result(volume, None, card, np.zeros(volume.shape, np.uint8), scores)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("output", "limit"),
    [({}, 0.0), ({"activation": "sigmoid"}, 0.5), ({"kind": "probabilities"}, 0.5)],
)
def test_every_region_is_a_volume_of_the_file(tmp_path: Path, output: dict[str, Any], limit: float) -> None:
    scores = np.random.default_rng(4).normal(limit, 1, (2, 6, 5, 4)).astype(np.float32)
    scores[0, 0, 0, 0] = limit
    made = result(regions_card(output=output), scores)
    REGIONS.save(made, tmp_path / "mask.regions.nii.gz")
    written = nib.load(tmp_path / "mask.regions.nii.gz")
    data = np.asarray(written.dataobj)
    assert (data.shape, data.dtype) == ((6, 5, 4, 2), np.uint8)
    np.testing.assert_array_equal(data, np.moveaxis(scores >= np.float32(limit), 0, 3))
    np.testing.assert_allclose(written.affine, made.volume.affine, atol=1e-6)


def test_probabilities_of_nnunet_are_more_than_one_half(tmp_path: Path) -> None:
    scores = np.array([0.0, 0.5, 0.500001, 1.0], np.float32).repeat(60).reshape(2, 6, 5, 4)
    made = result(regions_card().model_copy(update={"nnunet": {"regions_class_order": [1, 2]}}), scores)
    REGIONS.save(made, tmp_path / "mask.regions.nii.gz")
    np.testing.assert_array_equal(
        np.moveaxis(np.asarray(nib.load(tmp_path / "mask.regions.nii.gz").dataobj), 3, 0), scores > 0.5
    )


def test_a_model_whose_labels_exclude_one_another_has_none() -> None:
    with pytest.raises(ModelError, match="labels of this model exclude one another"):
        REGIONS.check_model(card_of())
    with pytest.raises(ModelError, match="exclude one another"):
        REGIONS.check_model(card_of(output={"kind": "foreground", "scores": 1}, labels=LABELS[:1], regions=True))
    REGIONS.check_model(regions_card())


def test_another_ending_and_a_place_that_cannot_be_written_to_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="expected a name that ends in"):
        REGIONS.check(tmp_path / "mask.nii")
    with pytest.raises(OutputError):
        REGIONS.check(tmp_path / "nowhere" / "mask.regions.nii.gz")
