"""A public name stands for another engine in one step, and only for one that is certified as its card says."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2 as pb

from tests.support.specs import CERTIFICATES, built_card, spec
from voxtile.card import Card
from voxtile_build.errors import RepositoryError
from voxtile_build.repository import publishing
from voxtile_build.repository.card import get_card
from voxtile_build.repository.config import public_config, read_config, write_config
from voxtile_build.repository.default_engine import set_default_engine
from voxtile_build.repository.digests import are_certified, certificate_digests
from voxtile_build.repository.entries import fold_name, fold_names, mean_entry, mean_name, score_name
from voxtile_build.repository.publishing import staging

ENGINES = ("openvino", "onnxruntime")


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def certified(entry: Path, text: str, version: int = 1) -> Path:
    """An engine's entry with a certificate of this text."""
    folder = entry / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "certificate.json").write_text(text)
    return entry


def repository_of(folder: Path, folds: tuple[str, ...]) -> Card:
    """The model tiny of two engines; the certificate of each entry is the entry's name."""
    digests = {}
    for engine in ENGINES:
        texts = [f"{fold}_{engine}" for fold in folds]
        for text in texts:
            certified(folder / text, text)
        lines = "".join(f"{sha256(text)}\n" for text in texts)
        digests[engine] = sha256(texts[0]) if len(texts) == 1 else sha256(lines)
    certificates = {
        engine: CERTIFICATES["openvino"].model_copy(update={"sha256": digests[engine]}) for engine in ENGINES
    }
    card = built_card().model_copy(update={"certificates": certificates})
    (folder / "tiny").mkdir()
    write_config(public_config(spec(), card, folds), folder / "tiny")
    return card


def steps(folder: Path) -> list[str]:
    return [step.model_name for step in read_config(folder / "tiny").ensemble_scheduling.step]


def test_the_public_entry_leads_to_the_other_engine_and_nothing_else_changes(tmp_path: Path) -> None:
    card = repository_of(tmp_path, ("tiny",))
    assert steps(tmp_path) == ["tiny_openvino"]
    expected = card.model_copy(update={"engine": "onnxruntime"})
    assert set_default_engine("tiny", "onnxruntime", tmp_path) == expected
    assert steps(tmp_path) == ["tiny_onnxruntime"]
    assert get_card(read_config(tmp_path / "tiny"), tmp_path) == expected
    assert set_default_engine("tiny", "openvino", tmp_path) == card
    assert steps(tmp_path) == ["tiny_openvino"]


def test_every_fold_changes_its_engine_and_the_mean_stays(tmp_path: Path) -> None:
    repository_of(tmp_path, ("left", "right"))
    set_default_engine("tiny", "onnxruntime", tmp_path)
    assert steps(tmp_path) == ["left_onnxruntime", "right_onnxruntime", "tiny_mean_onnxruntime"]


@pytest.mark.parametrize("spoilt", ["left", "right"])
def test_one_fold_with_another_certificate_stops_it(tmp_path: Path, spoilt: str) -> None:
    card = repository_of(tmp_path, ("left", "right"))
    certified(tmp_path / f"{spoilt}_onnxruntime", "of another build")
    before = (tmp_path / "tiny" / "config.pbtxt").read_bytes()
    with pytest.raises(RepositoryError) as caught:
        set_default_engine("tiny", "onnxruntime", tmp_path)
    told = str(caught.value)
    assert f"{tmp_path / 'left_onnxruntime'}, {tmp_path / 'right_onnxruntime'}: expected the certificate" in told
    assert f"{card.certificates['onnxruntime'].sha256[:12]}… that" in told
    texts = {"left": "left_onnxruntime", "right": "right_onnxruntime", spoilt: "of another build"}
    assert f"found {sha256(texts['left'])[:12]}…, {sha256(texts['right'])[:12]}…; build" in told
    assert (tmp_path / "tiny" / "config.pbtxt").read_bytes() == before


def test_an_entry_without_a_certificate_stops_it(tmp_path: Path) -> None:
    repository_of(tmp_path, ("tiny",))
    (tmp_path / "tiny_onnxruntime" / "1" / "certificate.json").unlink()
    with pytest.raises(RepositoryError, match="found none; build the model again"):
        set_default_engine("tiny", "onnxruntime", tmp_path)


def test_an_engine_that_the_model_does_not_have_is_named_with_those_it_has(tmp_path: Path) -> None:
    repository_of(tmp_path, ("tiny",))
    expected = f"{tmp_path / 'tiny'}: expected one of its engines onnxruntime, openvino, found 'tensorrt'"
    with pytest.raises(RepositoryError, match=re.escape(expected)):
        set_default_engine("tiny", "tensorrt", tmp_path)


def test_an_entry_without_a_card_is_named(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    write_config(pb.ModelConfig(name="tiny"), tmp_path / "tiny")
    with pytest.raises(RepositoryError, match=re.escape(f"{tmp_path / 'tiny'}: expected a public entry")):
        set_default_engine("tiny", "onnxruntime", tmp_path)


def test_it_waits_for_a_build_that_is_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository_of(tmp_path, ("tiny",))
    monkeypatch.setattr(publishing, "LOCK_SECONDS", 0)
    with staging(tmp_path), pytest.raises(RepositoryError, match="another build is at work"):
        set_default_engine("tiny", "onnxruntime", tmp_path)
    assert steps(tmp_path) == ["tiny_openvino"]


def test_a_wrong_path_makes_no_repository(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="build the entry first"):
        set_default_engine("tiny", "onnxruntime", tmp_path / "mistyped")
    assert list(tmp_path.iterdir()) == []


# Digests


def test_digests_are_told_for_each_entry_and_each_of_its_versions(tmp_path: Path) -> None:
    one = certified(certified(tmp_path / "one", "old"), "new", version=2)
    other = certified(tmp_path / "other", "x")
    found = certificate_digests([one, other, tmp_path / "nothing"])
    assert [set(digests) for digests in found] == [{sha256("old"), sha256("new")}, {sha256("x")}, set()]


def test_one_version_of_each_entry_must_be_the_cards_in_the_order_of_the_folds(tmp_path: Path) -> None:
    one = certified(certified(tmp_path / "one", "old"), "new", version=2)
    other = certified(tmp_path / "other", "x")
    for text in ("old", "new"):
        lines = f"{sha256(text)}\n{sha256('x')}\n"
        assert are_certified([one, other], sha256(lines))
        assert not are_certified([other, one], sha256(lines))
        assert are_certified([one], sha256(text))
    assert not are_certified([one], sha256("x"))
    assert not are_certified([one, tmp_path / "nothing"], sha256("old"))


# Names


@pytest.mark.parametrize(
    ("entry", "fold"),
    [
        ("brain_openvino", "brain"),
        ("brain_onnxruntime", "brain"),
        ("brain_tensorrt", "brain"),
        ("brain_openvino_onnxruntime", "brain_openvino"),
        ("brain_openvino_2", "brain_openvino_2"),
        ("brain-openvino", "brain-openvino"),
    ],
)
def test_the_fold_of_an_entry_is_its_name_without_the_engine_at_the_end(entry: str, fold: str) -> None:
    assert fold_name(entry) == fold


def test_the_averaging_entry_is_no_fold() -> None:
    config = pb.ModelConfig(name="brain")
    for name in ("b_onnxruntime", "a_openvino", mean_name("a")):
        config.ensemble_scheduling.step.add(model_name=name)
    mean = config.ensemble_scheduling.step.add(model_name=mean_name("brain"))
    mean.input_map[score_name(0)] = score_name(0)
    assert mean_name("brain") == "brain_mean_onnxruntime"
    assert fold_names(config) == ("b", "a", "a_mean")  # whatever it is called, it is the one that takes scores
    assert mean_entry(config) == mean_name("brain")


def test_scores_are_numbered_as_the_folds_are() -> None:
    assert [score_name(index) for index in (0, 10)] == ["scores_0", "scores_10"]
