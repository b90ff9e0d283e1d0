"""Model repositories that cannot be served are refused before Triton starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import tiny_entries as tiny
from voxtile_server.errors import ServerError
from voxtile_server.install.layout import served_backends
from voxtile_server.repository import check_repository


def test_a_repository_that_cannot_be_served_is_refused(tmp_path: Path, repository: Path) -> None:
    assert check_repository(repository, served_backends()) == ["double"]
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "half" / ".building").mkdir(parents=True)
    tiny.write_doubling(tmp_path / "odd", "two words")
    plan = tmp_path / "plan" / "brain_tensorrt"
    plan.mkdir(parents=True)
    (plan / "config.pbtxt").write_text('name: "brain_tensorrt"\nbackend: "tensorrt"\n')
    for name, message in (
        ("missing", "does not exist; build a model first"),
        ("file", "is not a folder"),
        ("empty", "holds no model"),
        ("half", r"/\.building in the model repository has no config\.pbtxt, and Triton would not start"),
        ("plan", r"brain_tensorrt needs Triton's backend 'tensorrt', which this server does not have .*container"),
        ("odd", "Triton cannot take the model name 'two words'"),
    ):
        with pytest.raises(ServerError, match=message):
            check_repository(tmp_path / name, served_backends())
