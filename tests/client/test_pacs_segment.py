"""`voxtile segment` and `Segmenter` take scans by addresses in a PACS: the mask of the folder, and nothing is left."""

from __future__ import annotations

import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import dicom_findings as made
from tests.support import dicom_series as series
from tests.support.commands import refused, run
from tests.support.in_memory import InMemoryTransport
from tests.support.in_memory_commands import finish, start
from tests.support.orthanc import orthanc, upload
from tests.support.phantoms import card_of
from tests.support.web_pacs import Answer, Call, found, parts, web_pacs
from voxtile import Access, InputError, PacsScan, Segmenter

MODEL = ("--model", "phantom", "--url", "memory:1", "-q")
CANARY = "CANARYVALUE"
VOXELS, AFFINE = made.scan()
OBJECTS = series.slices(VOXELS, AFFINE, PatientName=f"{CANARY}^Egg", PatientID=CANARY, SeriesNumber=2)
STUDY, SERIES = OBJECTS[0].StudyInstanceUID, OBJECTS[0].SeriesInstanceUID
OTHER = series.slices(
    VOXELS[::-1, :, ::-1], AFFINE, PatientName=f"{CANARY}^Egg", PatientID=CANARY, SeriesNumber=3,
    StudyInstanceUID=STUDY, FrameOfReferenceUID=OBJECTS[0].FrameOfReferenceUID,
)  # fmt: skip
UIDS = {SERIES: OBJECTS, OTHER[0].SeriesInstanceUID: OTHER}


def network(tiles: Any) -> Any:
    """The first channel's bright voxels are 1, those of the second that are brighter are 2."""
    values = np.where(tiles > 100, tiles, 0.0)
    return np.concatenate([np.full_like(values[:, :1], 50.0), values], axis=1).astype(np.float32)


@pytest.fixture(autouse=True)
def spools(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where spools are made; whatever happens, nothing is left there."""
    place = tmp_path_factory.mktemp("spools")
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    assert not list(place.iterdir())


@pytest.fixture
def channels(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Chooses how many channels the served model has; one where a test does not say."""

    def serve(count: int) -> None:
        names = [f"c{number}" for number in range(count)]
        labels = [{"name": f"l{value}", "value": value} for value in range(count + 1)]
        output = {"kind": "logits", "dtype": "fp32", "scores": count + 1}
        card = card_of(channels=tuple(names), labels=labels, output=output)
        monkeypatch.setattr("voxtile.segmenter.connect_transport", lambda *_: InMemoryTransport(card, network))

    serve(1)
    return serve


@pytest.fixture
def folder(tmp_path: Path, channels: Callable[[int], None]) -> Path:
    for number, objects in enumerate(UIDS.values(), 1):
        series.saved(objects, tmp_path / f"in{number}")
    return tmp_path


def answers(folder: Path) -> Callable[[Call], Answer]:
    """A PACS with both series."""
    files = {uid: [f.read_bytes() for f in sorted((folder / f"in{n}").iterdir())] for n, uid in enumerate(UIDS, 1)}

    def answer(call: Call) -> Answer:
        asked = [uid for uid in UIDS if uid in call.path]
        if "?" in call.path:  # QIDO-RS
            if asked:
                return found(t0020000E=asked[0], t00201209=len(files[asked[0]]))
            return found(t0020000D=STUDY, t00201208=sum(map(len, files.values())))
        return parts([one for uid in asked or UIDS for one in files[uid]])

    return answer


def segmented(out: Path, *words: object) -> bytes:
    """The mask's file that the command writes."""
    result = run("segment", *words, "-o", out, *MODEL)
    assert result.exit_code == 0, result.output
    assert CANARY not in result.output
    return out.read_bytes()


# A PACS that a test answers for ------------------------------------------------------------------------------


def test_the_mask_is_that_of_the_folder(folder: Path) -> None:
    there = [segmented(folder / "there.nii.gz", folder / f"in{number}") for number in (1, 2)]
    assert there[0] != there[1]
    with web_pacs(answers(folder)) as pacs:
        for number, uid in enumerate(UIDS):
            for words in (
                (f"{pacs.web}/studies/{STUDY}/series/{uid}",),
                (f"{pacs.web}/studies/{STUDY}", "--series", uid),
                (f"{pacs.web}/studies/{STUDY}", "--series", number + 2),
                (pacs.web, "--study", STUDY, "--series", uid),
            ):
                assert segmented(folder / "mask.nii.gz", *words) == there[number]
        with Segmenter("memory:1", "phantom") as segmenter:
            for uid, image in zip(UIDS, (folder / "in1", folder / "in2"), strict=True):
                mask = segmenter(image).get_fdata()
                assert mask.any()
                for address in (
                    f"{pacs.web}/studies/{STUDY}/series/{uid}",
                    PacsScan(f"{pacs.web}/studies/{STUDY}", series=uid, access=Access(pauses_s=())),
                ):
                    np.testing.assert_array_equal(segmenter(address).get_fdata(), mask)


def test_only_what_is_named_by_its_uid_is_fetched_and_each_series_once(
    folder: Path, channels: Callable[[int], None]
) -> None:
    def fetches(words: tuple[object, ...]) -> list[str]:
        with web_pacs(answers(folder)) as pacs:
            segmented(folder / "mask.nii.gz", *(str(word).format(web=f"{pacs.web}/studies/{STUDY}") for word in words))
            return [call.path.rpartition("/dicom-web")[2] for call in pacs.calls if "?" not in call.path]

    whole, one, other = f"/studies/{STUDY}", *(f"/studies/{STUDY}/series/{uid}" for uid in UIDS)
    first, second = UIDS
    assert fetches(("{web}", "--series", second)) == [other]
    assert fetches(("{web}", "--series", 3)) == [whole]
    channels(2)
    assert fetches(("{web}", "--series", first, "--series", second)) == [one, other]
    assert fetches(("{web}", "--series", first, "--series", first)) == [one]
    assert fetches(("{web}", "--series", 2, "--series", 3)) == [whole]
    assert fetches(("{web}/series/" + first, "{web}/series/" + second)) == [one, other]


def test_a_model_of_two_channels_takes_a_series_for_each(folder: Path, channels: Callable[[int], None]) -> None:
    channels(2)
    first, second = UIDS
    there = segmented(folder / "there.nii.gz", folder / "in1", folder / "in2")
    assert there != segmented(folder / "there.nii.gz", folder / "in2", folder / "in1")
    with web_pacs(answers(folder)) as pacs:
        web = f"{pacs.web}/studies/{STUDY}"
        for words in (
            (web, "--series", first, "--series", second),
            (web, "--series", 2, "--series", 3),
            (f"{web}/series/{first}", f"{web}/series/{second}"),
            (folder / "in1", f"{web}/series/{second}"),
        ):
            assert segmented(folder / "mask.nii.gz", *words) == there


def test_what_the_pacs_does_not_say_is_a_warning(folder: Path) -> None:
    whole = answers(folder)
    with web_pacs(lambda call: Answer(404) if "?" in call.path else whole(call)) as pacs:
        address = f"{pacs.web}/studies/{STUDY}/series/{SERIES}"
        with Segmenter("memory:1", "phantom") as segmenter:
            (warning,) = segmenter.segment(address).report.warnings
    assert "does not say how many objects" in warning
    assert STUDY not in warning


def test_what_is_wrong_with_a_scan_is_told_without_the_folder_that_is_gone(folder: Path, spools: Path) -> None:
    (folder / "in1" / "0003.dcm").unlink()
    with web_pacs(answers(folder)) as pacs:
        address = f"{pacs.web}/studies/{STUDY}/series/{SERIES}"
        line = refused(run("segment", address, "-o", folder / "m.nii.gz", *MODEL), folder, "in1", "in2")
        name = pacs.web.removesuffix("/dicom-web")
    assert f"voxtile: {name}: expected" in line
    assert not any(what in line for what in (str(spools), STUDY, SERIES, CANARY))


def test_a_damaged_object_is_told_without_the_folder_that_is_gone(folder: Path, spools: Path) -> None:
    objects = series.slices(VOXELS, AFFINE, StudyInstanceUID=STUDY, SeriesInstanceUID=SERIES)
    del objects[2].PixelSpacing
    series.saved(objects, folder / "in1")
    with web_pacs(answers(folder)) as pacs:
        address = f"{pacs.web}/studies/{STUDY}/series/{SERIES}"
        line = refused(run("segment", address, "-o", folder / "m.nii.gz", *MODEL), folder, "in1", "in2")
    assert re.search(r"http://127.0.0.1:\d+, object 00000\d.dcm: .*PixelSpacing", line)
    assert str(spools) not in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("{web}",), "name it with --study"),
        (("PACS@localhost:104",), "name it with --study"),
        (("{web}/studies/SECRET",), "that DICOMweb does not have"),
        (("https://me:SECRET@pacs.example/studies/1.2",), "no user and no password"),
        (("{web}/studies/1.2", "--study", "1.2"), "expected one study"),
        (("{web}/studies/1.2/series/1.3", "--series", "1.4"), "expected one series"),
        (("{web}/studies/1.2/series/1.3", "--series", "1.3", "--series", "1.4"), "expected one series"),
        (("{web}/studies/1.2/instances/1.3",), "that DICOMweb does not have"),
        (("in1", "--study", "1.2"), "found no address"),
        (("in1", "--from-token-file", "token"), "found no address"),
        (("{web}/studies/1.2", "--from-token-file", "none"), "a token cannot be read"),
        (("http://pacs.example/studies/1.2", "--from-token-file", "token"), "expected https://"),
        (("{web}/studies/1.2", "--pacs-ca", "token"), "as PEM"),
        (("{web}/studies/1.2", "--from-token-file", "token"), "refuses access (401 Unauthorized)"),
        (("{web}/studies/1.2", "{web}/studies/1.3"), "refuses access"),
    ],
)
def test_what_cannot_be_fetched_is_told_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / "token").write_text("SECRET\n")
    with web_pacs(lambda _: Answer(401)) as pacs:
        given = [word.format(web=pacs.web) for word in words]
        line = refused(run("segment", *given, "-o", "m.nii.gz", *MODEL), folder, "in1", "in2", "token")
    assert said in line
    assert "SECRET" not in line


def test_the_token_of_the_environment_is_sent_and_told_nowhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXTILE_FROM_TOKEN", "SECRET")
    with web_pacs(answers(folder)) as pacs, Segmenter("memory:1", "phantom") as segmenter:
        address = f"{pacs.web}/studies/{STUDY}/series/{SERIES}"
        assert segmenter(address).get_fdata().any()
        assert {call.headers.get("Authorization") for call in pacs.calls} == {"Bearer SECRET"}
        assert "SECRET" not in repr(PacsScan(address))
        assert STUDY not in repr(PacsScan(address))


def test_a_file_that_is_called_as_a_node_is_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "in1").rename(folder / "A@localhost:104")
    assert segmented(folder / "mask.nii.gz", "A@localhost:104")
    with Segmenter("memory:1", "phantom") as segmenter:
        assert segmenter("A@localhost:104").get_fdata().any()
        with pytest.raises(InputError, match="name it with --study"):
            segmenter("B@localhost:104")


def test_a_signal_while_it_is_fetched_leaves_nothing(
    folder: Path, spools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(spools))  # of the process that is started
    whole, ended = answers(folder), threading.Event()
    bringing: list[Call] = []

    def answer(call: Call) -> Answer:
        said = whole(call)
        if "?" in call.path:
            return said
        bringing.append(call)
        if len(bringing) > 1:  # it is tried again after the half that came
            ended.wait(60)
        return Answer(200, said.body[: len(said.body) // 2], said.kind, len(said.body))

    with web_pacs(answer) as pacs:
        process = start("segment", f"{pacs.web}/studies/{STUDY}/series/{SERIES}", "-o", folder / "m.nii.gz")
        try:
            while len(bringing) < 2:
                assert process.poll() is None
                time.sleep(0.02)
            assert list(spools.iterdir())
            process.send_signal(signal.SIGINT)
            code, _, said = finish(process)
        finally:
            ended.set()
    assert code == 128 + signal.SIGINT, said
    assert said.strip() == "voxtile: interrupted; nothing half-written is left"
    assert not (folder / "m.nii.gz").exists()


# A real one --------------------------------------------------------------------------------------------------


@pytest.mark.system
# pynetdicom leaves the socket of a connection that was refused to the garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in.*<socket:pytest.PytestUnraisableExceptionWarning")
def test_scans_in_orthanc(folder: Path, channels: Callable[[int], None]) -> None:
    first, second = UIDS
    there = segmented(folder / "there.nii.gz", folder / "in1")
    with orthanc(folder / "orthanc") as pacs:
        for number in (1, 2):
            upload(pacs, folder / f"in{number}")
        web = f"{pacs.web}/studies/{STUDY}"
        for words in (
            (f"{web}/series/{first}",),
            (web, "--series", 2),
            (pacs.node, "--study", STUDY, "--series", first),
            (f"dicom://{pacs.node}", "--study", STUDY, "--series", 2),
        ):
            assert segmented(folder / "mask.nii.gz", *words) == there
        assert "found none there" in run("segment", f"{web}/series/1.2.3", "-o", folder / "n.nii.gz", *MODEL).stderr
        channels(2)
        there = segmented(folder / "there.nii.gz", folder / "in1", folder / "in2")
        for words in (
            (f"{web}/series/{first}", f"{web}/series/{second}"),
            (pacs.node, "--study", STUDY, "--series", first, "--series", second),
        ):
            assert segmented(folder / "mask.nii.gz", *words) == there
