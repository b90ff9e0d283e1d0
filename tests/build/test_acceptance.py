"""The limits of an engine: strict enough that wrong weights are refused, and no single voxel decides."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from tests.support.build_specs import fields, spec, tiny_unet
from voxtile_build.certificate.certificate import Reference, certify, make_reference, require_accepted
from voxtile_build.certificate.limits import MAX_ABS_ERROR, MAX_LOGIT_ERROR, MAX_SCORE_ERROR, limits_of
from voxtile_build.engines import find_engine
from voxtile_build.engines.base import Compiled
from voxtile_build.engines.onnxruntime.variants import copy_files
from voxtile_build.engines.openvino.convert import convert
from voxtile_build.errors import AcceptanceError, SpecError
from voxtile_build.evaluation.summary import summary
from voxtile_build.graph.centred_norms import centre_norms
from voxtile_build.graph.composing import to_onnx
from voxtile_build.graph.torch_to_onnx import checked, save
from voxtile_build.graph.wrapper import wrap
from voxtile_build.spec.acceptance import Acceptance
from voxtile_build.spec.spec import load_spec, parse_spec

MODELS = Path(__file__).parents[2] / "models"


@dataclass(frozen=True)
class Wrong:
    """Weights of the last `operator` that are multiplied by `factor`: all of them, or only the largest ones."""

    operator: str
    factor: float
    one: bool = False


def with_wrong(model: ModelProto, wrong: Wrong) -> ModelProto:
    """A copy of `model` with wrong weights."""
    result = ModelProto()
    result.CopyFrom(model)
    name = [node for node in model.graph.node if node.op_type == wrong.operator][-1].input[1]
    tensor = next(tensor for tensor in result.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor).copy()
    chosen = np.abs(values) == np.abs(values).max() if wrong.one else np.full(values.shape, True)
    values[chosen] *= np.float32(wrong.factor)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return result


@functools.cache
def right(scores: str) -> tuple[ModelProto, Reference]:
    """The tiny UNet's graph, and what PyTorch says."""
    chosen = spec(output={"scores": scores})
    wrapper = wrap(tiny_unet(), chosen)
    return checked(centre_norms(to_onnx(wrapper, chosen))), make_reference(wrapper, chosen)


def certificate(
    folder: Path, engine: str, scores: str, wrong: Wrong | None = None, **acceptance: float
) -> dict[str, Any]:
    """The certificate of the tiny UNet's engine, with a wrong weight where asked for."""
    chosen = spec(output={"scores": scores}, acceptance=acceptance)
    model, reference = right(scores)
    if wrong is not None:
        model = with_wrong(model, wrong)
    given = save(model, folder / "given.onnx")
    entry = folder / "entry"
    entry.mkdir()
    files = copy_files(given, entry) if engine == "onnxruntime" else convert(given[0], entry)
    chosen_engine = find_engine(engine)
    compiled = Compiled(files, "fp32", chosen_engine.open(entry, chosen_engine.parameters(chosen)))
    return certify(chosen, chosen_engine, compiled, reference, {}).content


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("scores", ["logits", "probabilities"])
def test_the_right_engine_is_accepted_with_room_to_spare(tmp_path: Path, engine: str, scores: str) -> None:
    found = certificate(tmp_path, engine, scores)
    assert found["accepted"]
    assert found["metrics"]["max_abs_error"] < MAX_ABS_ERROR / 100
    assert found["metrics"]["score_error"] < MAX_SCORE_ERROR["fp32"] / 100
    assert ("max_logit_error" in found["metrics"]) == ("max_logit_error" in found["acceptance"]) == (scores == "logits")
    assert found["metrics"].get("max_logit_error", 0.0) < MAX_LOGIT_ERROR / 3


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("scores", ["logits", "probabilities"])
@pytest.mark.parametrize(
    "wrong",
    [Wrong("ConvTranspose", 1.25, one=True), Wrong("ConvTranspose", 1.01), Wrong("InstanceNormalization", 1.01)],
    ids=str,
)
def test_an_engine_with_wrong_weights_is_refused_though_no_voxel_is_far_off(
    tmp_path: Path, engine: str, scores: str, wrong: Wrong
) -> None:
    found = certificate(tmp_path, engine, scores, wrong)
    assert found["metrics"]["max_abs_error"] < MAX_ABS_ERROR
    with pytest.raises(AcceptanceError, match=f"the {engine} engine .fp32. is not accepted.*score_error: expected"):
        require_accepted(found)


def test_logits_that_probabilities_hide_are_refused(tmp_path: Path) -> None:
    """An engine of which the probabilities are excused must still give the logits that the client stitches."""
    open_limits = {"max_abs_error": 0.1, "max_score_error": 0.5, "max_logit_error": 0.001}
    found = certificate(tmp_path, "onnxruntime", "logits", Wrong("ConvTranspose", 1.01), **open_limits)
    with pytest.raises(AcceptanceError, match=r"max_logit_error: expected at most 0.001, found 0.00"):
        require_accepted(found)


def test_defaults_are_those_of_fp32_and_of_the_scores() -> None:
    logits = limits_of(spec())
    assert (logits["max_abs_error"], logits["max_logit_error"]) == (MAX_ABS_ERROR, MAX_LOGIT_ERROR)
    assert logits["max_score_error"] == MAX_SCORE_ERROR["fp32"] < limits_of(spec(), "bf16")["max_score_error"]
    assert "max_logit_error" not in limits_of(spec(output={"scores": "probabilities"}))
    assert limits_of(spec(), "bf16")["max_logit_error"] is None
    assert limits_of(spec(acceptance={"max_logit_error": 0.2}), "bf16")["max_logit_error"] == 0.2
    assert limits_of(spec(), "bf16")["max_abs_error"] is None
    assert limits_of(spec(acceptance={"max_score_error": 0.2}))["max_score_error"] == 0.2


def test_a_constant_tile_is_told_of_and_not_judged(tmp_path: Path) -> None:
    found = certificate(tmp_path, "onnxruntime", "logits")
    constant = {record["name"] for record in found["tiles"] if record.get("constant")}
    assert constant == {"zeros"}
    wrong = {"max_abs_error": 1.0, "max_abs_error_stored": 9.0, "rms_error": 9.0}
    worse = [{**record, **wrong} for record in found["tiles"]]
    alone = [record for record in worse if record.get("constant")]
    others = [record for record in found["tiles"] if not record.get("constant")]
    assert summary([*others, *alone], found["scans"]) == summary(others, found["scans"])
    assert summary(worse, found["scans"])["max_abs_error"] == summary(alone, [])["max_abs_error"] == 1.0


def test_a_limit_that_is_none_is_refused() -> None:
    with pytest.raises(SpecError, match=r"acceptance.max_logit_error: .*share of the range"):
        parse_spec(fields(acceptance={"max_logit_error": 0.0}), "x.toml", Path())


def test_the_shipped_models_keep_the_defaults() -> None:
    assert {load_spec(file).acceptance for file in MODELS.glob("*.toml")} == {Acceptance()}


def test_no_spec_can_let_constant_scores_through() -> None:
    with pytest.raises(SpecError, match=r"acceptance.max_score_error"):
        parse_spec(fields(acceptance={"max_score_error": 1.0}), "x.toml", Path())
