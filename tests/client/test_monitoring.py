"""The real Prometheus, the real Triton and the real gateway: every query finds series, and real faults fire alerts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.support.gateways import MODEL, Gateway, gateway, put
from tests.support.monitored import DASHBOARDS, Prometheus, alerts, compared, prometheus, queries, until
from tests.support.whole_scans import write_scan
from voxtile_server.embedded import EmbeddedServer
from voxtile_server.options import ServerOptions

pytestmark = pytest.mark.system

SHAPE = (34, 36, 38)


@dataclass(frozen=True)
class Watched:
    """A server with one model, a gateway before it, and a Prometheus that watches both."""

    repository: Path
    server: EmbeddedServer
    gateway: Gateway
    prometheus: Prometheus

    def segment(self, scan: Path) -> int:
        """The status of a scan that is sent."""
        return self.gateway.curl(f"/v1/models/{MODEL}/mask", *put(scan))[0]

    def fires(self, *names: str) -> None:
        """Waits until alerts fire."""
        until(lambda: self.prometheus.firing() >= set(names), lambda: (names, self.prometheus.firing()))


def certified(folder: Path) -> Path:
    """A repository with small-unet, whose certificate has seen a scan."""
    from safetensors.torch import save_file

    from tests.support.exporting import share_operators
    from tests.support.small_models import UNET, small_unet
    from voxtile_build.build import build
    from voxtile_build.spec.spec import load_spec

    share_operators()
    weights, repository = folder / "small-unet.safetensors", folder / "repository"
    repository.mkdir()
    save_file(small_unet().state_dict(), weights)
    write_scan(folder / "seen.nii.gz", SHAPE)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    text = UNET.format(name=MODEL, dtype="fp32", sha256=digest) + '[acceptance]\nscans = ["seen.nii.gz"]\n'
    (folder / "small-unet.toml").write_text(text.replace('"onnxruntime", ', ""))
    build(load_spec(folder / "small-unet.toml"), repository)
    return repository


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    repository = certified(tmp_path_factory.mktemp("certified"))
    options = ServerOptions(metrics_port=0, ready_timeout_s=120, model_control_mode="poll")
    with (
        EmbeddedServer(repository, options) as server,
        gateway(tmp_path_factory.mktemp("gateway"), "--url", server.grpc_url) as running,
    ):
        assert server.metrics_url is not None
        targets = {"triton": server.metrics_url, "gateway": running.url}
        targets = {job: url.removeprefix("http://").partition("/")[0] for job, url in targets.items()}
        with prometheus(tmp_path_factory.mktemp("prometheus"), targets) as found:
            yield Watched(repository, server, running, found)
        server.kill()  # an orderly end takes Triton seconds, and is tested elsewhere


def test_every_query_and_every_alert_finds_series(watched: Watched, tmp_path: Path) -> None:
    """While scans are segmented: some that are right, and one that is refused."""
    scan = write_scan(tmp_path / "scan.nii.gz", SHAPE)
    (tmp_path / "none.nii.gz").write_bytes(b"no scan")
    asked = {query for dashboard in DASHBOARDS for query in queries(dashboard)}
    asked |= {compared(alert["expr"]) for alert in alerts()}
    assert len(asked) > 40

    def lacking() -> list[str]:
        assert watched.segment(scan) == 200
        assert watched.segment(tmp_path / "none.nii.gz") == 422
        return [
            query for query in asked if not any(np.isfinite(value) for _, value in watched.prometheus.series(query))
        ]

    until(lambda: not lacking(), lambda: "\n".join(lacking()))
    assert watched.prometheus.firing() == set()
    [(served, _)] = watched.prometheus.series("voxtile_model_info")
    assert (served["model"], served["version"], served["engine"]) == (MODEL, "1", "openvino")
    [(_, far)] = watched.prometheus.series(
        'max(voxtile_input_distance_bucket{le="1.0"} - ignoring (le) voxtile_input_distance_count)'
    )
    assert far == 0, "scans of the certificate's kind are near to it"


def test_no_name_that_a_caller_chose_and_nothing_of_a_header_is_told(watched: Watched, tmp_path: Path) -> None:
    image = nib.load(write_scan(tmp_path / "DOE^JOHN.nii.gz", SHAPE))
    image.header["descrip"] = b"DOE^JANE 1970"
    nib.save(image, tmp_path / "DOE^JOHN.nii.gz")
    assert watched.segment(tmp_path / "DOE^JOHN.nii.gz") == 200
    assert watched.gateway.error("/v1/models/DOE/mask", "-d", "x")[0] == 404
    assert b"DOE" not in watched.gateway.curl("/metrics")[2]


def test_scans_unlike_those_of_the_certificate_fire(watched: Watched, tmp_path: Path) -> None:
    """A few voxels are far brighter than all others, so that the 99th percentile lies elsewhere."""
    values = np.random.default_rng(4).integers(1, 10, SHAPE).astype(np.int16)
    values[::4, ::3, ::3] = 20_000
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "odd.nii.gz")

    def fires() -> bool:
        assert watched.segment(tmp_path / "odd.nii.gz") == 200
        return "InputsFarFromCertificate" in watched.prometheus.firing()

    until(fires, watched.prometheus.firing)


def test_a_model_that_cannot_be_loaded_fires(watched: Watched) -> None:
    """The server finds it a while later, and goes on with the others."""
    (watched.repository / "broken" / "1").mkdir(parents=True)
    (watched.repository / "broken" / "config.pbtxt").write_text('name: "broken"\nbackend: "onnxruntime"\n')
    watched.fires("ModelNotReady")
    [(broken, _)] = watched.prometheus.series("voxtile_model_ready == 0")
    assert broken["model"] == "broken"


def test_a_killed_server_fires(watched: Watched) -> None:
    watched.server.kill()
    assert watched.gateway.error("/health/ready")[0] == 503
    watched.fires("TritonDown", "TritonUnreachable", "RequestsFail")
    assert "GatewayDown" not in watched.prometheus.firing()
