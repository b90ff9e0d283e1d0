"""Scans of another kind or unit are refused with figures; scans of the right kind pass, however they are stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, zoom

from bench.scans import ct_values
from tests.support.build_specs import spec
from tests.support.nnunet_folders import Training, configuration, write_folder
from voxtile_build.errors import SlimmingError
from voxtile_build.importers.nnunet.models import models_of
from voxtile_build.slimming.given.values import values_of
from voxtile_build.slimming.modality import check_answers, check_scans
from voxtile_build.slimming.scans import TrainingScan
from voxtile_build.spec.spec import Spec

Change = Callable[[Any], Any]
SHAPE = (48, 44, 40)


def head(seed: int = 0, *, stripped: bool = True) -> Any:
    """An MR of a head: a few tissues, a bias field and noise; what is outside is 0, or noise alone."""
    rng = np.random.default_rng(seed)
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")
    radius = np.sqrt((i / 0.8) ** 2 + (j / 0.7) ** 2 + (k / 0.75) ** 2)
    tissue = np.select([radius < 0.3, radius < 0.7, radius < 1], [900.0, 620.0, 250.0])
    tissue = gaussian_filter(tissue, 0.8) * (1 + 0.2 * i - 0.1 * k) + 30 * rng.standard_normal(SHAPE)
    found = np.where(radius < 1, np.clip(tissue, 1, None), 0 if stripped else np.abs(15 * rng.standard_normal(SHAPE)))
    return np.rint(found).astype(np.int16)


def body(seed: int = 0) -> Any:
    """A CT of a body with lungs, fat, soft tissue and bone, in air."""
    rng = np.random.default_rng(seed)
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")
    radius = np.sqrt((i / 0.85) ** 2 + (j / 0.7) ** 2)
    lungs = ((np.abs(i) - 0.4) / 0.22) ** 2 + (j / 0.4) ** 2 + ((k - 0.4) / 0.5) ** 2 < 1
    values = np.select([lungs, radius < 0.12, radius < 0.8, radius < 1], [-820.0, 500.0, 55.0, -100.0], -1000.0)
    return np.rint(values + 12 * rng.standard_normal(SHAPE)).astype(np.int16)


def scan(values: Any, name: str = "a") -> TrainingScan:
    channels = values if isinstance(values, list) else [values]
    return TrainingScan(name, (), "", values=tuple(values_of(channel) for channel in channels))


def rule(channel: str, **keys: Any) -> Spec:
    return spec(input={"channels": [channel], "intensity": keys})


T1 = rule("T1", rule="zscore", mask="nonzero")
ANY = rule("image", rule="percentile", lower=1, upper=99)
MR_RANGE = rule("T2w", rule="range", a_min=0, a_max=1200)
WINDOW = rule("CT", rule="range", a_min=-57, a_max=164)
WIDE = rule("image", rule="range", a_min=-1000, a_max=1000)
FIXED = rule("CT", rule="fixed", mean=[77], std=[140], lower=[-958], upper=[827])
NO_LIMITS = rule("image", rule="fixed", mean=[40], std=[90])
BRAIN_CT = rule("CT", rule="range", a_min=0, a_max=80)
CHAIN = spec(
    preprocessing=[
        {"transform": "ScaleIntensityRange", "a_min": -175, "a_max": 250, "b_min": 0, "b_max": 1, "clip": True},
        {"transform": "CropForeground"},
    ]
)


def nnunet(folder: Path, scheme: str, low: float, high: float) -> Spec:
    trained = Training(
        "3d_fullres", {"3d_fullres": configuration((8, 8, 8), (1, 1, 1), normalization_schemes=[scheme])}
    )
    found = models_of(write_folder(folder, trained), "teacher")[0].spec
    known = {**(found.nnunet or {})}
    known["foreground_intensity_properties_per_channel"] = {
        "0": {"mean": (low + high) / 2, "std": (high - low) / 5, "percentile_00_5": low, "percentile_99_5": high}
    }
    return found.model_copy(update={"nnunet": known})


def refused(scans: Sequence[TrainingScan], model: Spec, said: str) -> None:
    with pytest.raises(SlimmingError, match=said) as caught:
        check_scans(scans, model)
    assert "\n" not in str(caught.value)
    assert "--any-modality" in str(caught.value)


MRS = (T1, ANY, MR_RANGE)
CTS = (WINDOW, WIDE, FIXED, NO_LIMITS, CHAIN, BRAIN_CT, ANY)
KEPT: dict[str, Change] = {
    "as it is": lambda x: x,
    "float": lambda x: x.astype(np.float32) + 0.25 * (x != x.min()),
    "noisy": lambda x: np.where(x == 0, 0, x + 0.05 * x.std() * np.random.default_rng(1).standard_normal(x.shape)),
    "cropped": lambda x: x[6:36, 4:30, 9:31],
    "thick slices": lambda x: x[:, :, ::4],
    "resampled": lambda x: zoom(x.astype(np.float32), 1.3, order=1),
    "doubled without interpolation": lambda x: x.repeat(2, 0).repeat(2, 1).repeat(2, 2),
    "in a larger field": lambda x: np.pad(x, 20, constant_values=x.min()),
}
SCALED: dict[str, Change] = {
    "bytes": lambda x: np.rint(x * (255 / x.max())).astype(np.uint8),
    "another gain": lambda x: x * 9.5,
    "shares": lambda x: (x / x.max()).astype(np.float32),
    "gamma": lambda x: 3000 * (x / x.max()) ** 0.7,
}


@pytest.mark.parametrize("change", KEPT.values(), ids=KEPT)
def test_scans_of_the_right_kind_pass_however_they_are_stored(change: Change) -> None:
    for model in MRS:
        check_scans([scan(change(head(n, stripped=n != 1)), str(n)) for n in range(3)], model)
    for model in CTS:
        check_scans([scan(change(body(n)), str(n)) for n in range(3)], model)


@pytest.mark.parametrize("change", SCALED.values(), ids=SCALED)
def test_any_scale_passes_where_the_rule_takes_any(change: Change) -> None:
    for model in (T1, ANY):
        check_scans([scan(change(head()))], model)


def test_a_ct_cut_out_of_one_organ_and_the_benchs_ct_pass() -> None:
    for noise in (4, 15):
        organ = (60 + noise * np.random.default_rng(0).standard_normal(SHAPE)).astype(np.int16)
        for model in (WINDOW, WIDE, FIXED, NO_LIMITS, CHAIN):
            check_scans([scan(organ)], model)
    for model in (WIDE, FIXED, CHAIN, ANY):
        check_scans([scan(ct_values((96, 96, 96)))], model)
    contrast = (body() > 20) & (np.random.default_rng(0).random(SHAPE) > 0.1)  # air and fat show that the unit is right
    check_scans([scan(body() + 400 * contrast)], WINDOW)


@pytest.mark.parametrize("model", [WINDOW, WIDE, FIXED, CHAIN])
@pytest.mark.parametrize(
    "values",
    [head(), head(stripped=False), SCALED["bytes"](head()), SCALED["shares"](head()), body() + 1024,
     np.where(body() < -950, -2000, body() + 1024), SCALED["bytes"](body() + 1000)],
    ids=["MR", "MR with noise", "MR in bytes", "MR in shares", "CT + 1024", "CT + 1024, padded", "CT in bytes"],
)  # fmt: skip
def test_other_scans_are_no_ct_in_hounsfield_units(model: Spec, values: Any) -> None:
    refused(
        [scan(body(), "right"), scan(values, "wrong")], model, r"1 of 2 scans .*: wrong, channel .*Hounsfield units"
    )


@pytest.mark.parametrize("model", [WINDOW, WIDE, FIXED, CHAIN, NO_LIMITS, BRAIN_CT, MR_RANGE])
def test_values_that_were_normalised_before_are_refused(model: Spec) -> None:
    made = head() if model is MR_RANGE else body()
    for values in ((made - made.mean()) / made.std(), made / 1000):
        refused([scan(values.astype(np.float32))], model, r"expected .*, found -?[0-9.]+ to [0-9.]+ ")


@pytest.mark.parametrize("model", [T1, MR_RANGE])
def test_a_ct_is_no_mr(model: Spec) -> None:
    for values in (body(), ct_values((64, 64, 64))):
        refused([scan(values)], model, r"expected no CT \(channel T[12].*% of it between -1100 and -200")


def test_values_far_above_a_fixed_range_are_refused() -> None:
    for model in (MR_RANGE, NO_LIMITS, BRAIN_CT):
        refused([scan(head() * 9)], model, r"\d+% of the foreground lie above")


def test_one_ct_among_others_is_odd_even_where_the_spec_says_nothing() -> None:
    scans = [scan(head(n), str(n)) for n in range(4)]
    check_scans(scans, ANY)
    check_scans([scan(body(n), str(n)) for n in range(4)], ANY)
    refused([*scans, scan(body(), "ct")], ANY, "1 of 5 scans .*: ct, channel image: expected no CT")


@pytest.mark.parametrize("model", [T1, ANY, WINDOW, rule("image", rule="none")])
def test_masks_and_empty_scans_are_no_scans(model: Spec) -> None:
    labels = np.digitize(body(), [-500, 0, 300]).astype(np.uint8)
    labels = np.where(labels == 2, 7 + (np.indices(SHAPE)[0] > 20) * 30, labels)  # of two organs
    smooth = np.select([gaussian_filter(labels.astype(float), 2) > t for t in (12, 6, 1)], [3, 2, 1]).astype(np.uint8)
    lesions = (np.random.default_rng(0).random(SHAPE) > 0.999).astype(np.int16)
    good = head() if model is T1 else body()
    for mask in (labels, smooth, lesions):
        refused([scan(good), scan(mask, "mask")], model, r": mask, .*looks like a mask: \d+ different values of 0 to")
    many = smooth + 20.0 * np.indices(SHAPE)[0].clip(5, 30) * (smooth == 2)  # of many organs
    refused([scan(good), scan(many.repeat(6, 0), "mask")], model, r"mask: 2\d different values .*, and [89]\d%")
    refused([scan(good), scan(np.full(SHAPE, 4), "empty")], model, "empty.*found the value 4 in every voxel")


def test_plans_of_nnunet_say_what_is_expected(tmp_path: Path) -> None:
    ct = nnunet(tmp_path / "a", "CTNormalization", -150, 260)
    check_scans([scan(body())], ct)
    refused([scan(head())], ct, "Hounsfield units .CTNormalization, 99 % of the foreground trained on within -150..260")
    mr = nnunet(tmp_path / "b", "ZScoreNormalization", 20, 900)
    check_scans([scan(head()), scan(head() * 30.0)], mr)
    refused([scan(body())], mr, "expected no CT")
    plain = nnunet(tmp_path / "c", "NoNormalization", 20, 900)
    check_scans([scan(head())], plain)
    refused([scan(head() / 1000)], plain, "a spread of")


def test_each_channel_is_looked_at() -> None:
    two = spec(input={"channels": ["CT", "PET"], "intensity": {"rule": "fixed", "mean": [0, 5], "std": [300, 5],
               "lower": [-900, 0], "upper": [900, 30]}})  # fmt: skip
    pet = np.clip(head() / 60.0, 0, None)
    check_scans([scan([body(), pet])], two)
    refused([scan([pet, body()])], two, "channel CT: expected CT in Hounsfield")
    refused([scan([body(), pet * 1000])], two, "channel PET: .*above 30")


def test_without_a_rule_the_scans_of_the_certificate_say_what_is_expected(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(head().astype(np.float32) / 1000, np.eye(4)), tmp_path / "a.nii.gz")
    model = rule("image", rule="none")
    check_scans([scan(head() * 500.0)], model)
    known = model.model_copy(
        update={"acceptance": model.acceptance.model_copy(update={"scans": ((tmp_path / "a.nii.gz",),)})}
    )
    check_scans([scan(head(2) / 700)], known)
    refused([scan(head())], known, r"expected values as in the scans of acceptance.scans")


# What the teacher says -------------------------------------------------------------------------------------------


def answer(foreground: float, doubt: float, seed: int = 0) -> Any:
    """Logits [3, 8, 8, 8]: the first label after the background wins a share of the voxels with this doubt."""
    rng = np.random.default_rng(seed)
    won = rng.random((8, 8, 8)) < foreground
    low, high = np.log(doubt / 2), np.log(1 - doubt)
    return np.stack([np.where(won, low, high), np.where(won, high, low), np.full(won.shape, low)]).astype(np.float16)


def test_a_teacher_that_finds_nothing_is_refused() -> None:
    model, lines = spec(), list[str]()
    nothing = [answer(0, 0.01, n) for n in range(5)]
    with pytest.raises(SlimmingError, match="finds one, two in these scans, found nothing but background in 5 patches"):
        check_answers(nothing, model, "logits")
    check_answers([*nothing, answer(0.01, 0.01)], model, "logits", told=lines.append)
    assert lines == ["tiny: the teacher never found two in 6 patches that were looked at"]


def test_a_teacher_far_less_sure_than_for_its_certificate_is_refused() -> None:
    model, known = spec(), [answer(0.4, 0.03)]
    check_answers([answer(0.3, 0.15)], model, "logits", known)
    check_answers([answer(0.3, 0.45)], model, "logits", [answer(0.4, 0.3)])
    check_answers([answer(0.3, 0.45)], model, "logits")
    with pytest.raises(SlimmingError, match=r"mean probability of 0\.97, found 0\.55 in 1 patches"):
        check_answers([answer(0.3, 0.45)], model, "logits", known)


def test_regions_have_no_background() -> None:
    model = spec(output={"labels": ["tumour", "core"], "regions": True})
    with pytest.raises(SlimmingError, match="finds tumour, core"):
        check_answers([np.full((2, 4, 4, 4), -3.0)], model, "logits")
    check_answers([np.stack([np.full((4, 4, 4), 3.0), np.full((4, 4, 4), -3.0)])], model, "logits")
    shares = [np.stack([np.full((4, 4, 4), 0.8), np.full((4, 4, 4), 0.1)])]
    check_answers(shares, model, "probabilities")
