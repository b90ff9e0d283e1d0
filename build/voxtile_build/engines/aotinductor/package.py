"""Compiles a program of torch.export into model.pt2, without paths of this machine in its files."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.export import ExportedProgram

from voxtile_build.engines.aotinductor import cpu
from voxtile_build.engines.aotinductor.exact import exact_float32
from voxtile_build.engines.aotinductor.interface import KEY, Interface, Tensor
from voxtile_build.engines.aotinductor.program import silence
from voxtile_build.errors import EngineError, reason_of

FILE = "model.pt2"
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip file can hold, so that its bytes do not depend on the time of the build."""


def compile_package(
    program: ExportedProgram, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], file: Path, device: str
) -> Interface:
    """Writes a package that Triton's `torch_aoti` runs, for this CPU's instructions or this GPU's architecture.

    Args:
        program: with its decompositions.
        inputs: of the program.
        outputs: of the program.
        file: the package.
        device: `cpu` or `cuda`.

    Returns:
        What the package says of itself.

    Raises:
        EngineError: PyTorch or the compiler refuses the program.
    """
    try:
        options = _options()
        interface = Interface(inputs, outputs, _instructions(options), torch.__version__)
        with tempfile.TemporaryDirectory() as folder, silence(), torch.no_grad(), exact_float32():
            made = torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(Path(folder) / FILE),
                inductor_configs={
                    "aot_inductor.metadata": {KEY: interface.as_text()},
                    # Line tables hold the folder that it was compiled in.
                    "aot_inductor.enable_line_tables": False,
                    # Otherwise the number of cores of this machine is in the code.
                    "cpp.dynamic_threads": True,
                    # `native`, the default, would use instructions that no list names.
                    **options,
                },
            )
            _copy_without_sources(Path(made), file)
    except Exception as error:  # PyTorch's many kinds, and the compiler's messages
        raise EngineError(
            f"{file.parent.parent.name}: AOTInductor cannot compile the network: {reason_of(error)}"
        ) from error
    return interface


def _options() -> dict[str, object]:
    """What the compiler is told about the CPU; releases of PyTorch before 2.13 only know `native`."""
    level = cpu.level(cpu.features())
    return {"cpp.march": level} if level and hasattr(torch._inductor.config.cpp, "march") else {}


def _instructions(options: Mapping[str, object]) -> tuple[str, ...]:
    """What a CPU must have for code compiled with `options`: of `native` all that this one has."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    if not options:
        return tuple(sorted(cpu.features()))
    return cpu.needed(str(options["cpp.march"]), pick_vec_isa().build_arch_flags())


def _copy_without_sources(made: Path, file: Path) -> None:
    """Copies a package. Of its C++ sources only the names stay, by which loaders find the library beside them."""
    with zipfile.ZipFile(made) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as target:
        for name in sorted(source.namelist()):
            content = b"" if name.endswith(".cpp") else _without_folders(source.read(name))
            target.writestr(zipfile.ZipInfo(name, EPOCH), content)


def _without_folders(content: bytes) -> bytes:
    """Messages of the library name sources by their paths: folders of this machine become as many slashes."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    for folder in {Path(torch.__file__).parents[1], Path(cache_dir())}:
        for path in {str(folder), str(folder.resolve())}:
            content = content.replace(path.encode(), b"/" * len(path.encode()))
    return content
