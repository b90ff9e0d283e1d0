"""Reading trained nnU-Net folders, against nnU-Net's own classes; and what is refused, by name, before any build."""

from __future__ import annotations

import ast
import copy
import importlib.util
import io
import json
import os
import pickle
import pkgutil
import re
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from dynamic_network_architectures import architectures
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from tests.support.importing import import_nnunet
from tests.support.nnunet_folders import (
    LABELS,
    Training,
    architecture,
    checkpoint,
    configuration,
    network,
    old_architecture,
    write_folder,
)
from voxtile_build.certificate.fold_mean import mean_graph
from voxtile_build.cli.commands import main
from voxtile_build.errors import BuildError, NetworkError, SourceError, SpecError, WeightsError
from voxtile_build.importers.nnunet.checkpoint import read_checkpoint
from voxtile_build.importers.nnunet.folder import configuration_of, open_folder
from voxtile_build.importers.nnunet.labels import channels_of, labels_of
from voxtile_build.importers.nnunet.models import models_of
from voxtile_build.importers.nnunet.network import TAKEN, find_block, find_network, network_of
from voxtile_build.importers.nnunet.postprocessing import read_steps
from voxtile_build.repository.card import get_card
from voxtile_build.repository.config import read_config
from voxtile_build.repository.default_engine import set_default_engine

FULL = configuration((16, 16, 16), (1.5, 1.0, 1.0))
PLAIN = Training("3d_fullres", {"3d_fullres": FULL}, mirror_axes=(0, 2))
SMALL = Training("2d", {"2d": configuration((16, 12), (1.0, 1.0))}, folds=(0, 1), mirror_axes=(1,))
OLD = Training("3d_fullres", {"3d_fullres": configuration((16,) * 3, (1.0,) * 3, architecture=None)}, old=True)


def old_training(network_name: str = "PlainConvUNet") -> Training:
    settings = OLD.configurations["3d_fullres"] | old_architecture() | {"UNet_class_name": network_name}
    return replace(OLD, configurations={"3d_fullres": settings})


TRAININGS = {
    "plain": PLAIN,
    "flat": SMALL,
    "residual": replace(
        PLAIN, configurations={"3d_fullres": {**FULL, "architecture": architecture(3, "ResidualEncoderUNet")}}
    ),
    "old": old_training(),
}


def change(file: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit a JSON file in place."""
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def recheckpoint(folder: Path, edit: Callable[[dict[str, Any]], None], fold: int = 0) -> None:
    """Edit a checkpoint in place."""
    file = folder / f"fold_{fold}" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    edit(content)
    torch.save(content, file)


# What is read equals what nnU-Net reads -----------------------------------------------------------------------------


@pytest.mark.parametrize("training", TRAININGS.values(), ids=TRAININGS)
def test_network_is_nnunets_with_its_weights(tmp_path: Path, training: Training) -> None:
    folder = write_folder(tmp_path, training, seed=8)
    (model,) = models_of(folder, "m", folds=["0"])
    patch = training.configurations[training.name]["patch_size"]
    tile = torch.randn(1, 1, *patch, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model.folds[0].load()(tile)
        expected = network(training, 8).eval()(tile)[0]  # deep supervision gives the full resolution first
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_older_plans_become_what_nnunet_makes_of_them(name: str) -> None:
    plans = old_training(name).plans
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = PlansManager(copy.deepcopy(plans)).get_configuration("3d_fullres").configuration
    found = configuration_of(plans, "3d_fullres", "plans.json")
    moved = f"dynamic_network_architectures.architectures.residual_unet.{name}"  # nnU-Net then finds it by its name
    wanted = json.loads(json.dumps(expected).replace(moved, f"dynamic_network_architectures.architectures.unet.{name}"))
    assert json.loads(json.dumps(found)) == wanted


def test_network_that_has_moved_is_found_by_its_name() -> None:
    found = find_network("dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet", "plans.json")
    assert found.__name__ == "ResidualEncoderUNet"


def test_configurations_inherit_as_in_nnunet() -> None:
    plans = PLAIN.plans
    plans["configurations"]["child"] = {"inherits_from": "3d_fullres", "spacing": [3.0, 3.0, 3.0]}
    plans["configurations"]["grandchild"] = {"inherits_from": "child", "batch_size": 4}
    expected = PlansManager(copy.deepcopy(plans)).get_configuration("grandchild").configuration
    assert configuration_of(plans, "grandchild", "plans.json") == expected


DATASETS: list[dict[str, Any]] = [
    {"labels": LABELS},
    {"labels": {"tumour": 2, "background": 0, "organ": 1, "ignore": 3}},
    {"labels": {"background": 0, "one": [1], "two": 2}},
    {"labels": {"background": 0, "all": [1, 2, 3], "core": [2, 3], "rim": 3}, "regions_class_order": [1, 2, 3]},
    {
        "labels": {"background": 0, "rim": 3, "all": [1, 2, 3], "core": [2, 3], "ignore": 4},
        "regions_class_order": [3, 1, 2],
    },
]


@pytest.mark.parametrize("dataset", DATASETS)
def test_labels_are_those_of_nnunets_label_manager(dataset: dict[str, Any]) -> None:
    manager = LabelManager(dataset["labels"], dataset.get("regions_class_order"))
    found = labels_of(dataset, "dataset.json")
    assert len(found.names) == len(found.values) == manager.num_segmentation_heads
    assert found.regions == manager.has_regions
    assert list(found.foreground) == [int(label) for label in manager.foreground_labels]
    assert found.count == len(manager.all_labels)
    if found.regions:
        assert list(found.values) == dataset["regions_class_order"]
    else:
        declared = {value[0] if isinstance(value, list) else value: name for name, value in dataset["labels"].items()}
        assert [declared[value] for value in found.values] == list(found.names)


def test_channels_are_in_the_order_of_their_numbers() -> None:
    names = {str(number): f"c{number}" for number in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)}
    assert channels_of({"channel_names": names}, "dataset.json") == tuple(f"c{number}" for number in range(11))
    assert channels_of({"modality": {"0": "CT"}}, "dataset.json") == ("CT",)


def test_card_says_what_the_client_needs(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, PLAIN)
    settings = {
        "serving": {"max_batch_size": 3, "threads": 2, "engines": ["onnxruntime"]},
        "acceptance": {"min_dice": 0.9},
    }
    (model,) = models_of(folder, "m", settings=settings)
    spec = model.spec
    assert (spec.tiling.semantics, spec.tiling.overlap, spec.tiling.sigma_scale) == ("nnunet", 0.5, 0.125)
    assert (spec.tiling.roi_size, spec.tiling.slice_axis, spec.tiling.mirror_axes) == ((16, 16, 16), None, (0, 2))
    assert (spec.input.channels, spec.input.intensity.rule, spec.output.scores) == (("CT",), "none", "logits")
    assert (spec.serving.max_batch_size, spec.serving.threads, spec.serving.engines) == (3, 2, ("onnxruntime",))
    assert spec.acceptance.min_dice == 0.9
    assert spec.nnunet is not None
    assert json.loads(json.dumps(spec.nnunet)) == spec.nnunet, "the card holds JSON alone"
    assert spec.nnunet["n_labels"] == 3
    assert spec.nnunet["postprocessing"] == []
    assert {key: spec.nnunet[key] for key in FULL if key in spec.nnunet} == {
        key: FULL[key] for key in FULL if key in spec.nnunet
    }


def test_folds_are_found_as_nnunet_finds_them(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, replace(SMALL, folds=(1, 0, "all")))
    (every,) = models_of(folder, "m")
    assert [fold.name for fold in every.folds] == ["m_fold_0", "m_fold_1"]
    (one,) = models_of(folder, "m", folds=["all"])
    assert [fold.name for fold in one.folds] == ["m"]


def test_configuration_chooses_in_a_results_folder(tmp_path: Path) -> None:
    write_folder(tmp_path, SMALL)
    write_folder(tmp_path, PLAIN)
    assert open_folder(tmp_path, "2d").path.name.endswith("__2d")
    with pytest.raises(SourceError, match=r"__2d, .*__3d_fullres; give the folder"):
        open_folder(tmp_path)


def test_checkpoints_of_older_numpy_are_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, SMALL)
    file = folder / "fold_0" / "checkpoint_final.pth"
    file.write_bytes(_with_names_of_numpy_1(file))
    assert read_checkpoint(file, "0").mirror_axes == (1,)


def _with_names_of_numpy_1(file: Path) -> bytes:
    """The archive with NumPy 1's module names in its pickle (of protocol 2, which gives no lengths of names)."""
    target = io.BytesIO()
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as made:
        for item in source.infolist():
            data = source.read(item)
            if item.filename.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in data
                data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            made.writestr(item.filename, data)
    return target.getvalue()


def test_compiled_and_parallel_networks_lose_their_prefix(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, SMALL)
    plain = read_checkpoint(folder / "fold_0" / "checkpoint_final.pth", "0").weights

    def prefix(content: dict[str, Any]) -> None:
        weights = content["network_weights"]
        content["network_weights"] = {f"module._orig_mod.{key}": value for key, value in weights.items()}

    recheckpoint(folder, prefix)
    assert list(read_checkpoint(folder / "fold_0" / "checkpoint_final.pth", "0").weights) == list(plain)


# Learned post-processing --------------------------------------------------------------------------------------------

ARGUMENTS: list[dict[str, Any]] = [
    {"labels_or_regions": [np.int64(2), (1, 3)]},
    {"labels_or_regions": (1, 2), "background_label": 0},
    {"labels_or_regions": 3},
]
STEPS = [
    {"op": "keep_largest", "labels": [1, 2, 3], "background": 0},
    {"op": "keep_largest", "labels": [1, 2], "background": 0},
    {"op": "keep_largest", "labels": [3], "background": 0},
]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_steps_are_read_from_nnunets_pickle(tmp_path: Path, protocol: int) -> None:
    functions = [remove_all_but_largest_component_from_segmentation] * 3
    (tmp_path / "postprocessing.pkl").write_bytes(pickle.dumps((functions, ARGUMENTS), protocol))
    assert read_steps(tmp_path, ["0"]) == STEPS


def test_steps_are_read_from_nnunets_json_and_those_of_the_folds_come_first(tmp_path: Path) -> None:
    names = ["remove_all_but_largest_component_from_segmentation"] * 3
    content = {"postprocessing_fns": names, "postprocessing_kwargs": ARGUMENTS}
    (tmp_path / "postprocessing.json").write_text(json.dumps(content, default=int))
    assert read_steps(tmp_path, ["0", "1"]) == STEPS
    own = tmp_path / "crossval_results_folds_0_1"
    own.mkdir()
    (own / "postprocessing.json").write_text(json.dumps({"postprocessing_fns": [], "postprocessing_kwargs": []}))
    assert read_steps(tmp_path, ["0", "1"]) == []
    assert read_steps(tmp_path, ["0"]) == STEPS


# What is refused ----------------------------------------------------------------------------------------------------


class Malice:
    """Unpickled by an unguarded reader, it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def refused(folder: Path, kind: type[BuildError], message: str, **options: Any) -> None:
    """The import ends with this error, and the repository is as it was."""
    repository = folder.parent / "models"
    repository.mkdir(exist_ok=True)
    (repository / "README.md").write_text("mine")
    with pytest.raises(kind, match=message):
        import_nnunet(folder, "m", repository, engines=["onnxruntime"], **options)
    left = sorted(path.name for path in repository.iterdir() if not path.name.startswith("."))
    assert left == ["README.md"]
    assert not list(repository.parent.glob(".models.building"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path, SMALL)


def test_missing_fold(folder: Path) -> None:
    refused(folder, SourceError, r"fold 3: expected its checkpoint .*fold_3/checkpoint_final.pth", folds=["0", "3"])


def test_missing_checkpoint_file(folder: Path) -> None:
    message = r"expected a trained fold \(fold_0/checkpoint_best.pth"
    refused(folder, SourceError, message, checkpoint="checkpoint_best.pth")


def test_no_folder_of_nnunets(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", SourceError, r"expected a trained nnU-Net v2 folder .* found none")


@pytest.mark.parametrize("text", ["{", "[]"])
def test_damaged_plans(folder: Path, text: str) -> None:
    (folder / "plans.json").write_text(text)
    refused(folder, SourceError, r"plans.json: expected")


def test_checkpoint_of_another_plan(folder: Path) -> None:
    change(folder / "plans.json", lambda plans: plans["configurations"]["2d"].update(spacing=[2.0, 2.0]))
    refused(folder, WeightsError, r"fold_0/checkpoint_final.pth: .*another plan \(different: spacing\)")


def test_checkpoint_of_another_network_that_does_not_say_its_plan(folder: Path) -> None:
    widths = architecture(2, widths=(4, 8))
    change(folder / "plans.json", lambda plans: plans["configurations"]["2d"].update(architecture=widths))
    for fold in SMALL.folds:
        recheckpoint(folder, lambda content: content["init_args"].pop("plans"), int(fold))
    refused(folder, WeightsError, r"do not fit the network.*of another shape.*belongs to another plan")


def test_checkpoint_of_another_configuration(folder: Path) -> None:
    refused(folder, SourceError, r"expected configuration '3d_fullres', found .*'2d'", configuration="3d_fullres")
    recheckpoint(folder, lambda content: content["init_args"].update(configuration="3d_fullres"))
    refused(folder, SourceError, r"expected one of the configurations 2d, found '3d_fullres'", folds=["0"])


def test_folds_that_were_trained_differently(folder: Path) -> None:
    recheckpoint(folder, lambda content: content.update(inference_allowed_mirroring_axes=None), 1)
    refused(folder, WeightsError, r"fold_1/.*expected mirror_axes \(1,\) as in fold 0, found \(\)")


def test_file_that_is_no_checkpoint(folder: Path) -> None:
    file = folder / "fold_0" / "checkpoint_final.pth"
    torch.save({"state_dict": {}}, file)
    refused(folder, WeightsError, r"expected an nnU-Net v2 checkpoint with network_weights")
    file.write_bytes(b"PK\x03\x04 nothing")
    refused(folder, WeightsError, r"checkpoint_final.pth: expected")


def test_malicious_checkpoint_is_named_and_not_run(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "run"
    recheckpoint(folder, lambda content: content.update(logging=Malice(mark)))
    refused(
        folder, WeightsError, r"found a pickle with .*\((posix|nt|os)\.mkdir\), which could run code; nothing of it was"
    )
    assert not mark.exists()


def test_malicious_post_processing_is_named_and_not_run(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "run"
    (folder / "postprocessing.pkl").write_bytes(pickle.dumps(([Malice(mark)], [{}])))
    refused(folder, SourceError, r"postprocessing.pkl: .*found a pickle with (posix|nt|os)\.mkdir")
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"\x80\x04damaged", pickle.dumps("text"), pickle.dumps(([], [{}]))])
def test_damaged_post_processing(folder: Path, content: bytes) -> None:
    (folder / "postprocessing.pkl").write_bytes(content)
    refused(folder, SourceError, r"postprocessing.pkl: expected")


@pytest.mark.parametrize(
    ("names", "arguments", "message"),
    [
        (["keep_smallest"], [{"labels_or_regions": 1}], "found 'keep_smallest', which is not known"),
        (["remove_all_but_largest_component_from_segmentation"], [{"connectivity": 1}], "found .*connectivity"),
        (["remove_all_but_largest_component_from_segmentation"], [{"labels_or_regions": "x"}], "found 'x'"),
    ],
)
def test_unknown_post_processing(folder: Path, names: list[str], arguments: list[Any], message: str) -> None:
    content = {"postprocessing_fns": names, "postprocessing_kwargs": arguments}
    (folder / "postprocessing.json").write_text(json.dumps(content))
    refused(folder, SourceError, message)


UNKNOWN: list[tuple[str, Any, str]] = [
    ("resampling_fn_data", "my_resampling", r"resampling_fn_data: expected .*found 'my_resampling'"),
    ("resampling_fn_seg", "my_resampling", r"resampling_fn_seg: expected .*found 'my_resampling'"),
    ("resampling_fn_probabilities", "os.system", r"resampling_fn_probabilities: expected .*found 'os.system'"),
    ("normalization_schemes", ["MyNorm"], r"normalization_schemes: expected .*found 'MyNorm'"),
    ("preprocessor_name", "MyPreprocessor", r"preprocessor_name: expected .*found 'MyPreprocessor'"),
]


@pytest.mark.parametrize(("key", "value", "message"), UNKNOWN, ids=[key for key, *_ in UNKNOWN])
def test_plan_that_names_an_unknown_function(tmp_path: Path, key: str, value: Any, message: str) -> None:
    settings = {**SMALL.configurations["2d"], key: value}
    refused(write_folder(tmp_path, replace(SMALL, configurations={"2d": settings})), SourceError, message)


def test_plan_with_a_reader_of_other_files(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, replace(SMALL, reader="NaturalImage2DIO"))
    refused(folder, SourceError, r"image_reader_writer: expected .*found 'NaturalImage2DIO'")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("network_class_name", "my_package.MyNet"),
        ("network_class_name", "os.system"),
        ("network_class_name", "dynamic_network_architectures.architectures.unet.MyUNet"),
        ("network_class_name", "dynamic_network_architectures.architectures.unet.test_submodules_loadable"),
    ],
)
def test_plan_that_names_an_unknown_network(folder: Path, key: str, value: str) -> None:
    other = {**architecture(2), key: value}
    change(folder / "plans.json", lambda plans: plans["configurations"]["2d"].update(architecture=other))
    for fold in SMALL.folds:
        recheckpoint(folder, lambda content: content["init_args"].pop("plans"), int(fold))
    refused(folder, NetworkError, rf"expected a network of .*found '{re.escape(value)}', which is not known")


def networks_installed() -> list[str]:
    """Dotted paths of the classes in the package's network modules; read, not imported: some need more packages."""
    found = []
    for module in pkgutil.iter_modules(architectures.__path__, f"{architectures.__name__}."):
        place = importlib.util.find_spec(module.name)
        assert place is not None
        assert place.origin is not None
        tree = ast.parse(Path(place.origin).read_text(encoding="utf-8"))
        found += [f"{module.name}.{node.name}" for node in tree.body if isinstance(node, ast.ClassDef)]
    return found


def named(name: str) -> dict[str, Any]:
    """A configuration whose network is `name` (dotted path), with a residual or a plain U-Net's arguments."""
    return {"architecture": {**architecture(3, name.rpartition(".")[2]), "network_class_name": name}}


@pytest.mark.parametrize("name", networks_installed())
def test_every_installed_network_is_taken_or_refused_by_name(name: str) -> None:
    if name.rpartition(".")[2] in TAKEN:
        built = network_of(named(name), 2, 3, "plans.json")
        with torch.no_grad():
            assert built(torch.zeros(1, 2, 16, 16, 16)).shape == (1, 3, 16, 16, 16)
    else:
        with pytest.raises(NetworkError, match=rf"network_class_name: .*ResidualUNet\), found '{re.escape(name)}'"):
            network_of(named(name), 2, 3, "plans.json")


def test_installed_networks_hold_those_that_are_taken() -> None:
    names = [name.rpartition(".")[2] for name in networks_installed()]
    assert {*TAKEN, "PrimusM", "ResNet18"} <= set(names)


def test_network_of_a_trainers_own_code_is_named(folder: Path) -> None:
    def by_another(content: dict[str, Any]) -> None:
        content["trainer_name"] = "MyTrainer"
        content["network_weights"] = {"vit.pos_embed": torch.zeros(1, 8, 4)}

    recheckpoint(folder, by_another)
    message = "a network that MyTrainer builds by its own code"
    refused(folder, WeightsError, message, folds=["0"], trainer_keeps_network=True)


@pytest.mark.parametrize("name", ["os.system", "torch.save", "torch.nn.functional.relu", "torch.nn.nothing.Here", "x"])
def test_only_layers_are_looked_up_for_a_plan(name: str) -> None:
    with pytest.raises(NetworkError, match=rf"arch_kwargs.conv_op: expected .*found '{re.escape(name)}'"):
        find_block(name, "plans.json: arch_kwargs.conv_op")


def test_arguments_that_the_network_refuses(folder: Path) -> None:
    broken = architecture(2)
    broken["arch_kwargs"]["strides"] = [[1, 1]]
    change(folder / "plans.json", lambda plans: plans["configurations"]["2d"].update(architecture=broken))
    for fold in SMALL.folds:
        recheckpoint(folder, lambda content: content["init_args"].pop("plans"), int(fold))
    refused(folder, NetworkError, r"PlainConvUNet refuses the plan's arch_kwargs")


def test_channel_count_that_does_not_fit(folder: Path) -> None:
    change(folder / "dataset.json", lambda dataset: dataset.update(channel_names={"0": "T1", "1": "T2"}))
    refused(folder, SourceError, r"one channel for each of the plan's 1 normalization_schemes, found 2 \(T1, T2\)")


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        ({"one": 1}, None, "background as 0"),
        ({"background": 0, "two": 2}, None, "values without gaps"),
        ({"background": 0, "one": "first"}, None, "found 'first'"),
        ({"background": 0, "a": [1, 2], "b": 2}, None, "one value for each of 2 regions"),
        ({"background": 0, "a": [1, 2], "b": 2}, [1, 256], "expected numbers from 0 to 255"),
        ({"background": 0, "a": [1, 2], "b": 2}, [1, -1], "expected numbers from 0 to 255"),
        ({"background": 0, "a": [1, 2], "b": 2}, [1, "x"], "expected numbers from 0 to 255"),
    ],
)
def test_labels_that_cannot_be(labels: dict[str, Any], order: Any, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        labels_of({"labels": labels, "regions_class_order": order}, "dataset.json")


def test_labels_without_background_are_refused_as_by_nnunet() -> None:
    labels = {"one": 1, "two": 2}
    with pytest.raises((AssertionError, RuntimeError)):
        LabelManager(labels, None)
    with pytest.raises(SourceError, match="background as 0"):
        labels_of({"labels": labels}, "dataset.json")


def test_gap_in_the_labels_is_refused_where_nnunet_has_no_output_for_them() -> None:
    labels = {"background": 0, "one": 1, "three": 3}
    manager = LabelManager(labels, None)
    assert max(manager.all_labels) >= manager.num_segmentation_heads
    with pytest.raises(SourceError, match="without gaps"):
        labels_of({"labels": labels}, "dataset.json")


def test_configurations_that_inherit_in_a_circle() -> None:
    plans = {"configurations": {"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}}
    with pytest.raises(SourceError, match="in a circle: a from b from a"):
        configuration_of(plans, "a", "plans.json")


def test_older_plans_that_name_another_network() -> None:
    with pytest.raises(SourceError, match="found 'MyUNet'"):
        configuration_of(old_training("MyUNet").plans, "3d_fullres", "plans.json")
    plans = old_training().plans
    del plans["configurations"]["3d_fullres"]["conv_kernel_sizes"]
    with pytest.raises(SourceError, match="conv_kernel_sizes missing"):
        configuration_of(plans, "3d_fullres", "plans.json")


def test_second_stage_without_its_first(tmp_path: Path) -> None:
    settings = {"3d_lowres": FULL, "3d_cascade_fullres": {**FULL, "previous_stage": "3d_lowres"}}
    folder = write_folder(tmp_path, Training("3d_cascade_fullres", settings))
    refused(folder, SourceError, r"first stage is '3d_lowres'; expected .*nnUNetPlans__3d_lowres, found no such folder")


def test_settings_that_the_plan_decides(folder: Path) -> None:
    settings = {"tiling": {"overlap": 0.1}}
    refused(folder, SourceError, r"expected the sections .*found 'tiling'", settings=settings)


def test_name_that_cannot_be(folder: Path) -> None:
    refused_name = folder.parent / "models"
    with pytest.raises(SpecError, match="name"):
        import_nnunet(folder, "No Name", refused_name)
    assert not refused_name.exists()


# Folds side by side -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_folds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained model and the repository `models` made of it: two folds, two engines."""
    root = tmp_path_factory.mktemp("two")
    folder = write_folder(root, SMALL)
    import_nnunet(
        folder, "m", root / "models", settings={"serving": {"warm_up": False, "max_batch_size": 2, "threads": 1}}
    )
    return root


def test_one_entry_a_fold_and_engine_and_one_that_averages(two_folds: Path) -> None:
    folds = [f"m_fold_{fold}_{engine}" for fold in (0, 1) for engine in ("onnxruntime", "openvino")]
    entries = sorted(path.name for path in (two_folds / "models").iterdir() if path.is_dir())
    assert entries == sorted([*folds, "m_mean_onnxruntime", "m"])
    assert all((two_folds / "models" / entry / "1" / "certificate.json").is_file() for entry in entries if entry != "m")
    steps = read_config(two_folds / "models" / "m").ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["m_fold_0_onnxruntime", "m_fold_1_onnxruntime", "m_mean_onnxruntime"]


def test_point_moves_every_fold_to_the_other_engine(two_folds: Path) -> None:
    card = set_default_engine("m", "openvino", two_folds / "models")
    config = read_config(two_folds / "models" / "m")
    assert card.engine == get_card(config, two_folds).engine == "openvino"
    steps = [step.model_name for step in config.ensemble_scheduling.step]
    assert steps == ["m_fold_0_openvino", "m_fold_1_openvino", "m_mean_onnxruntime"]


def test_point_refuses_folds_of_another_build(two_folds: Path) -> None:
    file = two_folds / "models" / "m_fold_1_onnxruntime" / "1" / "certificate.json"
    text = file.read_text()
    try:
        file.write_text(text + " ")
        with pytest.raises(BuildError, match="build the model again"):
            set_default_engine("m", "onnxruntime", two_folds / "models")
    finally:
        file.write_text(text)


def test_command_imports_one_fold_beside_two_as_the_next_version(two_folds: Path, tmp_path: Path) -> None:
    folder, repository = two_folds / "nnUNetTrainer__nnUNetPlans__2d", two_folds / "models"
    given = ["nnunet", str(folder), "--name", "m", "--repository", str(repository), "--engines", "onnxruntime"]
    before = {path.name for path in repository.iterdir() if path.is_dir()}
    assert main([*given, "--folds", "1"]) == 0
    added = {path.name for path in repository.iterdir() if path.is_dir()} - before
    assert added == {"m.v1", "m.v2", "m.v2_onnxruntime"}, "another network is another version"
    assert main([*given, "--folds", "1"]) == 0
    assert {path.name for path in repository.iterdir() if path.is_dir()} == before | added, (
        "the very model is no version"
    )


def test_command_says_what_is_wrong_on_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nnunet", str(folder), "--name", "m", "--repository", str(folder / "r"), "--folds", "0,4"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "fold 4" in error


@pytest.mark.parametrize("count", [2, 5])
def test_mean_graph_is_the_mean(tmp_path: Path, count: int) -> None:
    (model,) = models_of(write_folder(tmp_path, SMALL), "m", folds=["0"])
    spec = model.spec
    scores = (
        np.random.default_rng(3)
        .normal(0, 5, (count, 2, spec.output.score_count, *spec.tiling.roi_size))
        .astype(np.float32)
    )
    session = ort.InferenceSession(mean_graph(spec, count).SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {f"scores_{index}": values for index, values in enumerate(scores)})[0]
    np.testing.assert_allclose(found, scores.mean(0, dtype=np.float64), atol=1e-5)


def test_checkpoint_generator_writes_what_nnunet_reads() -> None:
    content = checkpoint(SMALL, 0, network(SMALL, 0))
    assert {"network_weights", "init_args", "trainer_name", "inference_allowed_mirroring_axes"} <= set(content)
