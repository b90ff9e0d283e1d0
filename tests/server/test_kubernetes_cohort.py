"""Cohorts on Kubernetes: the Indexed Job, the autoscaler with its metric, and KServe, against what they refer to."""

from __future__ import annotations

import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kubernetes_validate
import numpy as np
import pytest
import yaml
from tritonclient.grpc import InferenceServerClient, InferInput
from typer.main import get_command

from tests.server.test_kubernetes import INSIDE, SERVER, only
from tests.support.dockerfiles import ignored, instructions
from tests.support.tiny_entries import ROI, write_doubling
from voxtile.batch.cohort.shard import COUNT, shard_of
from voxtile.batch.summary import EXIT_SERVERS_FAILED, EXIT_SOME_FAILED, EXIT_STOPPED
from voxtile.cli.app import app
from voxtile_build.engines.release import RELEASE, SERVER_IMAGE
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.options import ServerOptions, triton_options
from voxtile_server.restricted import container_command

ROOT = SERVER.parents[1]
RELEASES = {"cohort.yaml": "1.29.0", "autoscale.yaml": "1.28.3"}
"""The oldest release of Kubernetes that takes a file."""
EXIT_BAD_INPUT = 2


@pytest.mark.parametrize("name", list(RELEASES))
@pytest.mark.parametrize("newest", [False, True])
def test_a_cluster_takes_the_file(name: str, newest: bool) -> None:
    release = kubernetes_validate.latest_version() if newest else RELEASES[name]
    for one in yaml.safe_load_all((SERVER / "kubernetes" / name).read_text(encoding="utf-8")):
        kubernetes_validate.validate(one, release, strict=True)


def test_each_index_is_a_shard() -> None:
    job = only("cohort.yaml", "Job")["spec"]
    [client] = job["template"]["spec"]["containers"]
    variables = {one["name"]: one["value"] for one in client["env"]}
    shards = [shard_of(None, {**variables, "JOB_COMPLETION_INDEX": str(n)}) for n in range(job["completions"])]
    assert job["completionMode"] == "Indexed"
    assert [(one.index, one.count) for one in shards] == [(n, job["completions"]) for n in range(job["completions"])]
    assert list(variables) == [COUNT]
    # Neither cancels the shards that go on.
    assert job["maxFailedIndexes"] == job["completions"]


def test_each_exit_code_has_its_rule() -> None:
    job = only("cohort.yaml", "Job")["spec"]
    rules = {
        code: rule["action"]
        for rule in job["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", [])
    }
    assert rules == {EXIT_STOPPED: "Ignore", EXIT_SOME_FAILED: "FailIndex", EXIT_BAD_INPUT: "FailJob"}
    assert EXIT_SERVERS_FAILED not in rules, "it is tried again, up to backoffLimitPerIndex"
    assert job["backoffLimitPerIndex"] > 0
    [client] = job["template"]["spec"]["containers"]
    names = {rule["onExitCodes"]["containerName"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule}
    assert names == {client["name"]}
    # Kubernetes takes a failure policy with these two alone.
    assert (job["template"]["spec"]["restartPolicy"], job["podReplacementPolicy"]) == ("Never", "Failed")


def test_the_command_of_the_job_is_one_and_its_pod_may_call_the_servers() -> None:
    pod = only("cohort.yaml", "Job")["spec"]["template"]
    [client] = pod["spec"]["containers"]
    words = [*client["command"], *client["args"]]
    assert words[:2] == ["voxtile", "batch"]
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    known = {name for one in get_command(app).commands["batch"].params for name in one.opts}
    assert options <= known
    service = only("network.yaml", "Service")
    assert f"--url={service['metadata']['name']}:{INSIDE.grpc}" in words
    [sender] = [
        one["podSelector"]["matchLabels"]
        for rule in only("network.yaml", "NetworkPolicy")["spec"]["ingress"]
        for one in rule.get("from", [])
    ]
    assert sender.items() <= pod["metadata"]["labels"].items()
    # It is no server itself.
    assert not service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    mounted = [one["mountPath"] for one in client["volumeMounts"]]
    assert all(path.startswith(tuple(mounted)) for path in re.findall(r"=(/\S+)", " ".join(words)))


def test_the_image_of_the_client_is_made_by_its_dockerfile() -> None:
    dockerfile = SERVER / "client" / "Dockerfile"
    steps = instructions(dockerfile)
    for source in [source for word, rest in steps if word == "COPY" for source in rest.split()[:-1]]:
        assert (ROOT / source).exists()
        assert not ignored(source, dockerfile.with_name("Dockerfile.dockerignore"))
    assert ignored("model_repository", dockerfile.with_name("Dockerfile.dockerignore"))
    # Nextflow calls a shell in it.
    assert "ENTRYPOINT" not in {word for word, _ in steps}
    [client] = only("cohort.yaml", "Job")["spec"]["template"]["spec"]["containers"]
    assert f"--tag {client['image']} " in dockerfile.read_text()


def test_the_autoscaler_counts_what_the_rule_makes() -> None:
    scaler = only("autoscale.yaml", "HorizontalPodAutoscaler")["spec"]
    target = only("gpu.yaml", "StatefulSet")
    assert scaler["scaleTargetRef"] == {
        "apiVersion": target["apiVersion"],
        "kind": target["kind"],
        "name": target["metadata"]["name"],
    }
    [metric] = scaler["metrics"]
    [rule] = yaml.safe_load((SERVER / "kubernetes" / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]


def test_the_metric_is_tritons_own_and_counts_what_waits(tmp_path: Path) -> None:
    """Twenty requests that come at once to one slow instance wait for each other."""
    [rule] = yaml.safe_load((SERVER / "kubernetes" / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    series = rule["seriesQuery"].partition("{")[0]
    write_doubling(tmp_path, "doubling", max_batch_size=0)
    with EmbeddedServer(tmp_path, ServerOptions(metrics_port=0)) as server:

        def waited() -> float:
            with urllib.request.urlopen(server.metrics_url, timeout=10) as answer:
                lines = answer.read().decode().splitlines()
            return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{series}{{"))

        assert waited() == 0
        with InferenceServerClient(server.grpc_url) as client:
            tile = InferInput("roi", list(ROI), "INT16")
            tile.set_data_from_numpy(np.zeros(ROI, np.int16))
            with ThreadPoolExecutor(20) as pool:
                assert len(list(pool.map(lambda _: client.infer("doubling", [tile]), range(20)))) == 20
        assert waited() > 0
        server.kill()


def test_kserve_runs_the_same_server() -> None:
    runtime, service = only("kserve.yaml", "ServingRuntime"), only("kserve.yaml", "InferenceService")
    [container] = runtime["spec"]["containers"]
    options = triton_options("/mnt/models", INSIDE, gpu=False, release=RELEASE)
    assert container["args"] == [*container_command(), *options]
    # KServe looks for a container of this name.
    assert (container["name"], container["image"]) == ("kserve-container", SERVER_IMAGE)
    [plain] = only("cpu.yaml", "StatefulSet")["spec"]["template"]["spec"]["containers"]
    for same in ("startupProbe", "readinessProbe", "livenessProbe", "securityContext", "resources"):
        assert container[same] == plain[same]
    predictor = service["spec"]["predictor"]
    assert predictor["model"]["runtime"] == runtime["metadata"]["name"]
    assert predictor["model"]["modelFormat"] in runtime["spec"]["supportedModelFormats"]
    assert predictor["model"]["protocolVersion"] in runtime["spec"]["protocolVersions"]
    account = only("kserve.yaml", "ServiceAccount")
    assert predictor["serviceAccountName"] == account["metadata"]["name"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        "http": INSIDE.http,
        "grpc": INSIDE.grpc,
        "metrics": INSIDE.metrics,
    }
