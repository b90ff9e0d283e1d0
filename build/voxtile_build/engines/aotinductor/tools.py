"""What compiling a package needs on this machine, and what to do where it is missing. Loads no PyTorch."""

from __future__ import annotations

import os
import shutil

from voxtile_build.engines.gpu import visible_gpu
from voxtile_build.errors import EngineError

RELEASE = "26.07"
"""Of Triton: the first whose `torch_aoti` takes batches."""

BUILD_IMAGE = f"nvcr.io/nvidia/pytorch:{RELEASE}-py3"
"""Has the PyTorch of SERVER_IMAGE, which runs the package."""
SERVER_IMAGE = f"nvcr.io/nvidia/tritonserver:{RELEASE}-py3"


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


def require_gpu(name: str) -> None:
    """Checks that PyTorch sees a GPU; `name`: of the model, for the error.

    Raises:
        EngineError: it sees none.
    """
    import torch

    if torch.cuda.is_available():
        return
    missing = "a GPU" if visible_gpu() is None else f"a PyTorch that sees the GPU (this one is {torch.__version__})"
    raise EngineError(
        f"{name}: serving.gpus asks for GPUs, and a package for them cannot be compiled here: {missing} is missing. A "
        f"package fits one architecture and one PyTorch, so build on the GPU machine that will serve, in {BUILD_IMAGE} "
        f"(the PyTorch of {SERVER_IMAGE}), or set serving.gpus = 'none' for the CPU"
    )
