"""The card that the build writes is the card that the client reads; both hold the same schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import voxtile.card
from tests.support.build_specs import ROI, spec
from voxtile_build.errors import BuildError
from voxtile_build.repository.card import SCHEMA_VERSION, card_of, check_card, schema

ROOT = Path(__file__).parents[2]
CERTIFICATES = {
    "openvino": {
        "sha256": "c" * 64,
        "accepted": True,
        "precision": "fp32",
        "dice_min": 1.0,
        "changed_fraction": 0.0,
        "max_abs_error": 1e-6,
    }
}
PROVENANCE = {"network": "UNet", "weights_sha256": "a" * 64, "onnx_sha256": "b" * 64, "versions": {"torch": "2"}}


def card(**changes: Any) -> dict[str, Any]:
    return card_of(spec(**changes), "openvino", CERTIFICATES, PROVENANCE)


def read(fields: dict[str, Any]) -> voxtile.card.Card:
    return voxtile.card.parse_card(json.dumps(fields), "tiny")


def test_all_copies_of_the_schema_are_the_clients() -> None:
    published = json.loads((ROOT / "docs/reference/card.schema.json").read_text())
    assert schema() == published == json.loads(json.dumps(voxtile.card.schema()))
    assert SCHEMA_VERSION == voxtile.card.SCHEMA_VERSION


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
    chosen, found = spec(**changes), read(card(**changes))
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
        key: getattr(chosen.tiling, key) for key in ("semantics", "overlap", "mode", "sigma_scale")
    }
    assert found.mirror_axes == chosen.tiling.mirror_axes
    assert (found.background.at_most if found.background else None) == chosen.tiling.background_at_most
    assert found.nnunet == chosen.nnunet
    assert found.engine == "openvino"
    assert found.certificates["openvino"].accepted
    assert found.provenance.weights_sha256 == "a" * 64


def test_roi_and_labels_are_the_specs_own() -> None:
    found = read(card())
    assert found.roi_size == ROI
    assert [(label.name, label.value) for label in found.labels] == [("background", 0), ("one", 1), ("two", 2)]


def test_a_mask_of_one_class_has_that_class_with_its_own_value() -> None:
    found = read(card(output={"scores": "foreground", "foreground": "two"}))
    assert [(label.name, label.value) for label in found.labels] == [("two", 2)]


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int16"])
def test_the_padding_value_survives_json_to_the_last_bit(dtype: str) -> None:
    from voxtile_build.spec.spec import PADDING

    assert read(card(input={"dtype": dtype})).input.padding == PADDING[dtype]


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"roi_size": [0, 8, 8]}, r"at roi_size\.0"),
        ({"colour": 1}, "colour"),
        ({"input": {"dtype": "fp64"}}, r"at input"),
    ],
)
def test_a_card_that_no_client_would_take_is_not_written(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(BuildError, match=where):
        check_card({**card(), **changes})


def test_the_two_packages_never_import_each_other() -> None:
    for folder, other in ((ROOT / "build/voxtile_build", "voxtile"), (ROOT / "client/voxtile", "voxtile_build")):
        for path in folder.rglob("*.py"):
            for line in path.read_text().splitlines():
                words = line.split()
                if len(words) > 1 and words[0] in ("import", "from"):
                    assert words[1].split(".")[0] != other, f"{path.name}: {line}"
