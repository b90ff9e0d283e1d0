"""Chains of MONAI's transforms, built, certified and served: the mask is that of MONAI's own Compose and inferer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import SliceInferer, SlidingWindowInferer
from numpy.typing import NDArray
from torch import nn

from tests.support.build_specs import spec
from tests.support.monai_chains import monai_image, monai_labels
from tests.support.phantoms import phantom_volume
from voxtile import Segmenter
from voxtile.errors import InputError, ModelError
from voxtile.io.scan import open_scan
from voxtile.io.volume import Volume
from voxtile_build.build import build
from voxtile_server.embedded import EmbeddedServer

TIES = 2e-4
"""Share of voxels whose scores are so near to one another that rounding decides."""


@dataclass(frozen=True)
class Served:
    """A model of the server.

    before, after: its chains. labels: with their values in the mask. inferer: [inferer]. changes: other tables.
    """

    name: str
    before: list[dict[str, Any]]
    after: list[dict[str, Any]]
    labels: tuple[str, ...]
    inferer: dict[str, Any]
    channels: int = 1
    softmax: bool = False
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def flat(self) -> bool:
        return "slice_axis" in self.inferer

    @property
    def order(self) -> dict[str, Any]:
        """The order of regions; as MONAI has none, the test paints them as they come."""
        return {"region_order": list(self.labels)} if self.labels[0] != "none" else {}

    @property
    def network(self) -> nn.Module:
        torch.manual_seed(len(self.name))
        kind = nn.Conv2d if self.flat else nn.Conv3d
        count = len(self.labels)
        layers = [kind(self.channels, 6, 3, padding=1), nn.LeakyReLU(0.1), kind(6, count, 5, padding=2)]
        with torch.no_grad():
            layers[2].weight *= 4
            layers[2].bias *= 0
        return nn.Sequential(*layers, *([nn.Softmax(1)] if self.softmax else [])).eval()

    @property
    def spec(self) -> Any:
        return spec(
            name=self.name,
            input={"channels": [f"c{number}" for number in range(self.channels)]},
            preprocessing=self.before,
            output={"labels": list(self.labels), **self.order},
            tiling=self.inferer,
            postprocessing=self.after,
            serving={"engines": ["onnxruntime"], "max_batch_size": 4, "threads": 1, "warm_up": False},
            **dict(self.changes),
        )

    def by_monai(self, volume: Volume) -> NDArray[Any]:
        """[channel, i, j, k] what MONAI itself makes of a scan."""
        data, chain = monai_image(volume, self.before)
        given = {key: value for key, value in self.inferer.items() if key != "slice_axis"}
        kind: Any = SlidingWindowInferer
        if self.flat:
            given["spatial_dim"], kind = self.inferer["slice_axis"], SliceInferer
        with torch.inference_mode():
            scores = kind(**given)(torch.as_tensor(data["image"].numpy())[None], self.network)[0].numpy()
        return monai_labels(scores, data, chain, self.after)


LPS = {"transform": "Orientation", "axcodes": "LPS"}
SPACING = {"transform": "Spacing", "pixdim": [1.5, 2.5, 1.25]}
CROP = {"transform": "CropForeground", "select_fn": "x > 300", "margin": [1, 0, 2]}
CLIP = {"transform": "ClipIntensityPercentiles", "lower": 1, "upper": 98}
ZSCORE = {"transform": "NormalizeIntensity"}
RANGE = {"transform": "ScaleIntensityRange", "a_min": 0, "a_max": 600, "b_min": -1, "b_max": 1.5}
THRESHOLD = {"transform": "ThresholdIntensity", "threshold": -0.9, "cval": -2}
SOFTMAX = {"transform": "Activations", "softmax": True}
SIGMOID = {"transform": "Activations", "sigmoid": True}
LINEAR = {"transform": "Invert", "nearest_interp": False}
NEAREST = {"transform": "Invert", "nearest_interp": True}
ARGMAX = {"transform": "AsDiscrete", "argmax": True}
OTHER = {"transform": "AsDiscrete", "threshold": 0.4}
LARGEST = {"transform": "KeepLargestConnectedComponent", "applied_labels": [1, 2]}
HOLES = {"transform": "FillHoles"}
MAPPED = {"transform": "MapLabelValue", "orig_labels": [1, 2], "target_labels": [7, 300]}

SERVED = (
    Served(
        "largest",
        [LPS, SPACING, CROP, CLIP, ZSCORE],
        [SOFTMAX, LINEAR, ARGMAX, LARGEST],
        ("none", "one", "two"),
        {"roi_size": [16, 12, 16], "overlap": 0.5, "mode": "gaussian"},
    ),
    Served(
        "regions",
        [SPACING, LPS, RANGE, THRESHOLD, {"transform": "DivisiblePad", "k": 5, "method": "end"}, THRESHOLD],
        [SIGMOID, OTHER, HOLES, NEAREST],
        ("wide", "deep"),
        {"roi_size": [40, 12, 48], "overlap": 0.25, "mode": "constant", "padding_mode": "replicate"},
        channels=2,
    ),
    Served(
        "probable",
        [{"transform": "Orientation", "axcodes": "PIR"}, CROP, RANGE, THRESHOLD],
        [LINEAR, ARGMAX, MAPPED],
        ("none", "one", "two"),
        {"roi_size": [16, 12], "slice_axis": 1, "overlap": 0.5, "mode": "gaussian"},
        softmax=True,
        changes=(("network", {"output": "probabilities"}),),
    ),
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repository = tmp_path_factory.mktemp("chains") / "repository"
    for one in SERVED:
        published = build(one.spec, repository, network=one.network)
        assert not published.refused
        assert not published.warnings
    with EmbeddedServer(repository) as server:
        yield server.grpc_url
        server.kill()


def scan(folder: Path, channels: int) -> list[Path]:
    """The phantom as files, one a channel; oblique, and stored in another orientation than any model's."""
    volume = phantom_volume((24, 31, 27), codes="PSL", angles=(0, 0, 9.0), channels=channels)
    paths = []
    for number, channel in enumerate(volume.data):
        paths.append(folder / f"c{number}.nii.gz")
        nib.save(nib.Nifti1Image(channel, volume.affine), paths[-1])
    return paths


@pytest.mark.parametrize("one", SERVED, ids=lambda one: one.name)
def test_the_mask_is_monais(one: Served, url: str, tmp_path: Path) -> None:
    files = scan(tmp_path, one.channels)
    with Segmenter(url, one.name, overlap=one.inferer["overlap"]) as segmenter:
        found = segmenter.segment([str(file) for file in files])
        volume = open_scan([str(file) for file in files], segmenter.card.channels)
    expected = one.by_monai(volume)
    regions = len(expected) > 1
    mask = np.max([(r + 1) * (part > 0) for r, part in enumerate(expected)], axis=0) if regions else expected[0]
    assert (found.labels != mask).sum() <= TIES * mask.size
    assert len(np.unique(mask)) == 3
    assert set(found.report.labels) == set(one.labels)
    assert sum(label.voxels for label in found.report.labels.values()) <= mask.size
    assert found.report.predicted_peak_bytes > found.labels.nbytes


def test_what_has_no_meaning_is_refused_in_one_line(url: str, tmp_path: Path) -> None:
    empty = nib.Nifti1Image(np.full((20, 20, 20), 299, np.int16), np.eye(4))
    with Segmenter(url, "largest") as segmenter, pytest.raises(InputError) as caught:
        segmenter.segment(empty)
    assert "voxels with x > 300, found none" in str(caught.value)
    with Segmenter(url, "regions", keep_scores=True) as segmenter, pytest.raises(ModelError) as kept:
        segmenter.segment([str(file) for file in scan(tmp_path, 2)])
    assert "decided before they are brought back" in str(kept.value)
