"""The certificates of all folds as one: the worst of each figure, and what holds for every fold."""

from __future__ import annotations

import hashlib
from typing import Any

from tests.support.specs import spec
from voxtile.card import Certificate
from voxtile_build.repository.folds import Fold, Model, aggregate, aggregate_sha256


def certificate(**changes: Any) -> Certificate:
    figures = {"dice_min": 1.0, "changed_fraction": 0.0, "max_abs_error": 0.0}
    return Certificate(**{"sha256": "a" * 64, "accepted": True, "precision": "int8", **figures, **changes})


def test_the_worst_of_each_figure_counts_whichever_fold_has_it() -> None:
    first = certificate(dice_min=0.75, changed_fraction=0.125, max_abs_error=0.5)
    second = certificate(dice_min=0.875, changed_fraction=0.25, max_abs_error=0.25)
    for folds in ([first, second], [second, first]):
        together = aggregate(folds)
        assert (together.dice_min, together.changed_fraction, together.max_abs_error) == (0.75, 0.25, 0.5)


def test_all_folds_have_to_be_accepted() -> None:
    right, wrong = certificate(), certificate(accepted=False)
    assert aggregate([right, right]).accepted is True
    assert aggregate([right, wrong]).accepted is False
    assert aggregate([wrong, right]).accepted is False


def test_a_label_that_one_fold_has_not_seen_is_not_seen() -> None:
    folds = [certificate(unseen_labels=("one", "two")), certificate(unseen_labels=("three", "one"))]
    assert aggregate(folds).unseen_labels == ("one", "two", "three")


def test_only_a_device_that_every_fold_was_verified_on_counts() -> None:
    folds = [certificate(verified_on=("A", "B", "C")), certificate(verified_on=("C", "A"))]
    assert aggregate(folds).verified_on == ("A", "C")
    assert aggregate([*folds, certificate()]).verified_on == ()


def test_what_all_folds_share_is_told_once() -> None:
    shared = {"precision": "fp16", "device": "gpu", "device_name": "NVIDIA H200", "serves_on": "gpu"}
    assert aggregate([certificate(**shared), certificate(**shared)]).model_dump(include=set(shared)) == shared


def test_one_digest_is_itself_and_several_are_that_of_their_lines() -> None:
    one, other = "1" * 64, "2" * 64
    assert aggregate([certificate(sha256=one)]).sha256 == aggregate_sha256([one]) == one
    lines = hashlib.sha256(f"{one}\n{other}\n".encode()).hexdigest()
    assert aggregate([certificate(sha256=one), certificate(sha256=other)]).sha256 == lines
    assert aggregate_sha256([other, one]) != lines


def test_a_folds_spec_is_the_models_under_the_folds_name() -> None:
    chosen = spec()
    fold = Fold("tiny_fold_1", lambda: None)  # type: ignore[arg-type,return-value]
    made = Model(chosen, (fold,)).spec_of(fold)
    assert made.name == "tiny_fold_1"
    assert made.model_copy(update={"name": "tiny"}) == chosen
