"""server/deploy/kubernetes: objects that a cluster takes, that fit together, with the embedded server's options."""

from __future__ import annotations

import copy
import urllib.request
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.server.test_compose import GPU_VARIABLES
from voxtile_build.engines.onnxruntime.accelerator import CACHE
from voxtile_build.engines.release import RELEASE, SERVER_IMAGE
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.options import EXIT_TIMEOUT_S, Endpoints, triton_options
from voxtile_server.restricted import container_command

SERVER = Path(__file__).parents[2] / "server" / "deploy"
FILES = ("models.yaml", "network.yaml", "cpu.yaml", "gpu.yaml")
COHORT_FILES = ("autoscale.yaml", "cohort.yaml", "kserve.yaml", "prometheus-adapter.yaml")
"""See test_kubernetes_cohort.py."""
GPU = {"cpu.yaml": False, "gpu.yaml": True}
RELEASES = ("1.28.3", kubernetes_validate.latest_version())
"""Of Kubernetes: an old one, and the newest whose schema is known."""
INSIDE = Endpoints("0.0.0.0", 8000, 8001, 8002)

Object = dict[str, Any]


def objects(name: str) -> list[Object]:
    return list(yaml.safe_load_all((SERVER / "kubernetes" / name).read_text(encoding="utf-8")))


def only(name: str, kind: str) -> Object:
    [found] = [one for one in objects(name) if one["kind"] == kind]
    return found


@pytest.fixture(params=list(GPU))
def file(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pod(file: str) -> Object:
    return dict(only(file, "StatefulSet")["spec"]["template"])


@pytest.fixture
def container(pod: Object) -> Object:
    [found] = pod["spec"]["containers"]
    return dict(found)


def test_these_are_all_files() -> None:
    assert sorted(path.name for path in (SERVER / "kubernetes").iterdir()) == sorted((*FILES, *COHORT_FILES))


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", FILES)
def test_a_cluster_takes_every_object(name: str, release: str) -> None:
    """Against the API's own schemas, with unknown fields refused."""
    for one in objects(name):
        kubernetes_validate.validate(one, release, strict=True)


def test_the_schema_does_bite() -> None:
    wrong = copy.deepcopy(only("cpu.yaml", "StatefulSet"))
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, RELEASES[-1], strict=True)


def test_the_options_are_those_of_the_embedded_server(file: str, container: Object) -> None:
    options = triton_options("/models", INSIDE, gpu=GPU[file], release=RELEASE)
    assert container["args"] == [*container_command(), *options]
    # Kubernetes would take $(NAME) for a variable of its own.
    assert not any("$(" in word for word in container["args"])


def test_cpu_and_gpu_differ_in_nothing_else() -> None:
    cpu, gpu = only("cpu.yaml", "StatefulSet"), only("gpu.yaml", "StatefulSet")
    for one in (cpu, gpu):
        [container] = one["spec"]["template"]["spec"]["containers"]
        wanted = container.pop("resources")
        assert ("nvidia.com/gpu" in wanted["limits"]) == (one is gpu)
        # Memory that is not there when it is needed ends the server in the middle of a scan.
        assert wanted["requests"]["memory"] == wanted["limits"]["memory"]
        container["args"] = [option for option in container["args"] if not option.startswith("--allow-gpu-metrics")]
    [container] = gpu["spec"]["template"]["spec"]["containers"]
    assert {one["name"]: one["value"] for one in container.pop("env")} == GPU_VARIABLES
    container["volumeMounts"].remove({"name": "engines", "mountPath": str(CACHE)})
    assert [one["metadata"]["name"] for one in gpu["spec"].pop("volumeClaimTemplates")] == ["engines"]
    assert cpu == gpu


def test_the_image_is_the_one_that_compose_runs(container: Object) -> None:
    compose = yaml.safe_load((SERVER / "compose.yaml").read_text(encoding="utf-8"))
    images = {service["image"] for service in compose["services"].values()}
    [loader] = only("models.yaml", "Pod")["spec"]["containers"]
    assert {container["image"], loader["image"]} == images == {SERVER_IMAGE}


def test_service_policy_and_claim_are_of_these_pods(file: str, pod: Object) -> None:
    labels, whole = pod["metadata"]["labels"], only(file, "StatefulSet")
    service, policy = only("network.yaml", "Service"), only("network.yaml", "NetworkPolicy")
    assert service["spec"]["selector"] == labels == whole["spec"]["selector"]["matchLabels"]
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    # voxtile-0.voxtile is a name only where both agree, and the service has no address of its own.
    assert whole["spec"]["serviceName"] == service["metadata"]["name"] == "voxtile"
    assert service["spec"]["clusterIP"] == "None"
    # The pod that copies models is no server.
    loader = only("models.yaml", "Pod")
    assert loader["metadata"]["labels"] != labels
    claim = only("models.yaml", "PersistentVolumeClaim")["metadata"]["name"]
    for volumes in (pod["spec"]["volumes"], loader["spec"]["volumes"]):
        claims = [one["persistentVolumeClaim"]["claimName"] for one in volumes if "persistentVolumeClaim" in one]
        assert claims == [claim]


def test_ports_have_one_name_everywhere(container: Object) -> None:
    open_ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert open_ports == {"http": INSIDE.http, "grpc": INSIDE.grpc, "metrics": INSIDE.metrics}
    service = only("network.yaml", "Service")["spec"]["ports"]
    assert {port["name"]: port["port"] for port in service} == open_ports
    assert all(port["targetPort"] == port["name"] for port in service)
    rules = only("network.yaml", "NetworkPolicy")["spec"]["ingress"]
    assert {port["port"] for rule in rules for port in rule["ports"]} == set(open_ports)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == "http"


def test_scans_come_from_pods_with_the_label_alone() -> None:
    """A rule without `from` lets everybody in: metrics are read by whoever watches the cluster."""
    for rule in only("network.yaml", "NetworkPolicy")["spec"]["ingress"]:
        senders = [{"podSelector": {"matchLabels": {"voxtile-client": "true"}}}]
        assert rule.get("from") == senders or [port["port"] for port in rule["ports"]] == ["metrics"]


def test_volumes_are_mounted_and_models_cannot_be_written(pod: Object, container: Object) -> None:
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert set(mounts) - {"engines"} == {volume["name"] for volume in pod["spec"]["volumes"]}
    assert mounts["models"] == {"name": "models", "mountPath": "/models", "readOnly": True}
    # Without it, 64 MiB are there for what stubs and tritonserver share.
    [shared] = [volume for volume in pod["spec"]["volumes"] if volume["name"] == "shm"]
    assert (mounts["shm"]["mountPath"], shared["emptyDir"]["medium"]) == ("/dev/shm", "Memory")


def test_what_is_in_flight_is_finished_before_the_end(pod: Object) -> None:
    assert pod["spec"]["terminationGracePeriodSeconds"] > EXIT_TIMEOUT_S


def test_no_pod_has_more_rights_than_it_needs(pod: Object) -> None:
    for spec in (pod["spec"], only("models.yaml", "Pod")["spec"]):
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_the_probes_ask_what_tritonserver_answers(container: Object, server: EmbeddedServer) -> None:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        url = f"http://{server.http_url}{container[probe]['httpGet']['path']}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert answer.status == 200


def test_the_readme_names_every_file() -> None:
    readme = (SERVER.parent / "README.md").read_text(encoding="utf-8")
    assert all(f"server/deploy/kubernetes/{name}" in readme for name in (*FILES, *COHORT_FILES))
