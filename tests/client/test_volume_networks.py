"""A cascade and a set of models by one request: the client's mask through Triton's scan entries and the gateway."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tests.support.examined import faults_of
from tests.support.gateways import gateway
from tests.support.nnunet_folders import Training, configuration, write_folder, write_scan
from tests.support.whole_scans import executions, settled, streamed, tensor, wait_for_batches
from voxtile import Segmenter
from voxtile.io.writing import write_image
from voxtile_build.cli.commands import main
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.options import ServerOptions

pytestmark = pytest.mark.usefixtures("one_thread")

CHANNELS = {"normalization_schemes": ["ZScoreNormalization"] * 2, "use_mask_for_norm": [False, False]}
FULL = configuration((16, 16, 24), (1.5, 1.0, 1.0), **CHANNELS)
CASCADE = Training(
    "3d_cascade_fullres",
    {
        "3d_lowres": configuration((16, 16, 16), (2.5, 2.2, 2.2), next_stage="3d_cascade_fullres", **CHANNELS),
        "3d_fullres": FULL,
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    },
    channels=("T1", "T2"),
)
FINE = configuration((16, 16, 16), (1.5, 1.5, 1.5))
PARTS = {
    "organs": Training("3d_fullres", {"3d_fullres": FINE}, labels={"background": 0, "spleen": 1, "liver": 2}),
    "heart": Training("3d_fullres", {"3d_fullres": FINE}, labels={"background": 0, "aorta": 1, "heart": 2}),
}
TRUNK = Training(
    "3d_fullres",
    {"3d_fullres": configuration((12, 16, 12), (3.0, 3.0, 3.0))},
    labels={"background": 0, "trunk": 1, "limbs": 2},
)
SET = """
spacing = 1.5
parts = [{ folder = "organs" }, { folder = "heart" }]
[crop]
model = "trunk"
labels = ["trunk"]
margin_mm = 4
"""
SETTINGS = "[serving]\nwarm_up = false\nmax_batch_size = 2\nthreads = 1\nvolume = {volume}\n"
ONE, TWO = "set", "cascade"
FIRST_STAGE = "cascade_3d_lowres"


@dataclass(frozen=True)
class Served:
    """The server, the model repository, and for each model the scan, as one file and a file a channel."""

    server: EmbeddedServer
    repository: Path
    whole: dict[str, Path]
    channels: dict[str, list[Path]]
    masks: dict[str, bytes]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("networks")
    repository = root / "models"
    for kind in ("true", "false"):
        (root / f"{kind}.toml").write_text(SETTINGS.format(volume=kind))
    for seed, (name, training) in enumerate({**PARTS, "trunk": TRUNK, TWO: CASCADE}.items(), 21):
        write_folder(root / name, training, seed)
    write_folder(root / TWO, replace(CASCADE, name="3d_lowres"), 29)
    (root / "set.toml").write_text(SET)
    for words, kind in (
        (["nnunet", str(root / "trunk"), "--name", "trunk"], "false"),
        (["nnunet", str(root / TWO), "--name", TWO, "--configuration", "3d_cascade_fullres"], "true"),
        (["nnunet-set", str(root / "set.toml"), "--name", ONE], "true"),
    ):
        more = ["--repository", str(repository), "--engines", "onnxruntime", "--settings", str(root / f"{kind}.toml")]
        assert main([*words, *more]) == 0
    volumes = root / "models-volume"
    channels = {
        ONE: write_scan(root / "scans", "one", (38, 31, 21), (1.1, 0.9, 2.2)),
        TWO: write_scan(root / "scans", "two", (40, 37, 31), (1.1, 0.9, 1.2), 2),
    }
    whole = {name: in_one(files, root / f"{name}.nii.gz") for name, files in channels.items()}
    with EmbeddedServer(repository, ServerOptions(http_port=0, volume_repository=volumes)) as server:
        masks = {name: clients_mask(server.grpc_url, name, files) for name, files in channels.items()}
        yield Served(server, repository, whole, channels, masks)
        server.kill()


def in_one(files: list[Path], target: Path) -> Path:
    """The channels of a scan as one file of four axes."""
    images = [nib.load(file) for file in files]
    values = np.stack([np.asarray(image.dataobj) for image in images], axis=-1)
    image = nib.Nifti1Image(values if len(files) > 1 else values[..., 0], images[0].affine, images[0].header)
    nib.save(image, target)
    return target


def clients_mask(url: str, name: str, files: list[Path]) -> bytes:
    with Segmenter(url, name) as segmenter:
        found = segmenter.segment(files)
    assert len(np.unique(found.labels)) > 1, "a mask of one label proves nothing"
    target = files[0].with_name(f"mask-{name}.nii.gz")
    write_image(found.mask, target)
    return target.read_bytes()


def test_only_what_stands_for_the_whole_has_entries(served: Served) -> None:
    found = sorted(folder.name for folder in (served.repository.parent / "models-volume").iterdir())
    assert found == ["cascade_scan", "cascade_scan_stream", "set_scan", "set_scan_stream"]
    assert faults_of(served.repository) == []


@pytest.mark.parametrize("name", [ONE, TWO])
def test_scan_entries_give_the_clients_mask_and_name_the_model(served: Served, name: str) -> None:
    given = tensor(served.whole[name].read_bytes())
    with InferenceServerClient(served.server.grpc_url) as client:
        answer = client.infer(f"{name}_scan", [given])
        *before, last = streamed(client, name, [given])
    assert answer.as_numpy("mask").tobytes() == served.masks[name]
    assert last.as_numpy("mask").tobytes() == served.masks[name]
    assert json.loads(answer.as_numpy("report").item())["model"] == name
    shares = [float(one.as_numpy("progress")[0, 0]) for one in (*before, last)]
    assert shares == sorted(shares)


def test_the_gateway_gives_the_clients_mask(served: Served, tmp_path: Path) -> None:
    with gateway(tmp_path, "--url", served.server.grpc_url) as running:
        for name in (ONE, TWO):
            files = [word for file in served.channels[name] for word in ("-F", f"scan=@{file}")]
            for words in (files, ["-X", "POST", "-T", str(served.whole[name])]):
                status, _, body = running.curl(f"/v1/models/{name}/mask", *words)
                assert (status, body) == (200, served.masks[name]), (name, words)


def test_a_caller_that_goes_during_the_first_stage_ends_it_too(served: Served, tmp_path: Path) -> None:
    scan = in_one(write_scan(tmp_path, "long", (150, 140, 130), (1.0, 1.0, 1.0), 2), tmp_path / "long.nii.gz")
    first, second = f"{FIRST_STAGE}_onnxruntime", f"{TWO}_onnxruntime"
    url, told = served.server.grpc_url, queue.Queue[Any]()
    before, unchanged = settled(url, first), settled(url, second)
    with InferenceServerClient(url) as client:
        call = client.async_infer(f"{TWO}_scan", [tensor(scan.read_bytes())], lambda result, error: told.put(error))
        wait_for_batches(url, first, before + 1)
        call.cancel()
        assert isinstance(told.get(timeout=60), InferenceServerException)
    ended = settled(url, first)
    assert settled(url, second) == unchanged
    with Segmenter(url, FIRST_STAGE) as segmenter:
        segmenter.segment(scan)
    whole = executions(url, first) - ended
    assert ended - before < whole / 2, f"{ended - before} batches of {whole}"
