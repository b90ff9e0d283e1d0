"""Which GPUs this machine has, and which of them programs see."""

from __future__ import annotations

from pathlib import Path

import pytest

from voxtile_build.engines.gpu import VISIBLE, visible_gpus

H200, L4, L4_AGAIN = "GPU-1a00", "GPU-2b00", "GPU-2b11"
ANSWER = f"{H200}, NVIDIA H200, 9.0\n{L4}, NVIDIA L4, 8.9\n{L4_AGAIN}, NVIDIA L4, 8.9\n"


def tool(folder: Path, answer: str, code: int = 0) -> str:
    """A driver's tool that gives this answer: no machine of the tests has the GPUs."""
    path = folder / "smi"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}END\nexit {code}\n")
    path.chmod(0o755)
    return str(path)


def uuids(path: str) -> list[str]:
    return [gpu.uuid for gpu in visible_gpus(path)]


@pytest.fixture(autouse=True)
def _nothing_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VISIBLE, raising=False)


def test_gpus_are_read_from_the_drivers_tool(tmp_path: Path) -> None:
    first, *others = visible_gpus(tool(tmp_path, ANSWER))
    assert (first.name, first.architecture, first.capability, first.uuid) == ("NVIDIA H200", "sm_90", "9.0", H200)
    assert [gpu.architecture for gpu in others] == ["sm_89", "sm_89"]


def test_an_architecture_of_three_digits_has_a_capability_too(tmp_path: Path) -> None:
    (gpu,) = visible_gpus(tool(tmp_path, "GPU-3c, NVIDIA RTX PRO 6000, 12.0\n"))
    assert (gpu.architecture, gpu.capability) == ("sm_120", "12.0")


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("1", [L4]),
        ("2,0", [L4_AGAIN, H200]),
        ("", []),
        ("-1", []),
        ("1,-1,2", [L4]),  # the rest is hidden
        ("7,0", []),
        ("0,0", [H200]),
        (L4_AGAIN, [L4_AGAIN]),
        ("GPU-1a, 1", [H200, L4]),
        ("GPU-2b", []),  # which of two?
        ("NoDevFiles", []),
        ("MIG-5d", []),  # a part of which?
    ],
)
def test_what_is_hidden_from_programs_is_not_seen(
    variable: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VISIBLE, variable)
    assert uuids(tool(tmp_path, ANSWER)) == expected


def test_a_part_of_a_gpu_is_one_where_all_are_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "MIG-5d")
    (gpu,) = visible_gpus(tool(tmp_path, f"{H200}, NVIDIA H200, 9.0\n"))
    assert (gpu.architecture, gpu.uuid) == ("sm_90", "MIG-5d")


@pytest.mark.parametrize(("answer", "code"), [("No devices were found\n", 6), ("No devices were found\n", 0), ("", 0)])
def test_a_tool_that_finds_nothing_means_no_gpu(answer: str, code: int, tmp_path: Path) -> None:
    assert visible_gpus(tool(tmp_path, answer, code)) == ()


def test_no_tool_means_no_gpu(tmp_path: Path) -> None:
    assert visible_gpus(str(tmp_path / "absent")) == ()
