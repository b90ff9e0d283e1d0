"""server/deploy/Dockerfile: its lines are sound, and what its steps make segments a scan inside the embedded Triton."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from tritonclient.grpc import InferenceServerClient

from tests.support import dockerfiles
from tests.support.whole_scans import clients_mask, tensor, write_scan
from voxtile_build.engines.release import SERVER_IMAGE
from voxtile_build.repository.volume import write_volume_entries
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.install import client, fetch, layout
from voxtile_server.options import ServerOptions

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "server" / "deploy" / "Dockerfile"


def test_its_lines_are_sound() -> None:
    found = dockerfiles.instructions(DOCKERFILE)
    words = [word for word, _ in found]
    assert words[0] == "FROM"
    assert words.count("FROM") == 1
    assert found[0][1] == SERVER_IMAGE
    assert set(words) <= {"FROM", "ENV", "COPY", "RUN", "USER"}
    assert found[-1] == ("USER", "1000:1000")
    for word, rest in found:
        if word == "COPY":
            assert (ROOT / rest.split()[0]).exists()
        if "pip install" in rest:
            for option in ("--require-hashes", "--no-deps", "--no-cache-dir", "--only-binary :all:"):
                assert option in rest, option


def test_the_build_is_given_what_it_copies_and_no_more() -> None:
    ignore = DOCKERFILE.with_name("Dockerfile.dockerignore")
    for path in ("client/voxtile/segmenter.py", "server/voxtile_server/install/client.txt",
                 "server/voxtile_server/backends/voxtile/model.py"):  # fmt: skip
        assert (ROOT / path).is_file()
        assert not dockerfiles.ignored(path, ignore)
    for path in (".venv/bin/python", "model_repository/a/config.pbtxt", "client/pyproject.toml",
                 "client/voxtile/__pycache__/segmenter.cpython-312.pyc", "server/voxtile_server/cli.py",
                 "tests/conftest.py", ".git/config"):  # fmt: skip
        assert dockerfiles.ignored(path, ignore)


@pytest.mark.slow
def test_what_its_steps_make_gives_the_clients_mask(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = fetch.cache_folder()
    image = tmp_path / "opt"
    backends = layout.lay_out_backends(cache, fetch.fetch_triton(cache))
    for name in ("python", "onnxruntime", "openvino"):  # as the official image has its own
        shutil.copytree(backends / name, image / "tritonserver" / "backends" / name)
    shutil.rmtree(image / "tritonserver" / "backends" / "python" / layout.PACKAGE)
    built = dockerfiles.build(DOCKERFILE, ROOT, image)
    assert not list(image.rglob("*tritonclient*"))
    assert not list((image / "voxtile").glob("numpy*"))
    monkeypatch.setattr(client, "fetch_client", lambda _: built.environment[client.VARIABLE])
    scan = write_scan(tmp_path / "scan.nii.gz", (25, 30, 18))
    write_volume_entries("small-unet", repository, tmp_path / "volumes")
    options = ServerOptions(
        volume_repository=tmp_path / "volumes",
        triton_arguments=(f"--backend-directory={image / 'tritonserver' / 'backends'}",),
    )
    with EmbeddedServer(repository, options) as server, InferenceServerClient(server.grpc_url) as triton:
        given = tensor(scan.read_bytes())
        mask = triton.infer("small-unet_scan", [given], client_timeout=120).as_numpy("mask").tobytes()
        expected = clients_mask(server.grpc_url, "small-unet", scan)
        told = re.findall(r"\| voxtile +\| (\S+)", server.log_file.read_text())
        server.kill()
    assert told == [str(image / "tritonserver" / "backends" / "voxtile" / "model.py")]
    assert mask == expected
