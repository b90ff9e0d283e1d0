"""An entry is verified as it is served: the right one holds, and whatever was changed is found and named."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.support.build_specs import built_card, spec, tiny_unet
from voxtile_build.build import build
from voxtile_build.certificate.archive import unpack
from voxtile_build.certificate.limits import MAX_ABS_ERROR
from voxtile_build.certificate.served import ServedRunner
from voxtile_build.certificate.verdict import Verdict
from voxtile_build.certificate.verify import most_varied, verify, version_warnings
from voxtile_build.cli.commands import main
from voxtile_build.errors import RepositoryError, VerificationError
from voxtile_build.machine import versions
from voxtile_build.repository.default_engine import set_default_engine
from voxtile_server.embedded import EmbeddedServer

# int8 differs from fp32 on every CPU; some ignore bf16. With random weights more voxels change than with trained ones.
SPEC = spec(
    precision={"openvino": "int8"},
    serving={"engines": ["openvino", "onnxruntime"], "default_engine": "openvino", "max_batch_size": 2},
    acceptance={"max_changed": 0.2, "min_dice": 0.8, "allow_unseen_labels": True},
)
PUBLIC, *ENTRIES = ("tiny", "tiny_openvino", "tiny_onnxruntime")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model tiny: int8 by OpenVINO, fp32 by ONNX Runtime."""
    repository = tmp_path_factory.mktemp("built") / "repository"
    build(SPEC, repository, network=tiny_unet())
    return repository


@pytest.fixture(scope="module")
def running(built: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(built) as server:
        yield server
        server.kill()


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(built, tmp_path / "repository"))


def by_entry(verdicts: tuple[Verdict, ...]) -> dict[str, Verdict]:
    return {verdict.entry: verdict for verdict in verdicts}


def certificate(repository: Path, entry: str) -> dict[str, dict[str, float]]:
    content: dict[str, dict[str, float]] = json.loads((repository / entry / "1" / "certificate.json").read_text())
    return content


def change_weights(repository: Path) -> None:
    """Another network of the same shape in place of the certified one; nothing else changes."""
    file = repository / "tiny_onnxruntime" / "1" / "model.onnx"
    model = onnx.load(file)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim == 5:
            tensor.CopyFrom(numpy_helper.from_array(values[::-1].copy(), tensor.name))
    onnx.save(model, file)


# As served


def test_a_reduced_precision_entry_is_served_and_accepted(built: Path, running: EmbeddedServer) -> None:
    verdicts = by_entry(verify("tiny", built, running.grpc_url))
    assert set(verdicts) == {*ENTRIES, PUBLIC}
    assert all(verdict.holds for verdict in verdicts.values()), [verdict.faults for verdict in verdicts.values()]
    assert verdicts.pop(PUBLIC).metrics["max_abs_error"] == 0
    for entry, verdict in verdicts.items():
        certified = certificate(built, entry)["metrics"]
        assert verdict.certified == certified
        # The scan's own errors are not stored, so the tiles' alone come back.
        assert verdict.metrics["max_abs_error"] <= 2 * certified["max_abs_error"] + 1e-5
        assert verdict.metrics["changed_fraction"] == pytest.approx(certified["changed_fraction"], abs=2e-3)


def test_the_served_precision_is_the_one_that_was_asked_for(built: Path, running: EmbeddedServer) -> None:
    metrics = {entry: verdict.metrics for entry, verdict in by_entry(verify("tiny", built, running.grpc_url)).items()}
    assert metrics["tiny_openvino"]["max_abs_error"] > 10 * metrics["tiny_onnxruntime"]["max_abs_error"]


def test_the_command_says_so_and_ends_with_0(
    built: Path, running: EmbeddedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "tiny", "--repository", str(built), "--url", running.grpc_url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split(":")[0] for line in lines) == sorted((*ENTRIES, PUBLIC))
    assert all(": holds: max_abs_error " in line for line in lines)


def test_a_server_that_serves_something_else_is_found(
    built: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_weights(copied)
    with EmbeddedServer(copied) as server:
        # The repository at hand is in order; what the server loaded is not.
        verdicts = by_entry(verify("tiny", built, server.grpc_url))
        assert main(["verify", "tiny", "--repository", str(built), "--url", server.grpc_url, "--tiles-only"]) == 1
        server.kill()
    assert verdicts["tiny_openvino"].holds
    faults = verdicts["tiny_onnxruntime"].faults
    assert any(fault.startswith(f"max_abs_error: expected at most {MAX_ABS_ERROR:g}, found ") for fault in faults)
    assert any(fault.startswith("changed_fraction: ") for fault in faults)
    out = capsys.readouterr().out
    assert "tiny_onnxruntime: does not hold: max_abs_error" in out
    assert "tiny_openvino: holds" in out


def test_a_public_name_that_stands_for_another_engine_is_found(built: Path, copied: Path) -> None:
    set_default_engine("tiny", "onnxruntime", copied)
    with EmbeddedServer(copied) as server:
        verdicts = by_entry(verify("tiny", built, server.grpc_url))
        assert all(verdict.holds for verdict in verify("tiny", copied, server.grpc_url))
        server.kill()
    assert [entry for entry, verdict in verdicts.items() if not verdict.holds] == [PUBLIC]
    assert verdicts[PUBLIC].faults[0].startswith("expected the scores of tiny_openvino within ")


def test_the_public_name_is_asked_for_a_tile_that_tells_engines_apart(built: Path) -> None:
    stored = unpack(built / "tiny_openvino" / "1" / "samples.npz")
    (first, scores), *rest = stored.tiles
    level = np.broadcast_to(scores.mean(axis=(1, 2, 3), keepdims=True), scores.shape)  # as of air: alike everywhere
    chosen = most_varied(replace(stored, tiles=((first, level), *rest)))
    assert chosen.name in {"middle", "last corner"}


def test_a_server_without_the_public_name_is_found(built: Path, copied: Path) -> None:
    shutil.rmtree(copied / PUBLIC)
    with EmbeddedServer(copied) as server:
        verdicts = by_entry(verify("tiny", built, server.grpc_url))
        server.kill()
    assert [entry for entry, verdict in verdicts.items() if not verdict.holds] == [PUBLIC]
    assert "does not offer tiny;" in verdicts[PUBLIC].faults[0]


def test_a_model_that_the_server_does_not_offer_is_named(running: EmbeddedServer) -> None:
    with pytest.raises(VerificationError, match="does not offer absent_openvino"):
        ServedRunner(running.grpc_url, built_card(), "absent_openvino")


def test_a_refused_request_comes_with_the_servers_words(running: EmbeddedServer) -> None:
    with (
        ServedRunner(running.grpc_url, built_card(), "tiny_openvino") as run,
        pytest.raises(VerificationError, match=r"tiny_openvino fails: .*shape"),
    ):
        run({"roi": np.zeros((1, 1, 3, 3, 3), np.float32)})


def test_where_no_server_answers_the_address_is_named_once(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(VerificationError, match=r"127\.0\.0\.1:1: no Triton answers there"):
        verify("tiny", built, "127.0.0.1:1")
    assert main(["verify", "tiny", "--repository", str(built), "--url", "127.0.0.1:1"]) == 1
    assert capsys.readouterr().err.count("no Triton answers there") == 1


# In this process, and what was tampered with


def test_without_a_server_the_files_are_opened_here(built: Path) -> None:
    verdicts = verify("tiny", built)
    assert all(verdict.holds for verdict in verdicts), [verdict.faults for verdict in verdicts]


def test_tiles_alone_leave_the_scan_out(built: Path) -> None:
    for verdict in verify("tiny", built, scans=False):
        assert verdict.holds
        assert verdict.metrics["changed_fraction"] == 0.0


@pytest.mark.parametrize(
    ("entry", "file"),
    [
        ("tiny_openvino", "model.bin"),
        ("tiny_openvino", "model.xml"),
        ("tiny_onnxruntime", "model.onnx"),
        ("tiny_onnxruntime", "samples.npz"),
    ],
)
def test_a_file_that_is_not_the_certified_one_is_named_and_not_run(copied: Path, entry: str, file: str) -> None:
    path = copied / entry / "1" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    verdicts = by_entry(verify("tiny", copied))
    (fault,) = verdicts[entry].faults
    assert fault.startswith(f"{path}: expected the certified file")
    assert verdicts[entry].metrics == {}
    assert [verdict.entry for verdict in verdicts.values() if not verdict.holds] == [entry]


def test_a_missing_file_is_named(copied: Path) -> None:
    (copied / "tiny_openvino" / "1" / "model.bin").unlink()
    (fault,) = by_entry(verify("tiny", copied))["tiny_openvino"].faults
    assert fault.endswith("model.bin: missing; build the entry again")


def test_a_certificate_that_was_made_to_fit_is_found_by_the_card(copied: Path) -> None:
    path = copied / "tiny_onnxruntime" / "1" / "certificate.json"
    content = json.loads(path.read_text())
    content["acceptance"]["min_dice"] = 0.0
    path.write_text(json.dumps(content))
    faults = by_entry(verify("tiny", copied))["tiny_onnxruntime"].faults
    assert any("expected the certificate that the model card names" in fault for fault in faults)


@pytest.mark.parametrize(
    "damage", [None, "{", "[]", "{}", "[" * 100_000, "1" * 5000, '{"hashes": []}', '{"engine": 1}']
)
def test_an_entry_without_its_certificate_does_not_hold(copied: Path, damage: str | None) -> None:
    path = copied / "tiny_openvino" / "1" / "certificate.json"
    (copied / "tiny_openvino" / "notes").mkdir()
    (copied / "tiny_openvino" / "notes" / "certificate.json").write_text("{}")
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage)
    verdict = by_entry(verify("tiny", copied))["tiny_openvino"]
    assert not verdict.holds
    assert any(("certificate" in fault and "build" in fault) for fault in verdict.faults)
    assert "does not hold" in verdict.as_line()


def test_an_engine_that_does_not_open_does_not_hold(copied: Path) -> None:
    """As after an update of the engine that reads the file no more: the hashes are right."""
    path = copied / "tiny_onnxruntime" / "1"
    (path / "model.onnx").write_bytes(b"no graph")
    content = json.loads((path / "certificate.json").read_text())
    content["hashes"]["files"]["model.onnx"] = hashlib.sha256(b"no graph").hexdigest()
    (path / "certificate.json").write_text(json.dumps(content))
    verdict = by_entry(verify("tiny", copied))["tiny_onnxruntime"]
    assert not verdict.holds


def test_the_command_ends_with_1_where_an_entry_does_not_hold(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "tiny_openvino" / "1" / "model.bin").unlink()
    assert main(["verify", "tiny", "--repository", str(copied)]) == 1
    assert "tiny_openvino: does not hold: " in capsys.readouterr().out


def test_other_versions_of_packages_are_a_warning_and_no_fault(
    copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert version_warnings("tiny", copied) == ()
    here = versions()
    monkeypatch.setattr("voxtile_build.certificate.verify.versions", lambda: {**here, "openvino": "0.1", "other": "2"})
    expected = f"openvino: certified with {here['openvino']}, here is 0.1"
    assert version_warnings("tiny", copied) == (expected,)
    assert main(["verify", "tiny", "--repository", str(copied), "--tiles-only"]) == 0
    assert capsys.readouterr().err == f"warning: {expected}\n"


def test_an_unknown_model_is_an_error(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RepositoryError, match="build the entry first"):
        verify("unknown", built)
    assert main(["verify", "unknown", "--repository", str(built)]) == 2
    assert "unknown" in capsys.readouterr().err


def test_neither_pytorch_nor_monai_is_needed(built: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'monai', 'nncf', 'onnxscript'): sys.modules[name] = None\n"
        "from voxtile_build.cli.commands import main\n"
        f"sys.exit(main(['verify', 'tiny', '--repository', {str(built)!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": holds: ") == 2
