"""Lays out the folder that tritonserver reads its backends from; knows nothing of models or processes."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from voxtile_server.errors import ServerError
from voxtile_server.install.fetch import make_once, short_hash

OURS = Path(__file__).parents[1] / "backends"
BACKENDS = {"onnxruntime": ("ort_session.py",), "openvino": ("ov_variants.py", "ov_pages.py")}
SHARED = ("batching.py", "entry.py", "serving.py")


def binary(triton: Path) -> Path:
    return triton / "pytriton" / "tritonserver" / "bin" / "tritonserver"


def libraries(triton: Path) -> Path:
    return triton / "nvidia_pytriton.libs"


def lay_out_backends(cache: Path, triton: Path) -> Path:
    """Triton's `python` backend for this interpreter, and our backends on top of it.

    They are copies: Triton refuses a symbolic link ("escapes backend directory").
    """
    files = dict(_files(triton))
    digest = short_hash(b"".join(target.encode() + _identity(source, triton) for target, source in files.items()))

    def copy(folder: Path) -> None:
        for target, source in files.items():
            (folder / target).parent.mkdir(exist_ok=True)
            shutil.copy(source, folder / target)

    return make_once(cache / f"backends-{digest}", copy, lambda folder: all((folder / t).is_file() for t in files))


def _files(triton: Path) -> Iterator[tuple[str, Path]]:
    """Target path in the backend folder, and the file to copy there."""
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
    for name, parts in BACKENDS.items():
        for part in ("model.py", *parts):
            yield f"{name}/{part}", OURS / name / part
        for shared in SHARED:
            yield f"{name}/{shared}", OURS / shared


def _identity(source: Path, triton: Path) -> bytes:
    """Ours count by content; those of the pinned wheel by their folder, whose name has the pin's hash."""
    return str(source).encode() if source.is_relative_to(triton) else source.read_bytes()
