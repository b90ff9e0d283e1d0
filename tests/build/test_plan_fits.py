"""A plan is opened where it fits, and nowhere else; the error says what differs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.build_specs import spec
from voxtile_build.certificate.entry_files import CertifiedEntry
from voxtile_build.certificate.verify import _runner
from voxtile_build.engines import find_engine, gpu
from voxtile_build.engines.gpu import Gpu
from voxtile_build.engines.tensorrt import engine as engine_module
from voxtile_build.engines.tensorrt.fits import as_facts, fitting, together
from voxtile_build.errors import EngineError, SpecError
from voxtile_build.repository.config import engine_config, write_config

H200, L4 = Gpu("NVIDIA H200", "sm_90", "GPU-1a"), Gpu("NVIDIA L4", "sm_89", "GPU-2b")
FACTS = json.loads(json.dumps(as_facts(H200, "11.4.0.106")))
"""As a certificate holds them."""


def test_a_plan_is_opened_on_the_first_gpu_of_its_architecture() -> None:
    assert fitting(FACTS, {0: L4, 1: H200, 2: H200}, "11.4.0.106") == 1


@pytest.mark.parametrize(
    ("facts", "gpus", "version", "message"),
    [
        (FACTS, {}, "11.4.0.106", "expected a GPU sm_90, found none here"),
        (FACTS, {0: H200}, "", "expected TensorRT 11.4.0.106, found none here"),
        (FACTS, {0: H200}, "11.4.1", r"expected TensorRT 11.4.0.106, which built it, found 11.4.1"),
        (FACTS, {0: L4}, "11.4.0.106", r"expected a GPU sm_90 such as NVIDIA H200, found NVIDIA L4 \(sm_89\)"),
        ({}, {0: H200}, "11.4.0.106", "expected a certificate that says what GPU"),
        ({"gpu": None, "tensorrt": "11"}, {0: H200}, "11", "expected a certificate that says what GPU"),
    ],
)
def test_a_plan_for_another_machine_is_refused(
    facts: Mapping[str, Any], gpus: Mapping[int, Gpu], version: str, message: str
) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        fitting(facts, gpus, version)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("architectures", "level", "expected"),
    [
        (["sm_90", "sm_90"], "none", True),
        (["sm_90", "sm_89"], "none", False),
        (["sm_90", "sm_89"], "same_compute_capability", False),
        (["sm_80", "sm_90", "sm_120"], "ampere_plus", True),
        (["sm_75", "sm_90"], "ampere_plus", False),
        (["sm_75", "sm_75"], "ampere_plus", True),
    ],
)
def test_which_gpus_one_plan_fits(architectures: list[str], level: str, expected: bool) -> None:
    assert together([Gpu("", one) for one in architectures], level) is expected


def test_a_plan_for_all_newer_gpus_is_opened_on_another_kind() -> None:
    facts = as_facts(H200, "11.4", "ampere_plus")
    assert fitting(facts, {0: Gpu("T4", "sm_75"), 1: L4}, "11.4") == 1


def test_unlike_gpus_are_taken_where_one_plan_fits_them(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus_here(monkeypatch, H200, L4)
    serving = {"engines": ["tensorrt"], "gpus": "all", "hardware_compatibility": "ampere_plus"}
    find_engine("tensorrt").require_buildable(spec(serving=serving))


def test_an_entry_without_a_gpu_says_that_the_server_has_to_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.shutil, "which", lambda _: None)
    with pytest.raises(EngineError, match="--url HOST:PORT"):
        find_engine("tensorrt").open(tmp_path, {}, FACTS)


def test_verify_tells_what_the_plan_needs_by_its_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.shutil, "which", lambda _: None)
    folder = tmp_path / "tiny_tensorrt"
    (folder / "1").mkdir(parents=True)
    write_config(engine_config(spec(serving={"gpus": "all"}), find_engine("tensorrt")), folder)
    entry = CertifiedEntry(folder, folder / "1", {"engine": "tensorrt", "precision_facts": FACTS})
    with pytest.raises(EngineError, match=r"expected a GPU sm_90, found none here.*--url"), _runner(entry, None):
        pass


def gpus_here(monkeypatch: pytest.MonkeyPatch, *found: Gpu) -> None:
    """What the driver says on a machine with these GPUs and TensorRT."""
    for module in (gpu, engine_module):
        monkeypatch.setattr(module, "visible_gpus", lambda: found)
    monkeypatch.setattr(engine_module, "here", lambda: "11.4.0.106")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_a_pytorch_that_sees_no_gpu_is_told_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus_here(monkeypatch, H200)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match=rf"PyTorch {re.escape(torch.__version__)} sees no GPU here; install"):
        find_engine("tensorrt").require_buildable(spec(serving={"engines": ["tensorrt"]}))


def test_unlike_gpus_are_refused_with_the_indices_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus_here(monkeypatch, H200, L4, L4)
    asked = spec(serving={"engines": ["tensorrt"], "gpus": "all"})
    with pytest.raises(SpecError, match=r"one architecture.*sm_90 \(gpus = \[0\]\).*sm_89 \(gpus = \[1, 2\]\)"):
        find_engine("tensorrt").require_buildable(asked)


@pytest.mark.parametrize("gpus", [[1, 2], [0]])
def test_alike_gpus_among_others_are_taken(gpus: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    gpus_here(monkeypatch, H200, L4, L4)
    find_engine("tensorrt").require_buildable(spec(serving={"engines": ["tensorrt"], "gpus": gpus}))


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus_here(monkeypatch, H200, L4)
    with pytest.raises(EngineError, match=r"the 2 GPUs that this machine shows, found \[2\]"):
        find_engine("tensorrt").require_buildable(spec(serving={"engines": ["tensorrt"], "gpus": [0, 2]}))
