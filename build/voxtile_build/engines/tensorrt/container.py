"""Where to build a TensorRT plan when this machine cannot: the image whose TensorRT is the server's own."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from voxtile_build.engines.tensorrt.errors import TensorRtError

# Both images of one release carry the same TensorRT, which is all that a plan's validity asks for.
BUILD_IMAGE = "nvcr.io/nvidia/tensorrt:{release}-py3"
SERVER_IMAGE = "nvcr.io/nvidia/tritonserver:{release}-py3"
DEFAULT_RELEASE = "26.01"


def container_command(
    arguments: Sequence[str], checkout: Path, release: str = DEFAULT_RELEASE, gpu: str = "all"
) -> str:
    """The docker command that runs `voxtile-build ARGUMENTS` with the TensorRT of that Triton release.

    `checkout` is mounted as the working directory, so paths in `arguments` are relative to it. `gpu` is `all`
    or one index: a plan belongs to the architecture that it was built on. Raises TensorRtError.
    """
    if not re.fullmatch(r"\d\d\.\d\d", release):
        raise TensorRtError(f"Expected a Triton release as YY.MM (for example {DEFAULT_RELEASE}), got '{release}'.")
    build = f"pip install --quiet ./build && {shlex.join(['voxtile-build', *arguments])}"
    devices = gpu if gpu == "all" else f"device={gpu}"
    mounts = ("--volume", f"{checkout.resolve()}:/voxtile", "--workdir", "/voxtile")
    image = BUILD_IMAGE.format(release=release)
    return shlex.join(["docker", "run", "--rm", "--gpus", devices, *mounts, image, "bash", "-c", build])


def container_advice(missing: str, arguments: Sequence[str], checkout: Path, release: str = DEFAULT_RELEASE) -> str:
    """What to tell a user whose machine lacks `missing` ("a GPU", "TensorRT"): the image and the command."""
    return (
        f"A TensorRT plan cannot be built here: {missing} is missing. A plan fits one "
        "TensorRT version and one GPU architecture, so build it on the GPU machine that will serve it, in "
        f"{BUILD_IMAGE.format(release=release)} "
        f"(same TensorRT as {SERVER_IMAGE.format(release=release)}):\n\n"
        f"  {container_command(arguments, checkout, release)}\n\n"
        "Without it, NAME_onnxruntime builds the engine itself on the server's first start."
    )
