"""What compiling a package needs on this machine, and what to do where it is missing. Loads no PyTorch."""

from __future__ import annotations

import os
import shutil

from voxtile_build.engines.gpu import visible_gpu
from voxtile_build.engines.release import PYTORCH_IMAGE, SERVER_IMAGE
from voxtile_build.errors import ContainerNeeded, EngineError
from voxtile_build.spec.spec import Spec


def require_compiler(name: str) -> None:
    """Checks that there is a C++ compiler; `name`: of the model, for the error.

    Raises:
        EngineError: there is none.
    """
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        raise EngineError(
            f"{name}: AOTInductor compiles with the C++ compiler {compiler!r}, which is not on the PATH: install it "
            "(Debian, Ubuntu: apt install g++), name another one in the variable CXX, or take aotinductor out of the "
            "engines"
        )


def require_gpu(spec: Spec) -> None:
    """Checks that PyTorch sees a GPU.

    Raises:
        ContainerNeeded: it sees none.
    """
    import torch

    if torch.cuda.is_available():
        return
    missing = "a GPU" if visible_gpu() is None else f"a PyTorch that sees the GPU (this one is {torch.__version__})"
    raise ContainerNeeded(
        f"{spec.name}: serving.gpus asks for GPUs; a package cannot be compiled for them here: {missing} is missing. "
        "A package fits one architecture and one PyTorch, so build on the GPU machine that will serve, in "
        f"{PYTORCH_IMAGE} (the PyTorch of {SERVER_IMAGE}), or set serving.gpus = 'none' for the CPU",
        PYTORCH_IMAGE,
        spec.files,
    )
