"""A chain of MONAI's transforms in a spec: classic ones become the short keys, wrong ones are refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.build_specs import fields, spec
from voxtile.transforms import postprocessing, preprocessing
from voxtile.transforms.base import selection
from voxtile_build.errors import SpecError
from voxtile_build.spec.spec import Spec, parse_spec

RAS = {"transform": "Orientation", "axcodes": "RAS"}
SPACING = {"transform": "Spacing", "pixdim": [1.5, 1.5, 2]}
RANGE = {"transform": "ScaleIntensityRange", "a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1, "clip": True}
SOFTMAX = {"transform": "Activations", "softmax": True}
SIGMOID = {"transform": "Activations", "sigmoid": True}
INVERT = {"transform": "Invert", "nearest_interp": False}
ARGMAX = {"transform": "AsDiscrete", "argmax": True}
HALF = {"transform": "AsDiscrete", "threshold": 0.5}
LARGEST = {"transform": "KeepLargestConnectedComponent"}

MAPPED = {"transform": "MapLabelValue", "orig_labels": [1, 2], "target_labels": [2, 2]}


def refusal(**changes: Any) -> str:
    with pytest.raises(SpecError) as caught:
        parse_spec(fields(**changes), "tiny.toml", Path())
    return str(caught.value)


@pytest.mark.parametrize(
    ("steps", "short"),
    [
        ([RAS], {"orientation": "RAS"}),
        ([SPACING], {"spacing": [1.5, 1.5, 2.0]}),
        ([{"transform": "Spacing", "pixdim": 2}], {"spacing": [2.0, 2.0, 2.0]}),
        (
            [RAS, SPACING, RANGE],
            {
                "orientation": "RAS",
                "spacing": [1.5, 1.5, 2.0],
                "intensity": {"rule": "range", "a_min": -57.0, "a_max": 164.0},
            },
        ),
        (
            [{"transform": "ScaleIntensityRange", "a_min": 1, "a_max": 3}],
            {"intensity": {"rule": "range", "a_min": 1.0, "a_max": 3.0, "clip": False}},
        ),
        ([RAS, {"transform": "NormalizeIntensity"}], {"orientation": "RAS", "intensity": {"rule": "zscore"}}),
        (
            [{"transform": "NormalizeIntensity", "nonzero": True, "channel_wise": True}],
            {"intensity": {"rule": "zscore", "mask": "nonzero", "keep_zero": True}},
        ),
        (
            [{"transform": "NormalizeIntensity", "subtrahend": 3, "divisor": [2.5]}],
            {"intensity": {"rule": "fixed", "mean": [3.0], "std": [2.5]}},
        ),
        ([{"transform": "ScaleIntensity"}], {"intensity": {"rule": "percentile", "lower": 0.0, "upper": 100.0}}),
        (
            [
                {
                    "transform": "ScaleIntensityRangePercentiles",
                    "lower": 1,
                    "upper": 99,
                    "b_min": 0,
                    "b_max": 1,
                    "clip": True,
                }
            ],
            {"intensity": {"rule": "percentile", "lower": 1.0, "upper": 99.0, "clip": True}},
        ),
    ],
)
def test_a_classic_chain_is_what_the_short_keys_say(steps: list[Any], short: dict[str, Any]) -> None:
    assert spec(preprocessing=steps).preparation == spec(input=short).preparation


@pytest.mark.parametrize(
    ("steps", "client", "graph"),
    [
        ([SPACING, RAS], 2, 0),
        ([RANGE, {"transform": "ScaleIntensity"}], 1, 0),
        ([RAS, {"transform": "CropForeground"}, RANGE, {"transform": "ThresholdIntensity", "threshold": 1}], 2, 1),
        ([RANGE, RANGE], 0, 1),
        ([{"transform": "ScaleIntensity", "factor": 1}, {"transform": "CropForeground"}], 2, 0),
    ],
)
def test_other_chains_are_split_between_client_and_graph(steps: list[Any], client: int, graph: int) -> None:
    found = spec(preprocessing=steps).preparation
    assert (len(found.client), len(found.graph)) == (client, graph)


def test_statistics_over_all_channels_are_no_rule_of_the_graph() -> None:
    two = {"input": {"channels": ["a", "b"]}, "network": {"args": {"in_channels": 2}}}
    together = spec(preprocessing=[{"transform": "NormalizeIntensity"}], **two).preparation
    apart = spec(preprocessing=[{"transform": "NormalizeIntensity", "channel_wise": True}], **two).preparation
    assert (len(together.client), together.intensity.rule) == (1, "none")
    assert (len(apart.client), apart.intensity.rule) == (0, "zscore")


@pytest.mark.parametrize(
    ("steps", "regions", "activation"),
    [
        ([ARGMAX], False, "none"),
        ([SOFTMAX, ARGMAX], False, "softmax"),
        ([SOFTMAX, INVERT, ARGMAX, LARGEST], False, "softmax"),
        ([INVERT, SOFTMAX, ARGMAX], False, "none"),
        ([SIGMOID, INVERT, HALF], True, "sigmoid"),
        ([INVERT, SIGMOID, HALF], True, "none"),
    ],
)
def test_regions_and_activation_follow_from_the_chain(steps: list[Any], regions: bool, activation: str) -> None:
    found = spec(postprocessing=steps)
    assert (found.output.regions, found.output.activation) == (regions, activation)
    assert [label.value for label in found.output.labels] == ([1, 2, 3] if regions else [0, 1, 2])


def test_labels_that_become_one_may_share_its_value() -> None:
    assert [label.value for label in spec(postprocessing=[ARGMAX, MAPPED]).output.labels] == [0, 2, 2]


def test_a_spec_with_chains_comes_back_from_what_it_is_stored_as() -> None:
    crop = {"transform": "CropForeground", "select_fn": "x > 0.5", "margin": [1, 2, 3]}
    found = spec(
        preprocessing=[RAS, crop, {"transform": "ScaleIntensity", "factor": 0.5}], postprocessing=[SIGMOID, HALF]
    )
    assert Spec.model_validate_json(json.dumps(found.model_dump(mode="json"))) == found


def test_inferer_is_another_name_of_tiling() -> None:
    given = fields()
    given["inferer"] = {**given.pop("tiling"), "sw_batch_size": 2, "padding_mode": "constant"}
    found = parse_spec(given, "tiny.toml", Path())
    assert found.tiling.roi_size == spec().tiling.roi_size
    del given["serving"]["max_batch_size"]
    given["inferer"]["sw_batch_size"] = 7
    assert parse_spec(given, "tiny.toml", Path()).serving.max_batch_size == 7


def test_messages_use_the_word_in_the_file() -> None:
    given = fields()
    given["inferer"] = {**given.pop("tiling"), "overlaps": 0.5}
    with pytest.raises(SpecError) as caught:
        parse_spec(given, "tiling.toml", Path())
    assert "tiling.toml: inferer.overlaps: unknown key" in str(caught.value)
    assert "[inferer] takes" in str(caught.value)
    assert "tiling.overlaps" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"preprocessing": [{**RAS, "transform": "Orientationd"}]},
            r"the 1st \[\[preprocessing\]\]: .*did you mean 'Orientation'",
        ),
        (
            {"preprocessing": [RAS, {"transform": "Resized", "spatial_size": 9}]},
            r"the 2nd \[\[preprocessing\]\]: .*exact inverse; use Spacing",
        ),
        ({"preprocessing": [{"transform": "LoadImaged"}]}, "leave it out: the client reads the scan"),
        ({"preprocessing": [{"axcodes": "RAS"}]}, "expected the key 'transform'"),
        ({"preprocessing": []}, "preprocessing: expected at least 1 value"),
        (
            {"preprocessing": [{**SPACING, "mode": "nearest"}]},
            r"the 1st \[\[preprocessing\]\]: mode: input should be 'bilinear', found 'nearest'",
        ),
        ({"preprocessing": [{**SPACING, "pixdims": 1}]}, r"pixdims: unknown key \(did you mean 'pixdim'\?\)"),
        ({"preprocessing": [{"transform": "ClipIntensityPercentiles"}]}, "lower, upper or both, found neither"),
        (
            {"preprocessing": [{"transform": "ClipIntensityPercentiles", "lower": 1, "sharpness_factor": 2}]},
            "soft clipping has no counterpart",
        ),
        ({"preprocessing": [{**RANGE, "b_max": 0}]}, "expected b_max above b_min"),
        ({"preprocessing": [{**RANGE, "a_max": -57}]}, "a_min and a_max to differ"),
        ({"preprocessing": [{"transform": "ScaleIntensity", "factor": 1, "minv": 2}]}, "factor goes without minv"),
        ({"preprocessing": [{"transform": "CropForeground", "select_fn": "x.mean() > 0"}]}, "Python is not run"),
        ({"preprocessing": [{"transform": "CropForeground", "channel_indices": [1]}]}, "channel_indices from 0 to 0"),
        (
            {"preprocessing": [{"transform": "NormalizeIntensity", "subtrahend": [1, 2], "divisor": 1}]},
            "one for each of 1 channels, found 2",
        ),
        ({"preprocessing": [RAS], "input": {"spacing": [1.0, 1.0, 1.0]}}, "found both: write spacing as a step"),
        ({"postprocessing": [SOFTMAX]}, "nothing decides the labels"),
        ({"postprocessing": [ARGMAX, SOFTMAX]}, "Activations comes after AsDiscrete"),
        ({"postprocessing": [LARGEST, ARGMAX]}, "KeepLargestConnectedComponent comes before AsDiscrete"),
        ({"postprocessing": [ARGMAX, ARGMAX]}, "expected AsDiscrete once, found it 2 times"),
        ({"postprocessing": [SIGMOID, ARGMAX]}, "found them crossed"),
        ({"postprocessing": [{**ARGMAX, "threshold": 0.5}]}, "argmax = true or a threshold, found both"),
        ({"postprocessing": [{**ARGMAX, "to_onehot": 3}]}, "to_onehot: .*leave it out"),
        ({"postprocessing": [HALF], "output": {"regions": False}}, "AsDiscrete with a threshold contradict"),
        ({"postprocessing": [ARGMAX], "output": {"regions": True}}, "AsDiscrete with argmax contradict"),
        ({"postprocessing": [SOFTMAX, INVERT, ARGMAX], "output": {"activation": "none"}}, "leave activation out"),
        ({"postprocessing": [ARGMAX, INVERT], "preprocessing": [SPACING]}, "would blend numbers of labels"),
        ({"preprocessing": [SPACING, RAS, SPACING]}, "expected Spacing once"),
        (
            {"preprocessing": [RANGE, {"transform": "CropForeground"}], "input": {"dtype": "int16"}},
            "carries out ScaleIntensityRange before it sends them",
        ),
        (
            {"preprocessing": [RANGE, {"transform": "CropForeground"}], "tiling": {"background_at_most": 0.0}},
            "background_at_most is in the scan's units",
        ),
        ({"postprocessing": [ARGMAX, {**LARGEST, "applied_labels": 3}]}, r"applied_labels from 0 to 2, .* found \[3\]"),
        (
            {"postprocessing": [ARGMAX, {**LARGEST, "is_onehot": True}]},
            "labels lie in one channel: leave is_onehot out",
        ),
        (
            {"postprocessing": [HALF, {"transform": "LabelFilter", "applied_labels": 1}]},
            "LabelFilter is for classes; regions have a mask each",
        ),
        ({"postprocessing": [ARGMAX, MAPPED, LARGEST]}, "let MapLabelValue come last"),
        (
            {
                "postprocessing": [ARGMAX, MAPPED],
                "output": {"labels": [{"name": "a", "value": 0}, {"name": "b", "value": 1}, {"name": "c", "value": 2}]},
            },
            "write names alone into output.labels",
        ),
        ({"network": {"output": "probabilities"}, "output": {"scores": "logits"}}, "contradict each other"),
        (
            {"network": {"output": "probabilities"}, "postprocessing": [SOFTMAX, ARGMAX]},
            "leave Activations out, or network.output",
        ),
        ({"inferer": {"roi_size": [8, 8, 8]}}, r"found both: put all keys under \[inferer\]"),
        ({"tiling": {"sw_batch_size": 3}}, "two numbers for the tiles in one run"),
    ],
)
def test_a_chain_that_has_no_meaning_is_refused_by_name(changes: dict[str, Any], expected: str) -> None:
    message = refusal(**changes)
    assert re.search(expected, message), message
    assert len(message.splitlines()) == 1


def test_arguments_and_defaults_are_those_of_monai() -> None:
    """Every argument that a step takes is one of MONAI's, and has its default."""
    import inspect

    import monai.transforms as monai

    own = {"transform", "value"}  # `value` is passed on by MONAI's **kwargs
    for module in (preprocessing, postprocessing):
        for name, step in vars(module).items():
            if not (isinstance(step, type) and "transform" in getattr(step, "model_fields", {})):
                continue
            theirs = inspect.signature(getattr(monai, "Invertd" if name == "Invert" else name)).parameters
            for key, field in step.model_fields.items():
                if key in own or (name, key) == ("MaskIntensity", "select_fn"):
                    continue
                assert key in theirs, f"{name}.{key}"
                default = theirs[key].default
                if key == "select_fn" or (default is inspect.Parameter.empty) or field.is_required():
                    continue
                wanted = getattr(default, "value", default)
                assert field.default == wanted or (name, key) in NOT_BY_DEFAULT, f"{name}.{key}: {wanted}"


NOT_BY_DEFAULT = {("Orientation", "axcodes"), ("Spacing", "padding_mode")}


def test_a_rule_is_read_as_python_would_read_it() -> None:
    for text in ("x > 0", "x>=-1.5e2", " x != .5 ", "x < +3", "x <= 1."):
        rule = selection(text)
        for value in (-150.0, -1.0, 0.0, 0.5, 1.0, 3.0, 7.0):
            assert rule(value) == eval(text.strip(), {"x": value})
