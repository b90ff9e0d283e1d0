"""What all tests of the build do first."""

from __future__ import annotations

import pytest

from tests.support.exporting import share_operators


@pytest.fixture(scope="session", autouse=True)
def _exports_share_operators() -> None:
    share_operators()
