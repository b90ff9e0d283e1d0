"""Every network that a spec can name, 3D and 2D, served: accepted in fp32, and PyTorch's scores on the wire."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from tritonclient.grpc import InferenceServerClient, InferInput

from voxtile_build.build import build
from voxtile_build.graph.wrapper import wrap
from voxtile_build.importers.network import load_network
from voxtile_build.networks import NETWORKS, make_network
from voxtile_build.spec.spec import Spec, parse_spec
from voxtile_server.embedded import EmbeddedServer

SUM_ORDER = 1e-3
"""Of the largest score: fp32 sums in another order; most in OpenVINO's norms over a SwinUNETR's whole tile (3e-4)."""
LABELS = 2

DYNUNET = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 8, 8]}
SMALL_TRANSFORMER = {"feature_size": 4, "hidden_size": 12, "mlp_dim": 12, "num_heads": 2}
SMALL_SWIN = {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}


@dataclass(frozen=True)
class Case:
    """network: as a spec names it; axes: 3, or 2 for a network that goes through the scan slice by slice.

    roi: the size of all axes, or of each.
    """

    network: str
    axes: int
    roi: int | tuple[int, ...]
    args: dict[str, Any]
    head: int | None = None

    @property
    def roi_size(self) -> list[int]:
        return [self.roi] * self.axes if isinstance(self.roi, int) else list(self.roi)

    @property
    def name(self) -> str:
        return f"{self.network.lower()}-{self.axes}d"


TRUNK = {"channels": [4, 8], "strides": [2]}
SEGRESNET = {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}
# With instance norm and random weights, fp32 PyTorch itself is off by 0.6 in probability on an empty tile (float64
# tells): noise is divided by a spread of nothing, norm after norm. That would say nothing of the engines.
NESTED = {"features": [4, 4, 4, 4, 4, 4], "norm": "batch"}
NNUNET = {"n_stages": 2, "features_per_stage": [4, 8], "kernel_sizes": 3, "strides": [1, 2], "conv_bias": True}
NNUNET |= {"nonlin": "torch.nn.LeakyReLU", "n_conv_per_stage_decoder": 1}
PLAIN, RESIDUAL = {**NNUNET, "n_conv_per_stage": 1}, {**NNUNET, "n_blocks_per_stage": 1}


def dimensions(axes: int) -> dict[str, Any]:
    """What nnU-Net's plans say in place of spatial_dims, in_channels and out_channels, which their specs have."""
    return {"conv_op": f"torch.nn.Conv{axes}d", "norm_op": f"torch.nn.InstanceNorm{axes}d"}


CASES = (
    # 32 along every axis would leave its innermost norm a single voxel.
    Case("SwinUNETR", 3, (64, 32, 32), SMALL_SWIN),
    Case("SwinUNETR", 2, (64, 32), {**SMALL_SWIN, "depths": [2, 1, 1, 1]}),  # two, so that windows are shifted
    Case("UNet", 3, 16, TRUNK),
    Case("UNet", 2, 16, TRUNK),
    Case("AttentionUnet", 3, 16, TRUNK),
    Case("AttentionUnet", 2, 16, TRUNK),
    Case("BasicUNet", 3, 32, NESTED),
    Case("BasicUNet", 2, 16, NESTED),
    Case("BasicUNetPlusPlus", 3, 16, {**NESTED, "deep_supervision": True}, head=-1),
    Case("BasicUNetPlusPlus", 2, 16, NESTED),
    Case("SegResNet", 3, 16, SEGRESNET),
    Case("SegResNet", 2, 16, SEGRESNET),
    Case("DynUNet", 3, 16, {**DYNUNET, "deep_supervision": True, "deep_supr_num": 1}),
    Case("DynUNet", 2, 16, DYNUNET),
    Case("PlainConvUNet", 3, 16, PLAIN),
    Case("PlainConvUNet", 2, 16, PLAIN),
    Case("ResidualEncoderUNet", 3, 16, RESIDUAL),
    Case("ResidualEncoderUNet", 2, 16, RESIDUAL),
    Case("UNETR", 3, 32, {**SMALL_TRANSFORMER, "img_size": [32, 32, 32]}),
    Case("UNETR", 2, 32, {**SMALL_TRANSFORMER, "img_size": [32, 32]}),
)


def spec_of(case: Case, folder: Path) -> Spec:
    """The spec of a case, with random weights beside it, always the same ones."""
    monai = {"spatial_dims": case.axes, "in_channels": 1, "out_channels": LABELS}
    args = {**(dimensions(case.axes) if "n_stages" in case.args else monai), **case.args}
    torch.manual_seed(3)
    network = make_network(case.network, args, 1, LABELS)
    weights = folder / f"{case.name}.safetensors"
    save_file({key: value.clone() for key, value in network.state_dict().items()}, weights)
    fields = {
        "name": case.name,
        "network": {"name": case.network, "args": args} | ({} if case.head is None else {"head": case.head}),
        "weights": {"file": weights.name, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()},
        "input": {"channels": ["T1"], "intensity": {"rule": "range", "a_min": 0.0, "a_max": 1000.0}},
        "output": {"labels": ["background", "one"]},
        "tiling": {"roi_size": case.roi_size} | ({"slice_axis": 2} if case.axes == 2 else {}),
        "serving": {"max_batch_size": 2, "warm_up": False, "engines": ["onnxruntime", "openvino"], "threads": 1},
    }
    return parse_spec(fields, f"{case.name}.toml", folder)


class Repository:
    """A model repository in which each network is built when it is first asked for: all at once would take minutes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.models = root / "models"
        self.specs: dict[str, Spec] = {}

    def spec(self, case: Case) -> Spec:
        """The spec of a case, whose entries are in the repository."""
        if case.name not in self.specs:
            spec = spec_of(case, self._root)
            build(spec, self.models)
            self.specs[case.name] = spec
        return self.specs[case.name]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def client(repository: Repository) -> Iterator[InferenceServerClient]:
    """Of a server with all networks."""
    for case in CASES:
        repository.spec(case)
    with EmbeddedServer(repository.models) as server, InferenceServerClient(server.grpc_url) as client:
        yield client
        server.kill()


def test_every_network_that_a_spec_can_name_is_here_in_three_and_two_dimensions() -> None:
    named = {spec.name for spec in NETWORKS} - {"Identity"}
    assert {(case.network, case.axes) for case in CASES} == {(name, axes) for name in named for axes in (2, 3)}


def image(spec: Spec, batch: int) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(batch).uniform(0, 1200, (batch, *spec.roi_shape)).astype(np.float32)
    values[:, :, : spec.tiling.roi_size[0] // 3] = 0
    return values


def expected_scores(network: nn.Module, spec: Spec, roi: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        scores: np.ndarray[Any, Any] = wrap(network, spec)(torch.from_numpy(roi)).numpy()
    return scores


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_network_has_an_accepted_fp32_certificate(repository: Repository, case: Case, engine: str) -> None:
    repository.spec(case)
    certificate = json.loads((repository.models / f"{case.name}_{engine}/1/certificate.json").read_text())
    assert certificate["accepted"]
    assert certificate["precision"] == "fp32"
    assert math.prod(certificate["scans"][0]["shape"]) > 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("suffix", ["", "_openvino"])
def test_the_wire_gives_pytorchs_scores(
    repository: Repository, client: InferenceServerClient, case: Case, suffix: str
) -> None:
    spec = repository.spec(case)
    network = load_network(spec)
    for batch in (1, 2):
        roi = image(spec, batch)
        given = InferInput("roi", list(roi.shape), "FP32")
        given.set_data_from_numpy(roi)
        found = client.infer(case.name + suffix, [given]).as_numpy("scores")
        expected = expected_scores(network, spec, roi)
        assert found is not None
        np.testing.assert_allclose(found, expected, rtol=0, atol=SUM_ORDER * np.abs(expected).max())
