"""What AOTInductor needs on this machine, and what is said where it is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.build_specs import spec
from voxtile_build.engines.aotinductor.tools import require_compiler, require_gpu
from voxtile_build.engines.release import PYTORCH_IMAGE, SERVER_IMAGE
from voxtile_build.errors import ContainerNeeded, EngineError


def test_a_missing_compiler_is_named_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(EngineError, match=r"brain: .*'g\+\+', which is not on the PATH: .*apt install g\+\+"):
        require_compiler("brain")


def test_the_compiler_that_cxx_names_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "mine"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "mine")
    with pytest.raises(EngineError, match="'mine', which is not on the PATH"):
        require_compiler("brain")
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    require_compiler("brain")


@pytest.mark.skipif(torch.cuda.is_available(), reason="states what is said where no GPU is")
def test_without_a_gpu_the_container_of_the_servers_release_is_named() -> None:
    with pytest.raises(ContainerNeeded, match=rf"tiny: serving\.gpus .* in {PYTORCH_IMAGE} .*{SERVER_IMAGE}") as caught:
        require_gpu(spec(serving={"engines": ["aotinductor"], "gpus": "all"}))
    assert caught.value.image == PYTORCH_IMAGE
