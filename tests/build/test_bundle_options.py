"""What a user says besides the bundle: --set, --write-spec; and what the importer says: all reasons, and notes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.bundles import (
    INVERT,
    NETWORK,
    POSTPROCESSING,
    PREPROCESSING,
    chain,
    inference,
    metadata,
    write_bundle,
)
from tests.support.zoo_bundles import SHAPES, write_zoo_bundle
from voxtile.transforms.preprocessing import NormalizeIntensity, ThresholdIntensity
from voxtile_build.cli.commands import main
from voxtile_build.errors import BuildError, SourceError, WeightsError
from voxtile_build.importers.bundle.bundle import spec_of
from voxtile_build.importers.bundle.lambdas import NotKnownError, function_of, rule_of, scaling_of, value_of
from voxtile_build.spec.spec import load_spec
from voxtile_build.spec.spec_to_toml import write_spec

LOAD, FIRST, ORIENT, SPACE, RANGE, TYPED = PREPROCESSING
SOFTMAX, _, ARGMAX, SAVE = POSTPROCESSING


def step(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": name, "keys": "image", **arguments}


# --set --------------------------------------------------------------------------------------------------------------


def test_values_are_put_in_place_of_the_bundles(tmp_path: Path) -> None:
    folder = write_zoo_bundle(tmp_path / "b", SHAPES["wholebody"])
    given = [
        "displayable_configs#highres=false",
        "inferer::padding_mode=constant",
        "inferer::roi_size=[8, 16, 24]",
        "preprocessing::transforms::6::maxv=2.5",
    ]
    spec = spec_of(folder, "b", None, given)
    assert spec.weights is not None
    assert spec.weights.file.name == "model_lowres.pt"
    assert spec.preparation.spacing == (3.0, 3.0, 3.0) or "pixdim=(3.0, 3.0, 3.0)" in str(spec.preprocessing)
    assert spec.tiling.roi_size == (8, 16, 24)
    assert "maxv=2.5" in str(spec.preprocessing)
    assert [note.removeprefix("given by --set: ") for note in spec.notes][-4:] == given


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inferer::roi_sise=[8, 8, 8]", r"--set inferer::roi_sise: .*no such key; did you mean inferer::roi_size"),
        ("overlap=0.5", r"--set overlap: .*no such key; did you mean inferer::overlap"),
        ("preprocessing::transforms::99::pixdim=[1, 1, 1]", "has no such key"),
        ("inferer::roi_size", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("inferer::roi_size=[8, 8", "the value is no JSON"),
        ("bundle_root=/x", "name another folder"),
        ("inferer=$print(1)", "inferer: expected SlidingWindowInferer, found"),
        ("inferer::overlap=2", r"inferer\.overlap.*found 2"),
    ],
)
def test_a_value_that_has_no_place_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=expected) as caught:
        spec_of(write_bundle(tmp_path / "b"), "b", None, [text])
    assert len(str(caught.value).splitlines()) == 1


def test_a_value_is_put_where_a_reference_leads(tmp_path: Path) -> None:
    config = inference(size=[16, 16, 16])
    config["inferer"]["roi_size"] = "@size"
    folder = write_bundle(tmp_path / "b", config)
    assert spec_of(folder, "b", None, ["inferer::roi_size::1=8"]).tiling.roi_size == (16, 8, 16)
    assert spec_of(folder, "b").tiling.roi_size == (16, 16, 16)


# --write-spec -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pediatric", "brats", "prostate", "dints", "ventricular"])
def test_the_written_spec_reads_back_as_the_bundles(name: str, tmp_path: Path) -> None:
    spec = spec_of(write_zoo_bundle(tmp_path / "b", SHAPES[name]), name)
    write_spec(spec, tmp_path / "out.toml")
    assert load_spec(tmp_path / "out.toml") == spec


def test_the_command_writes_the_spec_and_overwrites_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_bundle(tmp_path / "b")
    (tmp_path / "out.toml").write_text("mine")
    command = ["bundle", str(folder), "--name", "b", "--repository", str(tmp_path / "m")]
    assert main([*command, "--write-spec", str(tmp_path / "out.toml")]) == 2
    assert (tmp_path / "out.toml").read_text() == "mine"
    assert not (tmp_path / "m").exists()
    assert "out.toml" in capsys.readouterr().err


# Reasons and notes --------------------------------------------------------------------------------------------------


def test_all_reasons_come_at_once(tmp_path: Path) -> None:
    folder = write_bundle(
        tmp_path / "b",
        inference(
            preprocessing=chain(
                LOAD, step("Resized", spatial_size=[8, 8, 8]), step("scripts.t.Mine"), {**SPACE, "mode": "nearest"}
            ),
            inferer={"_target_": "SimpleInferer"},
            postprocessing=chain(SOFTMAX, {**ARGMAX, "_target_": "scripts.t.AsDiscreted"}),
        ),
    )
    path = folder / "configs/inference.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"network_def": {"_target_": "VNet"}}))
    with pytest.raises(SourceError) as caught:
        spec_of(folder, "b")
    head, *lines = str(caught.value).splitlines()
    assert head == f"{path}: {len(lines)} parts of the bundle cannot be taken:"
    for place in (
        *("transforms::1 (Resized)", "transforms::2: _target_", "transforms::3 (Spacingd): mode", "inferer (Simple"),
        *("postprocessing::transforms::1: _target_", "network_def: network.name"),
    ):
        assert sum(place in line for line in lines) == 1, place
    assert all(len(line) < 500 for line in lines)
    assert "model.ts" in lines[-1]


def test_names_that_do_not_fit_are_replaced_and_named(tmp_path: Path) -> None:
    meta = metadata(channels=["T1", "T2"])
    formats = meta["network_data_format"]
    formats["inputs"]["image"]["channel_def"] = {"0": "image"}
    formats["outputs"]["pred"]["channel_def"] = {"0": "one", "1": "one", "2": "", "7": "x", "y": 3}
    spec = spec_of(write_bundle(tmp_path / "b", inference(channels=2), meta), "b")
    assert spec.input.channels == ("image", "channel 1")
    assert [label.name for label in spec.output.labels] == ["one", "one 1", "label 2"]
    assert any("inputs::image names 1 of 2 channels; channel 1 are made up" in note for note in spec.notes)
    assert any("outputs::pred names" in note for note in spec.notes)


def test_names_of_labels_may_stand_under_another_key(tmp_path: Path) -> None:
    meta = metadata()
    described = meta["network_data_format"]["outputs"]["pred"]
    described["label_def"] = described.pop("channel_def")
    spec = spec_of(write_bundle(tmp_path / "b", None, meta), "b")
    assert [label.name for label in spec.output.labels] == ["background", "one", "two"]
    assert spec.notes == ()


def test_a_damaged_or_exchanged_export_is_refused(tmp_path: Path) -> None:
    folder = write_zoo_bundle(tmp_path / "b", SHAPES["dints"])
    metadata_of = json.loads((folder / "configs/metadata.json").read_text())
    (folder / "configs/metadata.json").write_text(json.dumps({**metadata_of, "license": "as it is"}))
    found = spec_of(folder, "b").network
    assert (found.source.startswith("MONAI bundle "), found.licence) == (True, "as it is"), "both go into the card"
    (folder / "large_files.yml").write_text(
        f"large_files:\n- path: models/model.ts\n  hash_type: md5\n  hash_val: {'a' * 32}\n"
    )
    with pytest.raises(SourceError, match=r"model\.ts: expected md5 a+, as .*large_files\.yml states"):
        spec_of(folder, "b")


def test_an_export_beside_a_known_network_is_not_taken(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b")
    (folder / "models/model.ts").write_bytes(b"anything")
    assert spec_of(folder, "b").network.file is None


@pytest.mark.parametrize("joined", ["$@first + @last", "$[*@first, *@last]"])
def test_a_chain_may_be_joined_by_python(joined: str, tmp_path: Path) -> None:
    config = inference(first=[LOAD, FIRST, ORIENT], last=[RANGE], preprocessing=chain())
    config["preprocessing"]["transforms"] = joined
    spec = spec_of(write_bundle(tmp_path / "b", config), "b")
    assert [type(one).__name__ for one in spec.preprocessing or ()] == ["Orientation", "ScaleIntensityRange"]


def test_references_may_start_from_their_own_place(tmp_path: Path) -> None:
    config = inference(sizes={"roi": [16, 16, 16], "same": "@::roi"})
    config["inferer"]["roi_size"] = "@##sizes#same"
    assert spec_of(write_bundle(tmp_path / "b", config), "b").tiling.roi_size == (16, 16, 16)


@pytest.mark.parametrize(
    "steps",
    [
        (step("EnsureChannelFirstd", channel_dim="no_channel"),),
        (step("LoadImaged", reader="itkreader", image_only=False),),
        (step("LoadImaged", reader="monai.data.ITKReader", simple_keys=True),),
        (step("EnsureTyped", data_type="tensor", track_meta=True, device="$torch.device('cuda')"),),
        (step("SelectItemsd"),),
        (step("CopyItemsd", times=1, names="copy"), {"_target_": "Resized", "keys": "copy", "spatial_size": [1, 1, 1]}),
        (step("Lambdad", func="$lambda x: x"),),
        (step("CastToTyped", dtype=["$torch.float32"]),),
        (step("RandFlipd", prob=1.0, _disabled_="$not @train"),),
    ],
)
def test_steps_that_change_nothing_are_passed_over(steps: tuple[dict[str, Any], ...], tmp_path: Path) -> None:
    config = inference(train=False, preprocessing=chain(LOAD, FIRST, *steps, RANGE))
    spec = spec_of(write_bundle(tmp_path / "b", config), "b")
    assert [type(one).__name__ for one in spec.preprocessing or ()] == ["ScaleIntensityRange"]


def test_a_whole_image_of_a_fixed_size_is_one_tile(tmp_path: Path) -> None:
    size = [32, 24, 16]
    config = inference(
        preprocessing=chain(LOAD, FIRST, RANGE, step("ResizeWithPadOrCropd", spatial_size=size)),
        inferer={"_target_": "SimpleInferer"},
    )
    spec = spec_of(write_bundle(tmp_path / "b", config), "b")
    assert (spec.tiling.roi_size, spec.tiling.overlap, spec.notes) == (tuple(size), 0.0, ())
    config["preprocessing"]["transforms"].append(SPACE)
    with pytest.raises(SourceError, match="it sends the whole image"):
        spec_of(write_bundle(tmp_path / "c", config), "c")


def test_a_chain_may_hold_chains(tmp_path: Path) -> None:
    config = inference(preprocessing=chain(LOAD, chain(FIRST, chain(ORIENT)), RANGE))
    spec = spec_of(write_bundle(tmp_path / "b", config), "b")
    assert [type(one).__name__ for one in spec.preprocessing or ()] == ["Orientation", "ScaleIntensityRange"]


def test_steps_of_labels_keep_their_arguments(tmp_path: Path) -> None:
    cleaning = [
        {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": [1, 2], "num_components": 2},
        {"_target_": "RemoveSmallObjectsd", "keys": ["pred"], "min_size": 10, "connectivity": 2},
        {"_target_": "FillHolesd", "keys": "pred", "applied_labels": 1},
        {"_target_": "LabelFilterd", "keys": "pred", "applied_labels": [1, 2]},
        {
            "_target_": "MapLabelValued",
            **{"keys": "pred", "orig_labels": [1, 2], "target_labels": [7, 300], "dtype": "$numpy.uint16"},
        },
    ]
    config = inference(postprocessing=chain(SOFTMAX, INVERT, ARGMAX, *cleaning))
    spec = spec_of(write_bundle(tmp_path / "b", config), "b")
    for given, made in zip(cleaning, (spec.postprocessing or ())[3:], strict=True):
        for key in set(given) - {"_target_", "keys", "dtype"}:
            value = getattr(made, key)
            assert (list(value) if isinstance(value, tuple) else value) == given[key]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a pointer of git-lfs"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"", "an empty file"),
    ],
)
@pytest.mark.parametrize("name", ["spleen", "ventricular", "dints"])
def test_weights_that_were_not_fetched_are_named(content: bytes, found: str, name: str, tmp_path: Path) -> None:
    folder = write_zoo_bundle(tmp_path / "b", SHAPES[name])
    (folder / f"models/model.{'ts' if name == 'dints' else 'pt'}").write_bytes(content)
    with pytest.raises(WeightsError, match=f"expected weights, found {found}"):
        spec_of(folder, "b")


def test_labels_that_are_put_back_blended_are_named(tmp_path: Path) -> None:
    config = inference(postprocessing=chain(ARGMAX, INVERT))
    (note,) = spec_of(write_bundle(tmp_path / "b", config), "b").notes
    assert note.startswith("postprocessing::transforms::1 puts labels back by blending their numbers")


# Functions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "lambda x: torch.where(x == 2, 1, x)",
        "lambda y: torch.where(y == 1, 7, torch.where(y > 2, 3, 0))",
        "lambda x: (x > 1).float() * 5",
        "lambda x: ((x == 1) | (x == 3)).to(torch.uint8)",
        "lambda x: (x == 1) * 2 + (x == 2) * 1",
        "lambda x: (~(x == 0) & (x < 4)).long() + 10",
        "lambda x: torch.where(torch.isin(x, [2, 3]), 9, 0)",
        "lambda x: x.long() * 3 - 0",
    ],
)
def test_a_function_of_labels_gives_what_torch_gives(text: str) -> None:
    function = function_of(f"${text}")
    labels = torch.arange(6.0)
    made = eval(text.replace("[2, 3]", "torch.tensor([2.0, 3.0])"), {"torch": torch})
    assert [float(value_of(function, label)) for label in range(6)] == made(labels).float().tolist()


@pytest.mark.parametrize(
    "text",
    [
        *("lambda x: x / 255.0", "lambda x: x - 3", "lambda x: (x - 100) / 200", "lambda x: (x.float() - -5) / 2"),
        *("lambda x: x.clip(-1, 250)", "lambda x: torch.clamp(x, 0, 1)", "lambda x: np.clip(x, 3, 70)"),
    ],
)
def test_a_function_of_an_image_becomes_steps_that_do_the_same(text: str) -> None:
    import monai.transforms

    values = torch.linspace(-300, 900, 2401)[None]
    given = values.numpy() if "np." in text else values
    expected = torch.as_tensor(eval(text, {"torch": torch, "np": np})(given))
    found: Any = values
    for fields in scaling_of(f"${text}"):
        model = NormalizeIntensity if fields["transform"] == "NormalizeIntensity" else ThresholdIntensity
        arguments = model.model_validate(fields).model_dump(exclude={"transform"})
        found = getattr(monai.transforms, fields["transform"])(**arguments)(found)
    assert torch.equal(torch.as_tensor(found), expected.float())


UNKNOWN = [
    *("lambda x: x.flip(0)", "lambda x, y: x", "lambda x=1: x", "lambda *x: x", "print", "lambda x: open('f')"),
    *("lambda x: x / 0", "lambda x: x / -2", "lambda x: y - 1", "lambda x: x @ x", "lambda x: x.clip(3)", "lambda x:"),
    *("lambda x: x.clip(3, 1)", "lambda x: (x > 0) - 1 + f(x)"),
]


@pytest.mark.parametrize("text", UNKNOWN)
def test_another_function_is_not_known(text: str) -> None:
    with pytest.raises(NotKnownError):
        scaling_of(f"${text}")
    with pytest.raises(NotKnownError):
        rule_of(f"${text}")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("lambda x: x > 0", "x > 0"),
        ("lambda img: img >= -500", "x >= -500"),
        ("lambda x: (x != 0).bool()", "x != 0"),
        ("monai.transforms.utils.is_positive", "x > 0"),
    ],
)
def test_a_rule_is_written_as_a_spec_writes_it(text: str, rule: str) -> None:
    assert rule_of(f"${text}") == rule


def test_the_network_of_a_wholly_unknown_kind_is_named_with_a_way_out(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b")
    path = folder / "configs/inference.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "network_def": {**NETWORK, "_target_": "scripts.n.Net"}})
    )
    with pytest.raises(
        SourceError, match=r"found 'scripts\.n\.Net', which is other code.*ckpt_export.*models/model\.ts"
    ):
        spec_of(folder, "b")
