"""Names in a repository: a public one that another model's inner entry has, or could have, is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn
from tritonclient.grpc import model_config_pb2 as pb

from tests.support.build_specs import built_card, spec
from voxtile_build.build import build_models
from voxtile_build.certificate.fold_mean import mean_config
from voxtile_build.errors import RepositoryError, SpecError
from voxtile_build.repository.config import PLACEHOLDER, public_config, write_config
from voxtile_build.repository.folds import Fold, Model
from voxtile_build.repository.names import check_names, entries_of, inner_names


def never() -> nn.Module:
    raise AssertionError("nothing is loaded before names are checked")


def model(name: str, folds: int = 1) -> Model:
    """A model whose networks cannot be loaded: whatever is refused is refused before that."""
    # A copy, because the spec alone refuses some of these names already; importers name models by other ways.
    chosen = spec(serving={"engines": ["onnxruntime"]}).model_copy(update={"name": name})
    names = [name] if folds == 1 else [f"{name}_fold_{index}" for index in range(folds)]
    return Model(chosen, tuple(Fold(one, never) for one in names))


def put(repository: Path, name: str, folds: tuple[str, ...]) -> None:
    """The public entry of a model that is there already."""
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "README").write_text(PLACEHOLDER)
    write_config(public_config(model(name).spec, built_card().model_copy(update={"name": name}), folds), folder.parent)


def contents(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize(
    "name", ["brain_onnxruntime", "brain_openvino", "brain_tensorrt", "brain_fold_0", "brain_fold_all", "brain_mean"]
)
def test_a_public_name_like_an_inner_entry_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    ending = name.removeprefix("brain")
    with pytest.raises(SpecError, match=f"{name}: name: must not end in '{ending}'.*public name 'brain'.*will do"):
        build_models([model(name)], tmp_path / "models")
    assert not contents(tmp_path)


@pytest.mark.parametrize("name", ["brain-fold-0", "brain_fold", "mean", "foldings_0", "brain_folds_0", "openvino"])
def test_other_names_are_not_taken_for_an_inner_entry(tmp_path: Path, name: str) -> None:
    with pytest.raises(AssertionError, match="nothing is loaded"):
        build_models([model(name)], tmp_path / "models")


def test_a_name_that_is_another_models_fold_is_refused(tmp_path: Path) -> None:
    """`left` is a fold of `brain`, whatever its name looks like."""
    put(tmp_path, "brain", ("left", "right"))
    before = contents(tmp_path)
    message = "left: name: expected names that no other model has, but 'left_onnxruntime' belongs to 'brain'"
    with pytest.raises(SpecError, match=re.escape(message)):
        build_models([model("left")], tmp_path)
    assert contents(tmp_path) == before


def test_inner_names_that_are_a_public_one_already_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "brain_fold_1_onnxruntime", ("elsewhere",))
    before = contents(tmp_path)
    with pytest.raises(
        SpecError, match=r"brain: name: .* but 'brain_fold_1_onnxruntime' belongs to 'brain_fold_1_onnx"
    ):
        build_models([model("brain", folds=2)], tmp_path)
    assert contents(tmp_path) == before


def test_two_models_of_one_build_share_no_entry(tmp_path: Path) -> None:
    first = model("brain", folds=2)
    second = Model(model("other").spec, (Fold("brain_fold_1", never),))
    with pytest.raises(SpecError, match=r"other: name: .* 'brain_fold_1_onnxruntime' belongs to 'brain'"):
        build_models([first, second], tmp_path)
    with pytest.raises(SpecError, match="'brain' belongs to 'brain'"):
        build_models([first, model("brain")], tmp_path)
    assert not contents(tmp_path)


# Names alone, without a build


ENGINES = ("onnxruntime", "openvino", "aotinductor", "tensorrt")
BRAIN = tuple(f"brain_{engine}" for engine in ENGINES)
FOLDS = tuple(f"{fold}_{engine}" for fold in ("left", "up") for engine in ENGINES)


@pytest.mark.parametrize(("folds", "entries"), [(("brain",), BRAIN), (("up", "left"), (*BRAIN, *FOLDS))])
def test_every_engine_of_every_fold_and_the_mean_may_stand_behind_a_name(
    tmp_path: Path, folds: tuple[str, ...], entries: tuple[str, ...]
) -> None:
    assert sorted(inner_names("brain", folds)) == sorted((*entries, "brain_mean_onnxruntime"))
    put(tmp_path, "brain", folds)
    assert entries_of("brain", tmp_path) == inner_names("brain", folds)


def test_an_entry_that_is_not_there_or_cannot_be_read_has_its_own_names_only(tmp_path: Path) -> None:
    assert entries_of("brain", tmp_path) == inner_names("brain", ())
    (tmp_path / "brain").mkdir()
    (tmp_path / "brain" / "config.pbtxt").write_text("no config at all {")
    assert entries_of("brain", tmp_path) == inner_names("brain", ())


def test_a_model_that_is_built_again_may_keep_its_names(tmp_path: Path) -> None:
    put(tmp_path, "brain", ("left", "right"))
    check_names([model("brain", folds=2), model("other")], tmp_path)


def test_an_entry_that_cannot_be_read_hides_none_behind_it(tmp_path: Path) -> None:
    (tmp_path / "brain").mkdir()
    (tmp_path / "brain" / "config.pbtxt").write_text("no config at all {")
    put(tmp_path, "zebra", ("left",))
    with pytest.raises(SpecError, match=r"'left_onnxruntime' belongs to 'zebra'"):
        check_names([model("left")], tmp_path)


# What was not built here


def foreign(folder: Path) -> None:
    """A model of somebody else."""
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(b"precious")
    (folder / "1" / "README").write_text("An ensemble of mine\n")
    write_config(pb.ModelConfig(name=folder.name, backend="onnxruntime"), folder)


def foreign_without_config(folder: Path) -> None:
    """Triton completes the config of such a model by itself."""
    foreign(folder)
    (folder / "config.pbtxt").unlink()


def foreign_that_cannot_be_read(folder: Path) -> None:
    foreign(folder)
    (folder / "config.pbtxt").write_text("no config at all {")


def a_file(folder: Path) -> None:
    folder.write_text("precious")


def a_link_to_nothing(folder: Path) -> None:
    folder.symlink_to(folder.parent / "unmounted")


KINDS = (foreign, foreign_without_config, foreign_that_cannot_be_read, a_file, a_link_to_nothing)


def names_and_bytes(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", ["brain", "brain_onnxruntime", "brain_tensorrt", "brain_fold_1_openvino"])
def test_what_was_not_built_here_is_never_replaced_nor_removed(
    name: str, make: Callable[[Path], None], tmp_path: Path
) -> None:
    """Also where this build would make no engine of the name: entries of engines that are not built go."""
    make(tmp_path / name)
    before = names_and_bytes(tmp_path)
    with pytest.raises(RepositoryError, match=f"{tmp_path / name}: expected nothing, .* another's model") as error:
        build_models([model("brain", folds=2)], tmp_path)
    assert error.value.exit_code == 2
    assert names_and_bytes(tmp_path) == before


def test_a_foreign_entry_behind_a_published_model_is_not_removed_with_it(tmp_path: Path) -> None:
    """The model had a fold `left`, and is built again without it."""
    put(tmp_path, "brain", ("left", "right"))
    foreign(tmp_path / "left_openvino")
    with pytest.raises(RepositoryError, match="left_openvino: expected nothing"):
        build_models([model("brain")], tmp_path)


def test_a_set_replaces_no_foreign_model(tmp_path: Path) -> None:
    foreign(tmp_path / "whole")
    with pytest.raises(RepositoryError, match="whole: expected nothing"):
        check_names([model("brain")], tmp_path, ["whole"])


@pytest.mark.parametrize("damage", ["nothing", "no config", "config", "no note"])
def test_what_a_build_left_may_be_replaced_however_damaged(damage: str, tmp_path: Path) -> None:
    put(tmp_path, "brain", ("brain",))
    (tmp_path / "brain_openvino" / "1").mkdir(parents=True)
    (tmp_path / "brain_openvino" / "1" / "certificate.json").write_text("{}")
    (tmp_path / "brain_tensorrt" / "1").mkdir(parents=True)  # empty
    mean = mean_config(model("brain").spec, 2, "cpu")
    (tmp_path / mean.name).mkdir()
    write_config(mean, tmp_path / mean.name)
    config = tmp_path / "brain" / "config.pbtxt"
    {
        "nothing": lambda: None,
        "no config": config.unlink,
        "config": lambda: config.write_text("no config at all {"),
        "no note": (tmp_path / "brain" / "1" / "README").unlink,
    }[damage]()
    check_names([model("brain", folds=2)], tmp_path)
