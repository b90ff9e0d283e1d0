"""The base graph in reduced precision, and which of its layers reduced precision hurts most.

Engines that read precision from the ONNX graph share this. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onnx import ModelProto

from voxtile_build.arrays import Array, Feed, Runner
from voxtile_build.precision.mixed_precision import low_nodes, out_of_range, preparing_nodes, refuse_overflow, to_mixed
from voxtile_build.precision.quantize_qdq import quantizable, quantize_qdq
from voxtile_build.precision.ranges import tensor_ranges
from voxtile_build.precision.run_stepwise import run_stepwise
from voxtile_build.precision.sensitivity import rank_fp16, rank_int8

if TYPE_CHECKING:  # ranking layers needs no PyTorch
    from voxtile_build.graph.graphs import Graphs

Facts = dict[str, Any]
"""What a certificate says of the precision."""


def fp16_graph(graphs: Graphs, kept: frozenset[str] = frozenset()) -> tuple[ModelProto, Facts]:
    """The base graph in mixed fp16.

    Layers stay in fp32 if they are in `kept`, or if somewhat brighter scans would make them overflow.

    Raises:
        Fp16OverflowError: the calibration tiles themselves overflow a layer, which the message names.
    """
    ranges, preparing = tensor_ranges(graphs.base, graphs.calibration.feeds), preparing_nodes(graphs.base)
    refuse_overflow(graphs.base, ranges, kept | preparing)
    near = frozenset(out_of_range(graphs.base, ranges)) & low_nodes(graphs.base, kept | preparing)
    facts = {
        "kept": sorted(kept),
        "kept_near_overflow": sorted(near),
        "calibration": graphs.calibration.as_dict(),
    }
    return to_mixed(graphs.base, "fp16", kept | near | preparing), facts


def bf16_graph(graphs: Graphs, kept: frozenset[str] = frozenset()) -> tuple[ModelProto, Facts]:
    """The base graph in mixed bf16, which has fp32's range: nothing overflows."""
    return to_mixed(graphs.base, "bf16", kept | preparing_nodes(graphs.base)), {}


def int8_graph(graphs: Graphs, kept: frozenset[str] = frozenset()) -> tuple[ModelProto, Facts]:
    """The base graph with Q/DQ pairs around its convolutions.

    Raises:
        QuantizationError: no convolution is left for int8.
    """
    facts = {
        "int8_convolutions": len(quantizable(graphs.base, kept)),
        "kept": sorted(kept),
        "calibration": graphs.calibration.as_dict(),
    }
    return quantize_qdq(graphs.base, graphs.calibration.feeds, kept), facts


def stepwise_runner(model: ModelProto) -> Runner:
    """Runs `model` node by node, each value rounded to its type as on a GPU. It is slow, and shows every overflow."""

    def run(inputs: Feed) -> Array:
        return run_stepwise(model, [inputs])[0]["scores"]

    return run


def layers_by_fp16(graphs: Graphs) -> Sequence[str]:
    """Layers of the base graph that fp16 hurts, the most sensitive first."""
    ranges = tensor_ranges(graphs.base, graphs.calibration.feeds)
    return rank_fp16(graphs.base, [graphs.calibration.example], ranges)


def layers_by_int8(graphs: Graphs) -> Sequence[str]:
    """Convolutions of the base graph that int8 hurts, the most sensitive first."""
    example = graphs.calibration.example
    return rank_int8(graphs.base, example, tensor_ranges(graphs.base, [example]))


def fused_layers_by_int8(graphs: Graphs) -> Sequence[str]:
    """Convolutions of the fused graph that int8 hurts, transposed ones too, the most sensitive first."""
    example = graphs.calibration.example
    return rank_int8(graphs.fused, example, tensor_ranges(graphs.fused, [example]), ("Conv", "ConvTranspose"))
