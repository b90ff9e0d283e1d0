"""Versions of a model in a repository: what stands beside what, what a public name moves to, and what stops it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.build_specs import Linear, spec
from tests.support.commands import run as voxtile
from tests.support.exporting import share_operators
from tests.support.versioned import ABOVE, NAME, build_version, command, entries, files, two_versions
from voxtile.card import Card
from voxtile_build.build import Published, build, build_models
from voxtile_build.certificate import verified_devices
from voxtile_build.certificate.verdict import Verdict
from voxtile_build.certificate.verify import verify
from voxtile_build.errors import RepositoryError, SpecError, VerificationError
from voxtile_build.promoting import promote, rollback
from voxtile_build.repository import volume
from voxtile_build.repository.card import get_card
from voxtile_build.repository.config import read_config, write_config
from voxtile_build.repository.folds import Fold, Model
from voxtile_build.repository.past import HISTORY, past_of
from voxtile_build.repository.publishing import staging
from voxtile_build.repository.versions import public_version, same_build, versions_of

TWO = ["tiny", "tiny.v1", "tiny.v2", "tiny.v2_onnxruntime", "tiny_onnxruntime"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tests that change it take a copy."""
    return two_versions(tmp_path_factory.mktemp("versions"))


@pytest.fixture
def repository(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "models")
    return tmp_path / "models"


def card(repository: Path, entry: str) -> Card:
    return get_card(read_config(repository / entry), repository / entry)


def text(repository: Path, entry: str) -> str:
    return str(read_config(repository / entry).parameters["card"].string_value)


def build_again(repository: Path, number: int = 1, **changes: object) -> Published:
    share_operators()
    fields = {"output": {"labels": ["background", "one"]}, "serving": {"engines": ["onnxruntime"], "max_batch_size": 1}}
    return build(spec(**{**fields, **changes}), repository, network=Linear(ABOVE[number]))


# Building -------------------------------------------------------------------------------------------------------------


def test_one_version_is_as_it_was_before_there_were_any(tmp_path: Path) -> None:
    published = build_version(tmp_path, 1)
    assert entries(tmp_path) == ["tiny", "tiny_onnxruntime"]
    assert published.public is None
    assert '"version"' not in text(tmp_path, "tiny")  # clients that know no versions read it
    assert list(versions_of(NAME, tmp_path)) == [1]


def test_other_weights_become_a_version_beside_the_first_and_the_name_stays(repository: Path) -> None:
    assert entries(repository) == TWO
    assert {number: one.entry for number, one in versions_of(NAME, repository).items()} == {1: "tiny.v1", 2: "tiny.v2"}
    assert public_version(NAME, repository) == 1
    assert text(repository, "tiny") == text(repository, "tiny.v1")
    first, second = card(repository, "tiny.v1"), card(repository, "tiny.v2")
    assert (first.name, first.version, second.name, second.version) == (NAME, 1, NAME, 2)
    assert first.provenance.weights_sha256 != second.provenance.weights_sha256
    assert [path.name for path in (repository / "tiny.v2_onnxruntime").iterdir() if path.is_dir()] == ["2"]
    for entry in ("tiny.v1", "tiny.v2"):
        config = read_config(repository / entry)
        assert config.name == entry
        assert (repository / entry / str(config.version_policy.specific.versions[0]) / "README").is_file()


def test_a_further_version_changes_nothing_of_those_that_are_there(repository: Path) -> None:
    before = files(repository)
    published = build_again(repository, tiling={"overlap": 0.5})
    assert published.entries == ("tiny.v3_onnxruntime", "tiny.v3")
    assert published.public == 1
    after = files(repository)
    assert {name: after[name] for name in before} == before
    assert {name.partition("/")[0] for name in set(after) - set(before)} == {"tiny.v3", "tiny.v3_onnxruntime"}


def test_the_very_model_again_takes_the_place_of_its_own_version(repository: Path) -> None:
    promote(NAME, 2, repository)
    before = files(repository)
    build_again(repository, 1)
    assert build_again(repository, 2, serving={"engines": ["openvino"], "max_batch_size": 2}).public is None
    assert entries(repository) == [
        "tiny", "tiny.v1", "tiny.v2", "tiny.v2_openvino", "tiny_onnxruntime",
    ]  # fmt: skip
    assert text(repository, "tiny") == text(repository, "tiny.v2") != before["tiny/config.pbtxt"].decode()
    assert card(repository, "tiny").engine == "openvino"
    assert past_of(read_config(repository / "tiny")).history == (1,)
    assert rollback(NAME, repository).now == 1


def test_a_spec_may_ask_for_a_version_and_then_replaces_it(repository: Path) -> None:
    published = build_again(repository, 2, version=1, title="now as the second one")
    assert entries(repository) == TWO
    assert published.public is None
    assert card(repository, "tiny").title == card(repository, "tiny.v1").title == "now as the second one"
    assert build_again(repository, 2, version=7).public == 1
    assert list(versions_of(NAME, repository)) == [1, 2, 7]


def test_folds_have_versions_and_each_its_own_mean(tmp_path: Path) -> None:
    share_operators()

    def built_folds(number: int) -> Published:
        asked = spec(
            output={"labels": ["background", "one"]}, serving={"engines": ["onnxruntime"], "max_batch_size": 1}
        )
        weights = [(ABOVE[number][0] * size, ABOVE[number][1] * size) for size in (1, 2)]
        folds = tuple(Fold(f"tiny_fold_{at}", lambda w=one: Linear(w)) for at, one in enumerate(weights))  # type: ignore[misc]
        return build_models([Model(asked, folds)], tmp_path)[0]

    built_folds(1)
    assert built_folds(2).entries[-1] == "tiny.v2"
    assert {"tiny.v2_fold_0_onnxruntime", "tiny.v2_fold_1_onnxruntime", "tiny.v2_mean_onnxruntime"} < {
        *entries(tmp_path)
    }
    promote(NAME, 2, tmp_path)
    steps = [step.model_name for step in read_config(tmp_path / "tiny").ensemble_scheduling.step]
    assert steps == ["tiny.v2_fold_0_onnxruntime", "tiny.v2_fold_1_onnxruntime", "tiny.v2_mean_onnxruntime"]
    assert all(verdict.holds for verdict in verify(NAME, tmp_path))
    assert command("point", NAME, "onnxruntime", "--repository", tmp_path) == 0
    assert voxtile("doctor", tmp_path).exit_code == 0
    (tmp_path / "tiny.v2_mean_onnxruntime" / "2" / "model.onnx").write_bytes(b"another")
    rollback(NAME, tmp_path)
    with pytest.raises(VerificationError, match=r"tiny\.v2_mean_onnxruntime.*found another"):
        promote(NAME, 2, tmp_path)


def test_what_has_the_name_of_a_version_is_not_replaced(repository: Path) -> None:
    assert build_version(repository, 1, "other").entries == ("other_onnxruntime", "other")
    (repository / "other.v2").mkdir()
    (repository / "other.v2" / "config.pbtxt").write_text("of somebody else")
    with pytest.raises(RepositoryError, match="found another's model"):
        build_again(repository, 2, name="other", version=2)
    assert build_version(repository, 2, "other").entries[-1] == "other.v3"
    assert (repository / "other.v2" / "config.pbtxt").read_text() == "of somebody else"
    assert public_version("other", repository) == 1


@pytest.mark.parametrize("harm", ["removed", "empty", "half-written"])
def test_a_number_is_never_given_twice(repository: Path, harm: str) -> None:
    """Masks name the version that made them, and a rollback the one that was public."""
    promote(NAME, 2, repository)
    promote(NAME, 1, repository)
    config = repository / "tiny.v2" / "config.pbtxt"
    if harm == "half-written":
        config.write_bytes(config.read_bytes()[:100])
    else:
        for entry in ("tiny.v2", "tiny.v2_onnxruntime"):
            shutil.rmtree(repository / entry)
    if harm == "empty":
        config.parent.mkdir()
    assert build_again(repository, 2).entries[-1] == "tiny.v3"
    said = {
        "removed": "expected version 2 of tiny, found the versions 1, 3",
        "empty": r"tiny.v2/config.pbtxt: cannot be read \(No such file",
        "half-written": "tiny.v2/config.pbtxt: not a Triton model config",
    }
    with pytest.raises(RepositoryError, match=said[harm]):
        rollback(NAME, repository)


def test_no_version_is_built_that_clients_could_not_ask_for(repository: Path) -> None:
    build_again(repository, 2, version=999_999_999, title="the last one")
    before = files(repository)
    with pytest.raises(
        RepositoryError, match="expected a version up to 999999999, found that the next one is 1000000000"
    ):
        build_again(repository, 2, tiling={"overlap": 0.5})
    assert files(repository) == before
    for number in (0, -1, 1.5, 10**20, 1_000_000_000):
        with pytest.raises(SpecError, match="version"):
            spec(version=number)


# Moving ---------------------------------------------------------------------------------------------------------------


def test_the_public_entry_alone_changes_and_back_again_is_as_before(repository: Path) -> None:
    before = files(repository)
    moved = promote(NAME, 2, repository)
    assert (moved.before, moved.now) == (1, 2)
    after = files(repository)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed == {"tiny/config.pbtxt", "tiny/1/README", "tiny/2/README"}
    assert text(repository, "tiny") == text(repository, "tiny.v2")
    assert same_build("tiny", repository) == ("tiny", "tiny.v2")
    assert same_build("tiny.v2", repository) == ("tiny.v2", "tiny")
    assert same_build("tiny.v1", repository) == ("tiny.v1",)
    assert rollback(NAME, repository).now == 1
    assert files(repository) == before


def test_each_rollback_goes_one_step_further_back(repository: Path) -> None:
    build_again(repository, tiling={"overlap": 0.5})
    for number in (2, 3, 2):
        promote(NAME, number, repository)
    assert past_of(read_config(repository / "tiny")).history == (1, 2, 3)
    assert [rollback(NAME, repository).now for _ in range(3)] == [3, 2, 1]
    with pytest.raises(RepositoryError, match="expected a version that the name stood for before 1, found none"):
        rollback(NAME, repository)


def test_a_promotion_to_what_is_public_changes_nothing(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(repository)
    assert command("promote", NAME, 1, "--repository", repository) == 0
    assert "already" in capsys.readouterr().out
    assert files(repository) == before


def test_another_engine_goes_to_the_version_too(repository: Path) -> None:
    build_again(repository, 1, serving={"engines": ["onnxruntime", "openvino"], "max_batch_size": 1})
    assert card(repository, "tiny").engine == "onnxruntime"
    assert command("point", NAME, "openvino", "--repository", repository) == 0
    assert text(repository, "tiny") == text(repository, "tiny.v1")
    assert card(repository, "tiny.v1").engine == "openvino"
    assert card(repository, "tiny.v2").engine == "onnxruntime"


def test_entries_for_whole_scans_follow_and_send_tiles_to_the_versions_own_entry(repository: Path) -> None:
    assert command("volume", NAME, "--repository", repository) == 0
    scans = repository.with_name("models-volume")

    def asked() -> tuple[str, str]:
        (network,) = json.loads(read_config(scans / "tiny_scan").parameters["networks"].string_value)
        assert network["name"] == NAME
        assert (scans / "tiny_scan" / network["config"]).resolve().parent.name == network["entry"]
        return network["entry"], network["version"]

    assert asked() == ("tiny.v1", "1")
    promote(NAME, 2, repository)
    assert asked() == ("tiny.v2", "2")
    assert voxtile("doctor", repository).exit_code == 0
    rollback(NAME, repository)
    assert asked() == ("tiny.v1", "1")


def test_doctor_finds_entries_for_whole_scans_of_another_version_than_the_public_one(repository: Path) -> None:
    command("volume", NAME, "--repository", repository)
    scans = repository.with_name("models-volume")
    kept = files(scans)
    promote(NAME, 2, repository)
    for name, content in kept.items():
        (scans / name).write_bytes(content)
    assert findings(repository, scans)["volume-other-version"].endswith("config.pbtxt")
    promote(NAME, 2, repository)  # moves nothing, and brings them in step
    assert "volume-other-version" not in findings(repository, scans)


def test_a_move_whose_entries_for_whole_scans_cannot_follow_says_so_and_can_be_repeated(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("volume", NAME, "--repository", repository)
    note = repository.with_name("models-volume") / "tiny_scan" / "1" / "README"
    note.unlink()
    note.mkdir()  # stands for a disk that is full just then
    assert command("promote", NAME, 2, "--repository", repository) == 2
    said = capsys.readouterr().err
    assert "tiny stands for version 2, and its entries for whole scans may not: " in said
    assert "once this is mended, voxtile-build promote tiny 2 again" in said
    note.rmdir()
    assert command("promote", NAME, 2, "--repository", repository) == 0
    assert "volume-other-version" not in findings(repository, repository.with_name("models-volume"))


def test_what_was_verified_is_not_written_to_the_version_that_takes_its_place_meanwhile(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the public name would have the engines of one version, and the card of another."""

    @contextlib.contextmanager
    def promoted_first(folder: Path) -> Iterator[Path]:
        promote(NAME, 2, folder)
        with staging(folder) as staged:
            yield staged

    verdict = Verdict("tiny_onnxruntime", (), device_kind="cpu", device="another CPU")
    monkeypatch.setattr(verified_devices, "staging", promoted_first)
    with pytest.raises(RepositoryError, match="moved to another version, meanwhile; verify it again"):
        verified_devices.record_devices(NAME, repository, [verdict])
    assert card(repository, "tiny").version == card(repository, "tiny.v2").version == 2
    assert same_build(NAME, repository) == ("tiny", "tiny.v2")
    monkeypatch.undo()
    rollback(NAME, repository)
    assert len(verified_devices.record_devices(NAME, repository, [verdict])) == 1
    assert same_build(NAME, repository) == ("tiny", "tiny.v1")


def test_entries_for_whole_scans_that_are_written_while_the_name_moves_are_of_where_it_stands_then(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = volume.write_config

    def promoted_first(config: Any, folder: Path) -> None:
        monkeypatch.undo()
        promote(NAME, 2, repository)
        real(config, folder)

    monkeypatch.setattr(volume, "write_config", promoted_first)
    assert command("volume", NAME, "--repository", repository) == 0
    assert public_version(NAME, repository) == 2
    scans = repository.with_name("models-volume")
    for entry in volume.volume_names(NAME):
        (network,) = json.loads(read_config(scans / entry).parameters["networks"].string_value)
        assert (network["entry"], network["version"]) == ("tiny.v2", "2")


# What is refused ------------------------------------------------------------------------------------------------------


def spoilt(entry: str, change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda repository: change(repository / entry)


def not_accepted(repository: Path) -> None:
    config = read_config(repository / "tiny.v2")
    value = config.parameters["card"]
    value.string_value = value.string_value.replace('"accepted":true', '"accepted":false')
    write_config(config, repository / "tiny.v2")


def uncertified_engine(repository: Path) -> None:
    config = read_config(repository / "tiny.v2")
    config.ensemble_scheduling.step[0].model_name = "tiny.v2_openvino"
    write_config(config, repository / "tiny.v2")


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "graph changed": (
        spoilt("tiny.v2_onnxruntime", lambda entry: (entry / "2" / "model.onnx").write_bytes(b"another")),
        "expected the certified file",
    ),
    "graph gone": (spoilt("tiny.v2_onnxruntime", lambda entry: (entry / "2" / "model.onnx").unlink()), "missing"),
    "certificate gone": (
        spoilt("tiny.v2_onnxruntime", lambda entry: (entry / "2" / "certificate.json").unlink()),
        "expected a certificate",
    ),
    "certificate changed": (
        spoilt(
            "tiny.v2_onnxruntime",
            lambda entry: (entry / "2" / "certificate.json").write_text(
                (entry / "2" / "certificate.json").read_text() + " "
            ),
        ),
        "another certificate than the card names",
    ),
    "engine gone": (spoilt("tiny.v2_onnxruntime", shutil.rmtree), "expected a certificate"),
    "not accepted": (not_accepted, "missed a limit"),
    "engine's config cut off": (
        spoilt("tiny.v2_onnxruntime", lambda entry: (entry / "config.pbtxt").write_text("name: ")),
        "not a Triton model config",
    ),
    "engine's config of another entry": (
        lambda repository: shutil.copy(
            repository / "tiny_onnxruntime" / "config.pbtxt", repository / "tiny.v2_onnxruntime"
        ),
        "is not of the entry and the version that were certified",
    ),
    "certificate of another model": (
        lambda repository: shutil.copy(
            repository / "tiny_onnxruntime" / "1" / "certificate.json", repository / "tiny.v2_onnxruntime" / "2"
        ),
        "expected the certified file",
    ),
    "tiles to an engine without certificate": (uncertified_engine, "it sends tiles to tiny.v2_openvino"),
    "engine is a link to nothing": (
        spoilt(
            "tiny.v2_onnxruntime",
            lambda entry: (shutil.rmtree(entry), entry.symlink_to(entry.with_name("gone"))),
        ),
        "expected a certificate",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_as_it_was_certified_never_becomes_public(
    repository: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, message = FAULTS[fault]
    spoil(repository)
    before = files(repository)
    assert command("promote", NAME, 2, "--repository", repository) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert files(repository) == before
    assert public_version(NAME, repository) == 1


@pytest.mark.parametrize("content", [b"", b"name: ", b"\xff\xfe", None])
def test_a_version_that_cannot_be_read_is_named_with_the_reason(
    repository: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = repository / "tiny.v2" / "config.pbtxt"
    config.unlink() if content is None else config.write_bytes(content)
    before = files(repository)
    assert command("promote", NAME, 2, "--repository", repository) == 2
    said = capsys.readouterr().err
    assert "tiny.v2" in said
    assert "found the versions" not in said
    assert files(repository) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("promote", NAME, "3"), "expected version 3 of tiny, found the versions 1, 2"),
        (("promote", NAME, "0"), "expected a number greater than or equal to 1"),
        (("promote", NAME, "two"), "expected a number; see voxtile-build promote --help"),
        (("promote", "none", "2"), "found none of that name; it has: tiny"),
        (("promote", "tiny.v2", "2"), "expected a public model"),
        (("promote", "tiny_onnxruntime", "1"), "expected a public model"),
        (("promote", "../models/tiny", "2"), "expected a public model"),
        (("rollback", NAME), "expected a version that the name stood for before 1, found none"),
        (("rollback", "none"), "found none of that name; it has: tiny"),
        (("promote", NAME, "2", "--url", "nowhere"), "expected HOST:PORT"),
    ],
)
def test_what_cannot_be_moved_is_refused_in_one_line(
    repository: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(repository)
    assert command(*words, "--repository", repository) == 2
    said = capsys.readouterr().err
    assert message in said
    assert files(repository) == before


def test_a_version_that_was_public_and_is_gone_stops_a_rollback(repository: Path) -> None:
    promote(NAME, 2, repository)
    shutil.rmtree(repository / "tiny.v1")
    with pytest.raises(RepositoryError, match="expected version 1 of tiny, found the versions 2"):
        rollback(NAME, repository)
    assert public_version(NAME, repository) == 2


@pytest.mark.parametrize("harm", ["removed", "half-written", "empty"])
def test_a_public_name_that_is_gone_or_damaged_can_be_given_to_a_version_again(
    repository: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = repository / "tiny" / "config.pbtxt"
    if harm == "removed":
        shutil.rmtree(repository / "tiny")
    elif harm == "half-written":
        config.write_bytes(config.read_bytes()[:100])
    else:
        config.write_bytes(b"")
    assert command("rollback", NAME, "--repository", repository) == 2
    assert "choose one with voxtile-build promote tiny N" in capsys.readouterr().err
    assert command("promote", NAME, 2, "--repository", repository) == 0
    assert "tiny is version 2, by onnxruntime; before: none" in capsys.readouterr().out
    assert text(repository, "tiny") == text(repository, "tiny.v2")


def test_a_version_that_has_only_the_public_entry_keeps_one_of_its_own(repository: Path) -> None:
    before = files(repository)
    shutil.rmtree(repository / "tiny.v1")
    promote(NAME, 2, repository)
    assert rollback(NAME, repository).now == 1
    assert files(repository) == before


def test_a_history_that_nobody_has_written_is_none(repository: Path) -> None:
    config = read_config(repository / "tiny")
    config.parameters[HISTORY].string_value = "0 two -1 999999999999 1.5"
    assert past_of(config).history == ()


def test_a_set_or_cascade_does_not_replace_a_model_of_several_versions(repository: Path) -> None:
    share_operators()
    asked = spec(output={"labels": ["background", "one"]}, serving={"engines": ["onnxruntime"], "max_batch_size": 1})
    other = asked.model_copy(update={"name": "tiny_low"})
    models = [Model(one, (Fold(one.name, lambda: Linear(ABOVE[1])),)) for one in (other, asked)]
    before = files(repository)
    with pytest.raises(RepositoryError, match="found the versions 1, 2; a set and a cascade have no versions"):
        build_models(models, repository)
    assert files(repository) == before


def test_a_model_that_others_need_is_not_moved(repository: Path) -> None:
    config = read_config(repository / "tiny")
    fields = json.loads(config.parameters["card"].string_value)
    config.name, fields["name"] = "second", "second"
    fields["nnunet"] = {"previous_stage": NAME}
    config.parameters["card"].string_value = json.dumps(fields)
    (repository / "second" / "1").mkdir(parents=True)
    write_config(config, repository / "second")
    with pytest.raises(RepositoryError, match="found that second was built for the version that is public"):
        promote(NAME, 2, repository)
    assert versions_of("second", repository) == {}


# Doctor ---------------------------------------------------------------------------------------------------------------


def findings(repository: Path, *more: object) -> dict[str, str]:
    result = voxtile("doctor", repository, *more, "--json")
    return {one["code"]: one["where"] for one in json.loads(result.stdout)["findings"] if one["severity"] != "ok"}


def test_doctor_finds_nothing_in_two_versions_and_names_one_that_is_gone(repository: Path) -> None:
    sound = findings(repository)
    assert not {code for code in sound if "version" in code and code != "other-version"}
    promote(NAME, 2, repository)
    assert findings(repository).keys() == sound.keys()
    shutil.move(repository / "tiny.v1", repository.parent / "kept")
    assert findings(repository)["version-gone"].endswith("tiny/config.pbtxt")
    shutil.move(repository.parent / "kept", repository / "tiny.v1")
    shutil.rmtree(repository / "tiny.v2")
    assert findings(repository)["public-version-missing"].endswith("tiny/config.pbtxt")


def test_doctor_finds_a_version_whose_card_or_name_is_not_public_any_more(repository: Path) -> None:
    config = read_config(repository / "tiny")
    config.parameters["card"].string_value = text(repository, "tiny").replace('"title":""', '"title":"another"')
    write_config(config, repository / "tiny")
    assert findings(repository)["public-version-differs"].endswith("tiny/config.pbtxt")
    shutil.rmtree(repository / "tiny")
    assert findings(repository)["version-alone"].endswith("config.pbtxt")
