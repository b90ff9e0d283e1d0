"""A repository for GPUs keeps Triton's own rules: backends, kinds of instances, types of tensors, steps."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2 as pb

from tests.support.build_specs import spec
from tests.support.small_networks import loud_network
from tests.support.triton_rules import GROUP, faults
from voxtile_build.build import build_models
from voxtile_build.certificate.fold_mean import mean_config
from voxtile_build.engines import find_engine
from voxtile_build.errors import SpecError
from voxtile_build.repository.config import engine_config, read_config
from voxtile_build.repository.folds import Fold, Model
from voxtile_build.spec.engines import ENGINE_NAMES

GPUS = ("none", "all", [0], [0, 1])
DTYPES = ("fp32", "fp16", "int16")


@pytest.mark.parametrize("name", ENGINE_NAMES)
@pytest.mark.parametrize(("gpus", "dtype"), list(itertools.product(GPUS, DTYPES)))
def test_each_engine_is_refused_or_keeps_the_rules(name: str, gpus: Any, dtype: str) -> None:
    asked, engine = spec(input={"dtype": dtype}, serving={"gpus": gpus}), find_engine(name)
    found = faults({name: engine_config(asked, engine)})
    try:
        engine.require_input(asked)
    except SpecError:
        assert found  # it is refused for a reason that Triton has too
    else:
        assert found == []


def published(folder: Path) -> dict[str, pb.ModelConfig]:
    return {entry.name: read_config(entry) for entry in sorted(folder.iterdir()) if (entry / "config.pbtxt").is_file()}


def test_a_repository_for_gpus_keeps_the_rules_with_all_its_folds(tmp_path: Path) -> None:
    asked = spec(
        serving={"engines": ["onnxruntime", "openvino"], "gpus": "all", "count": 2},
        acceptance={"allow_unseen_labels": True, "min_dice": 0.9, "max_changed": 0.05},
    )
    folds = tuple(Fold(f"tiny_fold{index}", loud_network) for index in range(2))
    build_models([Model(asked, folds)], tmp_path)
    configs = published(tmp_path)
    assert len(configs) == 6
    assert faults(configs) == []
    kinds = {name: [group.kind for group in config.instance_group] for name, config in configs.items()}
    on_gpus = {name for name, found in kinds.items() if found == [GROUP.KIND_GPU]}
    # The mean lies where the folds behind the public name lie: scores do not travel to the CPU and back.
    assert on_gpus == {"tiny_fold0_onnxruntime", "tiny_fold1_onnxruntime", "tiny_mean_onnxruntime"}


@pytest.mark.parametrize(("serves_on", "kind"), [("cpu", GROUP.KIND_CPU), ("gpu", GROUP.KIND_GPU)])
def test_the_mean_runs_where_the_folds_run(serves_on: str, kind: int) -> None:
    (group,) = mean_config(spec(serving={"gpus": [1], "count": 3}), 2, serves_on).instance_group
    assert (group.kind, group.count, list(group.gpus)) == (kind, 3, [1] if serves_on == "gpu" else [])


def test_the_rules_do_bite() -> None:
    wrong = engine_config(spec(input={"dtype": "int16"}), find_engine("tensorrt"))
    wrong.instance_group[0].kind = GROUP.KIND_CPU
    assert faults({"wrong": wrong}) == ["wrong: tensorrt on KIND_CPU", "wrong: roi is TYPE_INT16"]
