"""OpenVINO's files are those of the ONNX graph, reproducible, and run in fp32 at every batch size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch

from tests.support.build_specs import ROI, spec, tiny_unet
from voxtile_build.engines.onnxruntime.runner import OnnxRuntimeRunner
from voxtile_build.engines.onnxruntime.variants import copy_files
from voxtile_build.engines.openvino.convert import convert
from voxtile_build.engines.openvino.core import core as the_core
from voxtile_build.engines.openvino.runner import OpenVinoRunner
from voxtile_build.errors import EngineError
from voxtile_build.graph.torch_to_onnx import export, save
from voxtile_build.graph.wrapper import Wrapper, example_inputs

REPORTING = """
import sys
from pathlib import Path
asked = ("os.fork", "os.posix_spawn", "subprocess.Popen", "socket.getaddrinfo", "socket.connect")
sys.addaudithook(lambda event, _: event in asked and print(event, flush=True))
from voxtile_build.engines.openvino.convert import convert
from nncf.telemetry import telemetry
telemetry.send_event("category", "action", "label")
convert(*map(Path, sys.argv[1:]))
"""
# bfloat16 would be off by more than 1e-2 here.
FP32 = 1e-4


@pytest.fixture(scope="module")
def wrapper() -> Wrapper:
    return Wrapper(tiny_unet(), spec()).eval()


@pytest.fixture(scope="module")
def onnx_file(wrapper: Wrapper, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(export(wrapper, example_inputs(spec(), 2)), tmp_path_factory.mktemp("onnx") / "model.onnx")[0]


def rois(batch: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(batch).normal(0, 3, (batch, 1, *ROI)).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_both_engines_compute_in_fp32(wrapper: Wrapper, onnx_file: Path, tmp_path: Path, batch: int) -> None:
    with torch.inference_mode():
        expected = wrapper(torch.from_numpy(rois(batch))).numpy()
    for run in (OpenVinoRunner(convert(onnx_file, tmp_path)[0], 1), OnnxRuntimeRunner(onnx_file, 1)):
        found = run({"roi": rois(batch)})
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() < FP32


def test_an_answer_is_not_overwritten_by_the_next(onnx_file: Path, tmp_path: Path) -> None:
    run = OpenVinoRunner(convert(onnx_file, tmp_path)[0], 1)
    first = run({"roi": rois(1)})
    kept = first.copy()
    run({"roi": rois(1) + 1})
    np.testing.assert_array_equal(first, kept)


def test_names_shapes_and_layout_survive(onnx_file: Path, tmp_path: Path) -> None:
    model = the_core().read_model(str(convert(onnx_file, tmp_path)[0]))
    assert [value.any_name for value in (*model.inputs, *model.outputs)] == ["roi", "scores"]
    assert model.inputs[0].partial_shape.to_string() == f"[?,1,{','.join(map(str, ROI))}]"
    assert ov.layout_helpers.has_batch(model.get_parameters()[0].layout)


def test_nothing_is_reported_to_the_makers(onnx_file: Path, tmp_path: Path) -> None:
    """Both libraries would, from processes of their own; in a process of its own, since NNCF does not under pytest."""
    command = [sys.executable, "-c", REPORTING, str(onnx_file), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert not done.stdout
    assert (tmp_path / "model.xml").exists()


def test_weights_are_not_narrowed(onnx_file: Path, tmp_path: Path) -> None:
    model = the_core().read_model(str(convert(onnx_file, tmp_path)[0]))
    kinds = {op.get_element_type().get_type_name() for op in model.get_ops() if op.get_type_name() == "Constant"}
    assert "f16" not in kinds
    assert "bf16" not in kinds


def test_the_same_onnx_gives_the_same_bytes_wherever_it_lies(onnx_file: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "another folder"
    elsewhere.mkdir()
    (elsewhere / "other.onnx").write_bytes(onnx_file.read_bytes())
    folders = [tmp_path / name for name in ("a", "b")]
    for folder, source in zip(folders, (onnx_file, elsewhere / "other.onnx"), strict=True):
        folder.mkdir()
        convert(source, folder)
    for name in ("model.xml", "model.bin"):
        first, second = ((folder / name).read_bytes() for folder in folders)
        assert first == second
        for trace in (str(tmp_path), "other.onnx", "another folder", onnx_file.name):
            assert trace.encode() not in second


@pytest.mark.parametrize("broken", ["truncated", "empty", "text"])
def test_a_broken_onnx_file_is_refused_by_both(onnx_file: Path, tmp_path: Path, broken: str) -> None:
    content = {"truncated": onnx_file.read_bytes()[:-500], "empty": b"", "text": b"this is no graph"}[broken]
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"OpenVINO cannot read broken\.onnx"):
        convert(path, tmp_path)
    with pytest.raises(EngineError, match=r"ONNX Runtime cannot load broken\.onnx"):
        OnnxRuntimeRunner(path, 1)


def test_an_input_of_another_shape_is_refused(onnx_file: Path) -> None:
    with pytest.raises(EngineError, match="ONNX Runtime fails at a batch of 1"):
        OnnxRuntimeRunner(onnx_file, 1)({"roi": np.zeros((1, 1, 4, 4, 4), np.float32)})


def test_weights_beside_the_graph_are_copied_with_it(wrapper: Wrapper, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    files = save(export(wrapper, example_inputs(spec(), 2)), source / "model.onnx", inline_limit=100)
    assert [file.name for file in copy_files(files, target)] == ["model.onnx", "model.onnx.data"]
    run = OnnxRuntimeRunner(target / "model.onnx", 1)
    assert run({"roi": rois(1)}).shape == (1, 3, *ROI)
