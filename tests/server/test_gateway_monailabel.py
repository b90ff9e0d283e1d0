"""The parts of MONAI Label's door: what clients make of names, of an answer's form, and what the store keeps."""

from __future__ import annotations

import asyncio
import io
import json
import runpy
import sys
import tempfile
import warnings
from email.message import Message
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtile.card import Label
from voxtile.errors import MissingExtraError
from voxtile.triton.catalogue import ModelListing
from voxtile_server.gateway.failures import HttpFailure
from voxtile_server.gateway.monailabel.answer import form_with
from voxtile_server.gateway.monailabel.info import info_of
from voxtile_server.gateway.monailabel.names import names_by_place, values_by_name
from voxtile_server.gateway.monailabel.params import Asked, read_params
from voxtile_server.gateway.monailabel.store import LEAST_BYTES, Store, check_name

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it imports cgi
    from monailabel.client.client import MONAILabelUtils

# Names -----------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["liver", "spleen", "background", "Background", "liver (3)", "liver (3) (3)", "1"])
LABELS = st.lists(st.builds(Label, name=NAMES, value=st.integers(0, 9)), max_size=8)


def as_3d_slicer_shows(names: dict[str, int] | list[str]) -> dict[int, str]:
    """Names of values as 3D Slicer's module gives them to the voxels of a mask: by counting, from 1."""
    if isinstance(names, dict):
        names = [name for name, _ in sorted(names.items(), key=lambda item: item[1])]
    counted = enumerate((name for name in names if name != "background"), 1)
    return {value: name for value, name in counted if name}


@given(LABELS)
def test_3d_slicer_shows_each_value_under_its_own_name(labels: list[Label]) -> None:
    values = values_by_name(labels)
    assert set(values.values()) == {label.value for label in labels} - {0}
    assert as_3d_slicer_shows(names_by_place(values)) == {value: name for name, value in values.items()}
    for name, value in values.items():
        assert any(label.value == value and name.startswith(label.name) for label in labels)


def test_values_without_a_gap_stay_an_object_of_names() -> None:
    labels = [Label(name="background", value=0), Label(name="b", value=2), Label(name="a", value=1)]
    assert names_by_place(values_by_name(labels)) == {"a": 1, "b": 2}
    assert names_by_place(values_by_name([*labels, Label(name="far", value=5)])) == ["a", "b", "", "", "far"]


def test_models_that_cannot_be_used_are_left_out() -> None:
    listings = [ModelListing("host:1", "broken", problem="the server could not load it")]
    assert info_of(listings, {})["models"] == {}


# Parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", " ", "null", "{}", '{"client_id": null, "device": "cuda", "foreground": []}'])
def test_what_clients_always_send_asks_for_nothing(text: str) -> None:
    assert read_params(text) == Asked()


def test_options_and_the_format_are_asked_for_by_name() -> None:
    asked = read_params('{"overlap": 0.25, "skip-empty": true, "result_extension": "NRRD", "largest_cc": false}')
    assert asked == Asked({"overlap": 0.25, "skip-empty": True}, ".nrrd")


@pytest.mark.parametrize("text", ["[]", "1", '"a"', "{", "[" * 100_000, '{"largest_cc": true}', '{"": 1}'])
def test_what_cannot_be_followed_is_refused(text: str) -> None:
    with pytest.raises(HttpFailure) as caught:
        read_params(text)
    assert caught.value.status == 422
    assert len(str(caught.value)) < 400


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the module is imported already
def test_a_package_that_is_missing_is_told_before_any_work_and_only_to_who_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("backports", "backports.zstd", "compression", "compression.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    anew = runpy.run_module("voxtile_server.gateway.monailabel.params")["read_params"]
    assert anew("").ending == ".nii.gz"
    with pytest.raises(MissingExtraError, match=r"voxtile\[formats\]"):
        anew('{"result_extension": ".nii.zst"}')


# Answers ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from([b"\r\n", b"\r", b"--", b"\x00", b"a", b"\n", b"\r\n--\r\n"])).map(b"".join))
def test_the_clients_own_parser_finds_the_bytes_and_the_rest(content: bytes) -> None:
    params = {"label_names": {"Ä\r\n--": 1}, "report": {"shape": [1, 2, 3]}}
    ended: list[bool] = []

    async def after() -> None:
        ended.append(True)

    async def body() -> bytes:
        return b"".join([bytes(piece) async for piece in answer.body_iterator])

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mask"
        file.write_bytes(content)
        answer = form_with(params, file, "mask-1.nii.gz", after)
        sent = asyncio.run(body())
    headers = Message()
    for name, value in answer.headers.items():
        headers[name] = value
    assert int(answer.headers["content-length"]) == len(sent)
    form, files = MONAILabelUtils.parse_multipart(io.BytesIO(sent), headers)
    assert json.loads(form["params"]) == params
    assert files == {"mask-1.nii.gz": content}
    assert ended == [True]


# The store -------------------------------------------------------------------------------------------------------

CALLERS = st.sampled_from([b"first", b"second"])
STEPS = st.lists(
    st.tuples(st.sampled_from(["image", "session", "label", "remove", "cut off"]), CALLERS, st.sampled_from("ab")),
    max_size=25,
)
MOST = 5 * LEAST_BYTES


@settings(deadline=None, max_examples=60)
@given(STEPS)
def test_the_store_keeps_its_bounds_and_no_file_without_an_owner(steps: list[tuple[str, bytes, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), MOST, 3600)
        kept: dict[tuple[bytes, str], set[str]] = {}
        for what, caller, name in steps:
            refused = status_of(store, what, caller, name)
            assert refused in {"remove": (0, 404), "label": (0, 404, 507)}.get(what, (0, 507))
            if refused:
                continue
            if what == "image":
                kept.setdefault((caller, name), set())
            elif what == "label":
                kept[caller, name].add("final")
            elif what == "remove":
                del kept[caller, name]
        for caller in (b"first", b"second"):
            images = store.images(caller)
            assert {(caller, name): set(one.labels) for name, one in images.items()} == {
                key: tags for key, tags in kept.items() if key[0] == caller
            }
        files = sum(1 for _ in Path(folder).iterdir())
        assert files * LEAST_BYTES <= MOST
        assert files >= sum(1 + len(tags) for tags in kept.values())
        for caller, name in kept:
            store.remove_image(caller, name)
        with store.arriving() as one:  # sessions give way, and all that went is counted no more, and counted once
            store.grow(one, MOST - LEAST_BYTES)
            with pytest.raises(HttpFailure):
                store.grow(one, 1)


def status_of(store: Store, what: str, caller: bytes, name: str) -> int:
    """The status with which a step is refused; 0 where it is done."""
    try:
        step(store, what, caller, name)
    except HttpFailure as error:
        return error.status
    return 0


def step(store: Store, what: str, caller: bytes, name: str) -> None:
    if what == "remove":
        store.remove_image(caller, name)
        return
    with store.arriving() as one:
        one.files = [one.folder / "channel-1"]
        one.files[0].write_bytes(b"the same")
        if what == "image":
            asyncio.run(store.keep_image(caller, name, one))
        elif what == "session":
            number = store.keep_session(caller, one)
            assert store.session(caller, number) is one
            with pytest.raises(HttpFailure):
                store.session(caller + b"other", number)
        elif what == "label":
            store.keep_label(caller, name, "final", one)


def test_an_upload_larger_than_the_store_pushes_nothing_out(tmp_path: Path) -> None:
    store = Store(tmp_path, MOST, 3600)
    with store.arriving() as one:
        number = store.keep_session(b"", one)
    with pytest.raises(HttpFailure) as caught, store.arriving() as large:
        store.grow(large, MOST)
    assert caught.value.status == 507
    assert store.session(b"", number) is one
    assert list(tmp_path.iterdir()) == [one.folder]


@pytest.mark.parametrize("announced", [0, 3 * LEAST_BYTES])
def test_an_upload_that_is_refused_in_the_end_pushes_nothing_out(tmp_path: Path, announced: int) -> None:
    store = Store(tmp_path, MOST, 3600)
    assert [status_of(store, "image", b"", name) for name in "abc"] == [0, 0, 0]
    with store.arriving() as one:
        number = store.keep_session(b"", one)

    def upload() -> None:
        with store.arriving(announced) as other:
            assert not announced, "what says its size is refused before a byte has come"
            store.grow(other, 3 * LEAST_BYTES)

    with pytest.raises(HttpFailure) as caught:
        upload()
    assert caught.value.status == 507
    assert store.session(b"", number) is one
    assert len(list(tmp_path.iterdir())) == 4


def test_a_session_may_ask_for_less_time_and_not_for_more(tmp_path: Path) -> None:
    store = Store(tmp_path, MOST, 100)
    for expiry, kept in ((0, 100), (7, 7), (1000, 100)):
        with store.arriving() as one:
            store.keep_session(b"", one, expiry)
        assert one.keep_s == kept


def test_what_is_old_goes_with_its_labels_and_what_is_used_stays(tmp_path: Path) -> None:
    store = Store(tmp_path, MOST, 3600)
    for name in ("old", "used"):
        assert status_of(store, "image", b"", name) == status_of(store, "label", b"", name) == 0
    for one in store.images(b"").values():
        one.used_at -= 3599
    store.image(b"", "used")
    for one in store.images(b"").values():
        one.used_at -= 2
    assert set(store.images(b"")) == {"used"}
    assert status_of(store, "remove", b"", "old") == 404
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a\nb", "a\0b", "\u202egpj", "x" * 201])
def test_names_that_lead_elsewhere_or_cannot_be_seen_are_refused(name: str) -> None:
    with pytest.raises(HttpFailure) as caught:
        check_name(name)
    assert caught.value.status == 422
