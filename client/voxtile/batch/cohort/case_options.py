"""Reads the options of one case of a manifest, in the words of the command line.

Knows nothing of manifests.
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from typing import Any, NoReturn

from voxtile.errors import InputError
from voxtile.io.given import Given


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def given_of(text: str, given: Given) -> Given:
    """What is said of a case.

    Args:
        text: such as `--nan 0 --spacing 1 1 3`.
        given: what is said of all cases; what `text` does not say stays.

    Raises:
        InputError: an option that is none, or is none of a single case.
    """
    try:
        found = _parser().parse_args(shlex.split(text))
        return replace(given, **_values(found))
    except (InputError, ValueError) as error:
        wanted = "--nan, --posinf, --neginf, --orientation or --spacing, as on the command line"
        raise InputError(f"expected as options {wanted}, found {text!r} ({error})") from None


def _values(found: argparse.Namespace) -> dict[str, Any]:
    values = {name: value for name, value in vars(found).items() if value is not None}
    if "spacing" in values:
        values["spacing"] = tuple(values["spacing"])
    return values


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(add_help=False, allow_abbrev=False, prefix_chars="-", prog="options")
    for name in ("--nan", "--posinf", "--neginf"):
        parser.add_argument(name, type=float)
    parser.add_argument("--orientation")
    parser.add_argument("--spacing", type=float, nargs=3)
    return parser
