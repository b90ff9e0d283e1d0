"""What an operator does with a model of two versions on the real server, beside moving its name."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import pytest

from tests.support.commands import run
from tests.support.tls_server import make_authority, make_identity
from tests.support.versioned import NAME, command, scan, two_versions
from voxtile.load.measure import LoadTest
from voxtile.load.plan import Load
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.options import ServerOptions

SECOND = f"{NAME}@2"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_versions(tmp_path_factory.mktemp("operated"))


@pytest.fixture(scope="module")
def url(served: Path) -> Iterator[str]:
    """A server that was asked for the public name and the second version alone."""
    options = ServerOptions(model_control_mode="explicit", load_models=(NAME, f"{NAME}.v2"), threads=1)
    with EmbeddedServer(served, options) as server:
        yield server.grpc_url
        server.kill()


def test_a_load_on_two_versions_tells_the_figures_of_both(url: str) -> None:
    with LoadTest([url], {f"{NAME}@1": 1.0, SECOND: 1.0}, scan()) as test:
        result = test.run(Load(clients=1, scans=4))
    assert result.server.note == ""
    assert {one.entry: one.tiles for one in result.server.entries} == {
        f"{NAME}_onnxruntime": result.server.tiles / 2,
        f"{NAME}.v2_onnxruntime": result.server.tiles / 2,
    }
    assert result.latency is not None
    assert result.latency.compute == pytest.approx(sum(one.busy_seconds for one in result.server.entries) / 4)


def test_a_name_and_the_version_that_it_stands_for_count_one_engine_once(url: str) -> None:
    with LoadTest([url], {NAME: 1.0, f"{NAME}@1": 1.0}, scan()) as test:
        result = test.run(Load(clients=1, scans=2))
    (entry,) = result.server.entries
    assert entry.tiles == result.server.tiles
    assert result.latency is not None
    assert result.latency.compute == pytest.approx(entry.busy_seconds / 2)


def test_what_nobody_has_asked_the_server_for_is_no_fault(url: str, tmp_path: Path) -> None:
    listed = json.loads(run("models", "--url", url, "--versions", "--json").stdout)
    assert {one["name"]: (one["usable"], one["loaded"]) for one in listed} == {
        NAME: (True, True),
        f"{NAME}@1": (False, False),
        SECOND: (True, True),
    }
    nib.save(scan(), tmp_path / "scan.nii")
    found = run("doctor", tmp_path / "scan.nii", "--model", SECOND, "--url", url)
    assert (found.exit_code, "FAIL" in found.stdout) == (0, False), found.output


def test_a_batch_that_goes_on_with_another_version_names_the_one_that_made_the_masks(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "scans").mkdir()
    nib.save(scan(), tmp_path / "scans" / "a.nii.gz")
    assert run("manifest", tmp_path / "scans", "-o", tmp_path / "cases.csv").exit_code == 0
    words = ("batch", "--manifest", tmp_path / "cases.csv", "--out", tmp_path / "masks", "--url", url)
    assert run(*words, "--model", f"{NAME}@1").exit_code == 0
    assert run(*words, "--model", SECOND).exit_code == 0
    assert f"a: its mask was made by version 1 of {NAME}, in another build" in caplog.text


def test_what_doctor_says_to_measure_can_be_run_as_it_stands(served: Path, url: str) -> None:
    found = json.loads(run("doctor", served, "--for", "26.07", "--elsewhere", "--json").stdout)["findings"]
    (advice,) = [
        one["todo"].split(": ")[1] for one in found if one["code"] == "other-version" and f"{NAME}.v2/" in one["where"]
    ]
    program, *words = shlex.split(advice.replace("HOST:PORT", url))
    assert (program, command(*words)) == ("voxtile-build", 0)


def test_a_server_behind_certificates_and_a_token_is_told_what_moved_and_what_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = two_versions(tmp_path)
    authority = make_authority(tmp_path)
    server, client = make_identity(tmp_path, "server", authority), make_identity(tmp_path, "client", authority)
    options = ServerOptions(
        model_control_mode="explicit",
        load_models=(NAME,),
        threads=1,
        tls_certificate=server.certificate,
        tls_key=server.key,
        tls_client_ca=authority.certificate,
        triton_arguments=("--grpc-restricted-protocol=statistics:mine=token",),
    )
    with EmbeddedServer(repository, options) as running:
        at = ("--repository", repository, "--url", running.grpc_url)
        tls = ("--tls-ca", authority.certificate, "--tls-cert", client.certificate, "--tls-key", client.key)
        reached = (*tls, "--header", "triton-grpc-protocol-mine:token")
        assert command("promote", NAME, 2, *at) == 2
        assert "the repository is as it was" in capsys.readouterr().err
        assert command("promote", NAME, 2, *at, *reached) == 0
        assert f"{running.grpc_url}: loaded {NAME}\n" in capsys.readouterr().out
        asked = ("--url", running.grpc_url, *reached, "--versions", "--json")
        assert {one["name"]: one["version"] for one in json.loads(run("models", *asked).stdout)} == {
            NAME: "2", f"{NAME}@1": "1", SECOND: "2",
        }  # fmt: skip
        assert command("verify", SECOND, *at) == 1
        assert f"{running.grpc_url}: no Triton answers there" in capsys.readouterr().err
        assert command("verify", SECOND, *at, *reached) == 0
        assert "tiny.v2_onnxruntime: holds" in capsys.readouterr().out
        assert command("verify", SECOND, *at, "--url", running.grpc_url, *reached) == 0
        assert capsys.readouterr().out.count(f"{running.grpc_url}: tiny.v2_onnxruntime: holds") == 2
        assert command("remove", NAME, 1, *at, *reached) == 0
        assert f"{running.grpc_url}: unloaded tiny.v1, tiny_onnxruntime" in capsys.readouterr().out
        listed = {one["name"]: one["usable"] for one in json.loads(run("models", *asked).stdout)}
        assert (listed[NAME], listed[SECOND], listed.get(f"{NAME}@1", False)) == (True, True, False)
        running.kill()


def test_a_server_that_polls_does_not_take_orders_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = two_versions(tmp_path)
    options = ServerOptions(model_control_mode="poll", threads=1)
    with EmbeddedServer(repository, options) as running:
        assert command("remove", NAME, 2, "--repository", repository, "--url", running.grpc_url) == 2
        said = capsys.readouterr().err
        running.kill()
    assert "the server does not unload what is gone" in said
    assert "a server in the mode poll unloads it by itself" in said
    assert not (repository / f"{NAME}.v2").exists()
