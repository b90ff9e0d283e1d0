"""A certificate says what its scans hold, as the client says it of a scan; and nothing where it saw no real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.support.build_specs import CERTIFICATES, PROVENANCE, fields, spec
from voxtile.card import InputRange
from voxtile.chains.prepare import prepare_scan
from voxtile.io.intensities import InputStatistics
from voxtile.io.scan import open_scan
from voxtile.job import inputs_of
from voxtile_build.certificate.input_ranges import SIGNIFICANT, input_ranges
from voxtile_build.evaluation.samples import gather_scans
from voxtile_build.repository.card import card_of
from voxtile_build.spec.spec import Spec, parse_spec

FIGURES = tuple(InputStatistics.model_fields)


def write(path: Path, mean: float, std: float, fraction: float = 0.0) -> Path:
    values = np.random.default_rng(3).normal(mean, std, (21, 22, 23)).round() + fraction
    values[:5] = 0
    nib.save(nib.Nifti1Image(values.astype(np.float32), np.eye(4)), path)
    return path


def with_scans(folder: Path, *names: str, **changes: Any) -> Spec:
    return parse_spec(fields(acceptance={"scans": list(names)}, **changes), "tiny.toml", folder)


def test_a_generated_scan_says_nothing_of_real_ones() -> None:
    assert input_ranges(spec(), gather_scans(spec())) == ()


def test_of_several_scans_the_lowest_and_the_highest_count(tmp_path: Path) -> None:
    write(tmp_path / "one.nii", 100, 20)
    write(tmp_path / "two.nii", 300, 10)
    chosen = with_scans(tmp_path, "one.nii", "two.nii", input={"intensity": {"rule": "none"}})
    [found] = input_ranges(chosen, gather_scans(chosen))
    assert found.mean == pytest.approx((100, 300), abs=2)
    assert found.std == pytest.approx((10, 20), abs=1)
    assert found.p1[0] < found.mean[0] < found.p99[0]


@pytest.mark.parametrize("dtype", ["fp32", "int16"])
@pytest.mark.parametrize("fraction", [0.0, 0.25])
@pytest.mark.parametrize("rule", ["none", "zscore", "percentile"])
def test_a_client_that_gets_a_scan_of_the_certificate_says_the_same_of_it(
    tmp_path: Path, dtype: str, fraction: float, rule: str
) -> None:
    """Also where fractions are scaled to be sent as whole numbers."""
    file = write(tmp_path / "scan.nii", 200, 30, fraction)
    intensity: dict[str, Any] = {"rule": rule, **({"lower": 1.0, "upper": 99.0} if rule == "percentile" else {})}
    chosen = with_scans(tmp_path, "scan.nii", input={"dtype": dtype, "intensity": intensity})
    [seen] = input_ranges(chosen, gather_scans(chosen))
    card = card_of(chosen, "openvino", CERTIFICATES, PROVENANCE)
    prepared = prepare_scan(open_scan([str(file)], card.input_channels), card)
    [found] = inputs_of(prepared, card).values()
    for figure in FIGURES:
        assert getattr(seen, figure) == pytest.approx((getattr(found, figure),) * 2, abs=2e-3 * seen.std[1])


def test_figures_are_rounded_to_what_can_be_repeated(tmp_path: Path) -> None:
    write(tmp_path / "scan.nii", 200, 30)
    chosen = with_scans(tmp_path, "scan.nii", input={"intensity": {"rule": "zscore", "mask": "nonzero"}})
    [found] = input_ranges(chosen, gather_scans(chosen))
    assert found.mean == (0, 0), "what is left of a mean of 0 is noise"
    assert found.std == (1, 1)
    assert all(round(value, SIGNIFICANT - 1) == value for value in found.p99)
    assert InputRange.model_validate_json(found.model_dump_json()) == found
