"""What a build of a plan tells, keeps for the next one, and how it is stopped."""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from rich.console import Console

from tests.support.small_networks import graph_of
from voxtile_build.cache import VARIABLE
from voxtile_build.cli.console import Steps
from voxtile_build.engines.gpu import Gpu
from voxtile_build.engines.shapes import batch_shapes
from voxtile_build.engines.tensorrt import fits, timings
from voxtile_build.engines.tensorrt.monitor import Phases
from voxtile_build.engines.tensorrt.plan import build_plan, error_log
from voxtile_build.progress import listening, teller

H200 = Gpu("NVIDIA H200", "sm_90", "GPU-1a")


def build() -> bytes:
    weight = np.random.default_rng(0).normal(size=(2, 1, 3, 3)).astype(np.float32)
    conv = helper.make_node("Conv", ["x", "w"], ["a"], name="conv", pads=[1] * 4)
    model = graph_of([conv, helper.make_node("Relu", ["a"], ["y"], name="relu")], {"w": weight})
    return build_plan(tensorrt_rtx, model.SerializeToString(), batch_shapes(model, 1, 1, 2), "fp32").content


# Progress


def test_a_real_build_tells_how_far_it_is() -> None:
    told: list[float] = []
    with listening(told.append):
        assert build()
    assert told == sorted(set(told))
    assert len(told) > 5
    assert 0 < told[0] < 0.3
    assert 0.8 < told[-1] <= 1


def test_a_part_counts_within_the_step_of_its_parent() -> None:
    told: list[float] = []
    phases = Phases(told.append)
    phases.start("whole", None, 4)
    phases.step("whole", 0)
    phases.start("part", "whole", 2)
    phases.start("detail", "part", 5)
    phases.step("detail", 0)
    phases.finish("detail")
    phases.step("part", 0)
    phases.finish("part")  # one of its steps was never told
    phases.step("whole", 1)
    assert told == pytest.approx([1 / 4, 1 / 4 + 1 / 40, 1 / 4 + 1 / 8, 2 / 4])


EVENTS = st.one_of(
    st.tuples(st.just("start"), st.sampled_from("abc"), st.sampled_from([None, "a", "b"]), st.integers(1, 4)),
    st.tuples(st.just("step"), st.sampled_from("abcd"), st.integers(0, 9)),
    st.tuples(st.just("finish"), st.sampled_from("abcd")),
)


@given(st.lists(EVENTS, max_size=40))
def test_whatever_the_builder_tells_the_share_only_grows(events: list[Any]) -> None:
    """An exception would end the process: TensorRT's calls take none."""
    told: list[float] = []
    phases = Phases(told.append)
    for kind, *arguments in events:
        if kind == "start" and arguments[0] <= (arguments[1] or ""):
            continue  # a phase is no part of itself
        getattr(phases, kind)(*arguments)
    assert told == sorted(set(told))
    assert all(0 < share <= 1 for share in told)


def test_nobody_need_listen() -> None:
    teller()(0.5)


def test_a_terminal_shows_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, shown = Steps("mine"), []
    monkeypatch.setattr(steps, "console", Console(file=io.StringIO(), force_terminal=True))
    monkeypatch.setattr("rich.progress.Progress.update", lambda *_, **far: shown.append(far))
    with steps("build tensorrt"):
        teller()(0.456)
    assert shown == [{"completed": 46, "total": 100}]


CTRL_C = """
import signal
from tests.build.test_tensorrt_builds import build
from voxtile_build.progress import listening

before, told = signal.getsignal(signal.SIGINT), []

def stop(share):
    told.append(share)
    if len(told) == 1:
        signal.raise_signal(signal.SIGINT)

try:
    with listening(stop):
        build()
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is before
    print("stopped", told[-1])
"""


def test_ctrl_c_stops_a_real_build() -> None:
    """In a process of its own: the builder is native code that is interrupted, and once took its process with it."""
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", CTRL_C], cwd=root, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    word, share = run.stdout.split()
    assert word == "stopped"
    assert float(share) < 0.5


def test_a_build_in_another_thread_leaves_signals_alone() -> None:
    plans: list[bytes] = []
    thread = threading.Thread(target=lambda: plans.append(build()))
    thread.start()
    thread.join()
    assert plans[0]


# Timings


class Config:
    """The part of TensorRT's settings that holds timings. Those of TensorRT for RTX do nothing, and need a GPU.

    `good` is what it takes as a file; None is what TensorRT answers where it cannot read one.
    """

    def __init__(self, good: bytes = b"", same_gpu: bool = True) -> None:
        self.good, self.same_gpu = good, same_gpu
        self.cache: Any = None

    def create_timing_cache(self, content: bytes) -> Any:
        return Cache(content) if content in (b"", self.good) else None

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch, "timings of another GPU would choose kernels that do not fit"
        if cache.content and not self.same_gpu:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache


class Cache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"more"


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_next_build_is_given_the_timings_of_the_last(cache_folder: Path) -> None:
    file = timings.timings_file(H200, "11.4.0.106")
    assert cache_folder in file.parents
    first = Config()
    assert timings.attach(first, file) is False
    timings.keep(first, file)
    second = Config(good=b"more")
    assert timings.attach(second, file) is True
    timings.keep(second, file)
    assert file.read_bytes() == b"moremore"
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    "config", [Config(good=b"other"), Config(good=b"stored", same_gpu=False)], ids=["damaged", "another GPU's"]
)
def test_timings_that_do_not_fit_count_as_none(config: Config, cache_folder: Path) -> None:
    file = timings.timings_file(H200, "11")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"stored")
    assert timings.attach(config, file) is False
    timings.keep(config, file)
    assert file.read_bytes() == b"more", "they are replaced"


def test_timings_that_cannot_be_kept_are_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = Config()
    timings.attach(config, tmp_path / "file" / "timings")
    (warning,) = timings.keep(config, tmp_path / "file" / "timings")
    assert str(tmp_path / "file") in warning
    assert VARIABLE in warning


def test_a_folder_in_place_of_the_file_is_no_timings(tmp_path: Path) -> None:
    assert timings.attach(Config(), tmp_path) is False


def test_each_kind_of_gpu_and_each_version_has_a_file_of_its_own(cache_folder: Path) -> None:
    others = [(Gpu("NVIDIA H100 80GB HBM3", "sm_90"), "11"), (H200, "11.1"), (Gpu("NVIDIA H200", "sm_91"), "11")]
    files = {timings.timings_file(*other) for other in [(H200, "11"), *others]}
    assert len(files) == 4
    assert timings.timings_file(Gpu("NVIDIA H200", "sm_90", "GPU-2b"), "11") in files, "whichever of two alike"
    assert timings.timings_file(Gpu("../../etc/passwd", "sm_90"), "11").parent == cache_folder / "tensorrt"


def test_the_real_settings_have_the_calls_that_timings_need(tmp_path: Path) -> None:
    """In TensorRT for RTX they do nothing, and say so."""
    config = tensorrt_rtx.Builder(error_log(tensorrt_rtx)).create_builder_config()
    with pytest.warns(DeprecationWarning, match="no-ops"):
        timings.attach(config, tmp_path / "none")
    with pytest.warns(DeprecationWarning, match="no-ops"):
        timings.keep(config, tmp_path / "folder" / "timings")
    assert (tmp_path / "folder" / "timings").stat().st_size > 0


# TensorRT


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("__version__ = '11.4.0.106'", "11.4.0.106"),
        ("raise ImportError('libnvinfer.so.11: cannot open shared object file')", ""),
        ("raise FileNotFoundError('libnvinfer.so.11')", ""),
        ("", ""),
    ],
    ids=["whole", "no libraries", "no files", "an empty folder's"],
)
def test_a_tensorrt_that_cannot_be_loaded_is_none(
    module: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_tensorrt.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(fits, "MODULE", "broken_tensorrt")
    monkeypatch.delitem(importlib.sys.modules, "broken_tensorrt", raising=False)  # type: ignore[attr-defined]
    assert fits.here() == expected
