"""A student takes what its teacher takes and gives what it gives: every other spec is refused, with each difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from voxtile_build.errors import NetworkError, SlimmingError, SpecError
from voxtile_build.slimming.student import differences, new_network, read_student, student_name, student_spec
from voxtile_build.spec.name import checked_name
from voxtile_build.spec.spec import Spec, parse_spec
from voxtile_build.spec.spec_to_toml import spec_to_toml, write_spec

UNET = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [8, 16], "strides": [2]}
FIELDS: dict[str, Any] = {
    "name": "teacher",
    "network": {"name": "UNet", "args": UNET},
    "weights": {"file": "teacher.safetensors", "sha256": "0" * 64},
    "input": {"channels": ["T1"], "orientation": "RAS", "spacing": [1.0, 1.0, 2.0], "intensity": {"rule": "zscore"}},
    "output": {"labels": ["background", "grey", {"name": "white", "value": 2}]},
    "tiling": {"roi_size": [16, 16, 8], "overlap": 0.5, "mirror_axes": [0, 2]},
}


def spec_of(**changes: Any) -> Spec:
    """The teacher with other tables; `input__dtype="int16"` changes one key of a table."""
    fields: dict[str, Any] = {**FIELDS}
    for key, value in changes.items():
        table, _, name = key.partition("__")
        fields[table] = {**fields[table], name: value} if name else value
    return parse_spec({key: value for key, value in fields.items() if value is not None}, "teacher", Path("/"))


TEACHER = spec_of()
CHAIN = [
    {"transform": "Orientation", "axcodes": "RAS"},
    {"transform": "Spacing", "pixdim": [1.0, 1.0, 2.0]},
    {"transform": "NormalizeIntensity"},
]


def student_of(**changes: Any) -> Spec:
    return spec_of(name="student", weights=None, **changes)


def written(folder: Path, spec: Spec) -> Path:
    write_spec(spec, folder / "student.toml")
    return folder / "student.toml"


def test_the_students_spec_is_the_teachers_with_another_network_and_without_weights_and_mirroring() -> None:
    narrow = {**UNET, "channels": [4, 8]}
    student = student_spec(TEACHER, "student", narrow)
    assert list(differences(TEACHER, student)) == []
    assert (student.network.args, student.weights, student.tiling.mirror_axes) == (narrow, None, ())
    text = spec_to_toml(student, Path("/"))  # refuses what would read back as another spec
    assert "[weights]" not in text


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tiling__mirror_axes": []},
        {"tiling__mirror_axes": [2]},
        {"tiling__overlap": [0.5, 0.5, 0.5]},
        {"tiling__sigma_scale": [0.125] * 3},
        {"tiling__sw_batch_size": 2},
        {"serving": {"engines": ["onnxruntime"], "max_batch_size": 1}},
        {"acceptance": {"min_dice": 0.9}},
        {"precision": {"openvino": "int8"}},
        {"network": {"name": "DynUNet", "args": {}}},
        {"input": {"channels": ["T1"]}, "preprocessing": CHAIN},
        {"title": "another", "version": 3},
    ],
)
def test_what_does_not_change_masks_may_differ(tmp_path: Path, changes: dict[str, Any]) -> None:
    read = read_student(written(tmp_path, student_of(**changes)), TEACHER)
    assert (read.name, read.weights) == ("student", None)


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"input__channels": ["T2"]}, ['input.channels: ["T1"] in the teacher, ["T2"] in the student']),
        ({"input__dtype": "int16"}, ['input.dtype: "fp32" in the teacher, "int16" in the student']),
        ({"input__orientation": "LPS"}, ['input.orientation: "RAS" in the teacher, "LPS" in the student']),
        ({"input__orientation": None}, ['input.orientation: "RAS" in the teacher, nothing in the student']),
        (
            {"input__spacing": [1.0, 1.0, 1.0]},
            ["input.spacing: [1.0, 1.0, 2.0] in the teacher, [1.0, 1.0, 1.0] in the"],
        ),
        (
            {"input__intensity": {"rule": "zscore", "mask": "nonzero"}},
            ['input.intensity.mask: "all" in the teacher, "nonzero" in the student'],
        ),
        (
            {"input__intensity": {"rule": "range", "a_min": 0.0, "a_max": 9.0}},
            ['input.intensity: {"rule": "zscore"} in the teacher, {"rule": "range"'],
        ),
        (
            {"input": {"channels": ["T1"]}, "preprocessing": [*CHAIN[:2], {"transform": "ScaleIntensity"}]},
            ["input.intensity: "],
        ),
        ({"output__labels": ["background", "grey"]}, ["output.labels: 3 in the teacher, 2 in the student"]),
        (
            {"output__labels": ["background", "grey", {"name": "white", "value": 7}]},
            ["output.labels[2].value: 2 in the teacher, 7 in the student"],
        ),
        (
            {"output__labels": ["background", "white", "grey"]},
            [
                'output.labels[1].name: "grey" in the teacher, "white" in the student',
                'output.labels[2].name: "white" in the teacher, "grey" in the student',
            ],
        ),
        (
            {"output__scores": "probabilities"},
            ['output.scores: "logits" in the teacher, "probabilities" in the student'],
        ),
        ({"output__regions": True}, ["output.regions: false in the teacher, true in the student", "output.labels["]),
        ({"tiling__roi_size": [16, 16, 16]}, ["inferer.roi_size: [16, 16, 8] in the teacher, [16, 16, 16] in the"]),
        ({"tiling__overlap": 0.25}, ["inferer.overlap: [0.5, 0.5, 0.5] in the teacher, [0.25, 0.25, 0.25] in the"]),
        ({"tiling__semantics": "nnunet"}, ['inferer.semantics: "monai" in the teacher, "nnunet" in the student']),
        ({"tiling__mirror_axes": [0, 1]}, ["inferer.mirror_axes: [0, 2] in the teacher, [0, 1] in the student"]),
        (
            {"tiling__background_at_most": 0.0},
            ["inferer.background_at_most: nothing in the teacher, 0.0 in the student"],
        ),
        (
            {"postprocessing": [{"transform": "AsDiscrete", "argmax": True}]},
            ["postprocessing: nothing in the teacher, "],
        ),
        (
            {"input__dtype": "fp16", "tiling__cval": 1.0},
            ["input.dtype: ", "inferer.cval: 0.0 in the teacher, 1.0 in the student"],
        ),
    ],
)
def test_each_other_difference_is_a_line_with_both_values(
    tmp_path: Path, changes: dict[str, Any], lines: list[str]
) -> None:
    with pytest.raises(SlimmingError) as error:
        read_student(written(tmp_path, student_of(**changes)), TEACHER)
    first, *told = str(error.value).splitlines()
    assert first.startswith(f"{tmp_path / 'student.toml'}: ")
    told = told or [first.partition("what differs: ")[2]]
    for line in lines:
        assert [one for one in told if one.strip().removeprefix("- ").startswith(line)], (line, told)


def test_the_parts_of_an_nnunet_plan_that_differ_are_named() -> None:
    plan = {"spacing": [1.0, 1.0, 2.0], "patch_size": [16, 16, 8]}
    ours, theirs = spec_of(nnunet=plan), student_of(nnunet={**plan, "spacing": [1.0, 1.0, 1.0]})
    assert list(differences(ours, theirs)) == [
        "nnunet.spacing: [1.0, 1.0, 2.0] in the teacher, [1.0, 1.0, 1.0] in the student"
    ]
    (line,) = differences(ours, student_of())
    assert line.startswith("nnunet: ")
    assert line.endswith("nothing in the student")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": FIELDS["weights"]}, "take the table out"),
        ({"network__output": "probabilities", "output__scores": "probabilities"}, "gives logits"),
        ({"network": {"file": "n.onnx", "sha256": "0" * 64}}, "whose weights are fixed"),
        ({"name": "teacher"}, "take the teacher's place"),
    ],
)
def test_a_spec_that_is_none_of_a_student_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    student = spec_of(**{"name": "student", "weights": None, **changes})
    with pytest.raises(SlimmingError, match=message):
        read_student(written(tmp_path, student), TEACHER)


def test_a_student_that_says_what_is_left_to_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="todo"):
        read_student(written(tmp_path, student_of(todo=["choose the channels"])), TEACHER)


def test_a_name_that_is_given_stands_in_for_the_students_own(tmp_path: Path) -> None:
    assert read_student(written(tmp_path, spec_of(weights=None)), TEACHER, "other").name == "other"


@pytest.mark.parametrize("width", [0.5, 0.25, 1 / 3, 0.125])
def test_the_name_of_a_student_is_allowed_and_differs_from_the_teachers(width: float) -> None:
    for teacher in ("brain-unet", "a_mean", "x"):
        assert checked_name(student_name(teacher, width)) != teacher
    assert student_name("brain-unet", 0.5) == "brain-unet-w50"


def test_a_network_without_weights_or_of_other_sizes_is_refused() -> None:
    with pytest.raises(SlimmingError, match="with weights to train"):
        new_network(student_of(network={"name": "Identity"}))
    with pytest.raises(NetworkError, match="roi_size"):
        new_network(student_of(network__args={**UNET, "channels": [4, 8, 16, 32, 64], "strides": [2, 2, 2, 2]}))
    with pytest.raises(NetworkError, match=r"network\.args"):
        new_network(student_of(network__args={**UNET, "channels": [0, 8]}))
