"""Prometheus in a process of its own, and what the files of server/deploy/monitoring ask it."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MONITORING = Path(__file__).parents[2] / "server" / "deploy" / "monitoring"
DASHBOARDS = sorted((MONITORING / "grafana" / "dashboards").glob("*.json"))
VARIABLES = {"$__rate_interval": "1m", "$model": ".*"}
"""What Grafana puts in their place: four scrapes at least, and "All"."""

COMPARISON = re.compile(r" (==|!=|>=|<=|>|<) ")
"""Of two figures; those of labels stand without spaces."""

PATIENCE_S = 300
"""A busy machine needs long for a scan; nothing is measured against it."""


def alerts() -> list[dict[str, Any]]:
    """The alerts of rules.yml."""
    groups = yaml.safe_load((MONITORING / "rules.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def compared(expression: str) -> str:
    """An alert's expression that gives 0 or 1 for each series, in place of those alone for which it holds."""
    return COMPARISON.sub(r" \1 bool ", expression)


def queries(dashboard: Path) -> list[str]:
    """Every expression of a dashboard, its variables filled in."""
    described = json.loads(dashboard.read_text(encoding="utf-8"))
    found = [target["expr"] for panel in described["panels"] for target in panel["targets"]]
    for variable in described["templating"]["list"]:
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
        found.append(f"count by ({label}) ({metric})")
    filled = []
    for expression in found:
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        assert "$" not in expression, expression
        filled.append(expression)
    return filled


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus at `url`."""

    url: str

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API."""
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(address) as answer:
            return json.load(answer)["data"]

    def series(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """The series that an expression finds now."""
        found = self.ask("query", query=expression)["result"]
        return [(one["metric"], float(one["value"][1])) for one in found]

    def firing(self) -> set[str]:
        """The names of the alerts that fire now."""
        return {one["labels"]["alertname"] for one in self.ask("alerts")["alerts"] if one["state"] == "firing"}


@contextlib.contextmanager
def prometheus(folder: Path, targets: Mapping[str, str]) -> Iterator[Prometheus]:
    """Runs Prometheus with the files of this project, every second and without an alert's delay.

    Args:
        folder: for its files.
        targets: HOST:PORT by the name of the job.
    """
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = dict.fromkeys(config["global"], "1s")
    assert {job["job_name"] for job in config["scrape_configs"]} == set(targets)
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
    rules = yaml.safe_load((MONITORING / "rules.yml").read_text(encoding="utf-8"))
    for rule in rules["groups"][0]["rules"]:
        rule.pop("for", None)
    for name, content in (("prometheus.yml", config), ("rules.yml", rules)):
        (folder / name).write_text(yaml.safe_dump(content), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
               f"--web.listen-address={address}"]  # fmt: skip
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            running = Prometheus(f"http://{address}")
            until(lambda: _answers(running, process), lambda: (folder / "log").read_text())
            yield running
        finally:
            process.terminate()
            process.wait(60)


def until(condition: Callable[[], bool], said: Callable[[], object] = str) -> None:
    """Waits for a condition; `said` explains where it never comes."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, said()
        time.sleep(0.5)


def _answers(running: Prometheus, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "Prometheus has ended"
    with contextlib.suppress(urllib.error.URLError):
        return bool(running.ask("status/config"))
    return False
