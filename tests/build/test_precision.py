"""The precision search: on real networks, one of which overflows."""

import functools
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from tests.support.small_networks import UNET_ROI, blobs, overflowing, plain
from voxtile_build.precision.mixed_precision import Fp16OverflowError, refuse_overflow, to_mixed
from voxtile_build.precision.quantize_qdq import quantizable, quantize_qdq
from voxtile_build.precision.ranges import tensor_ranges
from voxtile_build.precision.run_stepwise import run_stepwise
from voxtile_build.precision.search import Acceptance, Candidate, Metrics, search
from voxtile_build.precision.sensitivity import rank_fp16
from voxtile_build.sessions import run_graph

LABELS = {"background": 0, "left": 1, "right": 2}
SCANS = [{"roi": blobs((24, 20, 16), seed=seed)} for seed in range(2)]


def metrics_of(reference: NDArray[np.integer[Any]], found: NDArray[np.integer[Any]]) -> Metrics:
    """Dice 2|A∩B| / (|A|+|B|) of each label, and the share of changed voxels."""
    pairs = {name: (reference == value, found == value) for name, value in LABELS.items()}
    dice = {name: 2 * (old & new).sum() / (old.sum() + new.sum()) for name, (old, new) in pairs.items()}
    return Metrics(dice, float(np.mean(reference != found)))


def masks(outputs: list[dict[str, NDArray[Any]]]) -> NDArray[np.integer[Any]]:
    return np.stack([output["scores"].argmax(axis=1) for output in outputs])


def measure_stepwise(model: onnx.ModelProto, reference: NDArray[np.integer[Any]]) -> Metrics:
    return metrics_of(reference, masks(run_stepwise(model, SCANS)))


def test_plain_fp16_is_refused_by_layer_and_auto_finds_a_mixture_that_passes() -> None:
    model = overflowing()
    ranges = tensor_ranges(model, SCANS)
    reference = masks(run_graph(model, SCANS))
    assert all((reference == value).mean() > 0.02 for value in LABELS.values())
    measure = functools.partial(measure_stepwise, reference=reference)

    def build(kept: frozenset[str]) -> onnx.ModelProto:
        refuse_overflow(model, ranges, kept)
        return to_mixed(model, "fp16", kept)

    candidate = Candidate("fp16", build, lambda: rank_fp16(model, SCANS[:1], ranges))
    with pytest.raises(Fp16OverflowError, match="'node_conv3d_1'"):
        candidate.build(frozenset())
    result = search([candidate], measure)
    assert "'node_conv3d_1' reaches" in result.path[0].refused_because[0]
    assert {"node_conv3d_1", "node_conv3d_2"} <= set(result.accepted.kept)
    assert len(result.accepted.kept) < 5
    assert result.accepted.changed is not None
    assert result.accepted.changed <= 0.001
    kinds = {tensor.data_type for tensor in result.engine.graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds


def test_layers_are_ranked_by_what_they_do_to_the_scores() -> None:
    model = overflowing()
    ranges = tensor_ranges(model, SCANS)
    ranked = rank_fp16(model, SCANS[:1], ranges)
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    assert sorted(ranked) == sorted(convolutions)
    assert set(ranked[:2]) == {"node_conv3d_1", "node_conv3d_2"}


def test_int8_search_on_a_real_network_goes_to_the_mixture_that_passes() -> None:
    model = plain()
    scans = [{"roi": blobs(UNET_ROI, seed=seed)} for seed in range(2)]
    reference = masks(run_graph(model, scans))
    layers = quantizable(model)

    def build(kept: frozenset[str]) -> onnx.ModelProto:
        return quantize_qdq(model, scans, kept)

    def measure(engine: onnx.ModelProto) -> Metrics:
        return metrics_of(reference, masks(run_graph(engine, scans)))

    all_quantised = measure(build(frozenset()))
    # Half of the voxels that change in full int8 may change, so that some layers must be put back.
    asked = Acceptance(max_dice_drop=1.0, max_changed=all_quantised.changed / 2)
    candidates = [
        Candidate("int8", build, lambda: layers),
        Candidate("fp32", lambda kept: model, tuple),
    ]
    result = search(candidates, measure, asked)
    assert not result.path[0].accepted
    assert result.path[0].changed == pytest.approx(all_quantised.changed)
    assert result.accepted.changed is not None
    assert result.accepted.changed <= asked.max_changed
