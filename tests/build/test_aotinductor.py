"""AOTInductor on a CPU: what is exported is what was promised, and what cannot be is refused before anything is built.

Nothing is compiled here; tests/build/test_aotinductor_served.py does that.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from torch import Tensor, nn
from tritonclient.grpc import model_config_pb2 as pb

from tests.support.build_specs import ROI, built_card, spec, tiny_unet
from tests.support.network_files import spec_of, write_exported
from voxtile_build.build import build
from voxtile_build.engines import find_engine
from voxtile_build.engines.aotinductor import cpu, variants
from voxtile_build.engines.aotinductor.exact import exact_float32
from voxtile_build.engines.aotinductor.interface import Interface, interface_of
from voxtile_build.engines.aotinductor.interface import Tensor as Described
from voxtile_build.engines.aotinductor.program import check_precision, export_program, tensors_of
from voxtile_build.errors import EngineError, SpecError
from voxtile_build.graph.wrapper import wrap
from voxtile_build.importers.network import load_network
from voxtile_build.networks import make_network
from voxtile_build.repository.config import (
    EMBEDDED_CONFIG,
    engine_config,
    public_config,
    read_config,
    write_engine_config,
)
from voxtile_build.spec.spec import Spec
from voxtile_server.embedded import CONFIG_NAME

ENGINE = find_engine("aotinductor")
ROUNDING = {"fp32": 1e-5, "bf16": 0.1, "fp16": 0.01}
"""Of scores around 1: 24, 8 and 11 bits of mantissa, through four layers."""

pytestmark = pytest.mark.usefixtures("one_thread")


class Stubborn(nn.Module):
    """Casts its image itself, so that autocast has nothing to say about its convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 1, 1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return nn.functional.conv3d(image.float(), self.weight)


class FixedBatch(nn.Module):
    """Has the batch that it is traced with in its code."""

    def forward(self, image: Tensor) -> Tensor:
        return image.reshape(2, 1, *ROI).expand(2, 3, *ROI) if len(image) > 1 else image.expand(1, 3, *ROI)


def rois(made: Spec, batch: int) -> tuple[Tensor, ...]:
    """Inputs as a client sends them; a corner is outside the scan."""
    generator = torch.Generator().manual_seed(batch)
    kind = torch.int16 if made.input.dtype == "int16" else torch.float32
    roi = (torch.randn(batch, *made.roi_shape, generator=generator) * 100 + 300).to(kind)
    roi[:, :, :3] = torch.iinfo(kind).min if kind == torch.int16 else torch.finfo(kind).min
    if not made.whole_scan_intensity:
        return (roi,)
    return roi, torch.tensor([[300.0, 100.0]]).expand(batch, 1, 2).contiguous()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_program_has_a_free_batch_and_the_precision_that_was_promised(precision: str) -> None:
    made = spec(input={"dtype": "int16", "intensity": {"rule": "zscore"}}, serving={"max_batch_size": 3})
    network = tiny_unet()
    wrapper, before = wrap(network, made), {name: value.clone() for name, value in network.state_dict().items()}
    program = export_program(wrapper, made, precision, "cpu")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items()), (
        "the reference changed"
    )
    assert check_precision(program, precision, "tiny") == {precision: 3}
    for other in {"fp32", "bf16", "fp16"} - {precision}:
        with pytest.raises(EngineError, match=rf"tiny: layer '\w+' \(convolution\) .* but {other} was promised"):
            check_precision(program, other, "tiny")
    for batch in (1, 2, 3):
        given = rois(made, batch)
        with torch.inference_mode():
            expected, found = wrapper(*given), program.module()(*given)
        assert found.dtype == torch.float32
        assert found.is_contiguous()
        np.testing.assert_allclose(found, expected, atol=ROUNDING[precision])
    if precision != "fp32":
        assert not torch.equal(found, expected), "nothing was rounded"


@pytest.mark.parametrize(
    ("dtype", "scores", "kind", "types"),
    [
        ("int16", "probabilities", "uint8", ("TYPE_INT16", "TYPE_UINT8")),
        ("fp16", "logits", "fp16", ("TYPE_FP16", "TYPE_FP16")),
    ],
)
def test_tensors_are_described_as_the_program_has_them_and_as_the_config_says(
    dtype: str, scores: str, kind: str, types: tuple[str, str]
) -> None:
    made = spec(
        input={"dtype": dtype, "intensity": {"rule": "zscore"}},
        output={"scores": scores, "dtype": kind},
    )
    inputs, outputs = tensors_of(export_program(wrap(tiny_unet(), made), made, "fp32", "cpu"), made)
    assert inputs == (Described("INPUT__0", types[0], (-1, 1, *ROI)), Described("INPUT__1", "TYPE_FP32", (-1, 1, 2)))
    assert [(one.name, one.type) for one in outputs] == [("OUTPUT__0", types[1])]
    config = engine_config(made, ENGINE)
    declared = [(one.name, pb.DataType.Name(one.data_type), (-1, *one.dims)) for one in (*config.input, *config.output)]
    assert declared == [(one.name, one.type, one.dims) for one in (*inputs, *outputs)]


def test_a_batch_of_one_is_fixed_and_a_network_that_fixes_its_batch_is_refused() -> None:
    alone = spec(serving={"max_batch_size": 1})
    (roi,), _ = tensors_of(export_program(wrap(tiny_unet(), alone), alone, "fp32", "cpu"), alone)
    assert roi.dims == (1, 1, *ROI)
    made = spec()
    with pytest.raises(EngineError, match=r"tiny: torch\.export refuses the network"):
        export_program(wrap(FixedBatch(), made), made, "fp32", "cpu")
    fixed = export_program(wrap(tiny_unet(), alone), alone, "fp32", "cpu")
    with pytest.raises(EngineError, match="expected a free batch, found INPUT__0 with the sizes"):
        tensors_of(fixed, made)


def test_slices_of_any_size_stay_free() -> None:
    made = spec(
        tiling={"roi_size": [16, 24], "slice_axis": 2, "multiple": 8, "overlap": 0.0, "mode": "constant"},
        network={"args": {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2]}},
    )
    wrapper = wrap(load_untrained(made), made)
    program = export_program(wrapper, made, "fp32", "cpu")
    (roi,), (scores,) = tensors_of(program, made)
    assert (roi.dims, scores.dims) == ((-1, 1, -1, -1), (-1, 3, -1, -1))
    for size in ((8, 8), (24, 40)):
        given = torch.randn(2, 1, *size)
        with torch.inference_mode():
            np.testing.assert_allclose(program.module()(given), wrapper(given), atol=ROUNDING["fp32"])


def load_untrained(made: Spec) -> nn.Module:
    torch.manual_seed(2)
    return make_network(made.network.name, made.network.args, 1, 3)


def test_a_network_that_chooses_its_own_type_is_named_not_published_as_reduced() -> None:
    made = spec()
    program = export_program(wrap(Stubborn().eval(), made), made, "bf16", "cpu")
    with pytest.raises(EngineError, match=r"computes in torch.float32, but bf16 was promised"):
        check_precision(program, "bf16", "tiny")
    identity = spec(network={"name": "Identity", "args": {}}, output={"labels": ["value"]})
    nothing = export_program(wrap(nn.Identity(), identity), identity, "bf16", "cpu")
    with pytest.raises(EngineError, match="no layer computes in bf16"):
        check_precision(nothing, "bf16", "tiny")


def test_a_program_in_a_file_is_taken_with_its_weights(tmp_path: Path) -> None:
    network = tiny_unet()
    made = spec_of(write_exported(network, tmp_path / "net.pt2"))
    wrapper = wrap(load_network(made), made)
    program = export_program(wrapper, made, "fp32", "cpu")
    assert any("weight" in name for name in program.state_dict)
    (given,) = rois(made, 2)
    with torch.inference_mode():
        np.testing.assert_allclose(program.module()(given), wrapper(given), atol=ROUNDING["fp32"])


@pytest.mark.parametrize("name", ["net.onnx", "net.ts", "net.pt"])
def test_files_of_other_kinds_are_refused_by_name_before_anything_is_opened(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"not even a network")
    made = spec_of(tmp_path / name)
    with pytest.raises(SpecError, match=rf"tiny: network.file: aotinductor compiles .* found {name}; .* take aotind"):
        build(made, tmp_path / "models", engines=["aotinductor"])
    assert not any((tmp_path / "models").glob("*/config.pbtxt"))


def test_a_missing_compiler_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(EngineError, match=r"tiny: AOTInductor compiles with .* 'g\+\+', .* apt install g\+\+"):
        ENGINE.require_buildable(spec())
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EngineError, match="'no-such-compiler', which is not on the PATH"):
        ENGINE.require_buildable(spec())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine can build for a GPU")
def test_a_missing_gpu_is_told_with_the_container_that_has_the_servers_pytorch() -> None:
    with pytest.raises(EngineError, match=r"a GPU is missing.*nvcr.io/nvidia/pytorch:26.07-py3.*gpus = 'none'"):
        ENGINE.require_buildable(spec(serving={"gpus": "all"}))


@pytest.mark.parametrize(("native", "cpu_order"), [(True, ["bf16", "fp32"]), (False, ["fp32"])])
def test_auto_tries_what_pays_on_the_device(
    native: bool, cpu_order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "has_bf16", lambda: native)
    assert [one.precision for one in ENGINE.search(spec())] == cpu_order
    assert [one.precision for one in ENGINE.search(spec(serving={"gpus": "all"}))] == ["fp16", "bf16", "fp32"]


def test_a_package_for_a_gpu_warns_of_tf32_and_of_gpus_that_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is here: only what the user is told is tested."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(9, 0), (8, 0), (9, 0)][index])
    unlike, tf32 = variants._warnings("fp32", "cuda")
    assert "compiled for sm_90" in unlike
    assert "GPUs of sm_80 too" in unlike
    assert "NVIDIA_TF32_OVERRIDE=0" in tf32
    assert len(list(variants._warnings("fp16", "cuda"))) == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert not list(variants._warnings("fp16", "cuda"))
    assert not list(variants._warnings("fp32", "cpu"))


def test_the_certificate_is_made_on_the_kind_of_device_that_serves() -> None:
    for gpus, kind in (("none", "cpu"), ("all", "gpu"), ([1], "gpu")):
        made = spec(serving={"gpus": gpus})
        assert ENGINE.certified_on(made) == ENGINE.serves_on(made) == kind


# What Triton 26.07 demands of an entry of each backend: tensors' types, kinds of instances, platform. Of pytorch and
# torch_aoti as pytorch_backend's sources have it (ModelConfigDataTypeToTorchType, no automatic completion).
TAKEN = {"TYPE_BOOL", "TYPE_UINT8", "TYPE_INT8", "TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32"}


@pytest.mark.parametrize("gpus", ["none", "all"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int16"])
def test_an_entry_follows_the_rules_of_tritons_backend(gpus: str, dtype: str) -> None:
    made = spec(input={"dtype": dtype, "intensity": {"rule": "zscore"}}, serving={"gpus": gpus, "threads": 2})
    config = engine_config(made, ENGINE)
    assert (config.backend, config.platform) == ("pytorch", "torch_aoti")
    assert config.default_model_filename == "model.pt2"
    (group,) = config.instance_group
    assert pb.ModelInstanceGroup.Kind.Name(group.kind) == ("KIND_CPU" if gpus == "none" else "KIND_GPU")
    assert {pb.DataType.Name(one.data_type) for one in (*config.input, *config.output)} <= TAKEN
    assert [one.name for one in config.input] == ["INPUT__0", "INPUT__1"]
    assert [one.name for one in config.output] == ["OUTPUT__0"]
    assert all(set(sample.inputs) == {"INPUT__0", "INPUT__1"} for sample in config.model_warmup)
    assert config.parameters["INTRA_OP_THREAD_COUNT"].string_value == "2"
    assert not config.HasField("sequence_batching")


def test_the_embedded_server_gets_the_same_config_without_the_platform(tmp_path: Path) -> None:
    config = engine_config(spec(), ENGINE)
    write_engine_config(config, tmp_path)
    assert read_config(tmp_path) == config
    assert f"configs/{CONFIG_NAME}.pbtxt" == EMBEDDED_CONFIG
    embedded = text_format.Parse((tmp_path / EMBEDDED_CONFIG).read_text(), pb.ModelConfig())
    assert not embedded.platform
    embedded.platform = config.platform
    assert embedded == config
    (tmp_path / "other").mkdir()
    write_engine_config(engine_config(spec(), find_engine("openvino")), tmp_path / "other")
    assert [file.name for file in (tmp_path / "other").rglob("*")] == ["config.pbtxt"]


@pytest.mark.parametrize("folds", [["tiny"], ["tiny_fold_0", "tiny_fold_1"]])
def test_the_ensemble_maps_the_entrys_names_to_the_public_ones_and_back(folds: list[str]) -> None:
    made = spec(input={"intensity": {"rule": "zscore"}})
    card = built_card().model_copy(update={"engine": "aotinductor"})
    steps = public_config(made, card, folds).ensemble_scheduling.step
    scores = ["scores"] if len(folds) == 1 else ["scores_0", "scores_1"]
    for step, fold, wanted in zip(steps, folds, scores, strict=False):
        assert step.model_name == f"{fold}_aotinductor"
        assert dict(step.input_map) == {"INPUT__0": "roi", "INPUT__1": "intensity"}
        assert dict(step.output_map) == {"OUTPUT__0": wanted}
    if len(folds) > 1:
        assert dict(steps[-1].input_map) == {"scores_0": "scores_0", "scores_1": "scores_1"}
        assert dict(steps[-1].output_map) == {"scores": "scores"}


def test_the_settings_of_the_process_are_put_back_whatever_happens() -> None:
    def settings() -> tuple[Any, ...]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = settings()
    torch.set_float32_matmul_precision("medium")
    loose = settings()
    with exact_float32():
        assert settings() == ("highest", False)
    assert settings() == loose
    with pytest.raises(ZeroDivisionError), exact_float32():
        _ = 1 / 0
    assert settings() == loose
    torch.set_float32_matmul_precision(before[0])
    assert settings() == before


CPUINFO = "processor : 0\nflags\t\t: {}\nbugs :\n"


def test_a_cpu_is_known_by_what_linux_says_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    file = tmp_path / "cpuinfo"
    for level, features in cpu.LEVELS.items():
        file.write_text(CPUINFO.format(" ".join(("fpu", *features))))
        assert cpu.features(file) == {"fpu", *features}
        assert cpu.level(cpu.features(file)) == level
        assert cpu.level(cpu.features(file) - {features[0]}) != level
    assert cpu.features(tmp_path / "none") == frozenset()
    assert cpu.missing(["avx512f"], frozenset()) == ()
    assert cpu.missing(["avx512f", "fma"], frozenset({"fma"})) == ("avx512f",)


def test_what_the_compiler_is_told_is_what_the_cpu_must_have() -> None:
    needed = cpu.needed("x86-64-v4", "-mavx512f -mfma -mavx512vnni -mavx512bf16 -mamx-tile")
    assert {"avx2", "avx512f", "fma", "avx512_vnni", "avx512_bf16", "amx_tile"} <= set(needed)
    assert not any(word.startswith("-") for word in needed)
    assert cpu.needed(None, "") == ()


def test_an_interface_is_read_back_and_another_text_is_one_error() -> None:
    made = Interface((Described("INPUT__0", "TYPE_FP32", (-1, 1)),), (), ("fma",), "2.13.0")
    assert interface_of({"voxtile": made.as_text()}, "x.pt2") == made
    for text in ("", "[]", "{}", json.dumps({"inputs": [{}], "outputs": [], "instructions": [], "torch": ""}), "null"):
        with pytest.raises(EngineError, match=r"x.pt2: expected a package of voxtile-build"):
            interface_of({"voxtile": text}, "x.pt2")
    with pytest.raises(EngineError):
        interface_of({}, "x.pt2")
