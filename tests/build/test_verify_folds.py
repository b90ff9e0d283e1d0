"""A model of several folds is verified fold by fold, and so is the entry that averages them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from tests.support.examined import faults_of
from tests.support.importing import import_nnunet
from tests.support.nnunet_folders import Training, configuration, write_folder
from voxtile_build.certificate.verdict import Verdict
from voxtile_build.certificate.verified_devices import record_devices
from voxtile_build.certificate.verify import verify, version_warnings
from voxtile_build.cli.commands import main
from voxtile_build.errors import RepositoryError
from voxtile_build.repository.config import read_config
from voxtile_server.embedded import EmbeddedServer

TRAINING = Training(
    "3d_fullres",
    {"3d_fullres": configuration((16, 16, 24), (1.5, 1.0, 1.0))},
    folds=(0, 1),
    mirror_axes=(0, 1, 2),
)
MEAN = "two_mean_onnxruntime"
FOLDS = [f"two_fold_{fold}_{engine}" for engine in ("onnxruntime", "openvino") for fold in (0, 1)]
ENTRIES = sorted([*FOLDS, MEAN])


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model `two`: both folds by both engines."""
    root = tmp_path_factory.mktemp("folds")
    folder = write_folder(root / "results", TRAINING, seed=3)
    settings = {"serving": {"warm_up": False, "max_batch_size": 2, "threads": 1}}
    import_nnunet(folder, "two", root / "repository", engines=["onnxruntime", "openvino"], settings=settings)
    return root / "repository"


@pytest.fixture(scope="module")
def running(built: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(built) as server:
        yield server
        server.kill()


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(built, tmp_path / "repository"))


def failing(verdicts: tuple[Verdict, ...]) -> dict[str, str]:
    """What does not hold, by entry."""
    return {verdict.entry: "; ".join(verdict.faults) for verdict in verdicts if not verdict.holds}


def first_alone(file: Path) -> None:
    """The graph that averages gives the first fold's scores alone."""
    model = onnx.load(file)
    (mean,) = [node for node in model.graph.node if node.op_type == "Mean"]
    del mean.input[1:]
    onnx.save(model, file)


def certify_again(version: Path, name: str) -> None:
    """The certificate made to fit a file that was changed."""
    content = json.loads((version / "certificate.json").read_text())
    content["hashes"]["files"][name] = hashlib.sha256((version / name).read_bytes()).hexdigest()
    content["acceptance"]["max_abs_error"] = 1e9
    (version / "certificate.json").write_text(json.dumps(content))


@pytest.mark.parametrize("served", [True, False], ids=["as served", "in process"])
def test_every_fold_and_the_mean_hold(built: Path, running: EmbeddedServer, served: bool) -> None:
    verdicts = verify("two", built, running.grpc_url if served else None)
    assert failing(verdicts) == {}
    if served:
        *verdicts, public = verdicts
        assert public.entry == "two"
        assert public.metrics["max_abs_error"] < 1e-5
        assert "certified" not in public.as_line()
    assert sorted(verdict.entry for verdict in verdicts) == ENTRIES
    assert faults_of(built) == []
    for verdict in verdicts:
        certified = json.loads((built / verdict.entry / "1" / "certificate.json").read_text())["metrics"]
        assert verdict.certified == certified
        assert 0 < verdict.metrics["max_abs_error"] <= 2 * certified["max_abs_error"] + 1e-5
    folds = [verdict for verdict in verdicts if verdict.entry != MEAN]
    assert {verdict.metrics["dice_min"] for verdict in folds} == {1.0}
    assert len({verdict.metrics["mean_abs_error"] for verdict in folds}) == len(folds), "each fold is measured itself"


def test_the_command_has_a_line_for_each(
    built: Path, running: EmbeddedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "two", "--repository", str(built), "--url", running.grpc_url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split(":")[0] for line in lines) == sorted((*ENTRIES, "two"))
    assert all(": holds: " in line and "max_abs_error " in line for line in lines)


def test_a_server_with_another_fold_or_another_mean_is_found(built: Path, copied: Path) -> None:
    shutil.copyfile(*(copied / f"two_fold_{fold}_onnxruntime" / "1" / "model.onnx" for fold in (0, 1)))
    first_alone(copied / MEAN / "1" / "model.onnx")
    with EmbeddedServer(copied) as server:
        # The repository at hand is in order; what the server loaded is not.
        found = failing(verify("two", built, server.grpc_url))
        server.kill()
    assert sorted(found) == ["two_fold_1_onnxruntime", MEAN]
    assert all("error: expected at most " in fault for fault in found.values())


def test_a_public_name_that_gives_one_fold_alone_is_found(built: Path, copied: Path) -> None:
    first_alone(copied / MEAN / "1" / "model.onnx")
    with EmbeddedServer(copied) as server:
        found = failing(verify("two", built, server.grpc_url))
        server.kill()
    assert sorted(found) == ["two", MEAN]
    assert found["two"].startswith("expected the scores of two_fold_0_onnxruntime and two_fold_1_onnxruntime within ")


def test_a_mean_whose_certificate_was_made_to_fit_is_found(copied: Path) -> None:
    version = copied / MEAN / "1"
    first_alone(version / "model.onnx")
    certify_again(version, "model.onnx")
    assert "max_abs_error: expected at most " in failing(verify("two", copied))[MEAN]


def test_folds_that_changed_places_are_found(copied: Path) -> None:
    first, second, between = (copied / name for name in (*FOLDS[:2], "between"))
    first.rename(between)
    second.rename(first)
    between.rename(second)
    found = failing(verify("two", copied))
    assert sorted(found) == FOLDS[:2]
    assert all("expected the certificate that the model card names" in fault for fault in found.values())


@pytest.mark.parametrize("entry", [FOLDS[1], FOLDS[2], MEAN])
def test_a_missing_certificate_is_found(copied: Path, entry: str) -> None:
    (copied / entry / "1" / "certificate.json").unlink()
    assert "expected a certificate in a version folder, found none" in failing(verify("two", copied))[entry]


def test_a_mean_that_does_not_open_does_not_hold(copied: Path) -> None:
    version = copied / MEAN / "1"
    (version / "model.onnx").write_bytes(b"no graph")
    certify_again(version, "model.onnx")
    assert "ONNX Runtime cannot load model.onnx" in failing(verify("two", copied))[MEAN]


def test_what_the_public_entry_refers_to_is_published_before_it_and_takes_the_same_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`publish` swaps in the order that it is told; the entry that averages must take what the ensemble gives it."""
    told: list[str] = []

    def publish(staged: Path, repository: Path, names: list[str], *others: list[str]) -> None:
        told.extend(names)
        public = read_config(staged / "two")
        steps = [step.model_name for step in public.ensemble_scheduling.step]
        assert len(steps) == 3
        assert {read_config(staged / entry).max_batch_size for entry in steps} == {public.max_batch_size} == {2}
        assert set(steps) <= set(names)
        assert others[1] == ["two"], "nothing was published under the name, so nothing may be seen before the end"

    monkeypatch.setattr("voxtile_build.build.publish", publish)
    folder = write_folder(tmp_path / "results", TRAINING, seed=3)
    settings = {"serving": {"warm_up": False, "max_batch_size": 2, "threads": 1}}
    import_nnunet(folder, "two", tmp_path / "repository", engines=["onnxruntime"], settings=settings)
    assert told[-1] == "two"
    assert len(told) == 4


# Cascades


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model `second`, whose first stage is `second_3d_lowres`."""
    root = tmp_path_factory.mktemp("cascade")
    patch = (16, 16, 16)
    stages = {
        "3d_lowres": configuration(patch, (2.0, 2.0, 2.0), next_stage="3d_cascade_fullres"),
        "3d_cascade_fullres": configuration(patch, (1.0, 1.0, 1.0), previous_stage="3d_lowres"),
    }
    write_folder(root, Training("3d_lowres", stages))
    folder = write_folder(root, Training("3d_cascade_fullres", stages))
    settings = {"serving": {"warm_up": False, "max_batch_size": 1, "threads": 1}}
    import_nnunet(folder, "second", root / "repository", engines=["onnxruntime"], settings=settings)
    return root / "repository"


def test_both_stages_of_a_cascade_are_verified_and_their_devices_recorded(cascade: Path, tmp_path: Path) -> None:
    repository = Path(shutil.copytree(cascade, tmp_path / "repository"))
    first, second = "second_3d_lowres_onnxruntime", "second_onnxruntime"
    verdicts = verify("second", repository)
    assert [verdict.entry for verdict in verdicts] == [first, second]
    assert failing(verdicts) == {}
    elsewhere = [replace(verdict, device_kind="cpu", device="another CPU") for verdict in verdicts]
    assert [line.split(":")[0] for line in record_devices("second", repository, elsewhere)] == [
        "second_3d_lowres",
        "second",
    ]
    certify_again(repository / first / "1", "model.onnx")  # the certificate is not the card's any more
    assert list(failing(verify("second", repository))) == [first]
    versions = json.loads((repository / first / "1" / "certificate.json").read_text())
    versions["versions"]["onnxruntime"] = "0.1"
    (repository / first / "1" / "certificate.json").write_text(json.dumps(versions))
    assert any(line.startswith("onnxruntime: certified with 0.1") for line in version_warnings("second", repository))
    shutil.rmtree(repository / "second_3d_lowres")
    with pytest.raises(RepositoryError, match="second_3d_lowres"):
        verify("second", repository)
