"""What the gateway tells Prometheus: bounded, without names, true to the certificate, and new with each question."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from tests.support.cards import card
from voxtile.card import Card, InputRange
from voxtile.errors import InputError, OtherBuildError, OutputError, ServerUnavailable, TileError
from voxtile.io.intensities import InputStatistics
from voxtile.outputs.report import LabelVolume, Report, Seconds
from voxtile.triton.catalogue import ModelListing
from voxtile.triton.endpoint import UNLOADED
from voxtile_server.gateway.metrics import offered as module
from voxtile_server.gateway.metrics.drift import FARTHEST, FIGURES, MOST_CERTIFICATES, MOST_LABELS, Drift, distance
from voxtile_server.gateway.metrics.metrics import Metrics, fault_of
from voxtile_server.gateway.metrics.offered import Offered

SEEN = {"channel": "T1", "mean": [10, 20], "std": [4, 5], "p1": [0, 1], "p99": [40, 50]}


def described(sha256: str = "a" * 64, **changes: Any) -> Card:
    fields = {"sha256": sha256, "accepted": True, "precision": "fp32", "dice_min": 1, "changed_fraction": 0,
              "max_abs_error": 0, "inputs": [SEEN], **changes}  # fmt: skip
    return Card.model_validate(card(certificates={"openvino": fields}))


def report(sha256: str = "a" * 64, ml: Mapping[str, float] | None = None, **inputs: float) -> Report:
    figures = {"mean": 15.0, "std": 4.5, "p1": 0.5, "p99": 45.0, **inputs}
    volumes = {"background": 900.0, "tissue": 12.0} if ml is None else ml
    return Report(
        model="model", version="1", shape=(1, 1, 1), tiles=1, seconds=Seconds(infer=2), bytes_sent=1, bytes_received=1,
        peak_rss_bytes=1, retries=0, certificate={"sha256": sha256}, engine="openvino", servers=[], grid=(1, 1, 1),
        tiling={}, changes=[], inputs={"T1": InputStatistics(**figures)},
        labels={name: LabelVolume(voxels=1, ml=one) for name, one in volumes.items()},
    )  # fmt: skip


def figures(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The value of each series."""
    families = text_string_to_metric_families(text)
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def value(text: str, name: str, **labels: str) -> float:
    """The sum of the series whose labels include these."""
    found = [one for (series, told), one in figures(text).items() if series == name and told >= set(labels.items())]
    assert found, (name, labels)
    return sum(found)


# What comes in


@given(st.floats(-1e9, 1e9), st.sampled_from(["mean", "p1", "p99"]))
def test_a_figure_is_far_by_what_lies_outside_in_deviations_of_the_certificates_scans(
    found: float, figure: str
) -> None:
    seen = InputRange.model_validate(SEEN)
    statistics = InputStatistics(**{"mean": 0.0, "std": 1.0, "p1": 0.0, "p99": 0.0, figure: found})
    low, high = getattr(seen, figure)
    expected = 0.0 if low <= found <= high else min(abs(found - low), abs(found - high)) / 5
    assert distance(figure, statistics, seen) == pytest.approx(min(expected, FARTHEST))


@pytest.mark.parametrize(("std", "doublings"), [(4, 0), (5, 0), (10, 1), (2, 1), (80, 4), (0, FARTHEST)])
def test_a_deviation_is_far_by_its_doublings(std: float, doublings: float) -> None:
    found = InputStatistics(mean=0, std=std, p1=0, p99=0)
    assert distance("std", found, InputRange.model_validate(SEEN)) == pytest.approx(doublings)


def test_a_certificate_that_saw_one_value_alone_divides_by_nothing() -> None:
    seen = InputRange.model_validate({**SEEN, "std": [0, 0]})
    assert distance("mean", InputStatistics(mean=23, std=1, p1=0, p99=0), seen) == 3
    assert distance("std", InputStatistics(mean=23, std=1, p1=0, p99=0), seen) == FARTHEST


@pytest.mark.parametrize(("std", "doublings"), [(0, 0), (3, 0), (5, 0), (10, 1)])
def test_a_certificate_that_saw_an_empty_channel_too_has_a_range_as_others(std: float, doublings: float) -> None:
    """An alert on each later scan would be false."""
    seen = InputRange.model_validate({**SEEN, "std": [0, 5]})
    assert distance("std", InputStatistics(mean=0, std=std, p1=0, p99=0), seen) == pytest.approx(doublings)


def test_what_is_like_a_certificate_of_one_value_is_near_to_it() -> None:
    seen = InputRange.model_validate({**SEEN, "std": [0, 0]})
    assert distance("std", InputStatistics(mean=0, std=0, p1=0, p99=0), seen) == 0


def test_figures_of_a_scan_stand_by_model_certificate_and_channel() -> None:
    metrics = Metrics(9)
    metrics.measured(report(mean=30.0), described())
    text, series = metrics.text(), {"model": "model", "certificate": "a" * 12, "channel": "T1"}
    assert value(text, "voxtile_input_distance_sum", **series, statistic="mean") == 2
    assert value(text, "voxtile_input_distance_sum", **series, statistic="std") == 0
    assert value(text, "voxtile_input_bucket", **series, statistic="mean", le="20.0") == 0
    assert value(text, "voxtile_input_bucket", **series, statistic="mean", le="50.0") == 1
    assert value(text, "voxtile_seconds_total", model="model", step="infer") == 2


def test_a_certificate_that_saw_no_scans_has_no_distance() -> None:
    metrics = Metrics(9)
    metrics.measured(report(), described(inputs=[]))
    assert "voxtile_input_count" in metrics.text()
    assert "voxtile_input_distance_count" not in metrics.text()


# What goes out


def test_structures_have_volumes_and_the_background_has_none() -> None:
    metrics = Metrics(9)
    for ml in (0.0, 12.0):
        metrics.measured(report(ml={"background": 1.0, "tissue": ml}), described())
    text = metrics.text()
    assert value(text, "voxtile_label_ml_sum", label="tissue") == 12
    assert value(text, "voxtile_label_ml_bucket", label="tissue", le="0.0") == 1, "one scan is without it"
    assert 'label="background"' not in text


def test_the_number_of_series_is_bounded() -> None:
    names = [f"label {number}" for number in range(3 * MOST_LABELS)]
    labels = [{"name": name, "value": number} for number, name in enumerate(names)]
    output = {"kind": "logits", "dtype": "fp32", "scores": len(labels)}
    many = Card.model_validate(card(labels=labels, output=output))
    registry = CollectorRegistry()
    drift = Drift(registry)
    for number in range(10):
        drift.saw(report(f"{number:064}"[::-1], dict.fromkeys(names, 1.0)), many)
    series = [one for family in registry.collect() for one in family.samples if one.name == "voxtile_label_ml_count"]
    assert len(series) == MOST_CERTIFICATES * MOST_LABELS
    assert {one.labels["certificate"][:1] for one in series} == {"6", "7", "8", "9"}, "the newest are kept"


def test_versions_that_are_used_by_turns_are_all_counted() -> None:
    """One that was forgotten between would count from 0 each time, and its alert would never see five scans."""
    registry = CollectorRegistry()
    drift = Drift(registry)
    for number in (*range(10), *(digit for _ in range(5) for digit in (0, *range(1, MOST_CERTIFICATES)))):
        drift.saw(report(str(number) * 64), described(str(number) * 64))
    counts = {
        one.labels["certificate"][0]: one.value
        for family in registry.collect()
        for one in family.samples
        if one.name == "voxtile_label_ml_count"
    }
    assert counts == {str(number): 5 for number in range(MOST_CERTIFICATES)}


# Failures


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (InputError("no scan"), "caller"),
        (OtherBuildError("replaced"), "other_build"),
        (TileError("refused"), "service"),
        (ServerUnavailable("gone"), "service"),
        (OutputError("no page of this"), "caller"),
        (RuntimeError("a bug"), "service"),
    ],
)
def test_a_failure_is_somebodys_fault(error: Exception, fault: str) -> None:
    metrics = Metrics(9)
    metrics.expect("model")
    metrics.failed("model", error)
    assert value(metrics.text(), "voxtile_failed_scans_total", model="model") == 1
    assert value(metrics.text(), "voxtile_failed_scans_total", model="model", fault=fault) == 1


def test_a_full_disk_is_the_services_fault() -> None:
    full = OutputError("cannot write")
    full.__context__ = OSError(errno.ENOSPC, "No space left on device")
    assert fault_of(full) == "service"


# What is served


def offers(**servers: Sequence[ModelListing] | None) -> str:
    """What Prometheus is told where servers offer this; None for one that does not answer."""

    def ask(url: str) -> Sequence[ModelListing]:
        found = servers[url]
        if found is None:
            raise ServerUnavailable("gone")
        return found

    behind = Offered(list(servers), ask)
    asyncio.run(behind.renew())
    return Metrics(9, behind).text()


def listing(name: str = "model", problem: str = "", state: str = "READY", **changes: Any) -> ModelListing:
    usable = None if problem else described(**changes)
    return ModelListing("a", name, "3", usable, problem, state)


def test_what_is_served_is_told_with_its_version_engine_precision_and_certificate() -> None:
    text = offers(a=[listing()])
    told = {"model": "model", "version": "3", "engine": "openvino", "precision": "fp32", "certificate": "a" * 12}
    assert value(text, "voxtile_model_info", **told) == 1
    assert value(text, "voxtile_triton_up", url="a") == 1
    assert value(text, "voxtile_model_builds", model="model") == 1
    assert value(text, "voxtile_certificate_accepted", model="model") == 1
    assert value(text, "voxtile_certificate_reservations", model="model") == 0
    for figure in FIGURES:
        found = [value(text, "voxtile_certified_input", statistic=figure, bound=bound) for bound in ("low", "high")]
        assert found == SEEN[figure]


def test_a_certificate_with_reservations_that_was_not_accepted() -> None:
    text = offers(a=[listing(accepted=False, serves_on="gpu", device="cpu", unseen_labels=["tissue"])])
    assert value(text, "voxtile_certificate_accepted", model="model") == 0
    assert value(text, "voxtile_certificate_reservations", model="model") == 2


def test_servers_with_different_builds_of_a_model_are_told() -> None:
    text = offers(a=[listing()], b=[listing(sha256="b" * 64)], c=None)
    assert value(text, "voxtile_model_builds", model="model") == 2
    assert value(text, "voxtile_triton_up", url="c") == 0
    assert value(text, "voxtile_model_ready", model="model") == 1


def test_a_model_is_not_ready_where_one_server_could_not_load_it() -> None:
    text = offers(a=[listing()], b=[listing(problem="the server could not load it", state="UNAVAILABLE")])
    assert value(text, "voxtile_model_ready", model="model") == 0


@pytest.mark.parametrize("state", ["", UNLOADED])
def test_a_model_that_nobody_wants_loaded_is_neither_ready_nor_a_fault(state: str) -> None:
    assert "voxtile_model_ready{" not in offers(a=[listing(problem="not loaded", state=state)])


def test_a_model_whose_older_version_is_gone_is_ready() -> None:
    text = offers(a=[listing(problem="could not load", state="UNAVAILABLE"), listing()])
    assert value(text, "voxtile_model_ready", model="model") == 1


def test_what_was_served_and_is_no_more_is_not_told() -> None:
    served = [listing()]
    behind = Offered(["a"], lambda url: served)
    metrics = Metrics(9, behind)
    asyncio.run(behind.renew())
    assert "voxtile_model_info{" in metrics.text()
    served.clear()
    asyncio.run(behind.renew())
    assert "voxtile_model_info{" not in metrics.text()


def test_a_server_that_is_silent_delays_nobody_and_counts_as_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)
    answers, asked = threading.Event(), []

    def ask(url: str) -> Sequence[ModelListing]:
        asked.append(url)
        answers.wait()
        return [listing()]

    behind = Offered(["a"], ask)
    metrics = Metrics(9, behind)

    async def scraped() -> None:
        for _ in range(3):
            await behind.renew()
            assert value(metrics.text(), "voxtile_triton_up", url="a") == 0
        assert asked == ["a"], "one question is open at a time"
        answers.set()
        while behind._asking is not None and not behind._asking.done():
            await asyncio.sleep(0.01)

    asyncio.run(scraped())
