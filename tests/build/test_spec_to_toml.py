"""A spec that is written as TOML reads back as an equal spec, whatever its names hold; what exists is not replaced."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tomllib
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.support.build_specs import spec
from tests.support.bundles import write_bundle
from tests.support.nnunet_folders import Training, configuration, write_folder
from voxtile_build.errors import SpecError
from voxtile_build.importers.bundle.bundle import spec_of
from voxtile_build.importers.nnunet.models import models_of
from voxtile_build.spec.spec import Spec, load_spec, parse_spec
from voxtile_build.spec.spec_to_toml import Remarks, spec_to_toml, write_spec

MODELS = Path(__file__).parents[2] / "models"
SHA256 = "0" * 64
FOLDER = Path("/any/folder")

TEXTS = some.text(some.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
NUMBERS = some.one_of(some.integers(-(2**40), 2**40), some.floats(allow_nan=False))
PLAIN = some.recursive(
    some.one_of(TEXTS, NUMBERS, some.booleans()),
    lambda inner: some.one_of(some.lists(inner, max_size=3), some.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
WITH_NULL = some.one_of(PLAIN, some.none(), some.lists(some.none(), max_size=2))


def again(found: Spec, folder: Path, remarks: Remarks | None = None) -> Spec:
    return parse_spec(tomllib.loads(spec_to_toml(found, folder, remarks)), "written.toml", folder)


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_specs_of_this_repository_read_back(path: Path, tmp_path: Path) -> None:
    found = load_spec(path)
    assert again(found, path.parent) == found
    write_spec(found, tmp_path / "copy.toml")
    assert load_spec(tmp_path / "copy.toml") == found


def test_an_imported_bundle_reads_back(tmp_path: Path) -> None:
    found = spec_of(write_bundle(tmp_path / "bundle"), "organ")
    write_spec(found, tmp_path / "bundle.toml")
    assert load_spec(tmp_path / "bundle.toml") == found
    assert 'file = "bundle/models/model.pt"' in (tmp_path / "bundle.toml").read_text()


def test_an_imported_nnunet_model_reads_back_with_its_nulls(tmp_path: Path) -> None:
    training = Training("3d_fullres", {"3d_fullres": configuration((16, 16, 16), (1.5, 1.0, 1.0))})
    (model,) = models_of(write_folder(tmp_path, training), "organ")
    assert "null" in spec_to_toml(model.spec, tmp_path)
    assert again(model.spec, tmp_path) == model.spec


@settings(deadline=None, max_examples=60)
@given(TEXTS, some.lists(TEXTS, min_size=2, max_size=3, unique=True), some.dictionaries(TEXTS, WITH_NULL, max_size=4))
def test_any_name_and_argument_reads_back(title: str, names: list[str], arguments: dict[str, Any]) -> None:
    found = spec(
        title=title,
        network={"name": title, "args": arguments},
        input={"channels": names},
        output={"labels": names},
        nnunet=arguments,
        todo=names,
        serving={"engines": ["openvino"]},
    )
    found = parse_spec(found.model_dump() | {"name": "odd"}, "odd.toml", FOLDER)
    remarks = Remarks(head=["odd"], before={"input": ["more"]}, whole=("input", "serving", "acceptance", "precision"))
    assert again(found, FOLDER) == again(found, FOLDER, remarks) == found


CHAIN: dict[str, Any] = {
    "preprocessing": [
        {"transform": "Orientation", "axcodes": "PLI"},
        {"transform": "Spacing", "pixdim": [1.5, 1, 2.0]},
        {"transform": "ScaleIntensity", "minv": -1, "maxv": 1},
        {"transform": "CropForeground", "select_fn": "x > 0.25", "margin": [1, 2, 3]},
        {"transform": "NormalizeIntensity", "subtrahend": [3.0], "divisor": 2.0},
    ],
    "postprocessing": [
        {"transform": "Activations", "sigmoid": True},
        {"transform": "Invert", "nearest_interp": False},
        {"transform": "AsDiscrete", "threshold": 0.25},
        {"transform": "KeepLargestConnectedComponent", "applied_labels": [1]},
    ],
}


def test_chains_read_back_in_their_order() -> None:
    fields = spec().model_dump() | CHAIN
    del fields["output"]["regions"], fields["output"]["activation"]
    found = parse_spec(fields, "chain.toml", FOLDER)
    text = spec_to_toml(found, FOLDER)
    assert text.count("[[preprocessing]]") == 5
    assert 'transform = "Orientation"\naxcodes = "PLI"' in text
    assert "[inferer]" in text
    assert again(found, FOLDER) == found


def test_what_would_read_back_as_another_spec_is_not_written() -> None:
    found = spec()
    other = found.model_copy(update={"tiling": found.tiling.model_copy(update={"cval": None})})
    with pytest.raises(SpecError, match="tiny: cannot be written as TOML: it would read back as another spec"):
        spec_to_toml(other, FOLDER)


@pytest.mark.parametrize(
    ("labels", "regions", "expected"),
    [
        (["a", "b"], False, 'labels = ["a", "b"]'),
        ([{"name": "a", "value": 1}, {"name": "b", "value": 2}], True, 'labels = ["a", "b"]'),
        ([{"name": "a", "value": 1}, {"name": "b", "value": 2}], False, 'labels = [{name = "a", value = 1}, '),
        ([{"name": "a", "value": 2}, {"name": "b", "value": 2}], True, 'labels = [{name = "a", value = 2}, '),
        (
            [{"name": "a", "value": 0}, {"name": "b", "value": 1, "code": {"value": "7", "meaning": "B"}}],
            False,
            '{name = "b", value = 1, code = {value = "7", meaning = "B"}}',
        ),
    ],
)
def test_labels_are_names_alone_where_their_values_are_the_usual_ones(
    labels: list[Any], regions: bool, expected: str
) -> None:
    found = spec(output={"labels": labels, "regions": regions})
    assert expected in spec_to_toml(found, FOLDER)
    assert again(found, FOLDER) == found


def test_files_below_the_folder_are_named_from_it_and_others_in_full() -> None:
    weights = {"file": "/any/folder/sub/w.safetensors", "sha256": SHA256}
    found = spec(weights=weights, acceptance={"scans": ["/else/a.nii.gz", "/any/folder/b.nii.gz"]})
    text = spec_to_toml(found, FOLDER)
    assert 'file = "sub/w.safetensors"' in text
    assert 'scans = [["/else/a.nii.gz"], ["b.nii.gz"]]' in text
    assert again(found, FOLDER) == found


def test_relative_files_are_those_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "specs").mkdir()
    write_spec(spec(weights={"file": "w.pt", "sha256": SHA256}), Path("specs/x.toml"))
    found = load_spec(tmp_path / "specs" / "x.toml")
    assert found.weights is not None
    assert found.weights.file == tmp_path / "w.pt"


def test_the_keys_of_a_whole_table_are_there_as_comments_that_can_be_taken_in() -> None:
    """Taking away the mark of the comment in front of every default changes nothing."""
    found = spec()
    text = spec_to_toml(found, FOLDER, Remarks(whole=("inferer", "serving", "acceptance", "precision")))
    assert '\n#mode = "gaussian"\n' in text
    text, switched_on = re.subn(r"^#(?=\w+ = )", "", text, flags=re.MULTILINE)
    assert switched_on > 15
    assert parse_spec(tomllib.loads(text), "whole.toml", FOLDER) == found


def test_every_key_has_its_meaning_above_it() -> None:
    assert "# size of a tile in voxels, one number an axis\nroi_size = [16, 8, 12]" in spec_to_toml(spec(), FOLDER)


def test_a_file_that_exists_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "taken.toml"
    path.write_text("mine")
    with pytest.raises(SpecError, match=r"taken.toml: expected the name of a new file, found one that exists"):
        write_spec(spec(), path)
    assert path.read_text() == "mine"
    with pytest.raises(SpecError, match="expected a folder"):
        write_spec(spec(), tmp_path / "none" / "x.toml")


def test_a_file_name_that_is_no_unicode_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="tiny: cannot be written as TOML"):
        write_spec(
            spec(weights={"file": b"w\xff.pt".decode(errors="surrogateescape"), "sha256": SHA256}), tmp_path / "t"
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["{", "", "[" * 100_000])
def test_text_that_is_no_json_is_refused_in_place_of_a_table(text: str) -> None:
    with pytest.raises(SpecError, match=r"network\.args: expected a table, or one as JSON text"):
        spec(network={"name": "UNet", "args": text})
    with pytest.raises(SpecError, match=r"network\.args: .*expected a table"):
        spec(network={"name": "UNet", "args": "[1]"})
