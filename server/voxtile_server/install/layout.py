"""Lays out the folder from which tritonserver reads its backends; knows nothing of models or processes."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from voxtile_server.errors import ServerError
from voxtile_server.install.fetch import make_once, short_hash

OURS = Path(__file__).parents[1] / "backends"
PACKAGE = "voxtile_backends"
# What Triton's stub loads for a Python-based backend: a file, not a module of a package.
MODEL = "from {package}.{backend}.model import TritonPythonModel\n"


def binary(triton: Path) -> Path:
    """The tritonserver program in the fetched folder."""
    return triton / "pytriton" / "tritonserver" / "bin" / "tritonserver"


def libraries(triton: Path) -> Path:
    """The folder of the shared libraries that tritonserver needs."""
    return triton / "nvidia_pytriton.libs"


def backend_names() -> list[str]:
    """The names of our backends: the folders that have a model.py."""
    return sorted(path.parent.name for path in OURS.glob("*/model.py"))


def served_backends() -> list[str]:
    """The names of all backends that are laid out: ours, and Triton's for models in Python."""
    return ["python", *backend_names()]


def lay_out_backends(cache: Path, triton: Path) -> Path:
    """Make the backend folder: Triton's `python` backend for this interpreter, and our backends.

    Our package lies in the `python` backend's folder: every stub looks there for `triton_python_backend_utils`, and so
    finds the package too. All are copies, because Triton refuses a symbolic link ("escapes backend directory").

    Args:
        cache: where the folder is made; its name has a hash of what it holds.
        triton: the fetched folder with the `pytriton` package.

    Raises:
        ServerError: a file of the fetched server is missing.
    """
    theirs, ours = dict(_theirs(triton)), dict(_ours())
    # Their files are those of the pinned wheel, and its folder's name has the pin's hash.
    content = {target: str(source).encode() for target, source in theirs.items()} | ours
    digest = short_hash(b"".join(target.encode() + data for target, data in content.items()))

    def make(folder: Path) -> None:
        for target in content:
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
        for target, source in theirs.items():
            shutil.copy(source, folder / target)
        for target, data in ours.items():
            (folder / target).write_bytes(data)

    return make_once(cache / f"backends-{digest}", make, lambda folder: all((folder / t).is_file() for t in content))


def _theirs(triton: Path) -> Iterator[tuple[str, Path]]:
    """The files of Triton's `python` backend: the path in the backend folder, and the file to copy there."""
    inside = triton / "pytriton" / "tritonserver"
    stub = inside / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}"
    for source in (
        inside / "backends" / "python" / "libtriton_python.so",
        inside / "backends" / "python" / "triton_python_backend_utils.py",
        stub / "triton_python_backend_stub",
    ):
        if not source.is_file():
            raise ServerError(f"{source} is missing: the fetched server is damaged; remove {triton} and start again")
        yield f"python/{source.name}", source


def _ours() -> Iterator[tuple[str, bytes]]:
    """Our backends: the path in the backend folder, and what the file holds."""
    for source in sorted(OURS.rglob("*.py")):
        yield f"python/{PACKAGE}/{source.relative_to(OURS)}", source.read_bytes()
    for backend in backend_names():
        yield f"{backend}/model.py", MODEL.format(package=PACKAGE, backend=backend).encode()
