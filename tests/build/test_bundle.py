"""A MONAI bundle, served, gives what MONAI gives; what has no counterpart is refused by name and leaves nothing."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests.support.bundles import (
    INVERT,
    NETWORK,
    POSTPROCESSING,
    PREPROCESSING,
    chain,
    inference,
    inferer,
    metadata,
    parser_of,
    run_by_monai,
    write_bundle,
    write_scan,
)
from tests.support.importing import import_bundle
from voxtile import Segmenter
from voxtile.cli.app import app as client
from voxtile_build.cli.commands import main
from voxtile_build.errors import BuildError, SourceError, WeightsError
from voxtile_build.importers.bundle.bundle import spec_of
from voxtile_build.importers.bundle.config import Config
from voxtile_build.importers.bundle.postprocessing import CLASSES as postprocessing_classes
from voxtile_build.importers.bundle.preprocessing import CLASSES as preprocessing_classes
from voxtile_build.importers.bundle.translating import monai_defaults
from voxtile_server.embedded import EmbeddedServer

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/how-to/bundle.md"
DIFFERENT = 1e-5
"""Share of voxels whose two best scores are equal to float32's rounding: they have no right label."""
SERVING = {"max_batch_size": 2, "warm_up": False, "engines": ["onnxruntime"]}

LOAD, FIRST, ORIENT, SPACE, RANGE, TYPED = PREPROCESSING
SOFTMAX, _, ARGMAX, SAVE = POSTPROCESSING
SIGMOID = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
THRESHOLD = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}
PAINT = {
    "_target_": "Lambdad",
    "keys": "pred",
    "func": "$lambda x: torch.where(x[[0]] > 0, 7, torch.where(x[[1]] > 0, 2, 0))",
}
CROP = {"_target_": "CropForegroundd", "keys": "image", "source_key": "image"}
NORMALISE = {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True}
PERCENTILES = {
    "_target_": "monai.transforms.ScaleIntensityRangePercentilesd",
    "keys": ["image"],
    **{"lower": 1, "upper": 99, "b_min": 0, "b_max": 1, "clip": True},
}


@dataclass(frozen=True)
class Example:
    """A bundle: its configuration and metadata, its file's ending, and how scans for it are stored."""

    config: dict[str, Any]
    meta: dict[str, Any]
    ending: str = "json"
    codes: str = "LPS"
    channels: int = 1


EXAMPLES = {
    "resampled": Example(inference(), metadata()),
    "zscore": Example(
        inference(
            channels=2,
            preprocessing=chain(LOAD, FIRST, {**ORIENT, "axcodes": "PIR"}, NORMALISE),
            inferer={"_target_": "monai.inferers.SlidingWindowInferer", "roi_size": "@size", "overlap": 0.25},
            size=[16, 8, 24],
            postprocessing=chain({**INVERT, "nearest_interp": True}, ARGMAX),
        ),
        metadata(channels=["T1", "T2"]),
        ending="yaml",
        channels=2,
    ),
    "softmax-last": Example(inference(postprocessing=chain(INVERT, SOFTMAX, ARGMAX)), metadata(), codes="PIR"),
    "regions": Example(
        inference(
            network_def={**NETWORK, "out_channels": 2},
            preprocessing=chain(LOAD, FIRST, ORIENT, {**SPACE, "pixdim": [1.0, 1.3, 1.1]}, PERCENTILES),
            postprocessing=chain(SIGMOID, INVERT, THRESHOLD, PAINT),
        ),
        metadata(labels=["core", "whole"]),
        codes="RAS",
    ),
    "as-stored": Example(
        inference(
            preprocessing=chain(LOAD, FIRST, {"_target_": "ScaleIntensityd", "keys": "image"}),
            postprocessing=chain(SOFTMAX, ARGMAX),
        ),
        metadata(),
        codes="SRA",
    ),
}


@dataclass(frozen=True)
class Served:
    """The bundles by name, and where the server listens."""

    folders: dict[str, Path]
    url: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("bundles")
    folders = {}
    for name, example in EXAMPLES.items():
        folders[name] = write_bundle(root / name, example.config, example.meta, example.ending)
        import_bundle(folders[name], name, root / "models", {"serving": SERVING})
    with EmbeddedServer(root / "models") as server:
        yield Served(folders, server.grpc_url)
        server.kill()


@pytest.mark.parametrize("name", EXAMPLES)
def test_served_labels_are_those_of_monai(served: Served, tmp_path: Path, name: str) -> None:
    example = EXAMPLES[name]
    files = [
        write_scan(tmp_path / f"scan_{index}.nii.gz", (38, 31, 27), example.codes, index)
        for index in range(example.channels)
    ]
    expected = run_by_monai(served.folders[name], files)
    with Segmenter(served.url, name, keep_scores=True) as segmenter:
        found = segmenter.segment(files)
    labels = np.asarray(found.mask.dataobj)
    assert labels.shape == nib.load(files[0]).shape
    expected = expected[0]
    assert len(np.unique(expected)) >= 2, "the scan must hold more than one label to prove anything"
    different = int((labels != expected).sum())
    print(f"{name}: {different} of {labels.size} voxels differ")
    assert different <= DIFFERENT * labels.size


def test_monai_itself_reads_these_bundles(tmp_path: Path) -> None:
    for name, example in EXAMPLES.items():
        parser = parser_of(write_bundle(tmp_path / name, example.config, example.meta, example.ending))
        assert isinstance(parser.get_parsed_content("network_def"), torch.nn.Module)
        assert parser["_meta_::network_data_format::outputs::pred::num_channels"] >= 2


def test_the_spec_says_what_the_bundle_says(tmp_path: Path) -> None:
    spec = spec_of(write_bundle(tmp_path / "b"), "two")
    assert spec.network.args == {**{k: v for k, v in NETWORK.items() if k != "_target_"}, "in_channels": 1}
    preparation = spec.preparation
    assert (preparation.orientation, preparation.spacing) == ("RAS", (1.5, 1.2, 1.0))
    assert preparation.intensity.model_dump() == {
        **{"rule": "range", "a_min": 0.0, "a_max": 1000.0, "b_min": 0.0, "b_max": 1.0, "clip": True}
    }
    assert [label.name for label in spec.output.labels] == ["background", "one", "two"]
    assert spec.tiling.model_dump(include={"semantics", "roi_size", "overlap", "mode", "sigma_scale"}) == {
        **{"semantics": "monai", "roi_size": (16, 16, 16), "overlap": 0.5, "mode": "gaussian", "sigma_scale": 0.125}
    }
    assert spec.title == "Two structures of nothing in particular"
    assert spec.weights is not None
    assert spec.weights.source == "MONAI bundle Two structures 0.1.0"


def test_a_bundle_of_slices_becomes_a_network_of_two_dimensions(tmp_path: Path) -> None:
    inferer = {"_target_": "SliceInferer", "roi_size": [24, 16], "spatial_dim": 2, "overlap": 0.25, "sw_batch_size": 4}
    config = inference(network_def={**NETWORK, "spatial_dims": 2}, inferer=inferer)
    spec = spec_of(write_bundle(tmp_path / "b", config), "flat")
    assert (spec.tiling.roi_size, spec.tiling.slice_axis) == ((24, 16), 2)


def test_fixed_statistics_and_a_min_max_scale_are_translated(tmp_path: Path) -> None:
    fixed = {"_target_": "NormalizeIntensityd", "keys": "image", "subtrahend": 100, "divisor": [25]}
    spec = spec_of(write_bundle(tmp_path / "a", inference(preprocessing=chain(LOAD, fixed))), "a")
    assert spec.preparation.intensity.model_dump(include={"rule", "mean", "std"}) == {
        **{"rule": "fixed", "mean": (100.0,), "std": (25.0,)}
    }


def test_safetensors_come_before_a_pickle(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b")
    save_file(torch.load(folder / "models/model.pt", weights_only=True), folder / "models/model.safetensors")
    weights = spec_of(folder, "b").weights
    assert weights is not None
    assert weights.file.name == "model.safetensors"


def test_an_image_size_that_monai_ignored_is_left_out(tmp_path: Path) -> None:
    swin = {"_target_": "SwinUNETR", "in_channels": 1, "out_channels": 3, "feature_size": 12}
    folder = write_bundle(tmp_path / "b", inference(network_def=swin))
    path = folder / "configs/inference.json"
    config = json.loads(path.read_text())
    config["network_def"]["img_size"] = 96
    path.write_text(json.dumps(config))
    assert "img_size" not in spec_of(folder, "b").network.args


def preprocessing(*steps: dict[str, Any]) -> dict[str, Any]:
    return inference(preprocessing=chain(LOAD, FIRST, *steps))


def postprocessing(*steps: dict[str, Any]) -> dict[str, Any]:
    return inference(postprocessing=chain(*steps))


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        preprocessing({"_target_": "Resized", "keys": "image", "spatial_size": [16, 16, 16]}),
        r"preprocessing::transforms::2 \(Resized\): cannot be translated: there is no counterpart: it gives every scan",
    ),
    (
        preprocessing({"_target_": "CropForegroundd", "keys": "image", "source_key": "body"}),
        r"preprocessing::transforms::2 \(CropForegroundd\): .*expected source_key to be 'image', found 'body'",
    ),
    (
        preprocessing({**CROP, "select_fn": "$lambda x: x.mean() > 0"}),
        r"\(CropForegroundd\): .*expected a rule such as .*which is not run",
    ),
    (
        preprocessing({**CROP, "margin": 2, "mode": "minimum"}),
        r"\(CropForegroundd\): mode: input should be 'constant', .*found 'minimum'",
    ),
    (
        preprocessing({"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x.flip(1)"}),
        r"\(Lambdad\): .*expected a shift, a division or limits, .*x\.flip\(1\)', which is not run",
    ),
    (preprocessing({**SPACE, "mode": "nearest"}), r"\(Spacingd\): mode: input should be 'bilinear', found 'nearest'"),
    (preprocessing({**SPACE, "scale_extent": True}), "scale_extent: input should be False, found True"),
    (preprocessing({**SPACE, "pixdim": [1.0, 1.0, -1.0]}), r"pixdim\[2\]: input should be greater than 0, found -1.0"),
    (preprocessing({**SPACE, "speed": 1}), r"\(Spacingd\): .*its argument speed = 1 has no counterpart"),
    (preprocessing({**SPACE, "dtype": "$torch.float16"}), r"\(Spacingd\): .*expected dtype to be .*found 'float16'"),
    (preprocessing({**ORIENT, "axcodes": None}), "axcodes: expected text, found None"),
    (preprocessing({"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0}), "a_max: missing"),
    (
        preprocessing({**RANGE, "a_max": "$@image_key.size"}),
        r"a_max.*Python expression '\$@image_key.size', which is not run; give its value by --set preprocessing::",
    ),
    (preprocessing({**SPACE, "pixdim": "@nothing"}), "refers to 'nothing', which is not there"),
    (preprocessing({**LOAD, "reader": "PILReader"}), "expected reader to be .*'ITKReader'.*, found 'PILReader'"),
    (preprocessing({**LOAD, "reverse_indexing": True}), "expected reverse_indexing to be False, found True"),
    (preprocessing({**FIRST, "channel_dim": -1}), "expected channel_dim to be .*'no_channel', found -1"),
    (postprocessing(SOFTMAX, INVERT), "expected AsDiscreted with argmax or threshold, found none"),
    (postprocessing(SIGMOID, INVERT, ARGMAX), "expected softmax with argmax = true, or sigmoid with a threshold"),
    (postprocessing(ARGMAX, SOFTMAX), "Activations comes after AsDiscrete"),
    (postprocessing(SOFTMAX, {**INVERT, "orig_keys": "label"}, ARGMAX), "expected orig_keys 'image'"),
    (postprocessing(SOFTMAX, {**INVERT, "transform": "@inferer"}, ARGMAX), "expected transform '@preprocessing'"),
    (
        postprocessing(ARGMAX, {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x.flip(0)"}),
        r"\(Lambdad\): .*expected other numbers for labels.*which is not run",
    ),
    (
        postprocessing(ARGMAX, {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x - 1"}),
        r"expected whole numbers from 0 to 65535 for labels, found \[-1, 0, 1\]",
    ),
    (
        postprocessing(SOFTMAX, INVERT, ARGMAX, {"_target_": "VoteEnsembled", "keys": "pred", "num_classes": 3}),
        r"postprocessing::transforms::3 \(VoteEnsembled\): .*no counterpart after the network",
    ),
    (inference(inferer={"_target_": "SimpleInferer"}), r"it sends the whole image.*--set inferer='\{"),
    (inference(inferer={"_target_": "SaliencyInferer", "cam_name": "x"}), "expected SlidingWindowInferer, found Sal"),
    (inferer(padding_mode="mirror"), "inferer.padding_mode: input should be "),
    (inferer(with_coord=True), "expected with_coord to be False, found True"),
    (inferer(roi_size=[16, -1, 16]), r"roi_size with 3 whole numbers above 0, found \[16, -1, 16\]"),
    (inferer(overlap=[0.5, 0.25]), r"expected one number for overlap, or 3, found \[0.5, 0.25\]"),
    (inferer(sigma_scale="wide"), "expected one number for sigma_scale, or 3, found 'wide'"),
    (inferer(cval="min"), "expected a number for cval, found 'min'"),
    (inferer(roi_size="$tuple(sizes())"), "Python expression"),
]


@pytest.mark.parametrize(("config", "expected"), REFUSED)
def test_what_has_no_counterpart_is_refused_by_name_and_leaves_nothing(
    config: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    folder = write_bundle(tmp_path / "b", config)
    with pytest.raises(BuildError, match=expected) as caught:
        import_bundle(folder, "bad", tmp_path / "models")
    assert "inference.json" in str(caught.value)
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").glob("[!.]*"))


def changed(folder: Path, **changes: Any) -> Path:
    """The configuration with parts replaced that MONAI itself could not have made weights for."""
    path = folder / "configs/inference.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"network_def": {"_target_": "VNet"}}, "inference.json: network_def: .*expected one of .*UNet.*found 'VNet'"),
        ({"network_def": "$torch.nn.Identity()"}, "network_def: expected a network with _target_"),
        ({"network_def": {**NETWORK, "act": "$__import__('os').system('x')"}}, "Python expression .*which is not run"),
        (
            {"network_def": {**NETWORK, "out_channels": 4}},
            "network.args.out_channels of UNet is 4, but output.labels has 3",
        ),
        ({"network_def": {**NETWORK, "channels": [4, 16]}}, "model.pt: the weights do not fit the network"),
        ({"channels": "@channels"}, "references form a circle"),
    ],
)
def test_a_network_that_cannot_be_had_is_refused(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    folder = changed(write_bundle(tmp_path / "b"), **changes)
    with pytest.raises(BuildError, match=expected):
        import_bundle(folder, "bad", tmp_path / "models")
    assert not list((tmp_path / "models").glob("[!.]*"))


class Runs:
    """Unpickled, it leaves a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("plain", [False, True], ids=["torch.save", "pickle"])
def test_weights_with_code_in_them_do_not_run(tmp_path: Path, plain: bool) -> None:
    folder = write_bundle(tmp_path / "b")
    content = {"model": Runs(tmp_path / "ran")}
    if plain:
        (folder / "models/model.pt").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, folder / "models/model.pt")
    with pytest.raises(WeightsError, match=r"model.pt: expected "):
        import_bundle(folder, "bad", tmp_path / "models")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({}, r"metadata.json: network_data_format::inputs: expected 'image' alone, found None"),
        (metadata(labels=["a", "b"]), "network.args.out_channels of UNet is 3, but output.labels has 2"),
        (
            {"network_data_format": {**metadata()["network_data_format"], "outputs": {"pred": {"num_channels": "3"}}}},
            "outputs::pred::num_channels: expected a number from 1 to 65536, found '3'",
        ),
    ],
)
def test_metadata_that_does_not_fit_is_refused(meta: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=expected):
        import_bundle(write_bundle(tmp_path / "b", None, meta), "bad", tmp_path / "models")


def test_a_folder_that_is_no_whole_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="expected a MONAI bundle"):
        spec_of(tmp_path, "b")
    folder = write_bundle(tmp_path / "b")
    (folder / "models/model.pt").unlink()
    with pytest.raises(SourceError, match=r"expected weights in models/model.safetensors or models/model.pt"):
        spec_of(folder, "b")
    (folder / "configs/inference.json").write_text("{")
    with pytest.raises(SourceError, match=r"inference.json: cannot be read"):
        spec_of(folder, "b")
    (folder / "configs/inference.json").rename(folder / "configs/train.json")
    with pytest.raises(SourceError, match=r"configs/inference.json or .yaml, as in a MONAI bundle, found none"):
        spec_of(folder, "b")


@pytest.mark.parametrize(
    ("content", "key", "expected"),
    [
        ({"a": 1, "b": "@a"}, "b", 1),
        ({"a": {"x": [5, 6]}, "b": "$@a::x::1"}, "b", 6),
        ({"a": {"x": 1}, "b": {"y": ["@a#x", "%a::x"]}}, "b", {"y": [1, 1]}),
        ({"a": "$(1, 2.5, None)"}, "a", [1, 2.5, None]),
        ({"a": "$torch.float32"}, "a", "float32"),
        ({"a": "$True"}, "a", True),
        ({"a": "plain @ text"}, "a", "plain @ text"),
        ({}, "a", None),
        ({"a": [8, 16], "b": "$len(@a) * 2 + @a[0] // 3 - @a[-1] / 4"}, "b", 2.0),
        ({"a": [8, 16, 24], "b": "$@a[1:] + [2] * 2"}, "b", [16, 24, 2, 2]),
        ({"a": [1, 2], "b": "$[x * 1.5 for x in @a if x > 1]"}, "b", [3.0]),
        ({"a": [1, 2], "b": "$(*@a, 3)"}, "b", [1, 2, 3]),
        ({"n": 1, "b": "$3.0 if @n else 1.5"}, "b", 3.0),
        ({"n": "fast", "b": "$[2, 2] if @n == 'fast' and not False else [1, 1]"}, "b", [2, 2]),
        ({"n": None, "b": "$@n or 5"}, "b", 5),
        ({"n": 3, "b": "$'model_{}.pt'.format(@n)"}, "b", "model_3.pt"),
        ({"n": "A", "b": "$f'{@n}/x'.lower()"}, "b", "a/x"),
        ({"b": "$monai.utils.CommonKeys.IMAGE"}, "b", "image"),
        ({"b": "$monai.utils.enums.BlendMode.GAUSSIAN"}, "b", "gaussian"),
        ({"b": "$torch.device('cuda', 1)"}, "b", "cuda:1"),
        ({"b": "$max(1, 2) + min([3, 4]) + round(2.6) + int('5')"}, "b", 13),
        ({"r": "/b", "b": "$Path(@r) / 'models' / 'm.pt'"}, "b", "/b/models/m.pt"),
        ({"b": "$2 ** 5 % 7"}, "b", 4),
        ({"b": "$-1e-3"}, "b", -1e-3),
    ],
)
def test_literals_and_references_are_followed(content: dict[str, Any], key: str, expected: Any) -> None:
    assert Config(content, "c.json").get(key) == expected


PYTHON = [
    *("$print('x')", "$", "$open('f').read()", "$(lambda: 1)()", "$().__class__", "$'a'.__class__", "$@b", "$x"),
    *("$__import__('os').system('true')", "$'{0.__class__}'.format(1)", "$[].append(1)", "$exec('1')", "$a := 1"),
    *("$[0] * 10 ** 9", "$'a' * 10 ** 9", "$9 ** 9 ** 9", "$[[0] * 999999 for i in range(999999)]", "$range(10 ** 9)"),
    *(
        "$1 / 0",
        "$[1][2]",
        "$'a' + 1",
        "$os.listdir('.')",
        "$torch.load('f')",
        "$'x@a'",
        "$monai.utils.set_determinism",
    ),
    *("$('a' * 99999).replace('a', 'b' * 99999)", "$monai.utils.CommonKeys.NONE", "$int('x')", "$@c.x", "$len(@c)"),
]


@pytest.mark.parametrize("text", PYTHON)
def test_python_is_never_run(text: str) -> None:
    with pytest.raises(SourceError, match=r"which is not run|form a circle"):
        Config({"a": 1, "b": text, "c": {"_target_": "UNet", "x": 1}}, "c.json").get("b")


def page_commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line and not line.startswith("#")]


def test_the_page_leads_from_a_bundle_to_a_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(tmp_path / "my_bundle")
    write_scan(tmp_path / "scan.nii.gz", (38, 31, 27), "LPS")
    monkeypatch.chdir(tmp_path)
    build, serve, models, segment = page_commands()
    assert build[:2] == ["voxtile-build", "bundle"]
    assert main(build[1:]) == 0
    assert serve == ["make", "serve"]
    assert re.search(r"^serve:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    with EmbeddedServer(tmp_path / "model_repository") as server:
        listed = CliRunner().invoke(client, [*models[1:], "--url", server.grpc_url])
        assert listed.exit_code == 0, listed.output
        assert "two-structures" in listed.output
        done = CliRunner().invoke(client, [*segment[1:], "--url", server.grpc_url])
        assert done.exit_code == 0, done.output
        server.kill()
    assert (models[:2], segment[:2]) == (["voxtile", "models"], ["voxtile", "segment"])
    labels = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj)
    expected = run_by_monai(tmp_path / "my_bundle", [tmp_path / "scan.nii.gz"])[0]
    assert (labels != expected).mean() <= DIFFERENT


def test_the_page_names_every_step_that_is_translated() -> None:
    page = PAGE.read_text()
    assert not [name for name in (*preprocessing_classes, *postprocessing_classes) if f"`{name}d`" not in page]


def test_defaults_of_a_specs_steps_are_those_of_monai() -> None:
    """A bundle leaves arguments out, and then MONAI's defaults count, those of its transforms for dictionaries."""
    for name, model in {**preprocessing_classes, **postprocessing_classes}.items():
        theirs = monai_defaults(f"{name}d")
        for key, field in model.model_fields.items():
            default = field.get_default()
            if key in theirs and not field.is_required() and default is not None and not callable(theirs[key]):
                assert default == theirs[key] or (default, theirs[key]) in SAME_DEFAULTS, f"{name}: {key}"


SAME_DEFAULTS = [(1, [1]), (None, False)]
