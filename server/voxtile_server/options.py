"""The options that the embedded server and the container share; `compose.yaml` is tested against them."""

from __future__ import annotations

from dataclasses import dataclass

EXIT_TIMEOUT_S = 30


@dataclass(frozen=True)
class Endpoints:
    """The address that is listened on, and one port each."""

    address: str
    http: int
    grpc: int
    metrics: int


def triton_options(repository: str, endpoints: Endpoints, *, gpu: bool, control_mode: str = "none") -> list[str]:
    """Command-line options for tritonserver, the same for release 24.10 and the pinned container.

    Args:
        repository: the model repository as tritonserver sees it.
        gpu: whether GPUs are measured; without, the log is spared errors about drivers that are not there.
        control_mode: who decides which models are loaded: "none" (all, at start), "explicit" or "poll".
    """
    return [
        f"--model-repository={repository}",
        f"--model-control-mode={control_mode}",
        # Entries are complete by contract; completing them would start each Python stub twice.
        "--disable-auto-complete-config",
        f"--http-address={endpoints.address}",
        f"--http-port={endpoints.http}",
        f"--grpc-address={endpoints.address}",
        f"--grpc-port={endpoints.grpc}",
        f"--metrics-address={endpoints.address}",
        f"--metrics-port={endpoints.metrics}",
        f"--allow-gpu-metrics={str(gpu).lower()}",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
    ]
