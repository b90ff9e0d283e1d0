"""Ctrl-C is heard after engines of OpenVINO have come and gone, in whatever order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from tests.support.small_networks import export
from voxtile_build.engines.openvino.core import core

ROOT = Path(__file__).parents[2]

HEARD = """
import gc, signal, sys
from pathlib import Path
import numpy as np

def build_runner(file):
    from voxtile_build.engines.openvino.runner import OpenVinoRunner
    from voxtile_build.engines.openvino.variants import has_bf16
    has_bf16()
    run = OpenVinoRunner(Path(file), 1)
    run({"roi": np.ones((1, 1, 4, 4, 4), np.float32)})
    return run

def served(file):
    from voxtile_server.backends.openvino.variants import the_core
    return the_core().compile_model(the_core().read_model(file), "CPU")

make, file = {"build": build_runner, "server": served}[sys.argv[1]], sys.argv[2]
first, second = make(file), make(file)
del first
gc.collect()
third = make(file)
del second
gc.collect()
del third
gc.collect()
signal.signal(signal.SIGINT, lambda *_: print("heard", flush=True))
signal.raise_signal(signal.SIGINT)
"""
"""For a process of its own: without the one core, the signal is a segmentation fault."""


@pytest.fixture(scope="module")
def xml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import openvino as ov

    file = tmp_path_factory.mktemp("graph") / "model.xml"
    graph = core().read_model(export(nn.Conv3d(1, 2, 1), (4, 4, 4)).SerializeToString())
    ov.save_model(graph, file, compress_to_fp16=False)
    return file


@pytest.mark.parametrize("where", ["build", "server"])
def test_a_signal_is_heard_when_engines_have_gone(xml: Path, where: str) -> None:
    done = subprocess.run([sys.executable, "-c", HEARD, where, str(xml)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


def test_a_child_has_a_core_of_its_own() -> None:
    mine = core()
    assert core() is mine
    child = os.fork()
    if child == 0:
        os._exit(int(core() is mine))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
