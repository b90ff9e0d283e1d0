"""Configs are written through Triton's schema and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from tests.support.build_specs import ROI, built_card, spec
from voxtile.card import Card
from voxtile_build.engines import find_engine
from voxtile_build.errors import EngineError, RepositoryError
from voxtile_build.repository.card import get_card, set_card
from voxtile_build.repository.config import engine_config, public_config, read_config, warm_up_sizes, write_config
from voxtile_build.spec.engines import ENGINE_NAMES

ORT, OPENVINO = find_engine("onnxruntime"), find_engine("openvino")
TENSORRT = find_engine("tensorrt")
CARD = built_card(output={"labels": ['Größe "1"\n']})
GROUP = pb.ModelInstanceGroup


def serving(**fields: Any) -> Any:
    return spec(serving=fields)


@pytest.mark.parametrize("engine", [*map(find_engine, ENGINE_NAMES)], ids=ENGINE_NAMES)
def test_an_engines_config_declares_exactly_the_graphs_tensors(engine: Any) -> None:
    config = engine_config(
        spec(
            input={"dtype": "int16", "intensity": {"rule": "zscore"}},
            output={"scores": "probabilities", "dtype": "uint8"},
        ),
        engine,
    )
    assert config.name == f"tiny_{engine.name}"
    assert config.backend == engine.backend
    assert config.max_batch_size == 2
    tensors = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in (*config.input, *config.output)}
    assert tensors == {
        engine.tensor_name("roi"): (pb.TYPE_INT16, [1, *ROI]),
        engine.tensor_name("intensity"): (pb.TYPE_FP32, [1, 2]),
        engine.tensor_name("scores"): (pb.TYPE_UINT8, [3, *ROI]),
    }


def test_rules_inside_the_graph_need_no_figures() -> None:
    assert [tensor.name for tensor in engine_config(spec(), ORT).input] == ["roi"]


def test_batches_wait_for_the_preferred_size_or_the_delay() -> None:
    batching = engine_config(
        serving(max_batch_size=8, preferred_batch_size=[4, 8], max_queue_delay_microseconds=700), ORT
    ).dynamic_batching
    assert list(batching.preferred_batch_size) == [4, 8]
    assert batching.max_queue_delay_microseconds == 700
    without = engine_config(serving(max_batch_size=3), ORT)
    assert without.HasField("dynamic_batching")
    assert list(without.dynamic_batching.preferred_batch_size) == []
    assert without.dynamic_batching.max_queue_delay_microseconds == 0


def test_queues_time_out_where_asked_and_are_never_bounded_behind_an_ensemble() -> None:
    policy = engine_config(serving(default_timeout_microseconds=5000), ORT).dynamic_batching.default_queue_policy
    assert policy.default_timeout_microseconds == 5000
    assert policy.timeout_action == pb.ModelQueuePolicy.REJECT
    assert policy.allow_timeout_override
    assert policy.max_queue_size == 0


def test_without_a_timeout_the_queue_has_no_policy_so_that_the_server_fetches_ahead() -> None:
    # Tritonserver fetches ahead for a busy engine only where nothing in the queue can time out or overtake.
    for made in (serving(), serving(max_batch_size=8, preferred_batch_size=[4, 8], max_queue_delay_microseconds=700)):
        assert not engine_config(made, ORT).dynamic_batching.HasField("default_queue_policy")


def test_priorities_default_to_the_middle_level() -> None:
    batching = engine_config(serving(priority_levels=3), ORT).dynamic_batching
    assert (batching.priority_levels, batching.default_priority_level) == (3, 2)
    plain = engine_config(serving(), ORT).dynamic_batching
    assert (plain.priority_levels, plain.default_priority_level) == (0, 0)


@pytest.mark.parametrize(
    ("gpus", "engine", "kind", "indices"),
    [
        ("none", ORT, GROUP.KIND_CPU, []),
        ("all", ORT, GROUP.KIND_GPU, []),
        ([0, 1], ORT, GROUP.KIND_GPU, [0, 1]),
        ([0, 1], OPENVINO, GROUP.KIND_CPU, []),
        ("none", TENSORRT, GROUP.KIND_GPU, []),  # a plan runs nowhere else
        ([1], TENSORRT, GROUP.KIND_GPU, [1]),
    ],
)
def test_instances_lie_where_the_engine_can_run(gpus: Any, engine: Any, kind: int, indices: list[int]) -> None:
    (group,) = engine_config(serving(gpus=gpus, count=2), engine).instance_group
    assert (group.kind, group.count, list(group.gpus)) == (kind, 2, indices)


def test_threads_are_spelt_as_each_backend_reads_them() -> None:
    chosen = serving(threads=3, max_batch_size=1)
    assert {key: value.string_value for key, value in engine_config(chosen, ORT).parameters.items()} == {
        "intra_op_thread_count": "3"
    }
    openvino = {key: value.string_value for key, value in engine_config(chosen, OPENVINO).parameters.items()}
    assert openvino["INFERENCE_NUM_THREADS"] == "3"
    assert openvino["INFERENCE_PRECISION_HINT"] == "f32"
    assert "ENABLE_BATCH_PADDING" not in openvino


def test_the_cpp_openvino_backend_may_pad_a_smaller_batch() -> None:
    parameters = engine_config(serving(max_batch_size=4), OPENVINO).parameters
    assert parameters["ENABLE_BATCH_PADDING"].string_value == "YES"


def test_every_batch_size_is_warmed_up_with_the_graphs_inputs() -> None:
    config = engine_config(spec(input={"intensity": {"rule": "zscore"}}, serving={"max_batch_size": 3}), ORT)
    assert [sample.batch_size for sample in config.model_warmup] == [1, 2, 3]
    for sample in config.model_warmup:
        assert {name: list(tensor.dims) for name, tensor in sample.inputs.items()} == {
            "roi": [1, *ROI],
            "intensity": [1, 2],
        }
        assert all(tensor.zero_data for tensor in sample.inputs.values())
    assert not engine_config(serving(warm_up=False), ORT).model_warmup


@pytest.mark.parametrize(("largest", "sizes"), [(1, [1]), (8, [1, 2, 3, 4, 5, 6, 7, 8]), (12, [1, 2, 4, 8, 12])])
def test_many_batch_sizes_are_warmed_up_by_powers_of_two(largest: int, sizes: list[int]) -> None:
    assert list(warm_up_sizes(largest)) == sizes


def test_the_public_entry_is_an_ensemble_with_nothing_an_ensemble_refuses() -> None:
    config = public_config(spec(input={"intensity": {"rule": "zscore"}}), CARD, ["tiny"])
    assert config.platform == "ensemble"
    (step,) = config.ensemble_scheduling.step
    assert step.model_name == "tiny_openvino"
    assert dict(step.input_map) == {"roi": "roi", "intensity": "intensity"}
    assert dict(step.output_map) == {"scores": "scores"}
    assert not config.instance_group
    assert not config.model_warmup
    assert not config.HasField("dynamic_batching")
    assert not config.HasField("optimization")


def test_the_version_served_is_the_specs() -> None:
    chosen = spec(version=7)
    for config in (engine_config(chosen, ORT), public_config(chosen, CARD, ["tiny"])):
        assert list(config.version_policy.specific.versions) == [7]


def test_a_config_survives_the_file_card_and_all(tmp_path: Path) -> None:
    config = public_config(spec(), CARD, ["tiny"])
    write_config(config, tmp_path)
    assert read_config(tmp_path) == config
    assert get_card(read_config(tmp_path), tmp_path) == CARD
    assert [path.name for path in tmp_path.iterdir()] == ["config.pbtxt"]


def test_a_config_has_no_field_that_tritons_schema_does_not_know(tmp_path: Path) -> None:
    write_config(engine_config(spec(), OPENVINO), tmp_path)
    text = (tmp_path / "config.pbtxt").read_text()
    assert text_format.Parse(text, pb.ModelConfig(), allow_unknown_field=False) == engine_config(spec(), OPENVINO)


def test_the_same_config_gives_the_same_bytes_whatever_the_cards_order(tmp_path: Path) -> None:
    texts = []
    for fields in (CARD.model_dump(), dict(reversed(CARD.model_dump().items()))):
        write_config(public_config(spec(), Card.model_validate(fields), ["tiny"]), tmp_path)
        texts.append((tmp_path / "config.pbtxt").read_bytes())
    assert texts[0] == texts[1]


def test_a_new_card_moves_the_step() -> None:
    config = public_config(spec(), CARD, ["tiny"])
    set_card(config, CARD.model_copy(update={"engine": "onnxruntime"}))
    assert config.ensemble_scheduling.step[0].model_name == "tiny_onnxruntime"
    assert json.loads(config.parameters["card"].string_value)["engine"] == "onnxruntime"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("name: 3", "not a Triton model config"), ("colour: 1", "not a Triton model config")],
)
def test_an_entry_that_cannot_be_read_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.pbtxt").write_text(content)
    with pytest.raises(RepositoryError, match=message):
        read_config(tmp_path)


def test_an_entry_without_a_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="the parameter card, found none"):
        get_card(pb.ModelConfig(name="other"), tmp_path)


def test_an_engine_that_is_not_built_here_is_refused() -> None:
    with pytest.raises(EngineError, match="this installation builds onnxruntime, openvino"):
        find_engine("tvm")
