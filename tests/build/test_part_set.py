"""A set of nnU-Net models in a repository: its file, its entry, and the commands that work on all of its models."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.support.nnunet_folders import Training, configuration, write_folder
from voxtile_build.certificate.verify import verify, version_warnings
from voxtile_build.cli.commands import main
from voxtile_build.errors import BuildError, RepositoryError, SpecError
from voxtile_build.importers.nnunet.part_set import part_set_of
from voxtile_build.profile.profile import profile
from voxtile_build.repository.card import get_card
from voxtile_build.repository.config import read_config
from voxtile_build.repository.default_engine import set_default_engine
from voxtile_build.repository.model_set import set_names

PLAN = configuration((8, 8, 8), (1.5, 1.5, 1.5))
TWO = """
spacing = 1.5
[[parts]]
name = "organs"
folder = "organs"
[[parts]]
folder = "bones"
labels = { 2 = "rib" }
"""
SETTINGS = "[serving]\nwarm_up = false\nmax_batch_size = 1\nthreads = 1\n"


def write_parts(root: Path, **changes: Training) -> None:
    for seed, (name, labels) in enumerate({"organs": ("spleen", "liver"), "bones": ("helper", "rib")}.items()):
        values = {"background": 0, **{label: number + 1 for number, label in enumerate(labels)}}
        training = Training("3d_fullres", {"3d_fullres": PLAN}, labels=values)
        write_folder(root / name, changes.get(name, training), seed)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the trained models, two.toml, and the repository `models` made of it, for two engines."""
    root = tmp_path_factory.mktemp("set")
    write_parts(root)
    (root / "two.toml").write_text(TWO)
    (root / "settings.toml").write_text(SETTINGS)
    assert command(root, "onnxruntime", "openvino") == 0
    return root


def command(root: Path, *engines: str, file: str = "two.toml", name: str = "two") -> int:
    words = ["nnunet-set", str(root / file), "--name", name, "--repository", str(root / "models")]
    return main([*words, "--settings", str(root / "settings.toml"), "--engines", *engines])


def entries(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "models").iterdir() if path.is_dir())


BOTH = ("onnxruntime", "openvino")
WHOLE = sorted(
    ["two", *(f"two_{part}{end}" for part in ("organs", "part_2") for end in ("", *(f"_{e}" for e in BOTH)))]
)


def test_a_set_has_an_entry_of_its_own_beside_those_of_its_models(built: Path) -> None:
    assert entries(built) == WHOLE
    config = read_config(built / "models" / "two")
    card = get_card(config, built / "models" / "two")
    assert set_names(config) == ("two_organs", "two_part_2")
    assert [(label.name, label.value) for label in card.labels] == [
        *[("background", 0), ("spleen", 1), ("liver", 2), ("rib", 3)],
    ]
    assert card.parts is not None
    assert [part.labels for part in card.parts.models] == [{1: 1, 2: 2}, {2: 3}]
    models = [get_card(read_config(built / "models" / name), built) for name in set_names(config)]
    for engine in BOTH:
        assert card.certificates[engine].dice_min == min(model.certificates[engine].dice_min for model in models)
    assert (card.orientation, card.spacing, card.tiling.overlap) == ("RAS", (1.5, 1.5, 1.5), 0.5)


def test_point_moves_all_models_and_the_set(built: Path) -> None:
    folder = built / "models"
    for engine in ("openvino", "onnxruntime"):
        assert main(["point", "two", engine, "--repository", str(folder)]) == 0
        for name in ("two", "two_organs", "two_part_2"):
            assert get_card(read_config(folder / name), folder).engine == engine
        assert read_config(folder / "two_organs").ensemble_scheduling.step[0].model_name == f"two_organs_{engine}"
        assert set_names(read_config(folder / "two")) == ("two_organs", "two_part_2")
    with pytest.raises(RepositoryError, match="expected one of its engines onnxruntime, openvino, found 'tensorrt'"):
        set_default_engine("two", "tensorrt", folder)


def test_verify_repeats_every_model_and_says_where_one_is_not_the_sets(built: Path) -> None:
    verdicts = {one.entry: one for one in verify("two", built / "models", scans=False)}
    assert set(verdicts) == {*(name for name in WHOLE if name.endswith(BOTH)), "two"}
    assert all(one.holds for one in verdicts.values())
    assert version_warnings("two", built / "models") == ()
    file = built / "models" / "two_part_2" / "config.pbtxt"
    text = file.read_text()
    weights = get_card(read_config(file.parent), file).provenance.weights_sha256
    try:
        file.write_text(text.replace(weights, "0" * 64))
        verdict = verify("two", built / "models", scans=False)[-1]
        assert not verdict.holds
        assert "two_part_2: expected the weights that the set was built with" in verdict.as_line()
    finally:
        file.write_text(text)


def test_a_model_of_a_set_is_not_replaced_without_it(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["nnunet", str(built / "bones"), "--name", "two_organs", "--repository", str(built / "models")]
    assert main([*words, "--engines", "onnxruntime"]) == 2
    assert "'two_organs_onnxruntime' belongs to 'two'" in capsys.readouterr().err
    with pytest.raises(RepositoryError, match="found a set; give one of two_organs, two_part_2"):
        profile("two", built / "models")


def test_a_set_that_is_built_again_leaves_nothing_of_the_old_one(built: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(built, root)
    (root / "one.toml").write_text('parts = [{ folder = "bones", name = "bones" }]')
    assert command(root, "onnxruntime", file="one.toml") == 0
    assert entries(root) == ["two", "two_bones", "two_bones_onnxruntime"]
    words = ["nnunet", str(root / "organs"), "--name", "two", "--repository", str(root / "models")]
    assert main([*words, "--engines", "onnxruntime", "--settings", str(root / "settings.toml")]) == 0
    assert entries(root) == ["two", "two_onnxruntime"]


# Files that cannot be -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parts")
    write_parts(root)
    return root


LABELS = "[labels]\nspleen = 1\nliver = 2\n"
ADDED: list[tuple[str, str]] = [
    ("[crop]\nmodel = 'none'\nlabels = ['a']", "none/config.pbtxt: cannot be read"),
    (f"{LABELS}ribs = 3", r"labels: .*'rib', found none \(did you mean 'ribs'\?\)"),
    (f"{LABELS}rib = 2", "labels: expected a value of its own for each name"),
    (f"{LABELS}rib = 0", "labels: expected 'rib' from 1 to 65535, found 0"),
    (f"{LABELS}rib = 3\nlung = 4", "labels: 'lung' is painted by no part"),
    ("[[cleaning]]\nkeep_largest = ['livr']", r"cleaning\[0\]: .*'livr' \(did you mean 'liver'\?\)"),
    ("[[cleaning]]\nremove_small = ['rib']", r"cleaning\[0\]: expected volume_mm3 with remove_small"),
    ("[[cleaning]]\nvolume_mm3 = 3", r"cleaning\[0\]: expected either keep_largest or remove_small"),
]
REPLACED: list[tuple[str, str, str]] = [
    ("2 =", "3 =", r"parts\[1\].labels: expected label values of the part \(1, 2\), found '3'"),
    ("2 =", "two =", r"parts\[1\].labels: expected label values .* found 'two'"),
    ('{ 2 = "rib" }', "{}", r"parts\[1\].labels: expected at least one label, found none"),
    ('name = "organs"', 'name = "Organs"', r"parts\[0\].name: expected small letters"),
    ('folder = "bones"', 'folder = "bonse"', "bonse: expected a trained .* found no such folder"),
    ("spacing = 1.5", "spacing = 0", "spacing.*: input should be greater than 0"),
    ("spacing = 1.5", "spacing = [1.5, 2]", "spacing"),
    ("spacing", "spaceing", r"spaceing: unknown key \(did you mean 'spacing'\?\)"),
    ("spacing = 1.5", "tile_step_size = 1.5", "tile_step_size: input should be less than or equal"),
    (TWO, "spacing = 1.5", "parts: missing"),
    ('name = "organs"', 'name = "part_2"', "expected names that no other"),
]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((TWO + added, message) for added, message in ADDED),
        *((TWO.replace(old, new), message) for old, new, message in REPLACED),
    ],
)
def test_a_file_that_cannot_be_is_answered_in_one_line(
    parts: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (parts / "bad.toml").write_text(text)
    assert main(["nnunet-set", str(parts / "bad.toml"), "--name", "s", "--repository", str(parts / "models")]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1
    assert not (parts / "models").exists()


def test_names_and_scans_of_a_set_are_refused(parts: Path) -> None:
    (parts / "two.toml").write_text(TWO)
    with pytest.raises(SpecError, match=r"name: .*'totalseg-v2' will do"):
        part_set_of(parts / "two.toml", "TotalSeg.v2", parts / "models")
    with pytest.raises(BuildError, match=r"a cascade or a set is certified .* on a generated volume"):
        part_set_of(parts / "two.toml", "s", parts / "models", settings={"acceptance": {"scans": ["a.nii.gz"]}})


def test_regions_of_one_value_need_a_name_in_the_mask(tmp_path: Path) -> None:
    regions = {"background": 0, "whole": [1, 2], "core": 2}
    training = Training("3d_fullres", {"3d_fullres": PLAN}, labels=regions, regions_class_order=(1, 1))
    write_parts(tmp_path, organs=training)
    file = tmp_path / "two.toml"
    file.write_text(TWO)
    with pytest.raises(BuildError, match=r"parts\[0\]: two regions have the value 1 \(whole, core\); say in labels"):
        part_set_of(file, "s", tmp_path / "models")
    file.write_text(TWO.replace('folder = "organs"', 'folder = "organs"\nlabels = { 1 = "tumour" }'))
    found = part_set_of(file, "s", tmp_path / "models").model_set
    assert found.parts == (("s_organs", {1: 1}), ("s_part_2", {2: 2}))
    assert json.dumps([label.name for label in found.labels]) == '["background", "tumour", "rib"]'


def test_parts_of_different_channels_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = {
        **PLAN,
        "normalization_schemes": ["CTNormalization", "ZScoreNormalization"],
        "use_mask_for_norm": [False] * 2,
    }
    training = Training("3d_fullres", {"3d_fullres": plan}, channels=("CT", "PET"))
    write_parts(tmp_path, organs=training)
    (tmp_path / "two.toml").write_text(TWO)
    (tmp_path / "settings.toml").write_text(SETTINGS)
    assert command(tmp_path, "onnxruntime") == 2
    assert (
        "expected parts that take the same scans, found two_organs with the channels CT, PET" in capsys.readouterr().err
    )
    assert not (tmp_path / "models").exists()
