"""A public name that moves from one version to another, under scans on the real server: none fails, none is mixed."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Image
from tritonclient.grpc import InferenceServerClient

from tests.support.commands import run
from tests.support.versioned import NAME, build_version, mask_of, scan
from tests.support.whole_scans import tensor
from voxtile import ConnectionConfig, ModelError, OtherBuildError, RemoteNetwork, Segmenter
from voxtile.triton.catalogue import list_models
from voxtile.triton.endpoint import Endpoint
from voxtile_build.cli.commands import main
from voxtile_build.errors import RepositoryError
from voxtile_build.loading import load_at
from voxtile_build.promoting import promote, rollback
from voxtile_build.repository.config import read_config, write_config
from voxtile_build.repository.versions import public_version
from voxtile_build.repository.volume import volume_repository, write_volume_entries
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.options import ServerOptions

EVERY_SECOND = ("--repository-poll-secs=1",)
MOVES = (2, 1, 2, 1, 2, 1)
CLIENTS = (("new", NAME, False), ("kept", NAME, True), ("first", f"{NAME}@1", False), ("second", f"{NAME}@2", True))
"""Who segments, what they ask for, and whether they keep their connection."""
MOST_S = 300.0
"""Seconds after which what is waited for will not come; a loaded machine is slow."""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with version 1 alone."""
    build_version(tmp_path / "models", 1)
    return tmp_path / "models"


@contextlib.contextmanager
def polling(repository: Path) -> Iterator[EmbeddedServer]:
    options = ServerOptions(model_control_mode="poll", triton_arguments=EVERY_SECOND, threads=1)
    with EmbeddedServer(repository, options) as running:
        yield running
        running.kill()


def eventually(what: Callable[[], bool]) -> None:
    last = time.monotonic() + MOST_S
    while not what():
        assert time.monotonic() < last, "it does not come"
        time.sleep(0.05)


def served(url: str, entry: str) -> str:
    """The version that a server answers an entry with; empty where it has none."""
    with contextlib.closing(Endpoint(url, ConnectionConfig())) as endpoint:
        try:
            return endpoint.model(entry).version
        except ModelError:
            return ""


def check(number: int, image: Any, found: Any) -> None:
    """The mask is that version's alone, and report and passport name it."""
    np.testing.assert_array_equal(found.labels == 1, mask_of(number, image))
    assert (found.report.model, found.report.version) == (NAME, str(number))
    assert (found.passport.model, found.passport.version) == (NAME, str(number))


def test_a_name_moves_forward_and_back_under_load_and_no_scan_fails_or_is_mixed(repository: Path) -> None:
    build_version(repository, 2)
    image, stop = scan(), threading.Event()
    done: Counter[tuple[str, int]] = Counter()
    failures: list[BaseException] = []

    def segment(who: str, segmenter: Segmenter) -> None:
        found = segmenter.segment(image)
        number = int(found.report.version)
        check(number, image, found)
        done[who, number] += 1

    def client(who: str, model: str, keeps: bool) -> None:
        try:
            with contextlib.ExitStack() as stack:
                kept = stack.enter_context(Segmenter(url, model, in_flight=2)) if keeps else None
                while not stop.is_set():
                    if kept is not None:
                        segment(who, kept)
                        continue
                    with Segmenter(url, model, in_flight=2) as fresh:
                        segment(who, fresh)
        except BaseException as error:
            failures.append(error)

    def all_went_on(number: int, before: Counter[tuple[str, int]]) -> bool:
        """Whether each client has ended two scans since, and one that connects anew one by the new version."""
        new = done - before
        return failures != [] or (new["new", number] > 0 and all(new[who, 1] + new[who, 2] > 1 for who, *_ in CLIENTS))

    with polling(repository) as server:
        url = server.grpc_url
        threads = [threading.Thread(target=client, args=kind) for kind in CLIENTS]
        for thread in threads:
            thread.start()
        try:
            eventually(partial(all_went_on, 1, Counter()))
            for number in MOVES:
                before = Counter(done)
                (promote(NAME, number, repository) if number == 2 else rollback(NAME, repository))
                eventually(partial(all_went_on, number, before))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert failures == []
    assert done["new", 1] > 0 < done["new", 2]
    # A connection keeps the version that it found; who asks for one gets it whatever the name stands for.
    assert (done["kept", 2], done["first", 2], done["second", 1]) == (0, 0, 0)


def test_a_scan_that_began_before_there_was_another_version_ends_with_its_own(repository: Path) -> None:
    image, moved = scan(), False

    with polling(repository) as server:
        url = server.grpc_url

        def move(tile: int, tiles: int) -> None:
            nonlocal moved
            if moved or tile < 3:
                return
            moved = True
            assert tile < tiles - 10, "tiles are left to be sent"
            build_version(repository, 2)
            eventually(lambda: (served(url, "tiny.v1"), served(url, "tiny.v2")) == ("1", "2"))
            assert served(url, NAME) == "1"
            promote(NAME, 2, repository)
            eventually(lambda: served(url, NAME) == "2")

        with Segmenter(url, NAME, in_flight=2) as segmenter:
            found = segmenter.segment(image, move)
            check(1, image, found)
            assert found.report.retries > 0  # the public name refused version 1
            check(1, image, segmenter.segment(image))
        with Segmenter(url, NAME) as segmenter:
            check(2, image, segmenter.segment(image))
            assert segmenter.card.version == 2
        with Segmenter(url, f"{NAME}@1") as segmenter:
            check(1, image, segmenter.segment(image))
        with RemoteNetwork(url, f"{NAME}@2") as network:
            tile = np.ones((1, 1, 16, 8, 12), np.float32)
            np.testing.assert_array_equal(np.sign(network(tile)[0, :, 0, 0, 0]), [1, -1])


def test_where_a_version_has_no_entry_of_its_own_the_scan_ends_with_an_error(repository: Path) -> None:
    image, moved = scan(), False
    with polling(repository) as server:
        url = server.grpc_url

        def replace(tile: int, tiles: int) -> None:
            nonlocal moved
            if not moved and tile >= 3:
                moved = True
                build_version(repository, 2)
                promote(NAME, 2, repository)
                for entry in ("tiny.v1", "tiny_onnxruntime"):  # somebody has made room, and left no version behind
                    (repository / entry).rename(repository.parent / entry)
                eventually(lambda: served(url, NAME) == "2" and served(url, "tiny.v1") == "")

        with Segmenter(url, NAME, in_flight=2) as segmenter, pytest.raises(OtherBuildError, match="another build"):
            segmenter.segment(image, replace)


def test_a_server_in_the_mode_explicit_is_told_to_load(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_version(repository, 2)
    options = ServerOptions(model_control_mode="explicit", load_models=(NAME,), threads=1)
    with EmbeddedServer(repository, options) as server:
        url = server.grpc_url
        with Segmenter(url, NAME) as segmenter:
            assert main(["promote", NAME, "2", "--repository", str(repository), "--url", url]) == 0
            assert "loaded tiny.v1" in capsys.readouterr().out
            assert served(url, NAME) == "2"
            check(1, scan(), segmenter.segment(scan()))
        assert load_at(url, NAME, repository) == ("tiny.v1", "tiny.v2", "tiny")
        offers(url, capsys)
        server.kill()
    assert main(["rollback", NAME, "--repository", str(repository), "--url", url]) == 2
    assert "no Triton server answers" in capsys.readouterr().err
    assert public_version(NAME, repository) == 2  # nothing has changed
    with pytest.raises(RepositoryError, match="the server does not load tiny"):
        load_at(url, NAME, repository)


def test_a_version_that_does_not_load_any_more_keeps_no_other_from_being_loaded(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_version(repository, 2)
    options = ServerOptions(model_control_mode="explicit", load_models=(NAME,), threads=1)
    with EmbeddedServer(repository, options) as server:
        config = read_config(repository / "tiny.v1")
        config.ensemble_scheduling.step[0].model_name = "gone_onnxruntime"
        write_config(config, repository / "tiny.v1")
        shutil.copytree(repository / "tiny.v2", repository / "tiny.v3")  # nobody has asked the server for it
        config = read_config(repository / "tiny.v3")
        config.name = "tiny.v3"
        config.version_policy.specific.versions[:] = [3]
        (repository / "tiny.v3" / "2").rename(repository / "tiny.v3" / "3")
        write_config(config, repository / "tiny.v3")
        assert main(["promote", NAME, "2", "--repository", str(repository), "--url", server.grpc_url]) == 2
        said = capsys.readouterr().err
        assert "the repository has changed, but the server does not load tiny.v1: " in said
        assert "it has loaded tiny.v2, tiny; " in said
        assert "tiny.v3" not in said
        with Segmenter(server.grpc_url, NAME) as segmenter:
            check(2, scan(), segmenter.segment(scan()))
        server.kill()


def test_a_server_in_another_mode_says_how_it_takes_a_moved_name(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_version(repository, 2)
    with EmbeddedServer(repository, ServerOptions(threads=1)) as server:
        assert main(["promote", NAME, "2", "--repository", str(repository), "--url", server.grpc_url]) == 2
        said = capsys.readouterr().err
        assert "one in the mode none when it is started again" in said
        assert said.count("\n") == 1
        assert served(server.grpc_url, NAME) == "1"
        server.kill()


def scanned(client: InferenceServerClient, image: Any) -> Any:
    """Report and mask of a scan that the server itself segments."""
    answer = client.infer("tiny_scan", [tensor(image.to_bytes())])
    mask = Nifti1Image.from_bytes(gzip.decompress(answer.as_numpy("mask").tobytes()))
    return json.loads(answer.as_numpy("report")[0, 0]), np.asarray(mask.dataobj) == 1


@pytest.mark.parametrize("mode", ["explicit", "poll"])
def test_entries_for_whole_scans_move_with_the_name_while_scans_run(repository: Path, mode: str) -> None:
    """Each scan is of one version, and soon after the name has moved, of the new one."""
    build_version(repository, 2)
    volumes = volume_repository(repository)
    write_volume_entries(NAME, repository, volumes)
    explicit: dict[str, Any] = {"load_models": (NAME, "tiny.v1", "tiny_scan")} if mode == "explicit" else {}
    poll: dict[str, Any] = {"triton_arguments": EVERY_SECOND} if mode == "poll" else {}
    options = ServerOptions(model_control_mode=mode, volume_repository=volumes, threads=1, **explicit, **poll)
    image, stop = scan(), threading.Event()
    done: Counter[str] = Counter()
    failures: list[BaseException] = []

    with EmbeddedServer(repository, options) as server:
        url = server.grpc_url

        def client() -> None:
            try:
                with InferenceServerClient(url) as triton:
                    while not stop.is_set():
                        report, found = scanned(triton, image)
                        np.testing.assert_array_equal(found, mask_of(int(report["version"]), image))
                        assert report["passport"]["version"] == report["version"]
                        done[report["version"]] += 1
            except BaseException as error:
                failures.append(error)

        def new(number: int, before: int) -> bool:
            return failures != [] or done[str(number)] > before + 1

        threads = [threading.Thread(target=client) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            eventually(partial(new, 1, 0))
            for number in (2, 1, 2):
                before = done[str(number)]
                promote(NAME, number, repository)
                if mode == "explicit":
                    assert load_at(url, NAME, repository) == ("tiny.v1", "tiny.v2", "tiny", "tiny_scan")
                eventually(partial(new, number, before))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        server.kill()
    assert failures == []


def offers(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What the lists say of two versions of which the second is public."""
    with contextlib.closing(Endpoint(url, ConnectionConfig())) as endpoint:
        assert [(one.name, one.version) for one in list_models(endpoint)] == [(NAME, "2")]
        assert [(one.name, one.version) for one in list_models(endpoint, versions=True)] == [
            (NAME, "2"),
            (f"{NAME}@1", "1"),
            (f"{NAME}@2", "2"),
        ]
    said = json.loads(run("models", "--url", url, "--versions", "--json").stdout)
    assert [(one["name"], one["card"]["name"], one["card"].get("version")) for one in said] == [
        (NAME, NAME, 2),
        (f"{NAME}@1", NAME, 1),
        (f"{NAME}@2", NAME, 2),
    ]
    for asked, message in (
        (f"{NAME}@3", "serves no version 3; tiny is version 2 there"),
        (f"{NAME}@", "expected NAME or NAME@VERSION"),
        (f"{NAME}@02", "expected NAME or NAME@VERSION"),
        (f"{NAME}@2@1", "expected NAME or NAME@VERSION"),
        ("@2", "expected NAME or NAME@VERSION"),
        ("none@2", "model 'none' is not offered"),
    ):
        result = run("segment", "none.nii.gz", "-o", "mask.nii.gz", "--model", asked, "--url", url)
        assert result.exit_code == 2
        assert message in result.stderr


def test_a_server_that_loads_on_demand_with_room_for_one_gives_each_version(repository: Path) -> None:
    build_version(repository, 2)
    image = scan()
    with EmbeddedServer(repository, ServerOptions(max_models=1, threads=1)) as server:
        with contextlib.closing(Endpoint(server.grpc_url, ConnectionConfig())) as endpoint:
            assert [one.name for one in list_models(endpoint)] == [NAME]
            found = {one.name: one.version for one in list_models(endpoint, versions=True)}
            assert found == {NAME: "1", f"{NAME}@1": "1", f"{NAME}@2": "2"}
            assert not any(one.loaded for one in list_models(endpoint, versions=True))
        for asked, number in ((f"{NAME}@2", 2), (NAME, 1), (f"{NAME}@1", 1), (f"{NAME}@2", 2)):
            with Segmenter(server.grpc_url, asked) as segmenter:
                check(number, image, segmenter.segment(image))
        with pytest.raises(ModelError, match="serves no version 3"):
            Segmenter(server.grpc_url, f"{NAME}@3")
        server.kill()


def test_a_server_that_loads_on_demand_takes_a_moved_name_by_itself(repository: Path) -> None:
    """Also while the name is in use without a pause; a scan on its way ends with its own version."""
    build_version(repository, 2)
    image, moves = scan(), iter((2, 1, 2))

    with EmbeddedServer(repository, ServerOptions(max_models=1, threads=1)) as server:
        url, before = server.grpc_url, 1

        def new_scan(number: int) -> bool:
            with Segmenter(url, NAME, in_flight=2) as segmenter:
                if segmenter.card.version != number:
                    return False
                check(number, image, segmenter.segment(image))
            return True

        for number in moves:
            moved = False

            def move(tile: int, tiles: int, number: int = number) -> None:
                nonlocal moved
                if not moved and tile >= 3:
                    moved = True
                    assert tile < tiles - 10, "tiles are left to be sent"
                    promote(NAME, number, repository)

            with Segmenter(url, NAME, in_flight=2) as segmenter:
                check(before, image, segmenter.segment(image, move))
            eventually(partial(new_scan, number))
            before = number
        assert load_at(url, NAME, repository) == ()  # it would not know of what others load
        server.kill()


def test_an_entry_that_is_swapped_while_it_is_loaded_on_demand_is_loaded_again(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton then has the config of one version and the files of another, and refuses them."""
    build_version(repository, 2)
    real, halves = InferenceServerClient.load_model, list[str]()

    def swapped_meanwhile(self: InferenceServerClient, name: str, **how: Any) -> None:
        if name != NAME or halves:
            return real(self, name, **how)
        halves.append(name)
        (repository / NAME / "1").rename(repository / NAME / "2")
        try:
            return real(self, name, **how)
        finally:
            (repository / NAME / "2").rename(repository / NAME / "1")
            promote(NAME, 2, repository)

    monkeypatch.setattr(InferenceServerClient, "load_model", swapped_meanwhile)
    with EmbeddedServer(repository, ServerOptions(max_models=1, threads=1)) as server:
        with Segmenter(server.grpc_url, NAME) as segmenter:
            check(2, scan(), segmenter.segment(scan()))
        server.kill()
    assert halves == [NAME]
