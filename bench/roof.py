"""`python -m bench.roof`: what a CPU's arithmetic allows: each network's work, and the rates of large matrix products.

A network's work is counted by PyTorch (multiplications and additions of convolutions, products and attention; norms
and activations are not). The rates are of products that fit into no cache's way: no engine can do convolutions faster.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset13
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .facts import SIDE
from .networks import DEFAULT_WIDTHS, TISSUES, Shape, plain_conv_unet, seeded, swinunetr, trained_unet
from .timing import interleave, spread, timed

PRECISIONS = ("f32", "bf16")


def work_gflop(network: nn.Module, roi: Shape) -> float:
    """10⁹ operations of one ROI."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, 1, *roi))
    return float(counter.get_total_flops()) / 1e9


def product(precision: str, side: int = SIDE) -> Callable[[], object]:
    """A product of two matrices by OpenVINO, ready to run."""
    left = opset13.parameter([side, side], np.float32)
    right = np.random.default_rng(0).standard_normal((side, side), np.float32)
    model = ov.Model([opset13.matmul(left, opset13.constant(right), False, True)], [left], "product")
    request = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision}).create_infer_request()
    values = np.ones((side, side), np.float32)
    return lambda: request.infer({0: values})


def rates(repetitions: int = 5, side: int = SIDE) -> dict[str, float]:
    """10⁹ operations a second by precision, at best."""
    ways = {precision: product(precision, side) for precision in PRECISIONS}
    for way in ways.values():
        way()
    runs = interleave({name: timed(way) for name, way in ways.items()}, repetitions)
    return {name: round(2 * side**3 / spread(some).low / 1e9, 1) for name, some in runs.items()}


def table(data: Path) -> dict[str, Any]:
    """Rates, and for each network its work and the least seconds a ROI that the rates allow."""
    swin, unet = swinunetr(data), trained_unet()
    plain = seeded(lambda: plain_conv_unet(DEFAULT_WIDTHS, len(TISSUES)))
    work = {
        f"SwinUNETR 24, {swin.roi[0]}³": work_gflop(swin.load(), swin.roi),
        "PlainConvUNet, 96³": work_gflop(plain, (96, 96, 96)),
        f"UNet, {unet.roi[0]}³": work_gflop(unet.load(), unet.roi),
    }
    found = rates()
    least = {name: {way: round(gflop / rate, 3) for way, rate in found.items()} for name, gflop in work.items()}
    return {"GFLOP/s": found, "GFLOP": {name: round(value, 1) for name, value in work.items()}, "least seconds": least}


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(prog="python -m bench.roof", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--data", type=Path, default=Path("out/bench/data"), metavar="DIR", help="where weights are kept"
    )
    chosen = parser.parse_args(arguments)
    chosen.data.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(json.dumps(table(chosen.data.resolve()), indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
