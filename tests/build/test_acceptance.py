"""The acceptance figures of an fp32 engine: strict enough that one weight off by 1 % is refused."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from tests.support.build_specs import fields, spec, tiny_unet
from voxtile_build.certificate.certificate import Reference, certify, make_reference, require_accepted
from voxtile_build.certificate.limits import MAX_ABS_ERROR, MAX_LOGIT_ERROR, NNUNET, limits_of, violations
from voxtile_build.engines import find_engine
from voxtile_build.engines.base import Compiled
from voxtile_build.engines.onnxruntime.variants import copy_files
from voxtile_build.engines.openvino.convert import convert
from voxtile_build.errors import AcceptanceError, SpecError
from voxtile_build.evaluation.evaluate import summary
from voxtile_build.graph.centred_norms import centre_norms
from voxtile_build.graph.composing import to_onnx
from voxtile_build.graph.torch_to_onnx import checked, save
from voxtile_build.graph.wrapper import wrap
from voxtile_build.spec.spec import load_spec, parse_spec

MODELS = Path(__file__).parents[2] / "models"


def wrong_by_one_percent(model: ModelProto, operator: str, *, one: bool) -> ModelProto:
    """A copy of `model` with the weights of its last `operator` 1 % larger, or only the largest of them."""
    result = ModelProto()
    result.CopyFrom(model)
    name = [node for node in model.graph.node if node.op_type == operator][-1].input[1]
    tensor = next(tensor for tensor in result.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor).copy()
    chosen = np.abs(values) == np.abs(values).max() if one else np.full(values.shape, True)
    values[chosen] *= np.float32(1.01)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return result


@functools.cache
def right(scores: str) -> tuple[ModelProto, Reference]:
    """The tiny UNet's graph, and what PyTorch says."""
    chosen = spec(output={"scores": scores})
    wrapper = wrap(tiny_unet(), chosen)
    return checked(centre_norms(to_onnx(wrapper, chosen))), make_reference(wrapper, chosen)


def certificate(
    folder: Path, engine: str, scores: str, wrong: tuple[str, bool] | None = None, **acceptance: float
) -> dict[str, Any]:
    """The certificate of the tiny UNet's engine, with a wrong weight where asked for."""
    chosen = spec(output={"scores": scores}, acceptance=acceptance)
    model, reference = right(scores)
    if wrong is not None:
        model = wrong_by_one_percent(model, wrong[0], one=wrong[1])
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
    assert found["metrics"]["max_abs_error"] < MAX_ABS_ERROR["fp32"] / 3
    assert ("max_logit_error" in found["metrics"]) == ("max_logit_error" in found["acceptance"]) == (scores == "logits")
    assert found["metrics"].get("max_logit_error", 0.0) < MAX_LOGIT_ERROR / 3


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("scores", ["logits", "probabilities"])
@pytest.mark.parametrize(
    "wrong", [("ConvTranspose", True), ("ConvTranspose", False), ("InstanceNormalization", True)], ids=str
)
def test_an_engine_with_a_weight_off_by_one_percent_is_refused(
    tmp_path: Path, engine: str, scores: str, wrong: tuple[str, bool]
) -> None:
    found = certificate(tmp_path, engine, scores, wrong)
    assert found["metrics"]["max_abs_error"] < 0.02
    with pytest.raises(AcceptanceError, match=f"the {engine} engine .fp32. is not accepted.*max_abs_error: expected"):
        require_accepted(found)


def test_logits_that_probabilities_hide_are_refused(tmp_path: Path) -> None:
    """An engine of which the probabilities are excused must still give the logits that the client stitches."""
    found = certificate(tmp_path, "onnxruntime", "logits", ("ConvTranspose", False), max_abs_error=0.1)
    with pytest.raises(AcceptanceError, match=r"max_logit_error: expected at most 0.001, found 0.00"):
        require_accepted(found)


def test_defaults_are_those_of_fp32_and_of_the_scores() -> None:
    logits = limits_of(spec())
    assert (logits["max_abs_error"], logits["max_logit_error"]) == (1e-3, 1e-3)
    assert "max_logit_error" not in limits_of(spec(output={"scores": "probabilities"}))
    assert limits_of(spec(), "bf16")["max_logit_error"] is None
    assert limits_of(spec(acceptance={"max_logit_error": 0.2}), "bf16")["max_logit_error"] == 0.2
    for dtype, step in (("fp16", 2.0**-12), ("uint8", 0.5 / 255)):  # half of the last step below 1
        limit = limits_of(spec(output={"scores": "probabilities", "dtype": dtype}))["max_abs_error"]
        assert limit is not None
        assert 1e-3 + step <= limit <= 1e-3 + 2.5 * step


def test_a_logits_error_is_a_share_of_the_range_of_all() -> None:
    def record(error: float, low: float, high: float) -> dict[str, Any]:
        errors = {"max_abs_error": 0.0, "mean_abs_error": 0.0, "max_abs_error_stored": error}
        return {**errors, "logits": [low, high], "dice": {}, "changed_fraction": 0.0}

    assert summary([record(0.5, -1, 1), record(0.1, -5, 3)], [record(0.0, -2, 5)])["max_logit_error"] == 0.05
    assert summary([record(0.0, 7, 7)], [])["max_logit_error"] == 0.0
    metrics = {"max_abs_error": 0.0, "dice_min": 1.0, "changed_fraction": 0.0, "max_logit_error": float("nan")}
    assert len(violations(metrics, limits_of(spec()))) == 1


def test_of_several_scans_the_worst_counts() -> None:
    def scan(dice: float, changed: float, error: float) -> dict[str, Any]:
        errors = {"max_abs_error": error, "mean_abs_error": error / 2}
        return {**errors, "dice": {"one": 1.0, "two": dice, "none": None}, "changed_fraction": changed}

    for scans in ([scan(0.9, 0.1, 0.5), scan(1.0, 0.0, 0.7)], [scan(1.0, 0.0, 0.7), scan(0.9, 0.1, 0.5)]):
        assert summary([], scans) == {
            "max_abs_error": 0.7,
            "mean_abs_error": 0.35,
            "dice_min": 0.9,
            "changed_fraction": 0.1,
        }


def test_a_constant_tile_is_told_of_and_not_judged(tmp_path: Path) -> None:
    found = certificate(tmp_path, "onnxruntime", "logits")
    constant = {record["name"] for record in found["tiles"] if record.get("constant")}
    assert constant == {"zeros"}
    worse = [{**record, "max_abs_error": 1.0, "max_abs_error_stored": 9.0} for record in found["tiles"]]
    alone = [record for record in worse if record.get("constant")]
    others = [record for record in found["tiles"] if not record.get("constant")]
    assert summary([*others, *alone], found["scans"]) == summary(others, found["scans"])
    assert summary(worse, found["scans"])["max_abs_error"] == summary(alone, [])["max_abs_error"] == 1.0


def test_nnunets_logits_have_room_in_fp32_and_only_there() -> None:
    deep = spec().model_copy(update={"nnunet": {"labels": {}}})
    assert limits_of(deep)["max_abs_error"] == NNUNET["max_abs_error"] > MAX_ABS_ERROR["fp32"]
    assert limits_of(deep)["max_logit_error"] == NNUNET["max_logit_error"] > MAX_LOGIT_ERROR
    assert limits_of(deep, "bf16")["max_abs_error"] is None


def test_a_limit_that_is_none_is_refused() -> None:
    with pytest.raises(SpecError, match=r"acceptance.max_logit_error: .*share of the range"):
        parse_spec(fields(acceptance={"max_logit_error": 0.0}), "x.toml", Path())


def test_what_a_shipped_model_loosens_stands_in_its_spec_with_the_reason() -> None:
    for file in sorted(MODELS.glob("*.toml")):
        text, chosen = file.read_text(), load_spec(file).acceptance
        loosened = [chosen.max_abs_error or 0.0, chosen.max_logit_error or 0.0]
        assert max(loosened) <= 0.05
        if any(loosened):
            assert text.split("[acceptance]\n")[1].startswith("# ")
