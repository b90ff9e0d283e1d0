"""RemoteNetwork as the predictor of MONAI's own sliding window."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference

from tests.support.small_models import ROI, small_unet
from voxtile import InputError, ModelError, RemoteNetwork, Segmenter
from voxtile_server.embedded import EmbeddedServer

LOGIT_ERROR = 1e-3
"""fp32 engines sum in another order; logits of this network lie within ±10."""


@pytest.mark.parametrize("shape", [(70, 40, 45), (50, 20, 40)], ids=["large", "smaller than the ROI"])
@pytest.mark.parametrize("overlap", [0.25, 0.5])
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_drops_into_monai(server: EmbeddedServer, shape: tuple[int, ...], overlap: float, mode: str) -> None:
    x = torch.from_numpy(np.random.default_rng(4).normal(size=(1, 1, *shape)).astype(np.float32))
    with torch.no_grad():
        expected = sliding_window_inference(x, ROI, 4, small_unet(), overlap=overlap, mode=mode)
    with RemoteNetwork(server.grpc_url, "small-unet") as network:
        found = sliding_window_inference(x, ROI, 6, network, overlap=overlap, mode=mode)
    assert isinstance(found, torch.Tensor)
    assert (found - expected).abs().max() <= LOGIT_ERROR
    assert (found.argmax(1) != expected.argmax(1)).float().mean() <= 1e-5


def test_the_lines_of_the_readme_give_the_mask_and_the_scores(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    for shown, here in (("localhost:8001", server.grpc_url), ('"mine"', '"small-unet"')):
        assert lines.count(shown) == 2
        lines = lines.replace(shown, here)
    scan = np.random.default_rng(7).normal(100, 20, (30, 41, 22)).astype(np.float32)
    nib.save(nib.Nifti1Image(scan, np.diag([1.0, 2.0, 1.5, 1.0])), tmp_path / "scan.nii.gz")
    monkeypatch.chdir(tmp_path)
    x = torch.from_numpy(np.random.default_rng(4).normal(size=(1, 1, 40, 30, 45)).astype(np.float32))
    names: dict[str, Any] = {"x": x, "roi_size": ROI}
    exec(compile(lines, "README.md", "exec"), names)
    with torch.no_grad():
        expected = sliding_window_inference(x, ROI, 4, small_unet(), overlap=0.5)
    names["network"].close()
    assert (names["scores"] - expected).abs().max() <= LOGIT_ERROR
    assert names["mask"].shape == scan.shape
    with Segmenter(server.grpc_url, "small-unet") as segmenter:
        again = segmenter(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(np.asarray(names["mask"].dataobj), np.asarray(again.dataobj))
    assert len(np.unique(np.asarray(again.dataobj))) > 1


def test_normalised_values_are_spread_over_a_narrow_type(server: EmbeddedServer) -> None:
    x = np.random.default_rng(8).normal(size=(3, 1, *ROI)).astype(np.float32)
    x[0, 0, :4] = -32768  # outside the scan
    with RemoteNetwork(server.grpc_url, "small-unet-int16") as narrow:
        found = narrow(x)
    x[0, 0, :4] = 0
    with RemoteNetwork(server.grpc_url, "small-unet") as wide:
        np.testing.assert_allclose(found, wide(x), atol=20 * LOGIT_ERROR)


def test_takes_any_batch_and_keeps_its_order(server: EmbeddedServer) -> None:
    x = np.random.default_rng(5).integers(-9, 9, (11, 1, 16, 24, 8)).astype(np.float32)
    with RemoteNetwork(server.grpc_url, "identity") as network:
        np.testing.assert_array_equal(network(x), x)
        assert network(x[:0]).shape == (0, 1, 16, 24, 8)


def test_statistics_normalise_on_the_server(server: EmbeddedServer) -> None:
    x = np.random.default_rng(6).normal(100, 20, (2, 1, *ROI)).astype(np.float32)
    with RemoteNetwork(server.grpc_url, "small-unet", statistics=np.array([[100, 20]], np.float32)) as raw:
        found = raw(x)
    with RemoteNetwork(server.grpc_url, "small-unet") as normalised:
        np.testing.assert_allclose(found, normalised((x - 100) / 20), atol=LOGIT_ERROR)


def test_what_does_not_fit_is_refused(server: EmbeddedServer) -> None:
    with RemoteNetwork(server.grpc_url, "identity-int16") as network:
        with pytest.raises(InputError, match=r"takes \[batch, 1, 16, 24, 8\], found \[1, 1, 8, 8, 8\]"):
            network(np.zeros((1, 1, 8, 8, 8), np.float32))
        with pytest.raises(InputError, match="not whole numbers"):
            network(np.full((1, 1, 16, 24, 8), 0.5, np.float32))
    with pytest.raises(InputError, match="takes no statistics"):
        RemoteNetwork(server.grpc_url, "identity", statistics=np.zeros((1, 2), np.float32))
    with pytest.raises(InputError, match=r"statistics should be \[1, 2\]"):
        RemoteNetwork(server.grpc_url, "small-unet", statistics=np.zeros(2, np.float32))
    with pytest.raises(ModelError, match=r"'nothing' is not offered .* identity, identity-int16"):
        RemoteNetwork(server.grpc_url, "nothing")


@pytest.mark.parametrize("model", ["identity", "identity-int16", "small-unet", "small-unet-int16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_values_that_are_no_numbers_are_refused_and_not_sent(server: EmbeddedServer, model: str, value: float) -> None:
    """Scaled by the largest of them, all other values would become 0."""
    with RemoteNetwork(server.grpc_url, model) as network:
        x = np.ones((2, 1, *network.card.roi_size))
        x[1, 0, 3, 4, 5] = value
        with pytest.raises(InputError, match="found 1 that are NaN, infinite or beyond float32"):
            network(x)


@pytest.mark.parametrize("model", ["identity", "identity-int16"])
@pytest.mark.parametrize("dtype", [np.complex64, object])
def test_numbers_of_another_kind_are_refused(server: EmbeddedServer, model: str, dtype: type) -> None:
    with (
        RemoteNetwork(server.grpc_url, model) as network,
        pytest.raises(InputError, match=r"takes real numbers, found (complex64|object) numbers"),
    ):
        network(np.ones((1, 1, *network.card.roi_size), dtype))


@pytest.mark.parametrize("pair", [(np.nan, 1), (0, np.inf)])
def test_statistics_are_finite(server: EmbeddedServer, pair: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="statistics should be finite"):
        RemoteNetwork(server.grpc_url, "small-unet", statistics=np.array([pair], np.float32))
