"""Entries that segment whole scans: written with a model, kept in step with it, and gone when it is gone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.build_specs import spec
from tests.support.small_models import IDENTITY
from voxtile_build.build import build
from voxtile_build.cli.commands import main
from voxtile_build.errors import RepositoryError
from voxtile_build.promoting import promote
from voxtile_build.repository.config import read_config
from voxtile_build.repository.default_engine import set_default_engine
from voxtile_build.repository.volume import VolumeSettings, volume_repository, write_volume_entries
from voxtile_build.repository.volumes_in_step import bring_in_step, remove_volume_entries
from voxtile_build.spec.spec import load_spec

ENTRIES = ["small-unet_scan", "small-unet_scan_stream"]


@pytest.fixture
def models(repository: Path, tmp_path: Path) -> Path:
    """A copy of the small models, to be changed."""
    return Path(shutil.copytree(repository, tmp_path / "models"))


def entries(models: Path) -> list[str]:
    return sorted(path.name for path in volume_repository(models).glob("*"))


def networks(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(read_config(folder).parameters["networks"].string_value)
    return found


def engine_in(folder: Path) -> str:
    return str(json.loads(networks(folder)[0]["card"])["engine"])


def built(models: Path, folder: Path, serving: str, overlap: float = 0.25) -> tuple[Path, ...]:
    file = folder / "tiny.toml"
    text = IDENTITY.format(name="tiny", dtype="fp32").replace("overlap = 0.25", f"overlap = {overlap}")
    file.write_text(text + serving)
    return build(load_spec(file), models).volumes


def test_a_spec_asks_for_entries_that_follow_each_build_of_it(tmp_path: Path) -> None:
    models = tmp_path / "models"
    assert built(models, tmp_path, "") == ()
    assert not volume_repository(models).exists()
    folders = built(models, tmp_path, "volume = true\n")
    assert [folder.name for folder in folders] == entries(models) == ["tiny_scan", "tiny_scan_stream"]
    write_volume_entries("tiny", models, volume_repository(models), VolumeSettings(3, 5, 900))
    before = [(folder / "config.pbtxt").read_bytes() for folder in folders]
    assert built(models, tmp_path, "volume = false\n", overlap=0.5) == ()  # another version, which is not public
    assert [(folder / "config.pbtxt").read_bytes() for folder in folders] != before  # tiles go to the first one's own
    assert networks(folders[0])[0]["entry"] == "tiny.v1"
    promote("tiny", 2, models)
    folders = built(models, tmp_path, "", overlap=0.5)  # no word of entries: those that are there are kept in step
    for folder in folders:
        config = read_config(folder)
        assert json.loads(networks(folder)[0]["card"])["tiling"]["overlap"] == 0.5
        # How they are run is the operator's, and stays.
        assert config.instance_group[0].count == 3
        assert config.dynamic_batching.default_queue_policy.max_queue_size == 5
        assert config.parameters["max_ram_mib"].string_value == "900"
    assert built(models, tmp_path, "volume = false\n", overlap=0.5) == ()
    assert entries(models) == []


def test_the_command_says_what_was_written_and_how_to_serve_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(IDENTITY.format(name="tiny", dtype="fp32") + "volume = true\n")
    assert main(["spec", str(file), "--repository", str(tmp_path / "models")]) == 0
    said = capsys.readouterr().out
    assert f"tiny_scan, tiny_scan_stream; serve them with --volume-repository {tmp_path}/models-volume" in said


def test_a_build_that_fails_leaves_the_entries_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "models"
    folders = built(models, tmp_path, "volume = true\n")
    before = [(folder / "config.pbtxt").read_bytes() for folder in folders]

    def full(*_: object) -> None:
        raise RepositoryError("the disk is full")

    monkeypatch.setattr("voxtile_build.build.publish", full)
    with pytest.raises(RepositoryError):
        built(models, tmp_path, "volume = false\n", overlap=0.5)
    assert [(folder / "config.pbtxt").read_bytes() for folder in folders] == before


def test_another_engine_is_in_the_entries_too(models: Path) -> None:
    write_volume_entries("small-unet", models, volume_repository(models), VolumeSettings(queue=3))
    folders = [volume_repository(models) / name for name in ENTRIES]
    assert {engine_in(folder) for folder in folders} == {"openvino"}
    set_default_engine("small-unet", "onnxruntime", models)
    assert {engine_in(folder) for folder in folders} == {"onnxruntime"}
    assert {read_config(folder).dynamic_batching.default_queue_policy.max_queue_size for folder in folders} == {3}


def test_entries_of_other_models_stay_as_they_are(models: Path) -> None:
    for name in ("small-unet", "identity"):
        write_volume_entries(name, models, volume_repository(models))
    others = [volume_repository(models) / f"identity{ending}" / "config.pbtxt" for ending in ("_scan", "_scan_stream")]
    for other in others:
        other.write_text(other.read_text() + "# of its owner\n")
    set_default_engine("small-unet", "onnxruntime", models)
    assert all(other.read_text().endswith("# of its owner\n") for other in others)


def test_entries_of_a_model_that_is_gone_go_and_nothing_else_does(models: Path, tmp_path: Path) -> None:
    target = volume_repository(models)
    for name in ("small-unet", "identity"):
        write_volume_entries(name, models, target)
    elsewhere = Path(shutil.copytree(models, tmp_path / "elsewhere" / "models"))
    write_volume_entries("identity-int16", elsewhere, target)  # whose model lies in another repository
    (target / "notes").mkdir()
    (target / "notes.txt").touch()
    for folder in ("other_scan", "small-unet_scan_notes"):  # of another backend, or nobody's
        shutil.copytree(models / "small-unet", target / folder)
    for place in (models / "small-unet", models / "identity-int16", elsewhere / "identity-int16"):
        shutil.rmtree(place)
    bring_in_step(models, ())
    assert entries(models) == sorted(
        ["identity_scan", "identity_scan_stream", "identity-int16_scan", "identity-int16_scan_stream", "notes",
         "notes.txt", "other_scan", "small-unet_scan_notes"]
    )  # fmt: skip


def broken_json(folder: Path) -> None:
    config = (folder / "config.pbtxt").read_text()
    (folder / "config.pbtxt").write_text(config.replace('string_value: "[', 'string_value: "{'))


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "config.pbtxt").write_text("name:"),
        lambda folder: (folder / "config.pbtxt").write_bytes(b"\xff\xfe"),
        lambda folder: (folder / "config.pbtxt").unlink(),
        lambda folder: (folder / "config.pbtxt").write_text('backend: "voxtile"'),
        broken_json,
    ],
)
def test_a_damaged_entry_stops_no_change_of_a_model(models: Path, harm: Callable[[Path], None]) -> None:
    write_volume_entries("identity", models, volume_repository(models))
    harm(volume_repository(models) / "identity_scan")
    set_default_engine("small-unet", "onnxruntime", models)
    # Its model's next build, or the command, writes it anew.
    set_default_engine("identity", "onnxruntime", models)
    assert networks(volume_repository(models) / "identity_scan_stream")[0]["name"] == "identity"
    write_volume_entries("identity", models, volume_repository(models))
    assert networks(volume_repository(models) / "identity_scan")[0]["name"] == "identity"


def test_the_command_removes_entries(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["volume", "small-unet", "--repository", str(models)]
    assert main(words) == 0
    shutil.rmtree(models / "small-unet")  # also of a model that is gone
    assert main([*words, "--remove"]) == 0
    assert entries(models) == []
    capsys.readouterr()
    assert main([*words, "--remove"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected an entry for whole scans of 'small-unet', found none" in line


def test_what_is_no_entry_is_not_removed(models: Path) -> None:
    with pytest.raises(RepositoryError, match="found none"):
        remove_volume_entries("small-unet", models.parent)
    shutil.copytree(models / "identity", models / "small-unet_scan")
    with pytest.raises(RepositoryError, match="found none"):
        remove_volume_entries("small-unet", models)
    assert (models / "small-unet_scan" / "config.pbtxt").is_file()


def test_an_entry_and_a_model_cannot_have_one_name(models: Path, tmp_path: Path) -> None:
    write_volume_entries("small-unet", models, volume_repository(models))
    file = tmp_path / "small-unet_scan.toml"
    file.write_text(IDENTITY.format(name="small-unet_scan", dtype="fp32"))
    with pytest.raises(RepositoryError, match=r"small-unet_scan.*choose another name"):
        build(load_spec(file), models)
    remove_volume_entries("small-unet", volume_repository(models))
    build(load_spec(file), models)
    with pytest.raises(RepositoryError, match="a model has the name"):
        write_volume_entries("small-unet", models, volume_repository(models))
    assert entries(models) == []


def test_a_place_where_no_entries_can_be_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    models = tmp_path / "models"
    volume_repository(models).write_text("a file")
    with pytest.raises(RepositoryError, match=r"models-volume: expected a folder .* found a file"):
        built(models, tmp_path, "volume = true\n")
    assert not list(models.glob("*/config.pbtxt"))


def test_links_to_both_repositories_lead_to_the_models(models: Path, tmp_path: Path) -> None:
    """The path to a model's own config.pbtxt is followed by the system, which takes `..` after a link literally."""
    real = tmp_path / "far" / "away" / "entries"
    real.mkdir(parents=True)
    volume_repository(models).symlink_to(real)
    for folder in write_volume_entries("small-unet", models, volume_repository(models)):
        path = os.path.join(folder.resolve(), networks(folder)[0]["config"])
        assert os.path.samefile(path, models / "small-unet" / "config.pbtxt")
    set_default_engine("small-unet", "onnxruntime", models)
    assert engine_in(real / "small-unet_scan") == "onnxruntime"


@pytest.mark.parametrize(("count", "at_once"), [(1, 2), (3, 6)])
def test_the_backend_is_told_what_keeps_the_engines_busy(tmp_path: Path, count: int, at_once: int) -> None:
    folders = built(tmp_path / "models", tmp_path, f"volume = true\ncount = {count}\n")
    assert [network["at_once"] for folder in folders for network in networks(folder)] == [at_once, at_once]


def test_what_only_the_server_knows_is_left_to_it(models: Path) -> None:
    engine = models / "small-unet_openvino" / "config.pbtxt"
    engine.write_text(engine.read_text().replace("kind: KIND_CPU", "kind: KIND_GPU"))
    folders = write_volume_entries("small-unet", models, volume_repository(models))
    assert not any("at_once" in network for folder in folders for network in networks(folder))


def test_a_spec_takes_true_or_false() -> None:
    assert spec().serving.volume is None
    assert spec(serving={"volume": True}).serving.volume is True


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_foreign_model_with_the_name_of_an_entry_is_not_replaced(entry: str, models: Path, tmp_path: Path) -> None:
    taken = tmp_path / "entries" / entry / "1" / "model.onnx"
    taken.parent.mkdir(parents=True)
    taken.write_bytes(b"precious")
    given = ["volume", "small-unet", "--repository", str(models), "--to", str(tmp_path / "entries")]
    assert main(given) == 2
    assert [path for path in (tmp_path / "entries").rglob("*") if path.is_file()] == [taken]
    assert taken.read_bytes() == b"precious"
    shutil.rmtree(taken.parent.parent)
    assert main(given) == 0
    assert main(given) == 0  # its own are written again


def test_a_build_refuses_a_foreign_model_among_entries_before_it_builds(tmp_path: Path) -> None:
    taken = volume_repository(tmp_path / "models") / "tiny_scan" / "1" / "model.onnx"
    taken.parent.mkdir(parents=True)
    taken.write_bytes(b"precious")
    with pytest.raises(RepositoryError, match="tiny_scan: expected nothing"):
        built(tmp_path / "models", tmp_path, "volume = true\n")
    assert not (tmp_path / "models").exists()
