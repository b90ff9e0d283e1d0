"""A spec is either taken whole or refused with the key, what was expected, and what the key means."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.support.build_specs import fields, spec
from voxtile.transforms.postprocessing import Postprocessing
from voxtile.transforms.preprocessing import Preprocessing
from voxtile_build.errors import SpecError
from voxtile_build.spec import words
from voxtile_build.spec.explain import ordinal
from voxtile_build.spec.input import Input
from voxtile_build.spec.spec import Spec, load_spec, parse_spec

MODELS = Path(__file__).parents[2] / "models"
MINIMAL = """
name = "mini"
[network]
name = "Identity"
[input]
channels = ["any"]
[output]
labels = ["value"]
[tiling]
roi_size = [8, 8, 8]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "model.toml"
    path.write_text(text)
    return path


def refusal(**changes: Any) -> str:
    with pytest.raises(SpecError) as caught:
        parse_spec(fields(**changes), "tiny.toml", Path())
    return str(caught.value)


def test_a_minimal_file_gets_the_documented_defaults(tmp_path: Path) -> None:
    found = load_spec(write(tmp_path, MINIMAL))
    assert found.input.dtype == "fp32"
    assert found.input.intensity.rule == "none"
    assert found.output.scores == "logits"
    assert found.serving.engines == ("onnxruntime", "openvino")
    assert found.tiling.overlap == 0.25
    assert found.weights is None


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_specs_of_this_repository_are_valid_and_name_files_that_exist(path: Path) -> None:
    found = load_spec(path)
    assert found.name == path.stem
    assert found.weights is None or found.weights.file.is_file()


def test_files_are_taken_from_the_folder_of_the_spec(tmp_path: Path) -> None:
    weights = f'[weights]\nfile = "w.safetensors"\nsha256 = "{"0" * 64}"\n'
    found = load_spec(write(tmp_path, MINIMAL + weights + '[acceptance]\nscans = ["a.nii.gz", ["b.nii.gz"]]\n'))
    assert found.weights is not None
    assert found.weights.file == tmp_path / "w.safetensors"
    assert found.acceptance.scans == ((tmp_path / "a.nii.gz",), (tmp_path / "b.nii.gz",))


def test_an_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    message = refusal(tiling={"overlaps": 0.5})
    assert message.startswith("tiny.toml: tiling.overlaps: unknown key (did you mean 'overlap'?)")
    assert "[tiling] takes semantics, roi" in message


def test_an_unknown_key_of_an_intensity_rule_is_named_with_its_path() -> None:
    message = refusal(input={"intensity": {"rule": "zscore", "masks": "nonzero"}})
    assert message.startswith("tiny.toml: input.intensity.masks: unknown key (did you mean 'mask'?)")


def test_a_missing_key_is_named_with_its_meaning() -> None:
    broken = fields()
    del broken["tiling"]["roi_size"]
    with pytest.raises(SpecError, match=r"tiny.toml: tiling.roi_size: missing \(roi_size: size of a tile in voxels"):
        parse_spec(broken, "tiny.toml", Path())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"tiling": {"roi_size": [16, 0, 12]}},
            r"tiling.roi_size\[1\]: .*greater than 0, found 0 \(roi_size: size of a tile",
        ),
        ({"tiling": {"roi_size": [16, 16, 2**31]}}, r"tiling.roi_size\[2\]: .*less than or equal to 2147483647"),
        ({"tiling": {"roi_size": [16]}}, r"tiling.roi_size: expected 2 or 3 values, found \[16\] \(roi_size: "),
        ({"tiling": {"roi_size": "16"}}, r"tiling.roi_size: .*found '16' \(roi_size: "),
        ({"tiling": {"roi_size": [16, 16]}}, "slice_axis go together"),
        ({"tiling": {"roi_size": [16, 16], "slice_axis": 2, "mirror_axes": [2]}}, "an axis that roi"),
        ({"tiling": {"overlap": 1.0}}, r"tiling.overlap: .*less than 1, found 1.0 \(overlap: share of the ROI"),
        ({"tiling": {"background_at_most": float("nan")}}, "tiling.background_at_most: .*finite"),
        ({"name": "Brain"}, r"name: .*found 'Brain'.*\(name: public name of the model"),
        ({"name": "brain_openvino"}, "must not end in '_openvino'"),
        ({"name": "../brain"}, "name: "),
        ({"version": "1"}, r"version: .*whole number, found '1' \(version: number of the version"),
        ({"version": True}, "version: .*whole number, found True"),
        ({"input": {"channels": []}}, r"input.channels: expected at least 1 value, found \[\]"),
        ({"input": {"dtype": "fp64"}}, "input.dtype: .*'fp32', 'fp16' or 'int16', found 'fp64'"),
        ({"input": {"orientation": "RAA"}}, r"input.orientation: .*found 'RAA' \(orientation: axis codes"),
        ({"input": {"spacing": [1.0, 1.0]}}, "input.spacing"),
        ({"input": {"spacing": [1.0, 1.0, -1.0]}}, r"input.spacing\[2\]: .*greater than 0"),
        ({"input": {"intensity": {"rule": "median"}}}, "input.intensity: .*none, range, fixed, zscore, percentile"),
        ({"input": {"intensity": {"rule": "range", "a_min": 3.0, "a_max": 3.0}}}, "expected a_max above a_min"),
        ({"input": {"intensity": {"rule": "percentile", "lower": 1.0, "upper": 101.0}}}, "less than or equal to 100"),
        ({"input": {"intensity": {"rule": "fixed", "mean": [0.0], "std": [0.0]}}}, r"std\[0\]: .*greater than 0"),
        (
            {"input": {"intensity": {"rule": "fixed", "mean": [0.0, 1.0], "std": [1.0]}}},
            "intensity.mean with one number for each of 1 channels, found 2",
        ),
        ({"output": {"scores": "mask"}}, "output.scores: .*found 'mask'"),
        ({"output": {"labels": ["one", "one"]}}, "every label's name and value once"),
        ({"output": {"labels": [{"name": "one", "value": 1}, {"name": "two", "value": 1}]}}, "value once"),
        ({"output": {"labels": []}}, r"output.labels: expected at least 1 value, found \[\]"),
        ({"output": {"dtype": "uint8"}}, "logits have no fixed range"),
        ({"output": {"scores": "labels"}}, "labels are sent as uint8"),
        ({"output": {"scores": "labels", "dtype": "uint8", "regions": True}}, "overlapping regions"),
        ({"output": {"scores": "foreground"}}, "the key foreground go together"),
        ({"output": {"foreground": "one"}}, "the key foreground go together"),
        ({"output": {"scores": "foreground", "foreground": "liver"}}, "to be one of .*found 'liver'"),
        ({"serving": {"engines": ["tvm"]}}, r"serving.engines\[0\]: .*found 'tvm'"),
        ({"serving": {"engines": ["openvino", "openvino"]}}, "every engine once"),
        (
            {"serving": {"engines": ["openvino"], "default_engine": "onnxruntime"}},
            "default_engine to be one of engines",
        ),
        ({"serving": {"preferred_batch_size": [2, 8]}}, r"preferred_batch_size \[8\] lie above max_batch_size 2"),
        ({"serving": {"max_batch_size": 0}}, "serving.max_batch_size: .*greater than 0"),
        ({"serving": {"gpus": [0, 0]}}, "each GPU once"),
        ({"serving": {"gpus": []}}, "each GPU once"),
        ({"acceptance": {"min_dice": 1.5}}, r"acceptance.min_dice: .*found 1.5 \(min_dice: smallest Dice"),
        ({"acceptance": {"scans": [["a.nii", "b.nii"]]}}, "1 files a scan, found 2"),
        ({"weights": {"file": "w.pt", "sha256": "abc"}}, r"weights.sha256: .*\(sha256: SHA-256 of the weights"),
        ({"weights": {"file": 3, "sha256": "0" * 64}}, "weights.file: "),
        ({"network": []}, r"network: .*\(network: the network"),
        ({"input": {"intensity": "ct"}}, r"input.intensity: expected a table, such as \{ rule = .*, found 'ct'"),
        ({"tiling": {"roi_size": 32}}, r"tiling.roi_size: expected a list, such as \[1, 2, 3\], found 32"),
        ({"input": {"spacing": [1.0, 2.0]}}, r"input.spacing: expected 3 values, found \[1.0, 2.0\]"),
        ({"input": {"spacing": [1.0] * 4}}, r"input.spacing: expected 3 values, found \[1.0"),
        ({"input": {"pixdim": 1}}, r"input.pixdim: unknown key \(MONAI's word for spacing; or write Spacing"),
        ({"input": {"a_min": 1}}, r"input.a_min: unknown key \(of a rule: intensity = \{ rule"),
        ({"serving": {"warm_up": 1}}, "serving.warm_up: expected true or false, found 1"),
    ],
)
def test_a_wrong_value_is_refused_by_key_and_meaning(changes: dict[str, Any], expected: str) -> None:
    assert re.search(expected, refusal(**changes)), refusal(**changes)


STEP = {"transform": "Spacing", "pixdim": [1.0, 2.0, 1.5]}
TURNED = {"transform": "Orientation", "axcodes": "RAS"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"engines": ["openvino"]}, r"^tiny.toml: engines: unknown key \(it is a key of \[serving\]\)"),
        ({"serving": {"roi_size": [8, 8, 8]}}, r"serving.roi_size: unknown key \(it is a key of \[inferer\]\)"),
        ({"serving": {"todo": []}}, r"serving.todo: unknown key \(it is a key of the top of the file\)"),
        ({"acceptance": {"dtype": "fp16"}}, r"\(it is a key of \[input\] and of \[output\]\)"),
        ({"label": ["one"]}, r"label: unknown key \(did you mean 'labels' of \[output\]\?\)"),
        ({"output": {"label": ["one"]}}, r"output.label: unknown key \(did you mean 'labels'\?\)"),
        ({"network": {"channels": [4, 8]}}, r"network.channels: .*in \[network.args\]"),
        ({"tiling": {"patch_size": [8, 8, 8]}}, r"patch_size: .*nnU-Net's word for roi_size of \[inferer\]"),
        (
            {"preprocessing": [TURNED, {**STEP, "keys": ["image"]}]},
            r": the 2nd \[\[preprocessing\]\]: keys: .*leave it",
        ),
        ({"preprocessing": [TURNED, {**STEP, "label": 1}]}, r": the 2nd \[\[preprocessing\]\]: label: .*leave it out"),
        (
            {"preprocessing": [{**STEP, "mode": ["bilinear", "nearest"]}]},
            "mode: input should be .*image alone",
        ),
        ({"preprocessing": [TURNED, {**STEP, "pixdim": [1.0]}]}, r"pixdim: expected 3 values, found \[1.0\]"),
        ({"preprocessing": TURNED}, r"preprocessing: expected a \[\[preprocessing\]\] for each step"),
        ({"preprocessing": ["Orientation"]}, "with its transform, such as transform = .*found 'Orientation'"),
        ({"input": {"channels": "T1"}}, r"input.channels: expected a list, such as \[\"T1\"\], found 'T1'"),
        ({"tiling": {"roi_size": "32x32"}}, r"roi_size: expected a list, such as \[1, 2, 3\], found '32x32'"),
        ({"weights": {"file": "w", "sha256": "A1"}}, "sha256: expected 64 characters of 0-9 and a-f, .*found 'A1'"),
        ({"input": {"orientation": "ras"}}, "orientation: expected one letter of each pair .*RAS, found 'ras'"),
        ({"serving": {"engines": ["tensorRT"]}}, r"found 'tensorRT' \(did you mean 'tensorrt'\?\)"),
        ({"tiling": {"roi_size": [8] * 4}}, "roi_size: expected 2 or 3 values, found"),
    ],
)
def test_what_stands_in_the_wrong_place_is_told_where_it_belongs(changes: dict[str, Any], expected: str) -> None:
    message = refusal(**changes)
    assert re.search(expected, message), message
    assert len(message.splitlines()) == 1


def test_every_word_that_is_explained_is_no_key_of_its_table() -> None:
    """Else its hint would never be shown, or be wrong."""
    steps = {key for kind in (*_kinds(Preprocessing), *_kinds(Postprocessing)) for key in kind.model_fields}
    assert not steps & set(words.OF_A_STEP)
    assert not set(Input.model_fields) & set(words.OF_INPUT)
    assert not keys(Spec) & set(words.ANYWHERE)


def _kinds(union: Any) -> tuple[Any, ...]:
    return get_args(get_args(union)[0])


@pytest.mark.parametrize(
    ("number", "said"), [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (13, "13th"), (22, "22nd")]
)
def test_steps_are_counted_as_people_count(number: int, said: str) -> None:
    assert ordinal(number) == said


def test_a_wrong_engine_is_one_fault() -> None:
    assert len(refusal(serving={"engines": ["onnxruntimes"]}).splitlines()) == 1


def test_every_fault_gets_its_own_line() -> None:
    lines = refusal(version=0, tiling={"overlap": 2.0}).splitlines()
    assert len(lines) == 2
    assert all(line.startswith("tiny.toml: ") for line in lines)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none.toml: cannot be read \(No such file"):
        load_spec(tmp_path / "none.toml")


def test_a_file_that_is_not_toml_is_refused_with_the_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"model.toml: not TOML: .*line 2"):
        load_spec(write(tmp_path, 'name = "a"\nroi_size = = 1\n'))


def test_values_of_names_are_indices_and_regions_start_at_one() -> None:
    names = ["whole", "core"]
    assert [label.value for label in spec(output={"labels": names}).output.labels] == [0, 1]
    assert [label.value for label in spec(output={"labels": names, "regions": True}).output.labels] == [1, 2]
    own = spec(output={"labels": ["background", {"name": "bone", "value": 300}]}).output.labels
    assert [label.value for label in own] == [0, 300]


@pytest.mark.parametrize(
    ("output", "scores", "scale"),
    [
        ({"scores": "logits"}, 3, 1.0),
        ({"scores": "probabilities", "dtype": "uint8"}, 3, 255.0),
        ({"scores": "foreground", "foreground": "two", "dtype": "fp16"}, 1, 1.0),
        ({"scores": "labels", "dtype": "uint8"}, 1, 1.0),
    ],
)
def test_score_count_and_scale_follow_the_kind(output: dict[str, Any], scores: int, scale: float) -> None:
    found = spec(output=output)
    assert found.output.score_count == scores
    assert found.output.scale == scale


def test_foreground_index_is_the_labels_place() -> None:
    assert spec(output={"scores": "foreground", "foreground": "two"}).output.foreground_index == 2


def keys(model: Any) -> set[str]:
    """Every key that a spec may hold, tables included."""
    schema = model.model_json_schema()
    parts = [schema, *schema["$defs"].values()]
    return {key for part in parts for key in part.get("properties", {})}


def test_every_key_has_a_meaning() -> None:
    schema = Spec.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        for key, value in part.get("properties", {}).items():
            assert value.get("description"), f"{part['title']}.{key} has no description"


def test_the_reference_page_explains_every_key() -> None:
    page = (MODELS / "README.md").read_text()
    assert not [key for key in sorted(keys(Spec)) if f"`{key}`" not in page]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ({"activation": "softmax", "scores": "probabilities"}, "is for logits, found scores = 'probabilities'"),
        ({"activation": "sigmoid"}, "labels that exclude one another take softmax"),
        ({"activation": "softmax", "regions": True}, "regions overlap and take sigmoid"),
    ],
)
def test_an_activation_that_does_not_fit_is_refused(output: dict[str, Any], expected: str) -> None:
    with pytest.raises(SpecError, match=expected):
        spec(output=output)
