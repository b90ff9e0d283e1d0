"""Options that come over HTTP: messages call them what a request calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from voxtile.asked import FLAGS, TAKEN, as_parameters, with_asked
from voxtile.cli.options import MethodOptions, ScanOptions
from voxtile.errors import InputError, in_one_line
from voxtile.io.given import Given
from voxtile.io.not_finite import made_finite
from voxtile.options import Options


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("replaced: --nan VALUE --posinf VALUE", "replaced: nan=VALUE posinf=VALUE"),
        ("more than --max-ram allows, or --allow-half-scores", "more than max_ram_mib allows, or half_scores"),
        ("expected --max-ram above 0 MiB", "expected max_ram_mib above 0 MiB"),
        ("so --skip-empty cannot be used with it", "so skip_empty cannot be used with it"),
        ("give --nan 0.", "give nan=0."),
        ("give --nan -1.5;", "give nan=-1.5;"),
        ("give a token with --header NAME:VALUE", "give a token with the operator's header NAME:VALUE"),
        ("more time with --timeout", "more time with the operator's timeout"),
        ("scan--nan.nii.gz and a -- b", "scan--nan.nii.gz and a -- b"),
    ],
)
def test_options_are_called_as_a_request_calls_them(line: str, expected: str) -> None:
    assert as_parameters(line) == expected


def not_finite() -> Any:
    return made_finite(np.array([[[np.nan, np.inf, -np.inf]]], np.float32), Given(), "scan.nii.gz")


@pytest.mark.parametrize(
    ("fails", "named"),
    [(not_finite, ("nan", "posinf", "neginf")), (lambda: Options(max_ram_mib=-1), ("max_ram_mib",))],
)
def test_what_a_message_names_is_what_a_request_may_say(fails: Callable[[], Any], named: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as refused:
        fails()
    told = as_parameters(in_one_line(refused.value))
    assert "--" in str(refused.value)
    assert "--" not in told
    for name in named:
        assert name in told
        assert getattr(with_asked(Options(), {name: 5}), name) == 5


def test_every_option_of_the_command_that_a_request_has_too_is_translated() -> None:
    """Else a message would name what a request does not know."""
    fields = {*MethodOptions.__dataclass_fields__, *set(ScanOptions.__dataclass_fields__) & set(TAKEN)}
    flags = {f"--{name.replace('_', '-')}" for name in fields}
    assert flags <= set(FLAGS)
    assert set(FLAGS.values()) == set(TAKEN)
