"""An imported nnU-Net model is the network that its trainer builds, with the labels that nnU-Net gives it."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import pkgutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training import nnUNetTrainer as package
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager, determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from tests.support.importing import import_nnunet
from tests.support.nnunet_folders import Training, configuration, write_folder
from voxtile.chains.nnunet.exporting import LabelExporter
from voxtile.chains.nnunet.plan import NnunetPlan
from voxtile.chains.nnunet.preprocessing import GridProperties
from voxtile_build.cli.commands import main
from voxtile_build.errors import NetworkError, SourceError, SpecError, WeightsError
from voxtile_build.importers.nnunet.labels import channels_of, labels_of
from voxtile_build.importers.nnunet.models import models_of
from voxtile_build.importers.nnunet.trainers import KEEPING, NNUNET, OTHER, TOTALSEGMENTATOR, check_trainer

SMALL = Training("2d", {"2d": configuration((16, 12), (1.0, 1.0))}, folds=(0, 1), mirror_axes=(1,))


def recheckpoint(folder: Path, edit: Callable[[dict[str, Any]], None], fold: int = 0) -> None:
    """Edit a checkpoint in place."""
    file = folder / f"fold_{fold}" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    edit(content)
    torch.save(content, file)


# Trainers -----------------------------------------------------------------------------------------------------------


PRIMUS = "dynamic_network_architectures.architectures.primus"


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[nnUNetTrainer]]:
    """Every trainer of the installed nnunetv2, by name.

    The transformers of some of them need a package that is not installed. To see which trainers build them, their names
    are enough.
    """
    names = ("Primus", "PrimusV2S", "PrimusV2B", "PrimusV2M", "PrimusV2L")
    transformers = ModuleType(PRIMUS)
    vars(transformers).update({name: type(name, (torch.nn.Identity,), {}) for name in names})
    monkeypatch.setitem(sys.modules, PRIMUS, transformers)
    found = {}
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if inspect.isclass(value) and issubclass(value, nnUNetTrainer) and value.__module__ == module.name:
                found[name] = value
    return found


def built_by(trainer: type[nnUNetTrainer]) -> str:
    """What the trainer builds at inference for a plan, in words that hold every layer and its arguments."""
    training = Training("3d_fullres", {"3d_fullres": configuration((16, 16, 16), (1.0, 1.0, 1.0))})
    manager = PlansManager(training.plans)
    settings = manager.get_configuration("3d_fullres")
    channels = determine_num_input_channels(manager, settings, training.dataset)
    heads = manager.get_label_manager(training.dataset).num_segmentation_heads
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = trainer.build_network_architecture(manager, settings, channels, heads, False)
    return repr(network)


def test_the_trainers_that_keep_the_plans_network_are_those_of_nnunet(
    trainers: dict[str, type[nnUNetTrainer]],
) -> None:
    expected, keeping = built_by(nnUNetTrainer), set()
    assert "LeakyReLU" in expected
    for name, trainer in trainers.items():
        with contextlib.suppress(NotImplementedError, TypeError, AssertionError):  # transformers refuse such a plan
            if built_by(trainer) == expected:
                keeping.add(name)
    assert keeping == set(NNUNET)
    assert set(trainers) == set(NNUNET) | set(OTHER)


def test_no_trainer_is_named_twice() -> None:
    assert len(KEEPING) == len(NNUNET) + len(TOTALSEGMENTATOR)
    assert not KEEPING & set(OTHER)


@pytest.mark.parametrize("name", sorted(OTHER))
def test_a_trainer_of_another_network_is_refused_whatever_the_user_says(name: str) -> None:
    for said in (False, True):
        with pytest.raises(NetworkError, match=f"{name} of nnU-Net builds"):
            check_trainer(name, "checkpoint", keeps_network=said)


@pytest.mark.parametrize(
    "name", ["MyTrainer", "nnUNetTrainer_GeLU", "nnunettrainer", "nnUNetTrainer ", "x.nnUNetTrainer", ""]
)
def test_a_trainer_that_is_not_known_is_refused_unless_the_user_vouches_for_it(tmp_path: Path, name: str) -> None:
    """Its weights have the names and shapes of the plan, as those of a network with another activation have."""
    folder = write_folder(tmp_path, SMALL)
    for fold in SMALL.folds:
        recheckpoint(folder, lambda content: content.update(trainer_name=name), int(fold))
    with pytest.raises(
        NetworkError, match=rf"fold_0/checkpoint_final\.pth: .*found {name or 'none'}, .*--trainer-keeps"
    ):
        import_nnunet(folder, "m", tmp_path / "models", engines=["onnxruntime"])
    assert not (tmp_path / "models").exists()
    (model,) = models_of(folder, "m", trainer_keeps_network=True)
    assert model.spec.nnunet is not None
    assert model.spec.nnunet["trainer"] == name
    (note,) = model.spec.notes
    assert "stated at import, not checked" in note


def test_what_the_user_vouches_for_stands_in_card_and_certificate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path, SMALL)
    recheckpoint(folder, lambda content: content.update(trainer_name="MyTrainer"))
    command = ["nnunet", str(folder), "--name", "m", "--folds", "0", "--engines", "onnxruntime"]
    command += ["--repository", str(tmp_path / "models")]
    assert main(command) == 4 or not (tmp_path / "models").exists()
    assert "found MyTrainer" in capsys.readouterr().err
    assert main([*command, "--trainer-keeps-network"]) == 0
    note = "MyTrainer builds the plan's network: stated at import, not checked"
    assert note in capsys.readouterr().err
    certificate = json.loads((tmp_path / "models/m_onnxruntime/1/certificate.json").read_text())
    assert note in certificate["warnings"]
    assert note in (tmp_path / "models/m/config.pbtxt").read_text().replace("\\'", "'")


def test_both_stages_of_a_cascade_are_asked_for(tmp_path: Path) -> None:
    full = configuration((16, 16, 16), (1.0, 1.0, 1.0), previous_stage="3d_lowres")
    plans = {"3d_lowres": configuration((16, 16, 16), (2.0, 2.0, 2.0)), "3d_cascade_fullres": full}
    low = write_folder(tmp_path, Training("3d_lowres", plans))
    second = write_folder(tmp_path, Training("3d_cascade_fullres", plans))
    assert len(models_of(second, "m")) == 2
    recheckpoint(low, lambda content: content.update(trainer_name="MyTrainer"))
    with pytest.raises(NetworkError, match=r"__3d_lowres/fold_0/.*found MyTrainer"):
        models_of(second, "m")


def test_a_first_stage_that_was_trained_as_another_configuration_is_refused(tmp_path: Path) -> None:
    """The folder has the stage's name; its checkpoint says what it is."""
    full = configuration((16, 16, 16), (1.0, 1.0, 1.0), previous_stage="3d_lowres")
    low = configuration((16, 16, 16), (2.0, 2.0, 2.0))
    plans = {"3d_lowres": low, "3d_fullres": {**low, "spacing": [1.0, 1.0, 1.0]}, "3d_cascade_fullres": full}
    first = write_folder(tmp_path, Training("3d_lowres", plans))
    second = write_folder(tmp_path, Training("3d_cascade_fullres", plans))
    recheckpoint(first, lambda content: content["init_args"].update(configuration="3d_fullres"))
    with pytest.raises(SourceError, match="expected configuration '3d_lowres', found one trained as '3d_fullres'"):
        models_of(second, "m")


# What a checkpoint says of its data ---------------------------------------------------------------------------------

OTHER_DATA: dict[str, dict[str, Any]] = {
    "the order of labels": {"labels": {"background": 0, "two": 1, "one": 2}},
    "the values of labels": {"labels": {"background": 0, "one": 1, "two": 2, "three": 3}},
    "the number of channels": {"channel_names": {"0": "CT", "1": "PET"}},
}


@pytest.mark.parametrize("what", OTHER_DATA)
def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path, what: str) -> None:
    folder = write_folder(tmp_path, SMALL)
    recheckpoint(folder, lambda content: content["init_args"]["dataset_json"].update(OTHER_DATA[what]))
    with pytest.raises(WeightsError, match=rf"checkpoint_final\.pth: .*dataset\.json.*\(different: .*{what}"):
        models_of(folder, "m")


def test_labels_may_have_other_names_than_in_the_checkpoint(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, SMALL)
    renamed = {"background": 0, "liver": 1, "tumour": 2}
    dataset = json.loads((folder / "dataset.json").read_text()) | {"labels": renamed}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    (model,) = models_of(folder, "m")
    assert [label.name for label in model.spec.output.labels] == list(renamed)


# dataset.json as nnU-Net takes it -----------------------------------------------------------------------------------

TAKEN: list[dict[str, Any]] = [
    {"labels": {"background": "0", "one": "1", "two": "2"}},
    {"labels": {"background": 0, "two": "2", "one": 1}},
    {"labels": {"background": 0.0, "one": 1.0, "two": [" 2 "]}},
    {"labels": {"background": False, "one": True, "ignore": 2}},
    {"labels": {"background": 0, "all": ["1", 2], "core": "2"}, "regions_class_order": [1, 2]},
    {"labels": {"background": 0, "all": [1, 2, 3], "core": [2, 3], "rim": 3}, "regions_class_order": [1, 1, 2]},
    {"labels": {"background": 0, "all": [1, 2], "rim": 2}, "regions_class_order": [7, 0]},
    {"labels": {"background": "0", "all": [1, 2], "rim": 2}, "regions_class_order": [0, 1, 2]},
    {"labels": {"background": 0, "none": [0, 0], "all": [1, 2], "rim": 2}, "regions_class_order": [1, 2.0]},
    {"labels": {"background": 0, "all": [1, 2], "rim": 2}, "regions_class_order": ["1", "2"]},
]


@pytest.mark.parametrize("dataset", TAKEN, ids=[json.dumps(dataset) for dataset in TAKEN])
def test_labels_are_written_as_nnunet_writes_them(dataset: dict[str, Any]) -> None:
    manager = LabelManager(dataset["labels"], dataset.get("regions_class_order"))
    found = labels_of(dataset, "dataset.json")
    assert len(found.names) == manager.num_segmentation_heads
    assert found.count == len(manager.all_labels)
    assert list(found.foreground) == [int(value) for value in manager.foreground_labels]
    logits = np.random.default_rng(3).normal(size=(len(found.names), 5, 6, 7)).astype(np.float32)
    expected = np.asarray(manager.convert_logits_to_segmentation(logits))
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(exported(logits, found), expected)


def exported(logits: np.ndarray[Any, Any], labels: Any) -> np.ndarray[Any, Any]:
    """The client's labels on the grid of the logits."""
    shape = logits.shape[1:]
    plan = NnunetPlan.model_validate(
        {
            **configuration((4, 4, 4), (1.0, 1.0, 1.0), normalization_schemes=["NoNormalization"]),
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "foreground_intensity_properties_per_channel": {},
        }
    )
    box = tuple((0, size) for size in shape)
    properties = GridProperties(shape, shape, box, shape, shape, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    order = labels.values if labels.regions else None
    exporter = LabelExporter(properties, plan, n_labels=labels.count, regions_class_order=order)
    exporter.add_planes(logits)
    return exporter.finish()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"labels": {"background": "none", "one": 1}}, "background as 0"),
    ({"labels": {"background": [0], "one": 1}}, "background as 0"),
    ({"labels": {"background": 0, "one": "one"}}, "found 'one'"),
    ({"labels": {"background": 0, "one": 1, "ignore": "2"}}, "expected 2, one above all others, found '2'"),
    ({"labels": {"background": 0, "one": 1, "ignore": 1}}, "expected 2, one above all others, found 1"),
    ({"labels": {"background": 0, "one": 1, "ignore": [2]}}, r"expected 2, one above all others, found \[2\]"),
]


@pytest.mark.parametrize(("dataset", "message"), REFUSED)
def test_labels_that_nnunet_refuses_are_refused(dataset: dict[str, Any], message: str) -> None:
    with pytest.raises((AssertionError, RuntimeError, ValueError, TypeError)):
        LabelManager(dataset["labels"], None)
    with pytest.raises(SourceError, match=message):
        labels_of(dataset, "dataset.json")


@pytest.mark.parametrize("value", [None, {}, float("nan"), float("inf"), "", "1.5", [[1]], []])
def test_a_value_that_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(SourceError, match=r"labels.one: expected a whole number"):
        labels_of({"labels": {"background": 0, "one": value}}, "dataset.json")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"CT": "CT", "PET": "CT"}, ("CT", "CT")),
        ({"1": "a", "2": "b"}, ("a", "b")),
        ({"1": "b", "0": "a"}, ("a", "b")),
        ({"T2": "x", "T1": "y", "0": "z"}, ("x", "y", "z")),
        ({"0": 7}, ("7",)),
    ],
)
def test_channels_are_counted_as_by_nnunet(names: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert channels_of({"channel_names": names}, "dataset.json") == expected


def test_an_odd_data_set_is_imported(tmp_path: Path) -> None:
    odd = Training(
        "2d", {"2d": configuration((16, 12), (1.0, 1.0))}, labels={"background": "0", "one": "1", "two": "2"}
    )
    folder = write_folder(tmp_path, odd)
    dataset = json.loads((folder / "dataset.json").read_text()) | {"channel_names": {"CT": "CT"}}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    (model,) = models_of(folder, "m")
    assert [(label.name, label.value) for label in model.spec.output.labels] == [
        ("background", 0),
        ("one", 1),
        ("two", 2),
    ]
    assert model.spec.input.channels == ("CT",)


def test_regions_of_one_value_are_imported(tmp_path: Path) -> None:
    labels = {"background": 0, "all": [1, 2], "core": 2}
    odd = Training("2d", {"2d": configuration((16, 12), (1.0, 1.0))}, labels=labels, regions_class_order=(1, 1))
    (model,) = models_of(write_folder(tmp_path, odd), "m")
    assert [label.value for label in model.spec.output.labels] == [1, 1]


# Plans that nnU-Net did not write -------------------------------------------------------------------------------------

JUNK = (None, True, 5, "abc", [], [[]], {"a": 1}, float("inf"))


def placed(content: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    """`content` with another value at a place."""
    *above, last = place
    for key in above:
        content = content[key]
    content[last] = value


@pytest.mark.parametrize(
    "place",
    [
        ("configurations",),
        ("configurations", "2d"),
        ("configurations", "2d", "patch_size"),
        ("configurations", "2d", "spacing"),
        ("configurations", "2d", "use_mask_for_norm"),
        ("configurations", "2d", "resampling_fn_data_kwargs", "order"),
        ("configurations", "2d", "architecture"),
        ("configurations", "2d", "architecture", "network_class_name"),
        ("configurations", "2d", "architecture", "arch_kwargs"),
        ("configurations", "2d", "architecture", "_kw_requires_import"),
        ("transpose_forward",),
    ],
    ids="-".join,
)
def test_a_plan_of_other_types_is_refused_when_it_is_imported(place: tuple[str, ...], tmp_path: Path) -> None:
    folder = write_folder(tmp_path, SMALL)
    for fold in SMALL.folds:
        recheckpoint(folder, lambda content: content["init_args"].update(plans={}), int(fold))
    for value in JUNK:
        if (place[-1], value) in (("use_mask_for_norm", [True]), ("order", None), ("order", True), ("order", 5)):
            continue
        plans = SMALL.plans
        placed(plans, place, value)
        (folder / "plans.json").write_text(json.dumps(plans))
        with pytest.raises((NetworkError, SourceError, SpecError, WeightsError)):  # noqa: PT012
            for fold in models_of(folder, "m")[0].folds:
                fold.load()
            pytest.fail(f"{'.'.join(place)} = {value!r} is taken")


@pytest.mark.parametrize("axes", [5, "ab", [0.5], [3], [-1], {"a": 1}, [float("inf")]], ids=repr)
def test_mirroring_over_what_is_no_axis_is_refused(axes: Any, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, SMALL)
    for fold in SMALL.folds:
        recheckpoint(folder, lambda content: content.update(inference_allowed_mirroring_axes=axes), int(fold))
    with pytest.raises((SpecError, WeightsError), match="mirror"):
        models_of(folder, "m")
