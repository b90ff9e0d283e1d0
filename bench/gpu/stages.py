"""The stages of a run, the most valuable first: a run that is cut off has lost the least."""

from __future__ import annotations

from functools import partial

from . import instances, rates, scan, tiles
from .run import Stage

STAGES = (
    Stage("machine", 0.7, rates.measure),
    Stage("swinunetr", 2.5, partial(tiles.measure, key="swinunetr", ways=tiles.EAGER)),
    Stage("swinunetr-scan", 1.5, partial(scan.measure, key="swinunetr", kinds=("eager",))),
    Stage("swinunetr-aot", 3.5, partial(tiles.measure, key="swinunetr", ways=tiles.AOT)),
    Stage("swinunetr-aot-scan", 1, partial(scan.measure, key="swinunetr", kinds=("aot",))),
    Stage("nnunet", 1.5, partial(tiles.measure, key="nnunet", ways=tiles.EAGER)),
    Stage("nnunet-scan", 1, partial(scan.measure, key="nnunet", kinds=("eager",))),
    Stage("nnunet-aot", 2, partial(tiles.measure, key="nnunet", ways=tiles.AOT)),
    Stage("nnunet-aot-scan", 0.7, partial(scan.measure, key="nnunet", kinds=("aot",))),
    Stage("instances", 1, partial(instances.on_one, key="swinunetr")),
    Stage("gpus", 1, partial(instances.on_all, key="swinunetr")),
    Stage("swinunetr-compile", 3, partial(tiles.measure, key="swinunetr", ways=tiles.COMPILED, each_batch=False)),
    Stage("nnunet-compile", 2, partial(tiles.measure, key="nnunet", ways=tiles.COMPILED, each_batch=False)),
    Stage("swinunetr-tensorrt", 3, partial(tiles.measure, key="swinunetr", ways=tiles.TENSORRT, each_batch=False)),
    Stage("nnunet-tensorrt", 2, partial(tiles.measure, key="nnunet", ways=tiles.TENSORRT, each_batch=False)),
    Stage("swinunetr-autotuned", 5, partial(tiles.measure, key="swinunetr", ways=tiles.AUTOTUNED, each_batch=False)),
)
