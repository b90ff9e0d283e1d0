"""What all tests of the build do first."""

from __future__ import annotations

import pytest

from tests.support.exporting import share_exports, share_operators
from tests.support.run_folder import run_folder


@pytest.fixture(scope="session", autouse=True)
def _exports_are_shared(tmp_path_factory: pytest.TempPathFactory) -> None:
    share_operators()
    share_exports(run_folder(tmp_path_factory) / "exports")
