"""`python -m bench.gpu`: measure one GPU in a few minutes, and write one JSON file. `--tiny` rehearses it on a CPU."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from .rates import facts
from .report import tables
from .run import run_stages
from .settings import Settings
from .stages import STAGES

PATIENCE = 5
"""How many times longer a stage may take in the rehearsal: compilers need a CPU's cores, which others may share."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the chosen stages; returns 0, also where one failed, or exits with 2 if an argument is wrong."""
    chosen = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the stage at work ends too
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-gpu-", ignore_cleanup_errors=True) as work:
        settings = Settings(chosen.device, Path(work), chosen.tiny)
        longer = PATIENCE if chosen.tiny else 1
        stages = [replace(one, minutes=one.minutes * longer) for one in STAGES if one.name in chosen.stages]
        result = run_stages(stages, settings, chosen.out, chosen.minutes, {"machine": facts(settings.device)})
    sys.stdout.write(tables(result) + "\n")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns `out`, `minutes`, `stages`, `device` and `tiny`; exits with 2 if the command line is wrong."""
    names = [stage.name for stage in STAGES]
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/bench/gpu.json"), metavar="FILE.json")
    parser.add_argument("--minutes", type=float, default=13, metavar="N", help="for all stages together; 13 by default")
    parser.add_argument(
        "--stages", type=lambda text: text.split(","), default=names, metavar="A,B", help=", ".join(names)
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="the rehearsal: small sizes, whose figures mean nothing")
    chosen = parser.parse_args(arguments)
    if unknown := [name for name in chosen.stages if name not in names]:
        parser.error(f"--stages: expected some of {','.join(names)}, found {','.join(unknown)}")
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no GPU; --tiny rehearses the run on a CPU")
    if chosen.device == "cpu" and not chosen.tiny:
        parser.error("full sizes would take a CPU hours: give --tiny to rehearse, or run it where there is a GPU")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
