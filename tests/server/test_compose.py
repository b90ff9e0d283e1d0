"""compose.yaml and the README's container lines: valid, pinned, on loopback, with the embedded server's options."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema
import pytest
import yaml

from tests.support.small_networks import unet
from voxtile_build.engines.onnxruntime.accelerator import CACHE, accelerator_parameters
from voxtile_build.engines.release import RELEASE, SERVER_IMAGE
from voxtile_build.spec.serving import Serving
from voxtile_server.options import VOLUME_OPTIONS, Endpoints, triton_options
from voxtile_server.restricted import CLOSED, GRPC, HTTP, NAME, container_command

SERVER = Path(__file__).parents[2] / "server" / "deploy"
INSIDE = Endpoints("0.0.0.0", 8000, 8001, 8002)
PROFILES = {"gpu": True, "cpu": False}
GPU_VARIABLES = {"NVIDIA_TF32_OVERRIDE": "0", "TRITON_PARALLEL_INSTANCE_LOADING": "0"}
PORTS = {"HTTP_PORT": 8000, "GRPC_PORT": 8001, "METRICS_PORT": 8002}


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


def expected_options(profile: str, volumes: str | None = None) -> list[str]:
    return triton_options("/models", INSIDE, gpu=PROFILES[profile], volumes=volumes, release=RELEASE)


def dollars(words: list[str]) -> list[str]:
    """Words as compose gives them to the container: it takes `$$` for `$`."""
    return [word.replace("$$", "$") for word in words]


@pytest.mark.parametrize("name", ["compose.yaml", "compose.volume.yaml", "compose.monitoring.yaml"])
def test_it_is_a_compose_file(name: str) -> None:
    """Against the Compose specification's own schema, as check-jsonschema carries it."""
    compose = yaml.safe_load((SERVER / name).read_text(encoding="utf-8"))
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
    assert dollars(service["command"]) == [*container_command(), *expected_options(profile)]


def test_the_command_gives_a_key_that_is_another_each_time(tmp_path: Path) -> None:
    """A script in the server's place prints what it is given."""
    (tmp_path / "tritonserver").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "tritonserver").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    first, second = (
        subprocess.run(
            [*container_command(), "--one=a b", "--two"], env={"PATH": path}, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for _ in range(2)
    )
    assert first[:2] == ["--one=a b", "--two"]
    limits = re.compile(rf"({GRPC}|{HTTP})={','.join(CLOSED)}:{NAME}=([0-9a-f-]{{36}})")
    options, keys = zip(*(limits.fullmatch(word).groups() for word in first[2:]), strict=True)  # type: ignore[union-attr]
    assert options == (GRPC, HTTP)
    assert keys[0] == keys[1] not in "".join(second)


def test_the_image_is_that_of_the_release_that_models_are_built_for(service: dict[str, Any]) -> None:
    assert service["image"] == SERVER_IMAGE  # plans and packages fit the libraries of one release


def test_the_container_has_no_more_rights_than_it_needs(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_whole_scans_are_served_by_the_derived_image_with_the_same_options_and_those_for_volumes(
    compose: dict[str, Any], profile: str
) -> None:
    derived = yaml.safe_load((SERVER / "compose.volume.yaml").read_text(encoding="utf-8"))["services"]
    assert derived.keys() == compose["services"].keys()
    service = derived[f"triton-{profile}"]
    options = expected_options(profile, volumes="/volumes")
    assert dollars(service["command"]) == [*container_command(), *options]
    assert {*VOLUME_OPTIONS, "--http-max-input-size=2147483647"} <= set(options)
    assert service["image"] == f"voxtile-triton:{RELEASE}"
    assert (SERVER / service["build"]["context"]).resolve() == SERVER.parents[1]
    assert (SERVER.parents[1] / service["build"]["dockerfile"]).is_file()
    [mount] = service["volumes"]
    assert (mount["target"], mount["read_only"], mount["bind"]) == ("/volumes", True, {"create_host_path": False})
    # The volume for engines is root's, and the image's user is not root.
    assert (service.get("user") == "0:0") == (profile == "gpu")


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
    key = "$(cat /proc/sys/kernel/random/uuid)"
    limits = [f"{option}={','.join(CLOSED)}:{NAME}={key}" for option in (GRPC, HTTP)]
    assert words[split + 1 :] == ["tritonserver", *expected_options(profile), *limits]
    options = words[2:split]
    assert {"--read-only", "--cap-drop", "--security-opt"} <= set(options)
    assert [value for name, value in pairwise(options) if name == "--publish"] == [
        f"127.0.0.1:{port}:{port}" for port in PORTS.values()
    ]
    assert "--shm-size=2g" in options
    assert "$PWD/model_repository:/models:ro" in options
    variables = dict(value.split("=") for name, value in pairwise(options) if name == "--env")
    assert variables == service.get("environment", {})
    assert (f"voxtile-engines:{CACHE}" in options) == PROFILES[profile]
