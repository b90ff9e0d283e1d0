"""compose.yaml and the README's container lines: valid, pinned, on loopback, with the embedded server's options."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema
import pytest
import yaml

from tests.support.small_networks import unet
from voxtile_build.engines.onnxruntime.accelerator import CACHE, accelerator_parameters
from voxtile_build.engines.release import SERVER_IMAGE
from voxtile_build.spec.serving import Serving
from voxtile_server.options import Endpoints, triton_options

SERVER = Path(__file__).parents[2] / "server" / "deploy"
INSIDE = Endpoints("0.0.0.0", 8000, 8001, 8002)
PROFILES = {"gpu": True, "cpu": False}
GPU_VARIABLES = {"NVIDIA_TF32_OVERRIDE": "0", "TRITON_PARALLEL_INSTANCE_LOADING": "0"}
PORTS = {"HTTP_PORT": 8000, "GRPC_PORT": 8001, "METRICS_PORT": 8002}
# Entries are ONNX of opset 20 and IR 10, which 26.01 (ONNX Runtime 1.23) takes; ensembles whose steps bound their
# queues could hang before 26.02.
OLDEST = (26, 2)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    described: dict[str, Any] = yaml.safe_load((SERVER / "compose.yaml").read_text(encoding="utf-8"))
    return described


@pytest.fixture(params=list(PROFILES))
def profile(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def service(compose: dict[str, Any], profile: str) -> dict[str, Any]:
    [found] = [service for service in compose["services"].values() if service["profiles"] == [profile]]
    return dict(found)


def expected_options(profile: str) -> list[str]:
    return ["tritonserver", *triton_options("/models", INSIDE, gpu=PROFILES[profile])]


def test_it_is_a_compose_file(compose: dict[str, Any]) -> None:
    """Against the Compose specification's own schema, as check-jsonschema carries it."""
    package = importlib.util.find_spec("check_jsonschema")
    assert package is not None
    assert package.submodule_search_locations
    vendored = Path(package.submodule_search_locations[0], "builtin_schemas", "vendor", "compose-spec.json")
    schema = json.loads(vendored.read_text(encoding="utf-8"))
    jsonschema.validators.validator_for(schema)(schema).validate(compose)
    with pytest.raises(jsonschema.ValidationError):  # the schema does bite
        jsonschema.validators.validator_for(schema)(schema).validate({"services": {"a": {"imagee": "b"}}})


def test_every_service_is_behind_a_profile(compose: dict[str, Any]) -> None:
    assert sorted(service["profiles"][0] for service in compose["services"].values()) == sorted(PROFILES)


def test_the_options_are_those_of_the_embedded_server(service: dict[str, Any], profile: str) -> None:
    assert service["command"] == expected_options(profile)


def test_the_image_is_pinned_to_a_release_that_can_serve(service: dict[str, Any]) -> None:
    found = re.fullmatch(r"nvcr\.io/nvidia/tritonserver:(\d\d)\.(\d\d)-py3", service["image"])
    assert found
    assert (int(found[1]), int(found[2])) >= OLDEST
    assert service["image"] == SERVER_IMAGE  # plans and packages fit the libraries of one release


def test_ports_are_on_loopback_and_from_the_environment(service: dict[str, Any]) -> None:
    assert service["ports"] == [f"127.0.0.1:${{{name}:-{port}}}:{port}" for name, port in PORTS.items()]


def test_on_gpus_fp32_is_fp32_and_engines_are_built_once(compose: dict[str, Any]) -> None:
    service = compose["services"]["triton-gpu"]
    assert service["environment"] == GPU_VARIABLES
    [cache] = [volume for volume in service["volumes"] if volume["type"] == "volume"]
    assert cache["source"] in compose["volumes"]
    assert cache["target"] == str(CACHE)
    assert not cache.get("read_only")
    assert "environment" not in compose["services"]["triton-cpu"]


def test_every_folder_for_engines_lies_directly_in_the_volume(tmp_path: Path) -> None:
    """The provider makes the last folder of its path, and none above it."""
    file = tmp_path / "model.onnx"
    file.write_bytes(unet().SerializeToString())
    parameters = accelerator_parameters("brain_onnxruntime", file, Serving())
    for key in ("trt_engine_cache_path", "trt_timing_cache_path"):
        assert PurePosixPath(parameters[key]).parent == CACHE


def test_the_repository_is_mounted_read_only_and_must_exist(service: dict[str, Any]) -> None:
    [mount] = [volume for volume in service["volumes"] if volume["type"] == "bind"]
    assert mount["source"] == "${MODEL_REPOSITORY:-../../model_repository}"
    assert (mount["type"], mount["target"], mount["read_only"]) == ("bind", "/models", True)
    assert mount["bind"] == {"create_host_path": False}
    assert (SERVER / "../../model_repository").is_dir()


def test_shared_memory_and_health_are_set(service: dict[str, Any]) -> None:
    assert service["shm_size"] == "2gb"
    assert service["healthcheck"]["test"][-1] == "http://127.0.0.1:8000/v2/health/ready"
    # Triton waits for what is in flight; it must not be killed before it has.
    waits = next(option for option in service["command"] if option.startswith("--exit-timeout-secs="))
    assert int(service["stop_grace_period"].removesuffix("s")) > int(waits.partition("=")[2])


def test_only_the_gpu_profile_takes_gpus(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        assert bool(devices) == (service["profiles"] == ["gpu"])


def test_the_readme_has_the_same_container_as_one_line(service: dict[str, Any], profile: str) -> None:
    readme = (SERVER.parent / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [shlex.split(line) for line in readme.splitlines() if line.strip().startswith("docker run")]
    [words] = [line for line in lines if ("--gpus" in line) == PROFILES[profile]]
    split = words.index(service["image"])
    assert words[split + 1 :] == expected_options(profile)
    options = words[2:split]
    assert [value for name, value in pairwise(options) if name == "--publish"] == [
        f"127.0.0.1:{port}:{port}" for port in PORTS.values()
    ]
    assert "--shm-size=2g" in options
    assert "$PWD/model_repository:/models:ro" in options
    variables = dict(value.split("=") for name, value in pairwise(options) if name == "--env")
    assert variables == service.get("environment", {})
    assert (f"voxtile-engines:{CACHE}" in options) == PROFILES[profile]
