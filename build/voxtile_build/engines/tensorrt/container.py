"""Where to build a TensorRT plan if this machine cannot: the image with the server's own TensorRT."""

import shlex
from collections.abc import Sequence
from pathlib import Path

RELEASE = "26.01"
"""Of Triton. Both images of a release have the same TensorRT, which is all that a plan needs."""

BUILD_IMAGE = f"nvcr.io/nvidia/tensorrt:{RELEASE}-py3"
SERVER_IMAGE = f"nvcr.io/nvidia/tritonserver:{RELEASE}-py3"


def container_command(arguments: Sequence[str], checkout: Path) -> str:
    """The docker command that runs `voxtile-build ARGUMENTS` in the image.

    `checkout` is mounted as the working directory: paths in `arguments` are relative to it.
    """
    build = f"pip install --quiet ./build && {shlex.join(['voxtile-build', *arguments])}"
    mounts = ("--volume", f"{checkout.resolve()}:/voxtile", "--workdir", "/voxtile")
    return shlex.join(["docker", "run", "--rm", "--gpus", "all", *mounts, BUILD_IMAGE, "bash", "-c", build])


def container_advice(missing: str, arguments: Sequence[str], checkout: Path) -> str:
    """What to tell a user whose machine lacks `missing` ("a GPU", "TensorRT"): the image and the command."""
    return (
        f"A TensorRT plan cannot be built here: {missing} is missing. A plan fits one TensorRT version and one GPU "
        f"architecture, so build it on the GPU machine that will serve it, in {BUILD_IMAGE} (same TensorRT as "
        f"{SERVER_IMAGE}):\n\n"
        f"  {container_command(arguments, checkout)}\n\n"
        "Without it, NAME_onnxruntime builds the engine itself on the server's first start."
    )
