"""Every precision that a CPU can serve, all on one real server: the trained demo network in each, and, since dynamic
int8 is of matrix products alone, a network with attention in that one.

The scores that the server gives are those of the engine in process, each entry is verified as served, and the masks are
those of fp32 PyTorch in MONAI's own function.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tomllib
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from torch import nn
from typer.testing import CliRunner

from models.training.mni152 import fetch_mni152
from tests.support.precision_graphs import Attending
from voxtile import ConnectionConfig, Segmenter
from voxtile.card import Card
from voxtile.cli.app import app
from voxtile.triton.catalogue import list_models
from voxtile.triton.endpoint import Endpoint
from voxtile_build.arrays import Runner
from voxtile_build.build import build
from voxtile_build.certificate.archive import unpack
from voxtile_build.certificate.served import ServedRunner
from voxtile_build.certificate.verify import verify
from voxtile_build.engines.onnxruntime.runner import OnnxRuntimeRunner
from voxtile_build.engines.openvino.core import core as the_core
from voxtile_build.engines.openvino.runner import OpenVinoRunner
from voxtile_build.importers.network import load_network
from voxtile_build.repository.card import get_card
from voxtile_build.repository.config import read_config
from voxtile_build.spec.spec import Spec, parse_spec
from voxtile_server.embedded import EmbeddedServer

MODELS = Path(__file__).parents[2] / "models"
ROI = (32, 32, 32)
CALIBRATED_ON = np.s_[125:186, 100:155, 60:101]
SEGMENTED = np.s_[15:76, 70:123, 80:121]
"""A piece of the other half of the brain with as much of each label, larger than the ROI, of odd sizes."""
DICE = 0.99
"""Of each label against fp32 PyTorch, for every precision."""
LEAST = 0.1
"""Share of the scan that each label must take: one that is hardly there proves nothing."""


@dataclass(frozen=True)
class Precise:
    """One engine in one precision, as a model of its own."""

    engine: str
    precision: str

    @property
    def model(self) -> str:
        return f"brain-{self.engine}-{self.precision}"

    @property
    def entry(self) -> str:
        return f"{self.model}_{self.engine}"

    def network(self, spec: Spec) -> nn.Module:
        return Attending().eval() if self.precision == "int8-dynamic" else load_network(spec).eval()


PRECISIONS = [
    *(Precise("openvino", precision) for precision in ("fp32", "bf16", "int8")),
    *(Precise("onnxruntime", precision) for precision in ("fp32", "fp16", "int8", "int8-dynamic")),
]
every = pytest.mark.parametrize("one", PRECISIONS, ids=lambda one: f"{one.engine} {one.precision}")


@dataclass(frozen=True)
class Brain:
    """The server, its repository, and a piece of a brain with what fp32 PyTorch gives for it."""

    url: str
    repository: Path
    image: nib.Nifti1Image
    specs: Mapping[Precise, Spec]

    def labels(self, one: Precise) -> NDArray[np.int64]:
        """[x, y, z] by MONAI over fp32 PyTorch."""
        return self._trained if one.precision != "int8-dynamic" else self._by_monai(one)

    @cached_property
    def _trained(self) -> NDArray[np.int64]:
        return self._by_monai(PRECISIONS[0])

    def _by_monai(self, one: Precise) -> NDArray[np.int64]:
        values = np.asarray(self.image.dataobj, np.float64)
        inside = values[values != 0]
        x = torch.from_numpy(((values - inside.mean()) / inside.std()).astype(np.float32))[None, None]
        with torch.no_grad():
            network = one.network(self.specs[one])
            logits = sliding_window_inference(x, ROI, 4, network, overlap=0.25, mode="gaussian")
        return np.asarray(logits)[0].argmax(0)

    def certificate(self, one: Precise) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.repository / one.entry / "1" / "certificate.json").read_text())
        return content


def spec_of(one: Precise, scan: Path) -> Spec:
    """models/brain-unet.toml with a small ROI, in one precision of one engine."""
    fields = tomllib.loads((MODELS / "brain-unet.toml").read_text())
    changes: dict[str, Any] = {
        "name": one.model,
        "tiling": {**fields["tiling"], "roi_size": list(ROI), "overlap": 0.25},
        "serving": {"engines": [one.engine], "max_batch_size": 2, "threads": 1, "warm_up": False},
        "precision": {one.engine: one.precision, "calibration": [str(scan)]},
        "acceptance": {"scans": [str(scan)], "min_dice": DICE, "max_changed": 0.01},
    }
    return parse_spec({**fields, **changes}, one.model, MODELS)


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brain]:
    folder = tmp_path_factory.mktemp("precisions")
    whole = nib.load(fetch_mni152(folder)["t1"])
    scan, repository = folder / "calibration.nii.gz", folder / "repository"
    nib.save(whole.slicer[CALIBRATED_ON], scan)
    specs = {one: spec_of(one, scan) for one in PRECISIONS}
    for one, spec in specs.items():
        build(spec, repository, network=one.network(spec))
    with EmbeddedServer(repository) as server:
        yield Brain(server.grpc_url, repository, whole.slicer[SEGMENTED], specs)
        server.kill()


def in_process(brain: Brain, one: Precise) -> Runner:
    """The entry's file in this process, opened with the parameters that the entry's config gives the server."""
    folder = brain.repository / one.entry
    given = {key: value.string_value for key, value in read_config(folder).parameters.items()}
    if one.engine == "onnxruntime":
        return OnnxRuntimeRunner(folder / "1" / "model.onnx", int(given["intra_op_thread_count"]))
    hint = given.get("INFERENCE_PRECISION_HINT", "f32")
    return OpenVinoRunner(folder / "1" / "model.xml", int(given["INFERENCE_NUM_THREADS"]), hint)


@every
def test_served_scores_are_those_of_the_engine_in_process(brain: Brain, one: Precise) -> None:
    run = in_process(brain, one)
    stored = unpack(brain.repository / one.entry / "1" / "samples.npz")
    with ServedRunner(brain.url, public_card(brain, one), one.entry) as served:
        for tile, _ in stored.tiles:
            feed = {"roi": tile.roi[None], "intensity": tile.statistics[None]}
            np.testing.assert_array_equal(served(feed), run(feed))


def public_card(brain: Brain, one: Precise) -> Card:
    folder = brain.repository / one.model
    return get_card(read_config(folder), folder)


@every
def test_the_certificate_is_accepted_in_the_precision_asked_for(brain: Brain, one: Precise) -> None:
    certificate = brain.certificate(one)
    assert certificate["accepted"] is True
    assert (certificate["engine"], certificate["precision"]) == (one.engine, one.precision)
    assert certificate["metrics"]["dice_min"] >= DICE


def test_reduced_precisions_are_reduced(brain: Brain) -> None:
    """An entry that says int8 and computes in fp32 would pass every other test."""
    errors = {one: brain.certificate(one)["metrics"]["max_abs_error"] for one in PRECISIONS}
    for one in PRECISIONS:
        if "int8" in one.precision or (one.engine, one.precision) == ("onnxruntime", "fp16"):
            assert errors[one] > 3 * errors[Precise(one.engine, "fp32")], one
    facts = brain.certificate(Precise("openvino", "bf16"))["precision_facts"]
    if facts["effective"] == "bf16":
        assert errors[Precise("openvino", "bf16")] > 3 * errors[Precise("openvino", "fp32")]


def test_int8_leaves_the_scans_own_values_alone(brain: Brain) -> None:
    """Rounded, they would be a scan of 256 values, and the mark of what lies outside would be none."""
    one = Precise("openvino", "int8")
    model = the_core().read_model(str(brain.repository / one.entry / "1" / "model.xml"))
    front = [operation for operation in model.get_ops() if operation.get_type_name() == "FakeQuantize"]
    assert front
    while front:
        operation = front.pop()
        assert operation.get_type_name() != "Parameter", "an input is rounded before the first convolution"
        if "Convolution" not in operation.get_type_name():
            front += [value.get_node() for value in operation.input_values()]


@every
def test_the_entry_holds_as_served(brain: Brain, one: Precise) -> None:
    verdict, public = verify(one.model, brain.repository, brain.url)
    assert verdict.holds, verdict.as_line()
    assert public.holds, public.as_line()
    assert verdict.metrics["dice_min"] >= DICE


def test_the_client_lists_each_with_its_precision_and_certificate(brain: Brain) -> None:
    offers = {offer.name: offer for offer in list_models(Endpoint(brain.url, ConnectionConfig()))}
    assert sorted(offers) == sorted(one.model for one in PRECISIONS)
    page = CliRunner().invoke(app, ["models", "--url", brain.url], env={"COLUMNS": "300"}).stdout.splitlines()
    for one in PRECISIONS:
        card = offers[one.model].card
        assert card is not None
        certificate = card.certificates[card.engine]
        assert (card.engine, certificate.precision, certificate.accepted) == (one.engine, one.precision, True)
        (line,) = [line for line in page if line.split()[0] == one.model]
        assert f"{one.engine} {one.precision}" in line
        assert f"Dice ≥ {certificate.dice_min:.4f}" in line


@every
def test_masks_are_those_of_fp32_pytorch(brain: Brain, one: Precise, record_property: Any) -> None:
    with Segmenter(brain.url, one.model) as segmenter:
        result = segmenter.segment(brain.image)
    expected = brain.labels(one)
    found = np.asarray(result.mask.dataobj)
    pairs = [(found == label.value, expected == label.value) for label in segmenter.card.labels]
    dice = [float(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())) for ours, theirs in pairs]
    record_property("dice", dice)
    print(f"{one.engine} {one.precision}: Dice {np.round(dice, 4)}, flipped {(found != expected).mean():.1e}")
    assert all(theirs.mean() > LEAST for _, theirs in pairs)
    assert min(dice) >= DICE
    assert result.report.certificate is not None
