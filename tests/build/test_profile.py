"""A profile accounts for the time of a run, by operator and by layer, and says when it was itself in the way."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from safetensors.torch import save_file

from tests.support.build_specs import fields, tiny_unet
from voxtile_build.build import build
from voxtile_build.cli.commands import main
from voxtile_build.engines.onnxruntime.profiling import layers_of
from voxtile_build.engines.openvino.core import core as the_core
from voxtile_build.engines.timing import Layer, Timed
from voxtile_build.errors import RepositoryError
from voxtile_build.profile.plot import parts
from voxtile_build.profile.profile import EngineProfile, Profile, example_inputs, profile
from voxtile_build.profile.report import as_json, as_text
from voxtile_build.repository.config import read_config
from voxtile_build.spec.spec import parse_spec

PNG = b"\x89PNG\r\n\x1a\n"
ROI = [32, 32, 32]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one UNet, large enough that its layers take longer than the clock's steps."""
    folder = tmp_path_factory.mktemp("profiled")
    save_file(tiny_unet().state_dict(), folder / "w.safetensors")
    digest = hashlib.sha256((folder / "w.safetensors").read_bytes()).hexdigest()
    given = fields(
        weights={"file": "w.safetensors", "sha256": digest},
        input={"dtype": "int16", "intensity": {"rule": "zscore"}},
        tiling={"roi_size": ROI},
        serving={"threads": 1},
    )
    build(parse_spec(given, "tiny.toml", folder), folder / "models")
    return folder / "models"


@pytest.fixture(scope="module")
def measured(repository: Path) -> Profile:
    return profile("tiny", repository, runs=3, batch=2)


def test_each_engine_stands_beside_the_others(measured: Profile) -> None:
    assert [(one.engine, one.entry, one.precision) for one in measured.engines] == [
        ("onnxruntime", "tiny_onnxruntime", "fp32"),
        ("openvino", "tiny_openvino", "fp32"),
    ]
    assert measured.skipped == {}


def test_layers_and_operators_account_for_the_run(measured: Profile) -> None:
    for engine in measured.engines:
        assert engine.total > 0
        assert sum(engine.operators.values()) == pytest.approx(engine.total)
        assert sum(layer.seconds for layer in engine.layers) == pytest.approx(engine.total)
        seconds = [layer.seconds for layer in engine.layers]
        assert seconds == sorted(seconds, reverse=True)
        assert list(engine.operators.values()) == sorted(engine.operators.values(), reverse=True)


def test_layers_are_those_of_the_engines_own_file(measured: Profile, repository: Path) -> None:
    onnxruntime, openvino = measured.engines
    graph = onnx.load(repository / "tiny_onnxruntime/1/model.onnx").graph
    names = {node.name for node in graph.node if node.op_type == "Conv"}
    found = {layer.name for layer in onnxruntime.layers if layer.operator == "Conv"}
    assert found
    assert found & names
    model = the_core().read_model(str(repository / "tiny_openvino/1/model.xml"))
    kept = {node.get_friendly_name() for node in model.get_ordered_ops()}
    assert {layer.name for layer in openvino.layers if layer.operator == "Convolution"} <= kept
    assert any(layer.operator == "Convolution" for layer in openvino.layers)


def test_inputs_are_what_the_entry_asks_for(repository: Path) -> None:
    inputs = example_inputs(read_config(repository / "tiny_openvino"), 2)
    assert {name: (value.shape, str(value.dtype)) for name, value in inputs.items()} == {
        "roi": ((2, 1, *ROI), "int16"),
        "intensity": ((2, 1, 2), "float32"),
    }


def test_the_report_holds_every_engine_and_adds_up(measured: Profile) -> None:
    report = as_json(measured)
    json.dumps(report)
    for engine in report["engines"]:
        assert sum(row["share"] for row in engine["operators"]) == pytest.approx(1)
        assert sum(row["share"] for row in engine["layers"]) == pytest.approx(1)
        assert engine["seconds"] > 0
    text = as_text(measured, top=2)
    assert "tiny, batch 2, 3 runs" in text
    assert "onnxruntime (fp32)" in text
    assert "openvino (fp32)" in text
    assert " more " in text


def engine_of(plain: float, profiled: float, *layers: Layer, warnings: tuple[str, ...] = ()) -> EngineProfile:
    return EngineProfile("onnxruntime", "m_onnxruntime", "fp32", Timed(plain, profiled, layers), warnings)


def test_operators_sum_their_layers_and_the_picture_keeps_the_longest() -> None:
    layers = [Layer(f"layer {index}", f"op {index % 10}", 0.001 * (1 + index % 10)) for index in range(20)]
    engine = engine_of(0.1, 0.1, *layers)
    assert engine.operators["op 9"] == pytest.approx(0.02)
    assert next(iter(engine.operators)) == "op 9"
    drawn = parts(engine)
    assert len(drawn) == 9
    assert drawn["other"] == pytest.approx(2 + 4)
    assert sum(drawn.values()) == pytest.approx(engine.total * 1e3)


def test_a_slow_profiler_and_a_skipped_engine_are_told() -> None:
    from voxtile_build.profile.profile import _warnings

    assert _warnings(Timed(1.0, 1.02, ()), 1) == []
    (slow,) = _warnings(Timed(1.0, 1.5, ()), 1)
    assert "slows a run 1.50×" in slow
    assert "the first of 3 folds" in _warnings(Timed(1.0, 1.0, ()), 3)[0]
    engine = engine_of(1.0, 1.5, Layer("a", "Conv", 1.0), warnings=(slow,))
    text = as_text(Profile("m", 1, 1, (engine,), {"tensorrt": "is run by the server on a GPU"}))
    assert "onnxruntime: the profiler itself slows a run 1.50×" in text
    assert "tensorrt is left out: it is run by the server on a GPU" in text


def event(name: str, begin: int, length: int, operator: str = "") -> dict[str, Any]:
    kind = {"cat": "Node", "args": {"op_name": operator, "node_index": "4"}} if operator else {"cat": "Session"}
    return {"name": name, "ts": begin, "dur": length, **kind}


def test_the_first_run_warms_up_and_is_not_counted() -> None:
    events = [
        event("model_run", 0, 1000),
        event("a_kernel_time", 10, 900, "Conv"),
        event("model_run", 2000, 100),
        event("a_kernel_time", 2010, 40, "Conv"),
        event("_kernel_time", 2060, 10, "Relu"),
        event("model_run", 3000, 100),
        event("a_fence_before", 3005, 1, "Conv"),
        event("a_kernel_time", 3010, 60, "Conv"),
        event("_kernel_time", 3080, 20, "Relu"),
    ]
    found = layers_of(events, 2)
    assert [(layer.name, layer.operator) for layer in found] == [("a", "Conv"), ("Relu 4", "Relu")]
    assert [layer.seconds for layer in found] == pytest.approx([50e-6, 15e-6])


def test_the_command_prints_and_writes(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_file, picture = tmp_path / "profile.json", tmp_path / "profile.png"
    arguments = ["profile", "tiny", "--repository", str(repository), "--runs", "1"]
    assert main([*arguments, "--json", str(json_file), "--plot", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "by operator" in printed
    assert "by layer, the 15 longest" in printed
    report = json.loads(json_file.read_text())
    assert [engine["engine"] for engine in report["engines"]] == ["onnxruntime", "openvino"]
    assert picture.read_bytes().startswith(PNG)
    assert len(picture.read_bytes()) > 10_000
    assert main([*arguments, "--plot", str(tmp_path / "none" / "p.png")]) == 2
    assert "the picture cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "more", "expected"),
    [
        ("none", {}, "none/config.pbtxt: cannot be read"),
        ("tiny_openvino", {}, "expected a public entry with the parameter card"),
        ("tiny", {"runs": 0}, "expected at least 1 run, found 0"),
        ("tiny", {"batch": 3}, "expected a batch of 1 … 2, found 3"),
    ],
)
def test_what_cannot_be_profiled_is_refused(repository: Path, name: str, more: dict[str, int], expected: str) -> None:
    with pytest.raises(RepositoryError, match=expected):
        profile(name, repository, **more)
