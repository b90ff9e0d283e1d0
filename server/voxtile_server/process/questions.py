"""Asks a tritonserver over HTTP whether it is ready, and for which models; knows nothing of how it was started."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import IO

ANSWER_S = 5.0  # for a question to our own server on this machine


def is_ready(http_url: str, metrics_url: str) -> bool:
    """Whether every model is ready and every port is open.

    Args:
        http_url: HOST:PORT of the HTTP endpoint.
        metrics_url: the full URL of the metrics; Triton opens their port last.
    """
    try:
        with ask(f"http://{http_url}/v2/health/ready"), ask(metrics_url):
            return True
    except (OSError, urllib.error.URLError):
        return False


def ready_models(http_url: str) -> list[str]:
    """The names of the models that are ready, sorted.

    Args:
        http_url: HOST:PORT of the HTTP endpoint.
    """
    with ask(f"http://{http_url}/v2/repository/index", b'{"ready": true}') as answer:
        return sorted({entry["name"] for entry in json.load(answer)})


def ask(url: str, data: bytes | None = None) -> IO[bytes]:
    """Open a URL of our own server: with GET, or with POST where there is `data`."""
    # The environment's proxy must not come between us and our own server.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    answer: IO[bytes] = opener.open(url, data, timeout=ANSWER_S)
    return answer
