"""Options: what no segmentation could use is refused before any work, from Python as from the command."""

from __future__ import annotations

import math

import pytest

from tests.support.fake_triton import FakeTriton
from voxtile import InputError, Options, RemoteNetwork


@pytest.mark.parametrize("name", ["in_flight", "sw_batch_size", "spot_check"])
@pytest.mark.parametrize("value", [-1, 0.5, math.nan, "2"])
def test_a_count_that_is_none(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"expected a whole number of at least . for {name}, found"):
        Options(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["in_flight", "sw_batch_size"])
def test_nothing_is_sent_with_nothing(name: str) -> None:
    with pytest.raises(InputError, match=f"at least 1 for {name}, found 0"):
        Options(**{name: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.inf, math.nan, 0, -1])
def test_a_limit_on_memory_that_is_none(value: float) -> None:
    with pytest.raises(InputError, match="expected --max-ram above 0 MiB"):
        Options(max_ram_mib=value)


@pytest.mark.parametrize("in_flight", [0, -1, 1.5])
def test_a_remote_network_that_would_send_nothing(in_flight: int) -> None:
    """A window of no request would wait for ever."""
    with FakeTriton() as fake, pytest.raises(InputError, match="for in_flight"):
        RemoteNetwork(fake.url, "fake", in_flight=in_flight)
