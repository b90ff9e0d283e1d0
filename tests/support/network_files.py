"""Networks as files of every kind that the build opens, and zip archives whose members are changed."""

from __future__ import annotations

import functools
import hashlib
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.build_specs import ROI, fields, tiny_unet
from voxtile_build.graph.torch_to_onnx import export
from voxtile_build.spec.spec import Spec, parse_spec

Write = Callable[[nn.Module, Path], Path]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def spec_of(file: Path, head: int | None = None, **changes: Any) -> Spec:
    """The small spec with the network of `file` in place of the UNet by name."""
    given = fields(**{"input": {"intensity": {"rule": "range", "a_min": 0.0, "a_max": 2.0}}, **changes})
    given["network"] = {"file": file.name, "sha256": sha256(file)} | ({} if head is None else {"head": head})
    return parse_spec(given, "tiny.toml", file.parent)


def write_onnx(network: nn.Module, path: Path, opset: int = 20, ir_version: int = 10) -> Path:
    model = export(
        network, (torch.zeros(2, 1, *ROI),), input_names=("x",), output_names=("y",), opset=opset, ir_version=ir_version
    )
    path.write_bytes(model.SerializeToString())
    return path


def write_traced(network: nn.Module, path: Path, roi: tuple[int, ...] = ROI) -> Path:
    trace: Any = torch.jit.trace  # it has no types
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(trace(network, torch.zeros(1, 1, *roi)), path)
    return path


def write_scripted(network: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(network), path)
    return path


def write_exported(network: nn.Module, path: Path, batch: int | None = None) -> Path:
    free = None if batch else ({0: torch.export.Dim("b")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (torch.zeros(batch or 2, 1, *ROI),), dynamic_shapes=free)
        torch.export.save(program, path)
    return path


KINDS: list[Any] = [
    pytest.param(write_onnx, "net.onnx", id="onnx"),
    pytest.param(write_traced, "net.pt", id="traced"),
    pytest.param(write_scripted, "net.ts", id="scripted"),
    pytest.param(write_exported, "net.pt2", id="exported"),
]
NAMES = [parameter.values[1] for parameter in KINDS]


@functools.cache
def tiny_bytes(name: str) -> bytes:
    """The small UNet as a file called `name`, made once."""
    write = {parameter.values[1]: parameter.values[0] for parameter in KINDS}[name]
    with tempfile.TemporaryDirectory() as folder:
        written: Path = write(tiny_unet(), Path(folder) / name)
        return written.read_bytes()


def tiny(path: Path) -> Path:
    """The small UNet, written to `path`, whose name says in what form."""
    path.write_bytes(tiny_bytes(path.name))
    return path


def repacked(path: Path, change: Callable[[str, bytes], bytes], extra: dict[str, bytes] | None = None) -> Path:
    """The zip `path` with each member's bytes changed, and more members."""
    with zipfile.ZipFile(path) as archive:
        folds = {name: change(name, archive.read(name)) for name in archive.namelist()}
    root = next(iter(folds)).partition("/")[0]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {**folds, **{f"{root}/{name}": data for name, data in (extra or {}).items()}}.items():
            archive.writestr(name, data)
    return path
