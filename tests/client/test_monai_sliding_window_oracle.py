"""The cases of MONAI's own tests of its sliding window, with the installed function as the oracle.

Shapes, ROIs, batches, overlaps, modes, sigmas and padding values are those that MONAI tries on itself, and more of the
same kind; the client does each in process, and a dozen through the real server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from torch import nn

from tests.support.build_specs import spec
from tests.support.in_process import stitched
from voxtile import RemoteNetwork, Segmenter
from voxtile.card import Tiling
from voxtile.errors import InputError
from voxtile_build.build import build
from voxtile_server.embedded import EmbeddedServer

RELATIVE = 1e-5
"""float32: the same products, summed in another order."""

Shape = tuple[int, ...]
Numbers = float | tuple[float, ...]


@dataclass(frozen=True)
class Case:
    """image: [batch, channel, *spatial]. roi: as MONAI takes it, -1 for the whole axis."""

    image: Shape
    roi: Shape
    batch: int = 3
    overlap: Numbers = 0.25
    mode: str = "constant"
    sigma_scale: Numbers = 0.125
    cval: float = 0.0
    padding: str = "constant"

    @property
    def window(self) -> Shape:
        """The ROI in voxels."""
        return tuple(n if size < 1 else size for size, n in zip(self.roi, self.image[2:], strict=True))

    @property
    def tiling(self) -> Tiling:
        return Tiling(overlap=self.overlap, mode=self.mode, sigma_scale=self.sigma_scale, padding_mode=self.padding)

    def __str__(self) -> str:
        changes = [f"{self.overlap}", self.mode]
        changes += [f"sigma {self.sigma_scale}"] if self.sigma_scale != 0.125 else []
        changes += [f"outside {self.cval:g}"] if self.cval else []
        changes += [self.padding] if self.padding != "constant" else []
        return f"{'x'.join(map(str, self.image))} by {'x'.join(map(str, self.roi))}, {', '.join(changes)}"


DEFAULT = [
    Case((2, 3, 16), (4,)),
    Case((2, 3, 16, 15, 7, 9), (4, 4, 4, 4)),
    Case((1, 3, 16, 15, 7), (4, -1, 7)),
    Case((3, 3, 16, 15, 7), (4, -1, 7)),
    Case((1, 3, 16, 15, 7), (4, 10, 7)),
    Case((1, 3, 16, 15, 7), (20, 22, 23), 10),
    Case((2, 3, 15, 7), (2, 6), 1000),
    Case((1, 3, 16, 7), (80, 50), 7),
    Case((1, 3, 16, 15, 7), (20, 22, 23), 10, 0.5),
    Case((1, 3, 16, 7), (80, 50), 7, 0.5, "gaussian"),
    Case((3, 3, 16, 15, 7), (4, 10, 7), 3, 0.25, "gaussian"),
    Case((5, 3, 16, 15, 7), (4, 1, 7)),
]
WINDOWS = [
    *(Case((2, 3, 10, 11), (7, 10), 5, 0.8, mode) for mode in ("constant", "gaussian")),
    *(Case((2, 3, 10, 11), (15, 12), 2, 0.0, mode) for mode in ("constant", "gaussian")),
    *(Case((2, 3, 10, 11), (10, 11), 3, 0.0, mode) for mode in ("constant", "gaussian")),
    *(Case((2, 3, 10, 11, 12), (7, 8, 10), 2, 0.2, mode) for mode in ("constant", "gaussian")),
    Case((1, 3, 511, 237), (96, 80), 5, 0.4, "gaussian"),
    Case((1, 3, 512, 245), (96, 80), 5, 0.0),
    Case((1, 3, 512, 245), (512, 80), 5, 0.125, "gaussian"),
    Case((1, 3, 50, 50, 100), (25, 25, 50), 8, 0.0, "gaussian"),
]
"""What MONAI tries its buffers on; the largest at half the size."""
ANISOTROPIC = [
    Case((1, 1, 62, 256, 100), (48, 49, 50), 20, (0.4, 0.32, 0.0), "gaussian"),
    Case((1, 1, 5, 256, 100), (48, 49, 50), 21, (0.4, 0.12, 0.0)),
    Case((1, 3, 33, 20, 27), (16, 8, 12), 4, (0.0, 0.5, 0.75), "gaussian", (0.1, 0.2, 0.4)),
]
SIGMAS = [
    Case((1, 3, 16, 15, 7), (8, 10, 7), 3, 0.5, "gaussian", sigma_scale)
    for sigma_scale in (0.01, 0.05, 0.125, 0.3, 1.0, 5.0)
]
PADDED = [
    *(Case((1, 3, *image), (8, 10, 12), 3, 0.5, "gaussian", 0.125, cval)
      for image in ((5, 25, 30), (20, 25, 11), (3, 4, 5), (7, 9, 40)) for cval in (0.0, -1.0, 2.5)),
    Case((1, 3, 3, 3), (5, 5), 10, 0.5, "constant", 1.0, -1.0),
    *(Case((2, 3, *image), (8, 10, 12), 3, 0.5, "gaussian", 0.125, 0.0, padding)
      for image in ((5, 25, 30), (20, 25, 11), (5, 7, 9)) for padding in ("replicate", "reflect", "circular")),
    Case((1, 3, 2, 20), (9, 7), 3, 0.5, "gaussian", padding="replicate"),
]  # fmt: skip
CASES = [*DEFAULT, *WINDOWS, *ANISOTROPIC, *SIGMAS, *PADDED]


pytestmark = pytest.mark.usefixtures("one_thread")


def by_monai(x: NDArray[np.float32], case: Case, network: Callable[..., Any]) -> NDArray[np.float32]:
    """Scores [batch, score, *spatial]."""
    with torch.no_grad():
        scores = sliding_window_inference(
            torch.from_numpy(x),
            case.roi,
            case.batch,
            network,
            overlap=case.overlap,
            mode=case.mode,
            sigma_scale=case.sigma_scale,
            padding_mode=case.padding,
            cval=case.cval,
        )
    return np.asarray(scores)


def by_client(x: NDArray[np.float32], case: Case, network: Callable[..., torch.Tensor]) -> NDArray[np.float32]:
    """The same by the client, one scan after the other."""

    def called(rois: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            return network(torch.from_numpy(rois)).numpy()

    one = [
        stitched(scan, case.window, case.tiling, called, batch=case.batch, cval=case.cval)
        for scan in np.ascontiguousarray(x)
    ]
    return np.stack(one)


def assert_equal(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Scores [batch, score, *spatial] within the tolerance, and no label another."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype == np.float32
    assert np.abs(found - expected).max() <= RELATIVE * np.abs(expected).max()
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))


def values(case: Case) -> NDArray[np.float32]:
    return np.random.default_rng(sum(case.image)).normal(0.5, 1, case.image).astype(np.float32)


class Placed(nn.Module):
    """Four scores over any number of axes: a mixture of channels and a neighbour, and more at each place of the ROI."""

    def __init__(self, channels: int, roi: Sequence[int]) -> None:
        super().__init__()
        made = torch.Generator().manual_seed(sum(roi))
        self.mixture = torch.randn(4, channels, generator=made)
        self.places = torch.randn(4, *roi, generator=made)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = torch.einsum("sc,bc...->bs...", self.mixture, x + 0.5 * x.roll(1, -1))
        return nn.functional.leaky_relu(mixed + self.places, 0.1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_scores_and_labels_are_monais(case: Case) -> None:
    network, x = Placed(case.image[1], case.window), values(case)
    assert_equal(by_client(x, case, network), by_monai(x, case, network))


@pytest.mark.parametrize("case", DEFAULT, ids=str)
def test_one_more_is_one_more_in_every_voxel(case: Case) -> None:
    """MONAI's own check, on its own values."""
    x = np.arange(np.prod(case.image), dtype=np.float32).reshape(case.image)
    found = by_client(x, case, lambda rois: rois + 1)
    np.testing.assert_allclose(found, x + 1, rtol=RELATIVE)
    np.testing.assert_allclose(found, by_monai(x, case, lambda rois: rois + 1), rtol=RELATIVE)


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_tiles_come_to_the_network_in_monais_batches(mode: str) -> None:
    """A network that answers each batch with a larger number than the one before."""
    case = Case((1, 1, 7, 7), (3, 3), 10, 0.5, mode, 1.0, -1.0)
    x = np.ones(case.image, np.float32)

    def counting() -> Callable[[torch.Tensor], torch.Tensor]:
        numbers = iter(range(2, 100))
        return lambda rois: rois + next(numbers)

    found = by_client(x, case, counting())
    np.testing.assert_allclose(found, by_monai(x, case, counting()), rtol=RELATIVE)
    assert len(np.unique(found.round(3))) > 4


@pytest.mark.parametrize("cval", [0.0, -1.0, 3.0])
def test_the_network_sees_what_lies_outside(cval: float) -> None:
    """One that adds up all that it sees."""
    case = Case((1, 1, 3, 3), (5, 5), 10, 0.5, "constant", 1.0, cval)
    x = np.ones(case.image, np.float32)
    found = by_client(x, case, lambda rois: rois + rois.sum())
    np.testing.assert_array_equal(found, by_monai(x, case, lambda rois: rois + rois.sum()))
    np.testing.assert_array_equal(found, 10 + 16 * cval)


@pytest.mark.parametrize(("padding", "size"), [("reflect", 4), ("circular", 3)])
def test_a_scan_too_small_to_be_padded_with_its_own_voxels_is_refused_as_pytorch_refuses_it(
    padding: str, size: int
) -> None:
    case = Case((1, 3, size, 12), (11, 5), padding=padding)
    with pytest.raises(InputError, match=f"pads small scans by {padding}, which takes at most 3 voxels"):
        by_client(values(case), case, lambda rois: rois)
    with pytest.raises(RuntimeError):
        by_monai(values(case), case, lambda rois: rois)


# Through the server


@dataclass(frozen=True)
class Served:
    """A case as a model of the server. low, high: of an intensity rule, where there is one."""

    name: str
    case: Case
    low: float | None = None
    high: float | None = None

    @property
    def flat(self) -> bool:
        return len(self.case.roi) == 2

    @property
    def network(self) -> nn.Module:
        torch.manual_seed(len(self.name))
        kind = nn.Conv2d if self.flat else nn.Conv3d
        return nn.Sequential(kind(3, 4, 3, padding=1), nn.LeakyReLU(0.1), kind(4, 4, 1)).eval()

    @property
    def spec(self) -> Any:
        case = self.case
        rule = {"rule": "none"}
        if self.low is not None:
            rule = {"rule": "range", "a_min": self.low, "a_max": self.high, "clip": True}
        return spec(
            name=self.name,
            input={"channels": ["a", "b", "c"], "intensity": rule},
            output={"labels": ["none", "one", "two", "three"]},
            tiling={
                **{
                    "roi_size": list(case.window),
                    "overlap": _toml(case.overlap),
                    "sigma_scale": _toml(case.sigma_scale),
                },
                **{"mode": case.mode, "cval": case.cval},
                **({"slice_axis": 2} if self.flat else {}),
            },
            serving={"engines": ["onnxruntime"], "max_batch_size": 4, "threads": 1, "warm_up": False},
        )

    def normalised(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.low is None or self.high is None:
            return x
        return np.clip((x - self.low) / (self.high - self.low), 0, 1).astype(np.float32)


def _toml(value: Numbers) -> float | list[float]:
    return list(value) if isinstance(value, tuple) else value


SERVED = [
    Served("small-roi", Case((1, 3, 16, 15, 7), (4, -1, 7))),
    Served("gaussian", Case((3, 3, 16, 15, 7), (4, 10, 7), 3, 0.25, "gaussian")),
    Served("large-roi", Case((1, 3, 16, 15, 7), (20, 22, 23), 10, 0.5)),
    Served("thin-roi", Case((2, 3, 16, 15, 7), (4, 1, 7))),
    Served("flat", Case((2, 3, 15, 7), (2, 6), 1000)),
    Served("flat-large", Case((1, 3, 16, 7), (80, 50), 7, 0.5, "gaussian")),
    Served("flat-each", Case((2, 3, 21, 30), (16, 8), 4, (0.8, 0.3), "gaussian", (0.3, 0.05))),
    Served("steps", Case((2, 3, 10, 11, 12), (7, 8, 10), 2, 0.2)),
    Served("each-axis", Case((1, 3, 33, 20, 27), (16, 8, 12), 4, (0.0, 0.5, 0.75), "gaussian", (0.1, 0.2, 0.4))),
    Served("wide-sigma", Case((1, 3, 16, 15, 7), (8, 10, 7), 3, 0.5, "gaussian", 0.3)),
    Served("outside-one-axis", Case((1, 3, 5, 25, 30), (8, 10, 12), 3, 0.5, "gaussian", 0.125, -1.0)),
    Served("outside-all-axes", Case((1, 3, 3, 4, 5), (8, 10, 12), 3, 0.5, "constant", 0.125, 2.5)),
    Served("outside-of-a-range", Case((1, 3, 7, 9, 20), (8, 10, 12), 3, 0.5, "gaussian", 0.125, -1.0), -1.0, 2.0),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repository = tmp_path_factory.mktemp("cases") / "repository"
    for one in SERVED:
        build(one.spec, repository, network=one.network)
    with EmbeddedServer(repository) as server:
        yield server.grpc_url
        server.kill()


def scans_of(x: NDArray[np.float32], one: Served) -> list[list[nib.Nifti1Image]]:
    """A scan for each of the batch, an image a channel; of a 2D case the batch is one scan's slices."""
    volumes = x.transpose(1, 2, 3, 0)[None] if one.flat else x
    return [[nib.Nifti1Image(channel, np.eye(4)) for channel in volume] for volume in volumes]


@pytest.mark.parametrize("one", SERVED, ids=lambda one: one.name)
def test_the_client_through_the_server_is_monais(url: str, one: Served) -> None:
    x = values(one.case)
    expected = by_monai(one.normalised(x), one.case, one.network)
    with Segmenter(url, one.name, keep_scores=True) as segmenter:
        results = [segmenter.segment(scan) for scan in scans_of(x, one)]
    scores = np.stack([result.scores for result in results if result.scores is not None])
    masks = np.stack([np.asarray(result.mask.dataobj) for result in results])
    if one.flat:
        scores, masks = scores[0].transpose(3, 0, 1, 2), masks[0].transpose(2, 0, 1)
    assert_equal(scores, expected)
    np.testing.assert_array_equal(masks, expected.argmax(1))


@pytest.mark.parametrize("one", [one for one in SERVED if one.low is None], ids=lambda one: one.name)
def test_the_remote_network_in_monais_own_function_is_monais(url: str, one: Served) -> None:
    x = values(one.case)
    with RemoteNetwork(url, one.name) as network:
        found = by_monai(x, one.case, network)
    assert_equal(found, by_monai(x, one.case, one.network))
