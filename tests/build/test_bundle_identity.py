"""A bundle is what it says it is: its own weights, MONAI's own classes, the parts that it runs; else it is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from pydoc import locate
from typing import Any

import pytest
import torch
import yaml
from monai.bundle.config_item import ConfigComponent
from safetensors.torch import save_file

from tests.support.bundles import (
    INVERT,
    NETWORK,
    POSTPROCESSING,
    PREPROCESSING,
    chain,
    inference,
    metadata,
    parser_of,
    write_bundle,
)
from voxtile_build.errors import BuildError, SourceError, WeightsError
from voxtile_build.importers.bundle.bundle import spec_of
from voxtile_build.importers.bundle.config import Config
from voxtile_build.importers.bundle.targets import INFERERS, NETWORKS, TRANSFORMS, monai_name

LOAD, FIRST, ORIENT, SPACE, RANGE, TYPED = PREPROCESSING
SOFTMAX, _, ARGMAX, SAVE = POSTPROCESSING
PATH = "$@bundle_root + '/models/model.pt'"
LOW = "$@bundle_root + '/models/low.pt'"


def loader(load_path: Any = PATH, **changes: Any) -> dict[str, Any]:
    """A CheckpointLoader as the bundles of MONAI's model zoo have it."""
    return {"_target_": "CheckpointLoader", "load_path": load_path, "load_dict": {"model": "@network"}, **changes}


def bundle(folder: Path, **parts: Any) -> Path:
    """A bundle with these parts and the weights low.pt, other than models/model.pt, of the same shapes."""
    write_bundle(folder, inference())
    path = folder / "configs/inference.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))
    other = {key: value + 1 for key, value in torch.load(folder / "models/model.pt", weights_only=True).items()}
    torch.save(other, folder / "models/low.pt")
    return folder


def weights(folder: Path) -> Path:
    """The file that the importer chooses, in `folder`."""
    chosen = spec_of(folder, "b").weights
    assert chosen is not None
    return chosen.file.relative_to(folder.resolve())


# Weights ------------------------------------------------------------------------------------------------------------

NAMED: dict[str, tuple[dict[str, Any], str]] = {
    "sum": ({"checkpointloader": loader(LOW)}, "models/low.pt"),
    "usual": ({"checkpointloader": loader()}, "models/model.pt"),
    "reference": ({"ckpt_path": LOW, "handlers": [loader("@ckpt_path")]}, "models/low.pt"),
    "code of a reference": ({"ckpt": LOW, "handlers": [loader("$@ckpt")]}, "models/low.pt"),
    "folder": ({"ckpt_dir": "$@bundle_root + '/models'", "l": loader("$@ckpt_dir + '/low.pt'")}, "models/low.pt"),
    "joined": ({"l": loader("$os.path.join(@bundle_root, 'models', 'low.pt')")}, "models/low.pt"),
    "formatted": ({"model": "low", "l": loader("$f'{@bundle_root}/models/{@model}.pt'")}, "models/low.pt"),
    "chosen": (
        {
            "shown": {"high": False},
            "name": "$'model.pt' if @shown#high else 'low.pt'",
            "checkpointloader": loader("$@bundle_root + '/models/' + @name"),
        },
        "models/low.pt",
    ),
    "full name": ({"l": {**loader(LOW), "_target_": "monai.handlers.CheckpointLoader"}}, "models/low.pt"),
    "maybe disabled": (
        {"handlers": [loader(LOW, _disabled_="$not os.path.exists(@bundle_root + '/models/low.pt')")]},
        "models/low.pt",
    ),
    "disabled": ({"handlers": [loader(LOW, _disabled_=True)]}, "models/model.pt"),
    "arguments": ({"l": loader(LOW, map_location="@device", strict=True)}, "models/low.pt"),
    "of network_def": ({"l": loader(LOW, load_dict={"model": "@network_def"})}, "models/low.pt"),
    "of another network": (
        {"critic": {"_target_": "UNet"}, "handlers": [loader(LOW, load_dict={"critic": "@critic"}), loader()]},
        "models/model.pt",
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_the_weights_are_those_that_the_bundle_loads(tmp_path: Path, name: str) -> None:
    parts, expected = NAMED[name]
    folder = bundle(tmp_path / "b", **parts)
    assert weights(folder) == Path(expected)


@pytest.mark.parametrize("name", [name for name, (parts, _) in NAMED.items() if "checkpointloader" in parts])
def test_monai_makes_the_same_path(tmp_path: Path, name: str) -> None:
    folder = bundle(tmp_path / "b", **NAMED[name][0])
    parser = parser_of(folder)
    parser["bundle_root"] = str(folder)
    found = parser.get_parsed_content("checkpointloader", instantiate=True).load_path
    assert Path(found).relative_to(folder) == weights(folder)


def test_a_path_without_a_root_starts_at_the_bundle(tmp_path: Path) -> None:
    assert weights(bundle(tmp_path / "b", l=loader("models/low.pt"))) == Path("models/low.pt")
    assert weights(bundle(tmp_path / "c", l=loader("./models/../models/low.pt"))) == Path("models/low.pt")


def test_weights_that_are_linked_into_the_bundle_are_taken(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "b", l=loader("models/low.pt"))
    blob = (folder / "models/low.pt").rename(tmp_path / "blob")
    (folder / "models/low.pt").symlink_to(blob)
    chosen = spec_of(folder, "b").weights
    assert chosen is not None
    assert chosen.file == blob.resolve()


REFUSED_WEIGHTS: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"l": loader("models/lost.pt")}, r"load_path: .*lost\.pt, found no such file; .*models/model\.pt"),
    "code": (
        {"l": loader("$choose(@bundle_root)")},
        r"l::load_path: .*'\$choose\(@bundle_root\)', which is not run.*may be "
        r"another than .*models/model\.pt",
    ),
    "number": ({"l": loader(3)}, "expected the name of a file, found 3"),
    "none": ({"l": loader(None)}, "expected the name of a file, found None"),
    "outside": ({"l": loader("../low.pt")}, "expected a file in the bundle"),
    "absolute": ({"l": loader("/workspace/models/model.pt")}, "a file in the bundle .*/workspace/models/model.pt"),
    "lost reference": ({"l": loader("@ckpt")}, "refers to 'ckpt', which is not there"),
    "another file's macro": ({"l": loader("%configs/train.json::path")}, "may lead to another file"),
    "two": (
        {"handlers": [loader(), loader("models/low.pt")]},
        r"found several: handlers::0 .*model\.pt, handlers::1 .*low",
    ),
    "own class": (
        {"l": {**loader(), "_target_": "scripts.handlers.CheckpointLoader"}},
        "l: _target_: expected a class of MONAI.*'scripts.handlers.CheckpointLoader'",
    ),
    "argument": ({"l": loader(key_map={})}, "its argument key_map has no counterpart"),
    "no dictionary": ({"l": loader(load_dict="@network")}, "load_dict: expected a name and a network"),
    "changed network": ({"l": loader(load_dict={"model": "$@network.encoder"})}, r"found '\$@network\.encoder'"),
    "by python": (
        {"initialize": ["$@network.load_state_dict(torch.load(@bundle_root + '/models/low.pt'))"]},
        "initialize::0: loads weights by Python",
    ),
}


@pytest.mark.parametrize("name", REFUSED_WEIGHTS)
def test_weights_that_are_not_certain_are_refused(tmp_path: Path, name: str) -> None:
    parts, message = REFUSED_WEIGHTS[name]
    with pytest.raises(SourceError, match=message):
        spec_of(bundle(tmp_path / "b", **parts), "b")


def test_two_files_of_different_weights_and_no_loader_are_refused(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "b")
    save_file(torch.load(folder / "models/low.pt", weights_only=True), folder / "models/model.safetensors")
    with pytest.raises(SourceError, match=r"found different weights in .*model\.safetensors and .*model\.pt"):
        spec_of(folder, "b")


@pytest.mark.parametrize("entry", ["model", "network", "ema"])
def test_a_checkpoint_of_several_networks_gives_the_one_that_is_loaded_or_none(tmp_path: Path, entry: str) -> None:
    """MONAI's loader takes the entry that load_dict names; another entry must not come in its place."""
    folder = bundle(tmp_path / "b", l=loader(load_dict={entry: "@network"}))
    one, other = (torch.load(folder / "models" / name, weights_only=True) for name in ("model.pt", "low.pt"))
    torch.save({entry: one, "state_dict": other}, folder / "models/model.pt")
    with pytest.raises((SourceError, WeightsError), match=r"one that you mean alone|save that entry alone"):
        spec_of(folder, "b")


STATED = [("md5", hashlib.md5), ("sha1", hashlib.sha1), ("sha256", hashlib.sha256)]


@pytest.mark.parametrize(("kind", "digest"), STATED)
def test_the_hash_that_the_bundle_states_is_compared(tmp_path: Path, kind: str, digest: Callable[[bytes], Any]) -> None:
    folder = bundle(tmp_path / "b", l=loader("models/low.pt"))
    right = digest((folder / "models/low.pt").read_bytes()).hexdigest()
    for value, taken in ((right, True), (right.upper(), True), ("0" * len(right), False), ("", True)):
        entry = {"path": "models/low.pt", "url": "https://example.org", "hash_val": value, "hash_type": kind}
        (folder / "large_files.yml").write_text(yaml.safe_dump({"large_files": [entry]}))
        if taken:
            assert weights(folder) == Path("models/low.pt")
        else:
            with pytest.raises(SourceError, match=rf"low\.pt: expected {kind} 0+, as .*large_files\.yml states"):
                spec_of(folder, "b")


# Classes ------------------------------------------------------------------------------------------------------------

TARGETS = [
    ("UNet", NETWORKS),
    ("monai.networks.nets.UNet", NETWORKS),
    ("monai.networks.nets.unet.UNet", NETWORKS),
    ("monai.networks.nets.segresnet.SegResNet", NETWORKS),
    ("scripts.my_networks.UNet", NETWORKS),
    ("monaix.networks.nets.UNet", NETWORKS),
    ("torch.nn.UNet", NETWORKS),
    ("UNet.UNet", NETWORKS),
    ("monai.networks.blocks.UNet", NETWORKS),
    ("monai.networks.nets.no_such.UNet", NETWORKS),
    ("monai.apps.generation.maisi.networks.autoencoderkl_maisi.AutoencoderKlMaisi", NETWORKS),
    ("Spacingd", TRANSFORMS),
    ("monai.transforms.Spacingd", TRANSFORMS),
    ("monai.transforms.spatial.dictionary.SpacingDict", TRANSFORMS),
    ("scripts.transforms.ScaleIntensityRanged", TRANSFORMS),
    ("monai.transforms.spatial.array.Spacingd", TRANSFORMS),
    ("monai.inferers.inferer.SlidingWindowInferer", INFERERS),
    ("my.SlidingWindowInferer", INFERERS),
]


@pytest.mark.parametrize(("target", "home"), TARGETS)
def test_a_name_stands_for_the_class_that_monai_itself_makes(target: str, home: str) -> None:
    last = target.rpartition(".")[2]
    expected = getattr(locate(home), last, None)
    made = locate(ConfigComponent({"_target_": target}).resolve_module_name()) if expected is not None else None
    if expected is not None and made is expected:
        assert monai_name({"_target_": target}, home, "here") == last
    else:
        with pytest.raises(SourceError, match=f"here: _target_: .*found '{target}'"):
            monai_name({"_target_": target}, home, "here")


@pytest.mark.parametrize(
    "target", ["$@other", "@other", "$monai.networks.nets.UNet", "", None, 3, "UNet()", ".UNet", "monai."]
)
def test_what_is_no_name_is_refused(target: Any) -> None:
    with pytest.raises(SourceError, match="_target_: expected a class of MONAI"):
        monai_name({"_target_": target}, NETWORKS, "here")


def test_no_package_but_monai_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that only hands on MONAI's class: what else its import does is not known."""
    package = tmp_path / "handed_on"
    package.mkdir()
    (package / "__init__.py").write_text("from monai.networks.nets import UNet\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SourceError, match=r"found 'handed_on\.UNet'"):
        monai_name({"_target_": "handed_on.UNet"}, NETWORKS, "here")
    assert "handed_on" not in sys.modules


@pytest.mark.parametrize(
    "part", [{"_mode_": "callable"}, {"_mode_": "debug"}, {"_requires_": "$setattr(monai, 'x', 1)"}]
)
def test_a_part_that_is_not_simply_made_is_refused(part: dict[str, Any]) -> None:
    with pytest.raises(SourceError, match=f"here: {next(iter(part))}: "):
        monai_name({"_target_": "UNet", **part}, NETWORKS, "here")


ALIKE: dict[str, dict[str, Any]] = {
    "network": {"network_def": {**NETWORK, "_target_": "scripts.my_networks.UNet"}},
    "transform": {"preprocessing": chain(LOAD, FIRST, {**RANGE, "_target_": "scripts.t.ScaleIntensityRanged"})},
    "no operation": {"preprocessing": chain({**LOAD, "_target_": "scripts.t.LoadImaged"}, FIRST, RANGE)},
    "after the network": {"postprocessing": chain(SOFTMAX, INVERT, {**ARGMAX, "_target_": "scripts.t.AsDiscreted"})},
    "saving": {
        "postprocessing": chain(
            SOFTMAX, INVERT, ARGMAX, {**SAVE, "_target_": "scripts.t.SaveImaged", "_disabled_": False}
        )
    },
    "inferer": {"inferer": {"_target_": "scripts.SlidingWindowInferer", "roi_size": [16, 16, 16]}},
    "compose": {"preprocessing": {"_target_": "scripts.Compose", "transforms": [LOAD, FIRST, RANGE]}},
    "evaluator": {"evaluator": {"_target_": "scripts.SupervisedEvaluator", "network": "@network"}},
}


@pytest.mark.parametrize("name", ALIKE)
def test_code_of_the_bundle_is_not_taken_for_monais(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match=r"_target_: expected a class of MONAI.*found 'scripts\."):
        spec_of(bundle(tmp_path / "b", **ALIKE[name]), "b")


def test_a_lazy_chain_is_refused(tmp_path: Path) -> None:
    lazy = {**chain(LOAD, FIRST, ORIENT, SPACE, RANGE), "lazy": True}
    with pytest.raises(SourceError, match=r"preprocessing \(Compose\): .*lazy = True has no counterpart"):
        spec_of(bundle(tmp_path / "b", preprocessing=lazy), "b")


# Parts that are run -------------------------------------------------------------------------------------------------

EVALUATOR = {
    "_target_": "SupervisedEvaluator",
    "device": "@device",
    "val_data_loader": "@dataloader",
    "network": "@network",
    "inferer": "@inferer",
    "postprocessing": "@postprocessing",
    "val_handlers": "@handlers",
}
RUN = {
    "handlers": [],
    "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset"},
    "evaluator": EVALUATOR,
}


def test_a_bundle_that_runs_what_is_read_is_taken(tmp_path: Path) -> None:
    assert weights(bundle(tmp_path / "b", **RUN, checkpointloader=loader())) == Path("models/model.pt")


OTHER_PARTS: dict[str, tuple[dict[str, Any], str]] = {
    "network": ({"fine": NETWORK, "network": "$@fine.to(@device)"}, "network: expected '@network_def'"),
    "wrapped network": ({"network": "$Wrapped(@network_def)"}, r"network: expected the network as it is.*Wrapped"),
    "half": ({"network": "$@network_def.half().to(@device)"}, "network: expected the network as it is"),
    "to half": ({"network": "$@network_def.to(torch.float16)"}, "network: expected the network as it is"),
    "evaluator's network": ({"fine": NETWORK, "evaluator": {**EVALUATOR, "network": "@fine"}}, "evaluator::network: "),
    "inferer": (
        {"simple": {"_target_": "SimpleInferer"}, "evaluator": {**EVALUATOR, "inferer": "@simple"}},
        r"evaluator::inferer: expected '@inferer', found \{\"_target_\": \"SimpleInferer\"\}",
    ),
    "postprocessing": (
        {"post": chain(SOFTMAX), "evaluator": {**EVALUATOR, "postprocessing": "@post"}},
        "evaluator::postprocessing: expected '@postprocessing'",
    ),
    "transform": (
        {"fast": chain(LOAD), "dataset": {"_target_": "Dataset", "transform": "@fast"}},
        "dataset::transform: expected '@preprocessing'",
    ),
    "own batch": (
        {"evaluator": {**EVALUATOR, "prepare_batch": "$scripts.prepare"}},
        "SupervisedEvaluator, prepare_batch",
    ),
    "ensemble": ({"evaluator": {**EVALUATOR, "_target_": "EnsembleEvaluator"}}, "found EnsembleEvaluator"),
}


@pytest.mark.parametrize("name", OTHER_PARTS)
def test_a_bundle_that_runs_other_parts_is_refused(tmp_path: Path, name: str) -> None:
    parts, message = OTHER_PARTS[name]
    with pytest.raises(BuildError, match=message):
        spec_of(bundle(tmp_path / "b", **{**RUN, **parts}), "b")


# Folding ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$[1.5, 1.5, 1.5] if @high else [3.0, 3.0, 3.0]", [1.5, 1.5, 1.5]),
        ("$'a' if @shown#low else @name", "model"),
        ("$@name + '.pt'", "model.pt"),
        ('$f"{@name}-{@name}"', "model-model"),
        ("$os.path.join(@name, '..', 'x')", "model/../x"),
        ("$str(@name)", "model"),
        ("$[@size, -2]", [[4, 5], -2]),
        ("$len(@size) * 2 + @size[0] // 3 - @size[-1] / 4", 3.75),
        ("$@size[1:] + [2] * 2", [5, 2, 2]),
        ("$[x * 1.5 for x in @size if x > 4]", [7.5]),
        ("$[*@size, 3]", [4, 5, 3]),
        ("$3.0 if @size else 1.5", 3.0),
        ("$[2, 2] if @name == 'model' and not @high else [1, 1]", [1, 1]),
        ("$@shown::low or 5", 5),
        ("$'{}_{}'.format(@name, @size[0]).upper()", "MODEL_4"),
        ('$f"{@size[0]}/{@high}"', "4/True"),
        ("$monai.utils.CommonKeys.IMAGE", "image"),
        ("$monai.utils.enums.BlendMode.GAUSSIAN", "gaussian"),
        ("$max(1, 2) + min(@size) + round(2.6) + int('5')", 14),
        ("$2 ** 5 % 7 - -1e-3", 4.001),
        ("$4 in @size", True),
        ("$list(range(3))", [0, 1, 2]),
        ("$sorted(@size)[0]", 4),
        ("$os.path.basename('/a/' + @name)", "model"),
        ("$'-'.join([@name, 'x'])", "model-x"),
        ("$dict_or_not['k'] if @shown::low else None", None),
    ],
)
def test_monai_gives_the_same_value(text: str, expected: Any) -> None:
    from monai.bundle import ConfigParser

    content = {
        "high": True,
        "shown": {"low": False},
        "name": "model",
        "size": [4, 5],
        "imports": ["$import os"],
        "v": text,
    }
    assert Config(content, "c.json").get("v") == expected
    parser = ConfigParser(content)
    parser.get_parsed_content("imports")
    assert parser.get_parsed_content("v") == expected


@pytest.mark.parametrize(
    "text",
    [
        "$@a + @n",
        "$f'{@a!r}'",
        "$os.path.join(*@a)",
        "$path.join(@a)",
        "$open(@a)",
        "$os.path.join(@a, @n)",
        "$lambda x: x",
        "$(x := 1)",
        "$__import__('os')",
    ],
)
def test_everything_else_is_left(text: str) -> None:
    with pytest.raises(SourceError, match="which is not run"):
        Config({"a": "x", "b": "y", "n": 3, "v": text}, "c.json").get("v")


def test_a_circle_in_an_expression_ends(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="references form a circle"):
        Config({"a": "$@b + 'x'", "b": "$@a + 'y'"}, "c.json").get("a")


def test_metadata_of_the_bundle_are_not_moved(tmp_path: Path) -> None:
    """A bundle works in any folder, under any name, from any working directory."""
    folder = bundle(tmp_path / "b", l=loader(LOW), bundle_root="/workspace/elsewhere")
    moved = shutil.move(folder, tmp_path / "another name")
    assert weights(Path(moved)) == Path("models/low.pt")
    assert metadata()["name"] in str(spec_of(Path(moved), "b").weights)


# Whose steps they are


def keyed(step: int, **arguments: Any) -> dict[str, Any]:
    """The small bundle with other arguments of one step of its pre-processing."""
    config = inference()
    config["preprocessing"]["transforms"][step].update(arguments)
    return config


def of_keys(*keys: str, **arguments: Any) -> dict[str, Any]:
    """The small bundle whose pre-processing is that of other keys, and one step after it."""
    config = inference()
    for step in config["preprocessing"]["transforms"]:
        step["keys"] = list(keys)
    if arguments:
        config["preprocessing"]["transforms"].append(arguments)
    return config


JOINED = {"_target_": "ConcatItemsd", "keys": ["t1", "t2"], "name": "image"}
OTHER_KEYS = {
    "another key alone": (of_keys("scan"), "expected transforms for the key 'image'"),
    "no transforms": (inference(preprocessing=chain()), "expected transforms for the key 'image'"),
    "an image made of others": (of_keys("t1", "t2", **JOINED), r"it makes 'image' of other keys, by its argument name"),
    "a list whose first value is another's": (
        keyed(3, keys=["label", "image"], mode=["bilinear", "nearest"]),
        "expected 'image' as the first of its keys",
    ),
    "keys that are no texts": (keyed(2, keys=[5]), "keys: expected a name or a list of names"),
    "no keys": (keyed(2, keys=[]), "keys: expected a name or a list of names"),
    "a number that is none": (keyed(4, a_min="low"), "a_min: expected a number, found 'low'"),
    "a flag in place of a number": (keyed(4, a_max=True), "a_max: expected a number, found True"),
    "an empty list of modes": (keyed(3, mode=[]), "mode: input should be 'bilinear'"),
    "a decision on something else": (
        inference(postprocessing=chain({"_target_": "AsDiscreted", "keys": "label", "argmax": True})),
        "expected it to concern 'pred'",
    ),
}


@pytest.mark.parametrize(("config", "expected"), OTHER_KEYS.values(), ids=OTHER_KEYS)
def test_steps_that_do_not_make_the_networks_image_are_not_passed_over(
    config: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=expected):
        spec_of(write_bundle(tmp_path / "b", config), "x")


def test_steps_of_other_keys_beside_the_image_are_passed_over(tmp_path: Path) -> None:
    config = inference()
    config["preprocessing"]["transforms"].append({"_target_": "Flipd", "keys": "label", "spatial_axis": 0})
    found = spec_of(write_bundle(tmp_path / "b", config), "x")
    assert found.input == spec_of(write_bundle(tmp_path / "plain"), "x").input
