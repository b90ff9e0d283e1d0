"""The files of server/deploy/monitoring fit each other, the gateway's figures, and Prometheus's own tools."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.monitored import DASHBOARDS, MONITORING, alerts, compared, queries
from voxtile_server.gateway.metrics.metrics import Metrics
from voxtile_server.gateway.metrics.offered import Offered
from voxtile_server.gateway.settings import Settings

COMPOSE = MONITORING.parent / "compose.monitoring.yaml"
NAME = re.compile(r"\bvoxtile_\w+")
SUFFIXES = re.compile(r"_(total|bucket|sum|count|created)$")


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True, check=False)


# Queries


def test_queries_ask_for_figures_that_the_gateway_has() -> None:
    told = Metrics(1, Offered([], lambda url: [])).text()
    known = {SUFFIXES.sub("", name) for name in re.findall(r"^# HELP (\w+)", told, re.MULTILINE)}
    asked = {name for alert in alerts() for name in NAME.findall(alert["expr"])}
    asked |= {name for dashboard in DASHBOARDS for query in queries(dashboard) for name in NAME.findall(query)}
    assert {SUFFIXES.sub("", name) for name in asked} == known, "and each figure is looked at somewhere"


def test_comparisons_of_alerts_become_figures() -> None:
    assert compared('a{b!="c",le="1.0"} / b > 0.5 and c >= 5') == 'a{b!="c",le="1.0"} / b > bool 0.5 and c >= bool 5'
    assert all(" bool " in compared(alert["expr"]) for alert in alerts())


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_have_names_places_and_the_datasource_that_is_provisioned(dashboard: Path) -> None:
    panels = json.loads(dashboard.read_text(encoding="utf-8"))["panels"]
    [source] = loaded(MONITORING / "grafana/datasources/prometheus.yaml")["datasources"]
    used = {one["datasource"]["uid"] for panel in panels for one in (panel, *panel["targets"])}
    assert used == {source["uid"]}
    assert len({panel["title"] for panel in panels}) == len({panel["id"] for panel in panels}) == len(panels)
    cells = [cell for panel in panels for cell in covered(panel["gridPos"])]
    assert len(set(cells)) == len(cells), "no panel lies over another"
    assert all(x < 24 for x, _ in cells)


def covered(place: dict[str, int]) -> list[tuple[int, int]]:
    columns, rows = (range(place[at], place[at] + place[size]) for at, size in (("x", "w"), ("y", "h")))
    return list(itertools.product(columns, rows))


def test_dashboards_are_told_apart() -> None:
    assert len(DASHBOARDS) == 2
    described = [json.loads(path.read_text(encoding="utf-8")) for path in DASHBOARDS]
    assert len({one["uid"] for one in described}) == len({one["title"] for one in described}) == len(described)


# Alerts


def test_each_alert_is_tested_where_it_fires_and_where_it_is_silent() -> None:
    tests = loaded(MONITORING / "rules.test.yml")["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    names = {alert["alert"] for alert in alerts()}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names


def test_each_alert_says_what_it_is_and_what_to_do() -> None:
    for alert in alerts():
        assert set(alert["annotations"]) == {"summary", "description"}
        assert alert["labels"]["severity"] in ("critical", "warning", "info")


@pytest.mark.system
@pytest.mark.parametrize("words", [("check", "config", "prometheus.yml"), ("check", "rules", "rules.yml")])
def test_prometheus_takes_the_files(words: tuple[str, ...]) -> None:
    done = promtool(*words[:2], MONITORING / words[2])
    assert done.returncode == 0, done.stderr


@pytest.mark.system
def test_rules_do_what_their_tests_say() -> None:
    done = promtool("test", "rules", MONITORING / "rules.test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.system
@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_a_rule_that_compares_the_other_way_is_noticed(alert: dict[str, Any], tmp_path: Path) -> None:
    """Each comparison is turned round, in its rule alone."""
    shutil.copy(MONITORING / "rules.test.yml", tmp_path)
    rules = loaded(MONITORING / "rules.yml")
    [rule] = [one for one in rules["groups"][0]["rules"] if one["alert"] == alert["alert"]]
    turned = {" == ": " != ", " > ": " <= ", " >= ": " < "}
    rule["expr"] = re.sub("|".join(turned), lambda found: turned[found[0]], rule["expr"])
    assert rule["expr"] != alert["expr"]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    assert promtool("test", "rules", tmp_path / "rules.test.yml").returncode != 0


# The containers


def test_jobs_are_at_the_ports_that_triton_and_the_gateway_have_by_default() -> None:
    from voxtile_server.gateway.cli import command_parser

    jobs = {job["job_name"]: job["static_configs"] for job in loaded(MONITORING / "prometheus.yml")["scrape_configs"]}
    triton = loaded(MONITORING.parent / "compose.yaml")["services"]["triton-cpu"]["ports"][-1]
    assert triton.startswith("127.0.0.1:${METRICS_PORT:-8002}:")
    assert jobs["triton"] == [{"targets": ["localhost:8002"]}]
    assert jobs["gateway"] == [{"targets": [f"localhost:{command_parser().get_default('port')}"]}]
    assert Settings(("localhost:8001",)).token_file is None, "so that Prometheus needs no token"


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_a_container_has_no_more_rights_than_it_needs_and_is_reached_from_this_machine_alone(name: str) -> None:
    service = loaded(COMPOSE)["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"]), "a version, and no `latest`"
    address = service.get("environment", {}).get("GF_SERVER_HTTP_ADDR") or " ".join(service["command"])
    assert "127.0.0.1" in address
    for mount in service["volumes"]:
        if mount["type"] == "bind":
            assert mount["read_only"] is True
            assert (COMPOSE.parent / mount["source"]).exists()
        else:
            assert mount["source"] in loaded(COMPOSE)["volumes"]


def test_grafana_finds_prometheus_the_dashboards_and_no_password_of_ours() -> None:
    services = loaded(COMPOSE)["services"]
    [listening] = re.findall(r"--web.listen-address=(\S+)", " ".join(services["prometheus"]["command"]))
    [source] = loaded(MONITORING / "grafana/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == f"http://{listening}"
    assert source["jsonData"]["timeInterval"] == loaded(MONITORING / "prometheus.yml")["global"]["scrape_interval"]
    [mount] = [one for one in services["grafana"]["volumes"] if one["type"] == "bind"]
    [provider] = loaded(MONITORING / "grafana/dashboards/provider.yaml")["providers"]
    inside = Path(provider["options"]["path"]).relative_to(mount["target"])
    assert COMPOSE.parent / mount["source"] / inside == DASHBOARDS[0].parent
    assert services["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA_PASSWORD:?")
