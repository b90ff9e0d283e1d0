"""What a server offers, as a list and as a table: every public entry, also one that cannot be used, and no engine."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import grpc
import pytest

from tests.support.cards import card
from tests.support.fake_triton import FakeTriton, Rule, fails
from voxtile import AccessError, ConnectionConfig, ServerUnavailable
from voxtile.card import Card
from voxtile.triton.catalogue import ModelListing, list_models
from voxtile.triton.endpoint import UNLOADED, Endpoint

CODE = grpc.StatusCode


def listed(fake: FakeTriton) -> list[ModelListing]:
    with contextlib.closing(Endpoint(fake.url, ConnectionConfig())) as endpoint:
        return list_models(endpoint)


def offering(fake: FakeTriton, **others: str) -> Rule:
    """The index of a server with other entries, each in its state, and `model`, which is listed twice."""

    def rule(request: Any, context: Any, right: Any) -> Any:
        index = right()
        for name, state in (*others.items(), ("model", "READY")):
            unloaded = state == UNLOADED
            index.models.add(
                name=name, state="UNAVAILABLE" if unloaded else state, reason="unloaded" if unloaded else ""
            )
        return index

    return rule


def test_an_entry_is_listed_once_with_its_card_and_version() -> None:
    with FakeTriton(title="Ventricles") as fake:
        fake.version = "7"
        fake.rules["RepositoryIndex"] = offering(fake)
        [one] = listed(fake)
        assert (one.url, one.name, one.version, one.problem) == (fake.url, "model", "7", "")
        assert one.card is not None
        assert one.card.title == "Ventricles"
        said = one.as_json()
        assert json.loads(json.dumps(said)) == said  # plain values: no tuple, which JSON does not know
        assert said.pop("card")["title"] == "Ventricles"
        assert said.pop("channels") == list(one.card.channels)
        assert said == {"name": "model", "version": "7", "url": fake.url, "usable": True, "problem": "", "loaded": True}


def test_entries_that_cannot_be_used_are_listed_by_name_with_what_stands_against_them() -> None:
    with FakeTriton() as fake:
        fake.rules["RepositoryIndex"] = offering(fake, zebra="UNAVAILABLE", adder="", gone="READY", idle=UNLOADED)
        found = listed(fake)
        assert [one.name for one in found] == ["adder", "gone", "idle", "model", "zebra"]
        adder, gone, idle, model, zebra = found
        assert adder.problem == "not loaded: nobody has asked the server for it"
        assert idle.problem == "not loaded: the server was asked to unload it"
        assert zebra.problem == "the server could not load it (state UNAVAILABLE)"
        assert gone.problem.startswith(f"model 'gone' is not offered by {fake.url}")
        assert {one.url for one in found} == {fake.url}
        assert [one.at_fault for one in found] == [False, True, False, False, True]
        for bad in (adder, gone, idle, zebra):
            assert (bad.card, bad.version) == (None, "")
            assert bad.as_json() == {
                "name": bad.name, "version": "", "url": fake.url, "usable": False, "problem": bad.problem, "card": None,
                "loaded": bad.at_fault,
                "channels": [],
            }  # fmt: skip
            assert bad.row() == (bad.name, "", bad.problem, "", "", "", "", "", "")
        assert not model.problem


def test_a_version_that_nobody_has_loaded_is_listed_by_what_one_asks_for() -> None:
    with FakeTriton() as fake:
        fake.rules["RepositoryIndex"] = offering(fake, **{"model.v1": "", "model.v2": "UNAVAILABLE"})
        assert [one.name for one in listed(fake)] == ["model", "model.v2"]  # a fault is told in any case
        with contextlib.closing(Endpoint(fake.url, ConnectionConfig())) as endpoint:
            assert [one.name for one in list_models(endpoint, versions=True)] == ["model", "model@1", "model.v2"]


def test_an_entry_without_a_card_is_an_engine_and_left_out() -> None:
    with FakeTriton() as fake:

        def bare(request: Any, context: Any, right: Any) -> Any:
            answer = right()
            answer.config.parameters.clear()
            return answer

        fake.rules["ModelConfig"] = bare
        assert listed(fake) == []


def test_an_entry_that_fails_is_told_of_where_the_server_lives_and_ends_the_list_where_not() -> None:
    with FakeTriton() as fake:
        fake.rules["ModelConfig"] = fails(CODE.INTERNAL, "no memory")
        [one] = listed(fake)
        assert one.problem == f"the server at {fake.url} fails to answer (no memory); look at the server's log"
        assert (one.name, one.url) == ("model", fake.url)
        fake.rules["ServerLive"] = fails(CODE.UNAVAILABLE, "gone")
        with pytest.raises(ServerUnavailable, match="no Triton server answers"):
            listed(fake)


@pytest.mark.parametrize("call", ["RepositoryIndex", "ServerLive"])
def test_a_server_that_gives_no_access_lists_nothing(call: str) -> None:
    with FakeTriton() as fake:
        fake.rules[call] = fails(CODE.UNAUTHENTICATED)
        with pytest.raises(AccessError):
            listed(fake)


# The table ---------------------------------------------------------------------------------------------------


def row(**changes: Any) -> tuple[str, ...]:
    return ModelListing("server:1", "entry", "1", Card(**card(title="Tissue", **changes))).row()


def certificate(**changes: Any) -> dict[str, Any]:
    fields = {
        "sha256": "0",
        "accepted": True,
        "precision": "int8",
        "dice_min": 0.99876,
        "changed_fraction": 0.0,
        "max_abs_error": 0.0,
    }
    return {"openvino": {**fields, **changes}, "another": {**fields, "precision": "fp32", "accepted": False}}


def test_a_row_tells_model_version_what_channels_roi_spacing_labels_engine_and_certificate() -> None:
    assert row(channels=["T1", "T2"], roi_size=[16, 24, 8], spacing=[1.5, 1, 0.75]) == (
        "entry", "1", "Tissue", "T1, T2", "16×24×8", "1.5×1×0.75", "background, tissue", "openvino", "none",
    )  # fmt: skip


def test_a_row_of_a_model_on_the_scans_own_grid_and_of_one_of_whole_slices() -> None:
    assert row(spacing=None)[5] == "as stored"
    chain = [{"transform": "CropForeground"}, {"transform": "Spacing", "pixdim": 2}]
    assert row(orientation=None, spacing=None, preprocessing=chain)[5] == "2×2×2"
    assert row(roi_size=[64, 64], slice_axis=2, multiple=32)[4] == "whole slices"
    assert row(roi_size=[64, 48], slice_axis=2)[4] == "64×48"


def test_a_row_tells_the_certificate_of_the_engine_that_answers() -> None:
    assert row(certificates=certificate())[-2:] == ("openvino int8", "Dice ≥ 0.9988")
    assert row(certificates=certificate(accepted=False))[-1] == "failed"
    assert row(certificates=certificate(serves_on="gpu", device="cpu", unseen_labels=["tissue"]))[-1] == (
        "Dice ≥ 0.9988; not certified on this device; not seen: tissue"
    )
    assert row(certificates=certificate(), engine="tensorrt")[-2:] == ("tensorrt", "none")
