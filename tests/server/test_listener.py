"""The listener: each complete series exactly once, nothing lost, nothing of a patient in audit, logs and names."""

from __future__ import annotations

import errno
import json
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import UID, JPEGLSLossless, generate_uid
from pynetdicom import AE, build_context
from pynetdicom.sop_class import SegmentationStorage, Verification

from tests.support import dicom_findings as made
from tests.support import dicom_series as series
from tests.support.commands import run
from tests.support.listeners import (
    SENDER,
    Lines,
    a_process,
    archive,
    calling,
    in_process,
    send,
    transport,
    until,
    write_settings,
)
from tests.support.node_pacs import Node, node_pacs
from tests.support.tls_server import make_authority, make_identity
from tests.support.waiting import in_time
from voxtile_server.listener.cli import main
from voxtile_server.listener.series import Series

VOXELS, AFFINE = made.scan()
IDLE_S = 0.4
CANARY = "CANARYVALUE"


# pynetdicom leaves the socket of a connection that was refused to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in.*socket:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxtile.segmenter.connect_transport", lambda *_: transport())


@pytest.fixture
def pacs() -> Node:
    return archive()


@pytest.fixture
def address(pacs: Node) -> Iterator[str]:
    with node_pacs(pacs) as running:
        yield running


def a_series(**tags: Any) -> list[FileDataset]:
    return series.slices(VOXELS, AFFINE, **tags)


def by_command(objects: list[FileDataset], folder: Path) -> Dataset:
    """The segmentation that `voxtile dicom` writes."""
    series.saved(objects, folder / "in")
    result = run("dicom", folder / "in", folder / "seg.dcm", "--model", "phantom", "--url", "memory:1", "-q")
    assert result.exit_code == 0, result.output
    return dcmread(folder / "seg.dcm")


def assert_equal(found: Dataset, wanted: Dataset) -> None:
    assert found.PixelData == wanted.PixelData
    assert found.SOPInstanceUID == wanted.SOPInstanceUID
    assert found.SeriesInstanceUID == wanted.SeriesInstanceUID


def in_spool(folder: Path) -> list[Path]:
    return [file for file in (folder / "spool").rglob("*") if file.is_file()]


# What comes back --------------------------------------------------------------------------------------------


def test_a_series_comes_back_as_the_command_makes_it_and_once(tmp_path: Path, pacs: Node, address: str) -> None:
    objects = a_series()
    wanted = by_command(objects, tmp_path)
    for one in objects:
        one.compress(JPEGLSLossless, generate_instance_uid=False)
    objects = [dcmread(file) for file in sorted(series.saved(objects, tmp_path / "packed").iterdir())]
    lines = Lines(tmp_path)
    with in_process(write_settings(tmp_path, address)) as port:
        assert send(port, [*objects[4:], *objects[:4]]) == [0] * len(objects)
        [line] = lines.wait("sent")
        assert line["slices"] == len(objects)
        assert line["sent"] == [{"to": address, "stored": ["seg"], "there": []}]
        assert send(port, objects) == [0] * len(objects)
        assert [line["case"]] == [one["case"] for one in lines.wait("nothing new")]
    assert_equal(pacs.stored[0], wanted)
    assert pacs.calls.count("C-STORE") == 1
    assert [one["outcome"] for one in lines.all()] == ["sent", "nothing new"]


def test_two_series_in_one_association_and_in_two(tmp_path: Path, pacs: Node, address: str) -> None:
    first, second, third = a_series(), a_series(SeriesNumber=3), a_series(SeriesNumber=4)
    with in_process(write_settings(tmp_path, address)) as port:
        mixed = [one for pair in zip(first, second, strict=True) for one in pair]
        with calling(port, mixed) as here, calling(port, third) as there:
            for number, one in enumerate(mixed):
                assert here.send_c_store(one).Status == 0
                if number < len(third):
                    assert there.send_c_store(third[number]).Status == 0
        lines = Lines(tmp_path).wait("sent", 3)
    assert {line["slices"] for line in lines} == {len(first)}
    referred = {
        one.ReferencedSeriesSequence[0].SeriesInstanceUID: len(
            one.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        )
        for one in pacs.stored
    }
    assert referred == {one[0].SeriesInstanceUID: len(one) for one in (first, second, third)}


def test_late_slices_make_it_anew(tmp_path: Path, pacs: Node, address: str) -> None:
    objects = a_series()
    with in_process(write_settings(tmp_path, address)) as port:
        send(port, objects[:6])
        Lines(tmp_path).wait("sent")
        send(port, objects[6:])
        lines = Lines(tmp_path).wait("sent", 2)
    assert [line["slices"] for line in lines] == [6, 9]
    assert_equal(pacs.stored[1], by_command(objects, tmp_path))


def test_slices_that_come_while_it_is_segmented_are_not_left_out(
    tmp_path: Path, pacs: Node, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects, began, may_go_on = a_series(), threading.Event(), threading.Event()
    model = transport()

    def network(tiles: Any) -> Any:
        began.set()
        assert may_go_on.wait(30)
        return model.network(tiles)

    monkeypatch.setattr("voxtile.segmenter.connect_transport", lambda *_: SimpleNamespace(**_with(network)))
    with in_process(write_settings(tmp_path, address)) as port:
        send(port, objects[:6])
        assert began.wait(30)
        send(port, objects[6:])
        may_go_on.set()
        [line] = Lines(tmp_path).wait("sent")
    assert line["slices"] == 9
    assert len(pacs.stored) == 1  # the mask of a part is not sent once more is there


def _with(network: Callable[[Any], Any]) -> dict[str, Any]:
    model = transport()
    model.network = network
    return {name: getattr(model, name) for name in ("model", "servers", "infer", "close", "network")}


def test_a_corrected_object_takes_the_place_of_the_one_before(tmp_path: Path, pacs: Node, address: str) -> None:
    objects = a_series()
    wrong = [dcmread(file) for file in sorted(series.saved(objects, tmp_path / "wrong").iterdir())]
    series.set_pixels(wrong[4], np.zeros_like(VOXELS[:, :, 4]))
    with in_process(write_settings(tmp_path, address)) as port:
        send(port, [*wrong, objects[4]])
        [line] = Lines(tmp_path).wait("sent")
    assert line["slices"] == len(objects)
    assert len([file for file in in_spool(tmp_path) if file.parent.name == "objects"]) == len(objects)
    assert_equal(pacs.stored[0], by_command(objects, tmp_path))


# Complete or not --------------------------------------------------------------------------------------------


def test_a_series_that_is_cut_off_waits_until_it_is_whole(tmp_path: Path, pacs: Node, address: str) -> None:
    objects = a_series()
    with in_process(write_settings(tmp_path, address)) as port:
        with calling(port, objects) as association:
            for one in objects[:5]:
                assert association.send_c_store(one).Status == 0
            association.abort()
        [line] = Lines(tmp_path).wait("waits")
        assert "association that carried it broke" in line["reason"]
        time.sleep(2 * IDLE_S)
        assert pacs.calls == []
        send(port, objects)
        [line] = Lines(tmp_path).wait("sent")
    assert line["slices"] == len(objects)
    assert len(pacs.stored) == 1


def test_an_association_that_is_open_keeps_its_series_waiting(tmp_path: Path, pacs: Node, address: str) -> None:
    objects = a_series()
    with in_process(write_settings(tmp_path, address)) as port:
        with calling(port, objects) as association:
            for one in objects[:6]:
                association.send_c_store(one)
            time.sleep(3 * IDLE_S)
            assert not {"begun.json", "made.json"} & {file.name for file in in_spool(tmp_path)}
            for one in objects[6:]:
                association.send_c_store(one)
        [line] = Lines(tmp_path).wait("sent")
    assert line["slices"] == len(objects)


def test_a_series_is_not_forgotten_while_an_object_of_it_arrives(
    tmp_path: Path, pacs: Node, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Series.add

    def slow(self: Series, *arguments: Any) -> None:
        time.sleep(2 * IDLE_S)
        add(self, *arguments)

    objects = a_series()
    with in_process(write_settings(tmp_path, address)) as port:
        monkeypatch.setattr(Series, "add", slow)
        send(port, objects[:1])
        monkeypatch.undo()
        monkeypatch.setattr("voxtile.segmenter.connect_transport", lambda *_: transport())
        [line] = Lines(tmp_path).wait("sent")
    assert line["slices"] == 1


def test_somebody_may_say_that_it_is_whole(tmp_path: Path, pacs: Node, address: str) -> None:
    settings = write_settings(tmp_path, address)
    objects = a_series()
    with in_process(settings) as port:
        with calling(port, objects) as association:
            for one in objects[:7]:
                association.send_c_store(one)
            association.abort()
        [line] = Lines(tmp_path).wait("waits")
        assert main([str(settings), "--complete", line["case"]]) == 0
        [line] = Lines(tmp_path).wait("sent")
        assert line["slices"] == 7
    assert main([str(settings), "--complete", "../../x"]) == 2
    assert main([str(settings), "--complete", "0" * 20]) == 2
    assert list((tmp_path / "spool" / "told").iterdir()) == []


def test_it_is_refused_after_a_long_time(tmp_path: Path, pacs: Node, address: str) -> None:
    objects = a_series()
    pacs.objects, pacs.told = objects, len(objects)
    more = 'count_at = "archive"\ngive_up_hours = 0.0003'
    with in_process(write_settings(tmp_path, address, complete=more)) as port:
        send(port, objects[:5])
        [line] = Lines(tmp_path).wait("refused")
        assert f"incomplete: 5 objects are here, 9 at {address}" in line["reason"]
        assert "C-STORE" not in pacs.calls
        send(port, objects[5:])
        Lines(tmp_path).wait("sent")
    assert len(pacs.stored) == 1


def test_the_number_at_the_pacs_counts(tmp_path: Path, pacs: Node, address: str) -> None:
    objects = a_series()
    pacs.objects, pacs.told = objects, len(objects)
    lines = Lines(tmp_path)
    with in_process(write_settings(tmp_path, address, complete='count_at = "archive"')) as port:
        for count in (5, 7):
            send(port, objects[:count])
            until(lambda count=count: any(line["slices"] == count for line in lines.of("waits")))
        with calling(port, objects) as association:  # a sender that breaks off at the end
            for one in objects[7:]:
                association.send_c_store(one)
            association.abort()
        [line] = lines.wait("sent")
    assert line["slices"] == len(objects)
    assert {one["outcome"] for one in lines.all()} == {"waits", "sent"}


@pytest.mark.parametrize("told", [0, None])
def test_a_pacs_that_does_not_say_is_not_taken_for_one_that_agrees(
    tmp_path: Path, pacs: Node, address: str, told: int | None
) -> None:
    objects = a_series()
    pacs.objects, pacs.told = objects, told
    with in_process(write_settings(tmp_path, address, complete='count_at = "archive"')) as port:
        send(port, objects)
        [line] = Lines(tmp_path).wait("waits")
    assert ("found none there" if told == 0 else "does not say how many") in line["reason"]
    assert pacs.stored == []


def test_what_was_removed_is_missed(tmp_path: Path, pacs: Node, address: str) -> None:
    whole = series.slices(*made.scan((24, 31, 11)))
    with in_process(write_settings(tmp_path, address, keep="hours = 0")) as port:
        send(port, whole[:9])
        Lines(tmp_path).wait("sent")
        until(lambda: not [file for file in in_spool(tmp_path) if file.suffix == ".dcm"])
        send(port, whole[9:])
        [line] = Lines(tmp_path).wait("waits")
        assert "9 objects were there before" in line["reason"]
        send(port, whole[:9])
        assert [one["slices"] for one in Lines(tmp_path).wait("sent", 2)] == [9, 11]
        until(lambda: not [file for file in in_spool(tmp_path) if file.suffix == ".dcm"])
        send(port, whole)
        Lines(tmp_path).wait("nothing new")
    assert len(pacs.stored) == 2


# A process that dies ----------------------------------------------------------------------------------------


def test_it_is_killed_three_times_in_a_series(tmp_path: Path) -> None:
    objects, began, hangs, may_go_on = a_series(), tmp_path / "began", threading.Event(), threading.Event()

    class Slow(Node):
        def store(self, event: Any) -> int:
            hangs.set()
            may_go_on.wait(30)
            return super().store(event)

    pacs = Slow(kinds=[SegmentationStorage])
    with node_pacs(pacs) as address:
        settings = write_settings(tmp_path, address)
        with a_process(settings) as listener, calling(listener.port, objects) as association:
            for one in objects[:4]:
                assert association.send_c_store(one).Status == 0
            listener.kill()  # while it receives
        with a_process(settings, seconds=30, began=began) as listener:
            time.sleep(2 * IDLE_S)
            assert not began.exists()  # four slices are no series
            assert send(listener.port, objects) == [0] * len(objects)
            until(began.exists)
            listener.kill()  # while it segments
        with a_process(settings) as listener:
            until(hangs.is_set)
            listener.kill()  # while it sends
        may_go_on.set()
        with a_process(settings) as listener:
            [line] = Lines(tmp_path).wait("sent")
            time.sleep(2 * IDLE_S)
            listener.process.terminate()
            assert listener.process.wait(30) == 0
        assert listener.errors.read_text() == ""
    assert line["slices"] == len(objects)
    assert {one.SOPInstanceUID for one in pacs.stored} == {by_command(objects, tmp_path).SOPInstanceUID}
    assert len(Lines(tmp_path).of("sent")) == 1
    assert list((tmp_path / "spool" / "work").iterdir()) == []


# Who may call, and what is taken ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listen", "callers"),
    [
        (f'callers = ["{SENDER}"]', {(SENDER, "VOXTILE"): True, ("OTHER", "VOXTILE"): False, (SENDER, "X"): False}),
        ('check_called = false\naddresses = ["::1", "127.0.0.0/8"]', {("ANY", "X"): True}),
        ('addresses = ["10.0.0.0/8"]', {(SENDER, "VOXTILE"): False}),
    ],
)
def test_only_who_may_calls(tmp_path: Path, address: str, listen: str, callers: dict[tuple[str, str], bool]) -> None:
    with in_process(write_settings(tmp_path, address, listen=listen)) as port:
        for (title, called), gets_in in callers.items():
            with calling(port, a_series(), title, called) as association:
                assert association.is_established == gets_in


def test_it_answers_an_echo_and_keeps_segmentations_out(tmp_path: Path, pacs: Node, address: str) -> None:
    objects = a_series()
    segmentation = by_command(objects, tmp_path)
    with in_process(write_settings(tmp_path, address)) as port:
        contexts = [build_context(Verification), build_context(SegmentationStorage)]
        association = AE(SENDER).associate("127.0.0.1", port, contexts, "VOXTILE")
        assert association.send_c_echo().Status == 0
        assert association.send_c_store(segmentation).Status == 0  # a study is sent with what was made of it
        association.release()
        [line] = Lines(tmp_path).wait("kept out")
        assert (line["reason"], line["modality"]) == ("no slices of a scan", "SEG")
        assert not [file for file in in_spool(tmp_path) if file.suffix == ".dcm"]


def test_tls(tmp_path: Path, address: str) -> None:
    authority = make_authority(tmp_path)
    ours, theirs = make_identity(tmp_path, "ours", authority), make_identity(tmp_path, "theirs", authority)
    lines = [
        f'{name} = "{file.name}"'
        for name, file in (
            ("tls_certificate", ours.certificate),
            ("tls_key", ours.key),
            ("tls_ca", authority.certificate),
        )
    ]
    objects = a_series()
    trusted = ssl.create_default_context(cafile=str(authority.certificate))
    unknown = ssl.create_default_context(cafile=str(authority.certificate))
    trusted.load_cert_chain(theirs.certificate, theirs.key)
    with in_process(write_settings(tmp_path, address, listen="\n".join(lines))) as port:
        import socket

        with socket.create_connection(("127.0.0.1", port)):  # says nothing, and keeps nobody waiting
            for tls, gets_in in ((trusted, True), (unknown, False), (None, False)):
                how = {} if tls is None else {"tls_args": (tls, "localhost")}
                with calling(port, objects, **how) as association:
                    assert association.is_established == gets_in


def test_what_is_no_object_of_a_series_is_refused_and_costs_the_others_nothing(
    tmp_path: Path, pacs: Node, address: str
) -> None:
    objects = a_series()
    nameless, other = a_series()[0], a_series()[0]
    nameless.SeriesInstanceUID = None
    with in_process(write_settings(tmp_path, address)) as port, calling(port, objects) as association:
        assert association.send_c_store(objects[0]).Status == 0
        assert association.send_c_store(nameless).Status == 0xA900
        assert _store_raw(association, other, generate_uid(), b"\x08\0\x18\0UI\x04\x001.2\0") == 0xA900
        assert _store_raw(association, other, generate_uid(), os.urandom(4000)) in (0xA900, 0xC000)
        for one in objects[1:]:
            assert association.send_c_store(one).Status == 0
        association.release()
        [line] = Lines(tmp_path).wait("sent")
    assert line["slices"] == len(objects)
    assert len(pacs.stored) == 1
    assert len(Lines(tmp_path).all()) == 1


def _store_raw(association: Any, like: FileDataset, instance: str, data: bytes) -> int:
    """Sends bytes in place of an object; returns the status."""
    import io

    from pynetdicom.dimse_primitives import C_STORE

    request = C_STORE()
    request.MessageID, request.Priority = 7, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = like.SOPClassUID, UID(instance)
    request.DataSet = io.BytesIO(data)
    context = association.accepted_contexts[0].context_id
    association._reactor_checkpoint.clear()
    association.dimse.send_msg(request, context)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    return int(answer.Status)


def test_an_object_that_is_too_large_ends_its_association_alone(tmp_path: Path, pacs: Node, address: str) -> None:
    objects, large = a_series(), a_series()[0]
    large.add_new((0x0009, 0x1001), "OB", b"\0" * 200_000)
    with in_process(write_settings(tmp_path, address, limits="object_mib = 0.05")) as port:
        with calling(port, objects) as association:
            for one in objects:
                assert association.send_c_store(one).Status == 0
            with calling(port, [large]) as other:
                assert "Status" not in other.send_c_store(large)
        Lines(tmp_path).wait("sent")
    assert len(pacs.stored) == 1


def test_a_full_disk_is_told_to_the_sender_and_nothing_is_lost(
    tmp_path: Path, pacs: Node, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = a_series()
    with in_process(write_settings(tmp_path, address)) as port:
        send(port, objects[:2])
        with monkeypatch.context() as full:
            full.setattr("voxtile_server.listener.spool.Spool.free_bytes", lambda _: 100)
            assert {*send(port, objects[2:])} == {0xA700}
        with monkeypatch.context() as full:
            full.setattr("os.fsync", _no_space)
            assert {*send(port, objects[2:])} == {0xA700}
        assert len([file for file in in_spool(tmp_path) if file.parent.name == "objects"]) == 2
        assert send(port, objects[2:]) == [0] * 7
        until(lambda: any(line["slices"] == 9 for line in Lines(tmp_path).of("sent")))
    assert_equal(pacs.stored[-1], by_command(objects, tmp_path))


def _no_space(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_limits_of_numbers(tmp_path: Path, address: str) -> None:
    objects = a_series()
    with in_process(write_settings(tmp_path, address, limits="series = 1\nobjects = 3")) as port:
        assert send(port, objects) == [0] * 3 + [0xA700] * 6
        assert send(port, a_series()[:1]) == [0xA700]
        assert send(port, objects[:1]) == [0]


# Rules ------------------------------------------------------------------------------------------------------


def test_what_fits_no_rule_is_kept_out(tmp_path: Path, pacs: Node, address: str) -> None:
    rule = 'description = "*Venous*"\ncalling = ["SCANNER"]\nmin_slices = 5'
    with in_process(write_settings(tmp_path, address, rule=rule)) as port:
        send(port, a_series(Modality="MR", SeriesDescription="a venous one"))
        send(port, a_series(SeriesDescription="arterial"))
        send(port, a_series(SeriesDescription="a venous one"), "ANOTHER")
        assert len(Lines(tmp_path).of("kept out")) == 3
        assert not [file for file in in_spool(tmp_path) if file.suffix == ".dcm"]
        send(port, a_series(SeriesDescription="a VENOUS one")[:4])
        Lines(tmp_path).wait("kept out", 4)
        assert pacs.calls == []
        send(port, a_series(SeriesDescription="a VENOUS one"))
        Lines(tmp_path).wait("sent")


@pytest.mark.parametrize("order", [1, -1], ids=["those that fit first", "the others first"])
def test_a_series_is_kept_whole_or_not_segmented(order: int, tmp_path: Path, pacs: Node, address: str) -> None:
    objects = a_series(SeriesDescription="a venous one")
    for one in objects[-3:]:
        one.SeriesDescription = "another"
    settings = write_settings(tmp_path, address, rule='description = "*venous*"')
    with in_process(settings) as port:
        assert send(port, objects[::order]) == [0] * len(objects)
        if order < 0:
            [line] = Lines(tmp_path).wait("waits")
            assert "3 or more objects of it were not kept: they fitted no rule" in line["reason"]
    with in_process(settings) as port:  # a new process knows it too
        if order < 0:
            assert len(Lines(tmp_path).wait("waits", 2)) == 2
            assert pacs.stored == []
            send(port, objects)
        [line] = Lines(tmp_path).wait("sent")
        assert line["slices"] == len(objects)
    assert len(pacs.stored) == 1


def test_slices_of_another_sender_are_missed(tmp_path: Path, pacs: Node, address: str) -> None:
    objects = a_series()
    with in_process(write_settings(tmp_path, address, rule='calling = ["SCANNER"]')) as port:
        send(port, objects[:4], "ANOTHER")
        send(port, objects[4:])
        Lines(tmp_path).wait("waits")
        assert pacs.stored == []
        send(port, objects[:4], "ANOTHER")  # the series is the scanner's by now
        assert Lines(tmp_path).wait("sent")[0]["slices"] == len(objects)


def test_two_slices_with_one_uid_are_no_series(tmp_path: Path, pacs: Node, address: str) -> None:
    objects = a_series()
    for one in objects:
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = objects[0].SOPInstanceUID
    with in_process(write_settings(tmp_path, address)) as port:
        assert send(port, objects) == [0] + [0xA900] * (len(objects) - 1)
        [line] = Lines(tmp_path).wait("waits")
        assert "came with the UID of another one" in line["reason"]
    assert pacs.stored == []


def test_an_object_that_the_disk_lost_comes_again(tmp_path: Path, pacs: Node, address: str) -> None:
    objects = a_series()
    settings = write_settings(tmp_path, address, complete="cut_off = 'wait'\n")
    with in_process(settings) as port:
        send(port, objects)
        Lines(tmp_path).wait("sent")
    file = sorted((tmp_path / "spool").rglob("*.dcm"))[3]
    wanted = file.read_bytes()
    for lost in (b"", wanted[:-2] + b"xx"):
        file.unlink()  # what was made of it may have another name for the same bytes
        file.write_bytes(lost)
        with in_process(settings) as port:
            assert send(port, objects) == [0] * len(objects)
        assert file.read_bytes() == wanted


def test_another_pacs_gets_what_the_one_before_has(tmp_path: Path, pacs: Node, address: str) -> None:
    objects = a_series()
    with in_process(write_settings(tmp_path, address)) as port:
        send(port, objects)
        Lines(tmp_path).wait("sent")
    other = archive()
    with node_pacs(other) as there, in_process(write_settings(tmp_path, there)) as port:
        send(port, objects)
        Lines(tmp_path).wait("sent", 2)
    assert len(other.stored) == len(pacs.stored) == 1


def test_what_is_told_of_a_case_that_is_gone_counts_for_no_later_one(tmp_path: Path, pacs: Node, address: str) -> None:
    settings = write_settings(tmp_path, address, keep="hours = 0")
    with in_process(settings) as port:
        send(port, a_series())
        [line] = Lines(tmp_path).wait("sent")
        until(lambda: not list((tmp_path / "spool").rglob("*.dcm")))
        assert main([str(settings), "--complete", line["case"]]) == 0
        until(lambda: not list((tmp_path / "spool" / "told").iterdir()))


def test_the_first_rule_that_fits_counts(tmp_path: Path, pacs: Node, address: str) -> None:
    more = '[[rule]]\nname = "first"\nmodel = "phantom"\nmax_slices = 4\nto = ["archive"]'
    with in_process(write_settings(tmp_path, address, more=more)) as port:
        send(port, a_series()[:4])
        send(port, a_series())
        names = [line["rule"] for line in Lines(tmp_path).wait("sent", 2)]
    assert sorted(names) == ["bodies", "first"]


def test_a_series_that_cannot_be_segmented_is_refused_once(tmp_path: Path, pacs: Node, address: str) -> None:
    objects = a_series(PatientName=CANARY)
    with in_process(write_settings(tmp_path, address)) as port:
        send(port, objects[:3] + objects[5:])  # in the middle, slices are missing
        [line] = Lines(tmp_path).wait("refused")
        assert "mm" in line["reason"]
        assert not any(word in json.dumps(line) for word in (CANARY, objects[0].SeriesInstanceUID, "/"))
        send(port, objects[3:5])
        Lines(tmp_path).wait("sent")
    assert len(pacs.stored) == 1


# Sending ----------------------------------------------------------------------------------------------------


def test_what_is_refused_is_tried_again_then_kept_then_sent_by_the_next_start(tmp_path: Path) -> None:
    pacs, objects = archive(statuses=[0xC000]), a_series()
    with node_pacs(pacs) as address:
        settings = write_settings(tmp_path, address)
        with in_process(settings) as port:
            send(port, objects)
            [line] = Lines(tmp_path).wait("kept")
        assert len(Lines(tmp_path).of("tried in vain")) == 2
        assert "does not store the object (status C000)" in line["reason"]
        kept = dcmread(Path(line["kept"]) / "seg.dcm")
        pacs.statuses = [0]
        with in_process(settings):
            Lines(tmp_path).wait("sent")
    assert_equal(pacs.stored[0], kept)


DOWN = """
[pacs.down]
address = "DOWN@127.0.0.1:1"
[[rule]]
name = "down"
modality = "MR"
model = "phantom"
to = ["down", "archive"]
"""


def test_a_pacs_that_is_down_costs_the_others_nothing(tmp_path: Path, pacs: Node, address: str) -> None:
    with in_process(write_settings(tmp_path, address, more=DOWN)) as port:
        send(port, a_series(modality="MR"))
        send(port, a_series())
        Lines(tmp_path).wait("sent")
        assert Lines(tmp_path).wait("tried in vain")[0]["rule"] == "down"
    assert len(pacs.stored) == 2


# Privacy ----------------------------------------------------------------------------------------------------


NAMING = (
    "PatientName", "PatientID", "AccessionNumber", "StudyID", "SeriesDescription", "StudyDescription",
    "InstitutionName", "StationName", "ProtocolName", "ReferringPhysicianName", "PatientComments", "BodyPartExamined",
)  # fmt: skip


def test_no_word_of_an_object_is_in_audit_logs_and_names(
    tmp_path: Path, pacs: Node, address: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    named = dict.fromkeys(NAMING, CANARY)
    good, gap, odd = a_series(**named), a_series(**named), a_series(Modality=CANARY, **named)
    with in_process(write_settings(tmp_path, address, keep="hours = 0")) as port:
        for objects in (good, gap[:3] + gap[5:], odd):
            send(port, objects)
        send(port, a_series(**named)[:1] + a_series(**{**named, "SeriesInstanceUID": None})[:1])
        for outcome in ("sent", "refused", "kept out"):
            Lines(tmp_path).wait(outcome)
        until(lambda: not [file for file in in_spool(tmp_path) if file.suffix == ".dcm"])
    assert pacs.stored[0].PatientName == CANARY
    said = capfd.readouterr()
    shown = [*map(str, (tmp_path / "spool").rglob("*")), said.out, said.err, caplog.text]
    shown += [file.read_bytes().decode("latin-1") for file in in_spool(tmp_path)]
    uids = [one[0][name].value for one in (good, gap, odd) for name in ("StudyInstanceUID", "SeriesInstanceUID")]
    for word in (CANARY, *uids, good[0].SOPInstanceUID):
        assert not [text for text in shown if word in text], word
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700


# Settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('name = "bodies"', ""), "rule.0.name: field required"),
        (('to = ["archive"]', 'to = ["elsewhere"]'), "expected [pacs.elsewhere]"),
        (("[keep]", "[keeep]"), "keeep: extra inputs are not permitted"),
        (("idle_seconds = 0.4", "idle_seconds = 0"), "complete.idle_seconds"),
        (('address = "', 'address = "@'), "pacs.archive: expected"),
        (("port = 0", 'port = 0\naet = "far too long a title"'), "listen.aet: expected an AE title"),
        (("port = 0", 'port = 0\ntls_key = "k"'), "tls_certificate and tls_key together"),
        (("port = 0", "port = 0 0"), "expected TOML"),
        (("[keep]", '["\\u001B[2J"]'), "\\x1b[2J: extra inputs are not permitted"),
        (("port = 0", f"port = {'[' * 100_000}"), "expected TOML"),
        (('model = "phantom"', 'model = "phantom"\noptions = { overlap = "x" }'), "overlap"),
        (('model = "phantom"', 'model = "phantom"\noptions = { shape = 7 }'), "unknown option 'shape'"),
        (('model = "phantom"', 'model = "phantom"\noutputs = ["dose"]'), "rule.0.outputs.0"),
        (("port = 0", 'port = 0\nhost = "192.0.2.7"'), "cannot listen on 192.0.2.7:0"),
        (("port = 0", 'port = 0\ntls_certificate = "c"\ntls_key = "k"'), "as PEM"),
        (('spool = "spool"', 'spool = "listener.toml"'), "cannot be used as a spool"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], said: str
) -> None:
    settings = write_settings(tmp_path, "NODE@127.0.0.1:1")
    settings.write_text(settings.read_text().replace(*change))
    assert main([str(settings)]) == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1


def test_settings_in_a_pipe_are_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "listener.toml")
    with in_time():
        assert main([str(tmp_path / "listener.toml")]) == 2
    assert "expected settings in a plain file, found a pipe" in capsys.readouterr().err


def test_a_spool_is_for_one_listener(tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = write_settings(tmp_path, address)
    with in_process(settings):
        assert main([str(settings)]) == 2
    assert "another listener uses" in capsys.readouterr().err


@pytest.mark.parametrize("held", ["work/thesis/a.txt", "series/patient/0000.dcm", "notes.txt", ".git/config"])
def test_a_folder_of_something_else_is_no_spool(
    held: str, tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spool = tmp_path / "spool"
    (spool / held).parent.mkdir(parents=True)
    (spool / held).write_text("mine")
    spool.chmod(0o755)
    assert main([str(write_settings(tmp_path, address))]) == 2
    assert "expected a new or an empty folder as the spool" in capsys.readouterr().err
    assert [file for file in spool.rglob("*") if file.is_file()] == [spool / held]
    assert spool.stat().st_mode & 0o777 == 0o755


def test_what_somebody_puts_beside_the_series_is_left_alone(tmp_path: Path, pacs: Node, address: str) -> None:
    settings = write_settings(tmp_path, address)
    with in_process(settings):
        pass
    (tmp_path / "spool" / "series" / "mine").mkdir()
    with in_process(settings) as port:
        send(port, a_series())
        Lines(tmp_path).wait("sent")
    assert (tmp_path / "spool" / "series" / "mine").is_dir()


def test_a_check_says_what_can_be_used(tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(write_settings(tmp_path, address)), "--check"]) == 0
    assert capsys.readouterr().out == "rule bodies: ok\nPACS archive: ok\n"
    wrong = write_settings(tmp_path, "NODE@127.0.0.1:1", rule="options = { overlap = 7 }")
    assert main([str(wrong), "--check"]) == 2
    rule, node = capsys.readouterr().out.splitlines()
    assert "overlap" in rule
    assert "no DICOM node answers" in node
    assert not (tmp_path / "spool").exists()
