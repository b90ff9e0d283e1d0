"""Regions that overlap are painted in an order that is given, proven or refused; each can be had alone as a mask."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn
from typer.testing import CliRunner

from tests.support.build_specs import spec
from tests.support.bundles import (
    INVERT,
    NETWORK,
    chain,
    inference,
    metadata,
    run_by_monai,
    write_bundle,
    write_scan,
)
from tests.support.importing import import_bundle
from voxtile import Segmenter
from voxtile.cli.app import app as client
from voxtile_build.build import build
from voxtile_build.errors import SourceError, SpecError
from voxtile_build.evaluation.region_order import overlaps, with_order
from voxtile_build.importers.bundle.bundle import spec_of
from voxtile_build.spec.spec import Spec
from voxtile_server.embedded import EmbeddedServer

NAMES = ["Tumor core", "Whole tumor", "Enhancing tumor"]
ORDER = ["Whole tumor", "Tumor core", "Enhancing tumor"]
SERVING = {"max_batch_size": 2, "warm_up": False, "engines": ["onnxruntime"]}
SIGMOID = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
THRESHOLD = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}
BRATS = "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))"
"""The function of MONAI's BraTS bundle: ET covers TC, which covers WT."""
DIFFERENT = 1e-5
"""Share of voxels that may differ: where a probability is one half to float32's rounding."""


def brats(*after: dict[str, Any]) -> dict[str, Any]:
    """A bundle of three regions; `after` follows the threshold."""
    post = chain(SIGMOID, INVERT, THRESHOLD, *after)
    return inference(network_def={**NETWORK, "out_channels": 3}, postprocessing=post)


def painted(function: str) -> dict[str, Any]:
    return {"_target_": "Lambdad", "keys": "pred", "func": function}


# Served -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A bundle that paints its regions, the same one without the painting, and where both are served."""
    root = tmp_path_factory.mktemp("regions")
    write_bundle(root / "painted", brats(painted(BRATS)), metadata(labels=NAMES))
    write_bundle(root / "plain", brats(), metadata(labels=NAMES))
    import_bundle(root / "painted", "painted", root / "models", {"serving": SERVING})
    settings = {"serving": SERVING, "output": {"region_order": ORDER}}
    import_bundle(root / "plain", "plain", root / "models", settings)
    with EmbeddedServer(root / "models") as server:
        yield root, server.grpc_url
        server.kill()


def test_regions_are_painted_as_the_bundle_paints_them(served: tuple[Path, str], tmp_path: Path) -> None:
    root, url = served
    scan = write_scan(tmp_path / "scan.nii.gz", (38, 31, 27), "LPS")
    expected = run_by_monai(root / "painted", [scan])[0]
    assert set(np.unique(expected)) == {0, 1, 2, 4}, "every region must be seen to prove anything"
    with Segmenter(url, "painted") as segmenter:
        found = segmenter.segment(scan)
    assert (np.asarray(found.mask.dataobj) != expected).mean() <= DIFFERENT
    assert found.report.labels["Tumor core"].voxels == int((np.asarray(found.mask.dataobj) == 1).sum()) > 0


def test_each_region_has_a_mask_that_is_monais(served: tuple[Path, str], tmp_path: Path) -> None:
    """MONAI's AsDiscrete gives three channels; the file has them, and the mask has them in the order that was given."""
    root, url = served
    scan = write_scan(tmp_path / "scan.nii.gz", (38, 31, 27), "LPS")
    core, whole, enhancing = expected = run_by_monai(root / "plain", [scan])
    assert all(0 < region.sum() < region.size for region in expected)
    command = ["segment", str(scan), "-o", str(tmp_path / "mask.nii.gz"), "--model", "plain", "--url", url]
    done = CliRunner().invoke(client, [*command, "--regions", str(tmp_path / "mask.regions.nii.gz")])
    assert done.exit_code == 0, done.output
    written = nib.load(tmp_path / "mask.regions.nii.gz")
    assert written.shape == (*nib.load(scan).shape, 3)
    np.testing.assert_array_equal(written.affine, nib.load(tmp_path / "mask.nii.gz").affine)
    assert (np.moveaxis(np.asarray(written.dataobj), 3, 0) != expected).mean() <= DIFFERENT
    mask = np.where(enhancing > 0, 3, np.where(core > 0, 1, np.where(whole > 0, 2, 0)))
    assert (np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj) != mask).mean() <= DIFFERENT


def test_a_bundle_that_leaves_the_order_open_is_refused_before_any_work(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", brats(), metadata(labels=NAMES))
    with pytest.raises(SpecError) as caught:
        import_bundle(folder, "b", tmp_path / "models", {"serving": SERVING})
    message = str(caught.value)
    assert "output.region_order" in message
    assert all(f'"{name}"' in message for name in NAMES)
    assert "--settings" in message
    assert not list((tmp_path / "models").glob("[!.]*"))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"regions": False}, "settings: output.regions: expected region_order alone"),
        ({"labels": ["a"]}, "settings: output.labels: expected region_order alone"),
        ({"region_order": ORDER[:2]}, "region_order with each of"),
        ({"region_order": [*ORDER, "Whole tumor"]}, "region_order with each of"),
        ({"region_order": [name.lower() for name in ORDER]}, "region_order with each of"),
    ],
)
def test_settings_give_the_order_of_regions_alone(tmp_path: Path, output: dict[str, Any], message: str) -> None:
    folder = write_bundle(tmp_path / "b", brats(), metadata(labels=NAMES))
    with pytest.raises((SourceError, SpecError), match=message):
        spec_of(folder, "b", {"output": output})


# The painting of a bundle -------------------------------------------------------------------------------------------

PAINTINGS = [
    BRATS,
    "$lambda x: torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, torch.where(x[[2]] > 0, 3, 0)))",
    BRATS.replace("x[[1]] > 0", "x[[1]] + x[[0]] > 0"),
    "$lambda x: torch.maximum(x[[0]] * 3, torch.maximum(x[[1]].long() * 1, x[2:3] * 2))",
    "$lambda x: x[[0]] * 5 + (x[[0]] == 0) * ((x[[2]] > 0) * 4 + (x[[2]] < 1) * x[[1]] * 2)",
    "$lambda seg: torch.where(seg[1:2] > 0.5, 5, torch.where(seg[[2]] == 1, 5, torch.where(seg[0:1] >= 1, 2, 0)))",
]


@pytest.mark.parametrize("function", PAINTINGS)
def test_the_order_and_the_values_are_those_of_the_function_run_by_monai(tmp_path: Path, function: str) -> None:
    folder = write_bundle(tmp_path / "b", brats(painted(function)), metadata(labels=NAMES))
    output = spec_of(folder, "b").output
    assert output.region_order is not None
    run = ConfigParser({"imports": ["$import torch"], "f": function}).get_parsed_content("f")
    for on in itertools.product((0, 1), repeat=3):
        mask = torch.tensor(on, dtype=torch.float32).reshape(3, 1, 1, 1)
        values = {label.name: label.value for label, here in zip(output.labels, on, strict=True) if here}
        seen = [values[name] for name in output.region_order if name in values]
        assert int(run(mask)) == (seen[-1] if seen else 0)


@pytest.mark.parametrize(
    "function",
    [
        "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, 0))",  # one region is lost
        "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[2]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))",
        BRATS.replace("> 0, 4", "< 1, 4"),
        BRATS.replace("2, 0)", "2, 9)"),
        BRATS.replace("x[[1]]", "y[[1]]"),
        BRATS.replace("x[[1]] > 0", "x[[1]] * x[[0]] > 0"),
        BRATS.replace("torch.where", "scripts.where"),
        BRATS.replace("> 0, 4", "> 0, -4"),
        BRATS.replace("lambda x", "lambda x, y=1"),
        "$lambda x: x.argmax(0, keepdim=True)",
        "$lambda x: x[[0]] + x[[1]] * 2 + x[[2]] * 4",  # a value for each combination
        "$lambda x: torch.where(x[[0]] + x[[1]] + x[[2]] == 2, 9, torch.maximum(x[[0]], x[[1]] * 2 + x[[2]] * 3))",
        "$__import__('os').system('true')",
        "$scripts.paint",
        "lambda",
        "$",
        None,
        3,
    ],
)
def test_other_functions_are_refused(tmp_path: Path, function: Any) -> None:
    folder = write_bundle(tmp_path / "b", brats(painted(function)), metadata(labels=NAMES))
    with pytest.raises(
        SourceError, match=r"postprocessing::transforms::3 \(Lambdad\): cannot be translated: expected "
    ):
        spec_of(folder, "b")


def test_a_function_elsewhere_is_refused(tmp_path: Path) -> None:
    before = inference(network_def={**NETWORK}, postprocessing=chain(SIGMOID, INVERT, painted(BRATS), THRESHOLD))
    twice = brats(painted(BRATS), painted(BRATS))
    for number, config in enumerate((before, twice)):
        folder = write_bundle(tmp_path / str(number), config, metadata(labels=NAMES))
        with pytest.raises(SourceError, match=r"\(Lambdad\): cannot be translated: (a function of sc|it comes after)"):
            spec_of(folder, "b")


# Proven on scans ----------------------------------------------------------------------------------------------------


class Nested(nn.Module):
    """Regions by thresholds: the higher the threshold, the smaller the region, and each lies in those below."""

    def __init__(self, *thresholds: float) -> None:
        super().__init__()
        self.register_buffer("thresholds", torch.tensor(thresholds).reshape(1, -1, 1, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return (image - self.thresholds) / 50


def regions_spec(**changes: Any) -> Spec:
    """Three regions of one channel."""
    output = {"labels": NAMES, "regions": True, **changes.pop("output", {})}
    return spec(output=output, tiling={"roi_size": [16, 16, 16], "overlap": 0.25}, serving=SERVING, **changes)


def test_inclusion_is_proven_on_the_acceptance_scans(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz", (30, 28, 26), "RAS")
    given = regions_spec(acceptance={"scans": [str(scan)]})
    card = build(given, tmp_path / "models", network=Nested(400.0, 150.0, 550.0)).card
    assert card.region_order == tuple(ORDER)
    assert [label.name for label in card.labels] == NAMES


def test_regions_that_the_scans_do_not_show_are_not_ordered(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz", (30, 28, 26), "RAS")
    given = regions_spec(acceptance={"scans": [str(scan)]})
    with pytest.raises(SpecError, match="show Enhancing tumor in fewer than 100 voxels"):
        build(given, tmp_path / "models", network=Nested(400.0, 150.0, 5000.0))
    assert not list((tmp_path / "models").glob("[!.]*"))


def test_a_generated_volume_proves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"names no scans in acceptance\.scans"):
        build(regions_spec(), tmp_path / "models", network=Nested(400.0, 150.0, 550.0))


def boxes(*spans: tuple[int, int]) -> Any:
    """[region, 10, 10, 40] bool: regions along the last axis."""
    masks = np.zeros((len(spans), 10, 10, 40), bool)
    for mask, (first, last) in zip(masks, spans, strict=True):
        mask[..., first:last] = True
    return masks


def ordered(*masks: Any) -> tuple[str, ...] | None:
    return with_order(regions_spec(), [overlaps(mask) for mask in masks]).output.region_order


def test_the_innermost_region_comes_last() -> None:
    assert ordered(boxes((5, 20), (0, 30), (8, 12))) == tuple(ORDER)
    assert ordered(boxes((0, 30), (5, 20), (8, 12))) == tuple(NAMES)
    # Two that exclude each other, in a third one.
    assert ordered(boxes((0, 10), (12, 20), (0, 30))) == ("Enhancing tumor", "Tumor core", "Whole tumor")
    # All exclude one another.
    assert ordered(boxes((0, 10), (12, 20), (20, 26))) == tuple(NAMES)


def test_what_one_scan_does_not_show_another_may() -> None:
    small = boxes((5, 20), (0, 30), (8, 8))
    with pytest.raises(SpecError, match="show Enhancing tumor in fewer than 100 voxels"):
        ordered(small)
    assert ordered(small, boxes((5, 20), (0, 30), (8, 12))) == tuple(ORDER)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (boxes((0, 20), (0, 20), (0, 5)), "Tumor core and Whole tumor are the same"),
        (boxes((0, 20), (10, 30), (12, 14)), "Tumor core and Whole tumor overlap, and neither lies within the other"),
        (boxes((0, 20), (0, 30), (18, 25)), "Tumor core and Enhancing tumor overlap, and neither"),
    ],
)
def test_regions_without_an_order_are_refused(masks: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ordered(masks)


def test_one_region_needs_no_order_and_a_given_one_is_kept() -> None:
    one = spec(network={"args": {"out_channels": 1}}, output={"labels": ["all"], "regions": True})
    assert with_order(one, []) == one
    given = regions_spec(output={"region_order": NAMES[::-1]})
    assert with_order(given, []) == given


def test_an_order_without_regions_is_refused() -> None:
    with pytest.raises(SpecError, match="region_order with each of"):
        spec(output={"region_order": ["background", "one", "two"]})
