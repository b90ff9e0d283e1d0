"""The card that the build writes says what the spec says, and the client reads it from config.pbtxt."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.build_specs import CERTIFICATES, PROVENANCE, ROI, built_card, spec
from voxtile.card import Card, parse_card
from voxtile_build.errors import BuildError, SpecError
from voxtile_build.repository.card import card_of, card_text


def read(**changes: Any) -> Card:
    """The card of a small spec with `changes`, as a client reads it."""
    return parse_card(card_text(built_card(**changes)), "tiny")


CASES: list[dict[str, Any]] = [
    {},
    {"title": "Größe", "input": {"dtype": "int16", "orientation": "LPS", "spacing": [1.0, 2.0, 0.5]}},
    {"input": {"intensity": {"rule": "range", "a_min": -175.0, "a_max": 250.0, "clip": False}}},
    {"input": {"intensity": {"rule": "fixed", "mean": [1.0], "std": [2.0], "lower": [0.0], "upper": [9.0]}}},
    {"input": {"intensity": {"rule": "zscore", "mask": "nonzero"}}},
    {"input": {"intensity": {"rule": "percentile", "lower": 1.0, "upper": 99.0, "clip": True}}},
    {"output": {"scores": "probabilities", "dtype": "uint8"}},
    {"output": {"scores": "probabilities", "dtype": "fp16", "regions": True}},
    {"output": {"scores": "foreground", "foreground": "one"}},
    {"output": {"scores": "labels", "dtype": "uint8"}},
    {
        "tiling": {
            "roi_size": [8, 12],
            "slice_axis": 1,
            "mirror_axes": [0, 1],
            "mode": "constant",
            "background_at_most": -900.0,
        }
    },
    {"tiling": {"semantics": "nnunet", "overlap": 0.5}, "nnunet": {"transpose_forward": [0, 1, 2]}},
]


@pytest.mark.parametrize("changes", CASES, ids=lambda changes: str(changes)[:60])
def test_the_client_reads_what_the_spec_says(changes: dict[str, Any]) -> None:
    chosen, found = spec(**changes), read(**changes)
    assert found.name == "tiny"
    assert found.title == chosen.title
    assert found.channels == ("T1",)
    assert found.orientation == chosen.input.orientation
    assert found.spacing == chosen.input.spacing
    rule = chosen.input.intensity.model_dump()
    assert found.intensity.model_dump() == {key: rule[key] for key in found.intensity.model_dump()}
    assert found.whole_scan_intensity == chosen.whole_scan_intensity
    assert found.roi_size == chosen.tiling.roi_size
    assert found.slice_axis == chosen.tiling.slice_axis
    assert found.input.dtype == chosen.input.dtype
    assert (found.output.kind, found.output.dtype) == (chosen.output.scores, chosen.output.dtype)
    assert (found.output.scores, found.output.scale) == (chosen.output.score_count, chosen.output.scale)
    assert found.regions == chosen.output.regions
    assert found.tiling.model_dump() == {
        key: getattr(chosen.tiling, key) for key in ("semantics", "overlap", "padding_mode", "mode", "sigma_scale")
    }
    assert found.mirror_axes == chosen.tiling.mirror_axes
    assert (found.background.at_most if found.background else None) == chosen.tiling.background_at_most
    assert found.nnunet == chosen.nnunet
    assert found.engine == "openvino"
    assert found.certificates["openvino"].accepted
    assert found.provenance.weights_sha256 == "a" * 64


def test_roi_and_labels_are_the_specs_own() -> None:
    found = read()
    assert found.roi_size == ROI
    assert [(label.name, label.value) for label in found.labels] == [("background", 0), ("one", 1), ("two", 2)]


def test_a_mask_of_one_class_has_that_class_with_its_own_value() -> None:
    found = read(output={"scores": "foreground", "foreground": "two"})
    assert [(label.name, label.value) for label in found.labels] == [("two", 2)]


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int16"])
def test_the_padding_value_survives_json_to_the_last_bit(dtype: str) -> None:
    from voxtile_build.spec.input import PADDING

    assert read(input={"dtype": dtype}).input.padding == PADDING[dtype]


@pytest.mark.parametrize("changes", CASES, ids=lambda changes: str(changes)[:60])
def test_a_card_survives_its_text(changes: dict[str, Any]) -> None:
    assert read(**changes) == built_card(**changes)


def test_optional_fields_that_do_not_apply_are_left_out() -> None:
    plain = json.loads(card_text(built_card()))
    assert "multiple" not in plain
    assert "activation" not in plain["output"]
    whole = {"roi_size": [8, 12], "slice_axis": 1, "multiple": 4, "overlap": 0.0}
    told = json.loads(card_text(built_card(tiling=whole, output={"activation": "softmax"})))
    assert (told["multiple"], told["output"]["activation"]) == (4, "softmax")


def test_a_card_that_no_client_would_take_is_not_made() -> None:
    chosen = spec()
    broken = chosen.model_copy(update={"tiling": chosen.tiling.model_copy(update={"roi_size": (0, 8, 8)})})
    with pytest.raises(BuildError, match=r"at roi_size\.0"):
        card_of(broken, "openvino", CERTIFICATES, PROVENANCE)


STEPS = [
    {"transform": "Orientation", "axcodes": "LPS"},
    {"transform": "CropForeground", "select_fn": "x > 3", "margin": [1, 2, 3]},
    {"transform": "ScaleIntensity", "factor": 0.5},
    {"transform": "NormalizeIntensity", "nonzero": True},
]
FINISH = [
    {"transform": "AsDiscrete", "argmax": True},
    {"transform": "KeepLargestConnectedComponent"},
    {"transform": "Invert"},
]


def test_the_client_reads_the_steps_that_are_its_own() -> None:
    chosen = spec(preprocessing=STEPS, postprocessing=FINISH)
    found = read(preprocessing=STEPS, postprocessing=FINISH)
    assert found.preprocessing == chosen.preparation.client
    assert len(chosen.preparation.client) == 3
    assert found.intensity.rule == "zscore"
    assert found.postprocessing == chosen.postprocessing
    assert found.finishing is not None
    assert found.finishing.decided_first


def test_a_classic_chain_leaves_the_card_as_older_clients_know_it() -> None:
    chain = [STEPS[0], {"transform": "Spacing", "pixdim": [1, 2, 3]}, STEPS[3]]
    usual = [
        {"transform": "Activations", "softmax": True},
        {"transform": "Invert", "nearest_interp": False},
        FINISH[0],
        {"transform": "MapLabelValue", "orig_labels": [2], "target_labels": [9]},
    ]
    text = card_text(card_of(spec(preprocessing=chain, postprocessing=usual), "openvino", CERTIFICATES, PROVENANCE))
    fields = json.loads(text)
    assert not {"preprocessing", "postprocessing"} & set(fields)
    assert "padding_mode" not in fields["tiling"]
    assert fields["output"]["activation"] == "softmax"
    assert [label["value"] for label in fields["labels"]] == [0, 1, 9]


def test_a_code_of_a_label_is_in_the_card_and_none_is_not() -> None:
    """A client that knows no codes reads the card of a model without any."""
    assert all("code" not in label for label in json.loads(card_text(built_card()))["labels"])
    code = {"value": "64033007", "meaning": "Kidney", "laterality": "left"}
    labels = [{"name": "zero", "value": 0}, {"name": "one", "value": 1, "code": code}]
    found = read(output={"labels": labels}).labels[1].code
    assert found is not None
    assert found.model_dump() == {**code, "scheme": "SCT", "category": "anatomy"}


@pytest.mark.parametrize(
    "code",
    [
        {"value": "1"},
        {"value": "x" * 17, "meaning": "a"},
        {"value": "1", "meaning": "a\\b"},
        {"value": 1, "meaning": "a"},
        {"value": "1", "meaning": "a", "laterality": "both"},
        {"value": "1", "meaning": "a", "category": "thing"},
    ],
)
def test_a_code_that_dicom_cannot_carry_is_refused(code: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"output\.labels"):
        spec(output={"labels": [{"name": "zero", "value": 0}, {"name": "one", "value": 1, "code": code}]})
