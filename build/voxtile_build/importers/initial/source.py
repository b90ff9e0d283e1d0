"""Says what a path holds: weights, a network in a file, a MONAI bundle, an nnU-Net folder, or none of these."""

from __future__ import annotations

import zipfile
from enum import Enum
from pathlib import Path

from voxtile_build.errors import SourceError
from voxtile_build.importers.nnunet.found import trained_folders
from voxtile_build.networks.fetched import not_fetched

TENSORS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pkl", ".tar", ".ts", ".pt2", ".onnx")
"""Endings of files that may hold weights or a network."""
SHOWN = 8
HEAD_BYTES = 64


class Kind(Enum):
    """What a source is."""

    WEIGHTS = "weights"
    NETWORK = "a network in a file"
    BUNDLE = "a MONAI bundle"


def find_source(path: Path) -> tuple[Kind, Path]:
    """What `path` is, and the file or folder to read: of a folder with one file of weights, that file.

    Raises:
        SourceError: it is nothing that a spec could be written of; the message says what it is, and what to do.
    """
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        raise SourceError(f"{path}: expected a file of weights, a bundle or a folder, found none; check the path")
    return _of_file(path), path


def _in_folder(path: Path) -> tuple[Kind, Path]:
    if (path / "configs").is_dir():
        return Kind.BUNDLE, path
    if (path / "plans.json").is_file() or (path / "dataset.json").is_file() or trained_folders(path):
        raise _is_nnunet(path)
    files = sorted(file for file in path.iterdir() if file.is_file() and file.suffix in TENSORS)
    if len(files) == 1:
        return _of_file(files[0]), files[0]
    inner = [one.name for one in path.iterdir() if (one / "configs").is_dir()]
    if inner:
        raise SourceError(f"{path}: a folder that holds the bundle {inner[0]}: give {path / inner[0]}")
    listed = ", ".join(file.name for file in files[:SHOWN]) + (", …" if len(files) > SHOWN else "")
    raise SourceError(
        f"{path}: expected a folder with one file of weights ({', '.join(TENSORS)}), a bundle's configs/ or nnU-Net's "
        f"plans.json, found {f'{len(files)} such files; give one of {listed}' if files else 'none of these'}"
    )


def _is_nnunet(path: Path) -> SourceError:
    return SourceError(
        f"{path}: a trained nnU-Net v2 model, which says all that a spec would say; no spec is needed: "
        f"voxtile-build nnunet {path} --name NAME --repository DIR"
    )


def _of_file(path: Path) -> Kind:
    try:
        with path.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from None
    _refuse_others(path, head)
    if zipfile.is_zipfile(path):
        return _of_zip(path)
    return Kind.NETWORK if path.suffix in (".onnx", ".pt2", ".ts") else Kind.WEIGHTS


def _refuse_others(path: Path, head: bytes) -> None:
    what = not_fetched(head)
    if what is None and path.suffix == ".toml":
        what = f"a spec already; see what it says with voxtile-build explain {path}"
    elif path.name.endswith((".nii", ".nii.gz", ".dcm", ".nrrd", ".mha", ".mgz")):
        what = "a scan; give the weights of the network"
    elif path.suffix in (".h5", ".hdf5", ".keras", ".pb", ".tflite", ".npz", ".mat"):
        what = f"a file of another framework ({path.suffix}); export the network to ONNX and give that file"
    if what:
        raise SourceError(f"{path}: expected weights of PyTorch, or a network in a file, found {what}")


def _of_zip(path: Path) -> Kind:
    """PyTorch's own files are zips, too."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return Kind.WEIGHTS  # reading it says what is wrong
    inner = {name.partition("/")[2] for name in names}
    if {"metadata.json", "configs/metadata.json"} & (inner | set(names)) and "data.pkl" not in inner:
        raise SourceError(f"{path}: a bundle in a zip; unpack it first, and give its folder: unzip {path}")
    if any(name.endswith("plans.json") for name in names):
        raise _is_nnunet(path)
    is_script = "constants.pkl" in inner
    if is_script and path.suffix not in (".pt", ".ts"):
        raise SourceError(f"{path}: TorchScript, whose name must end in .pt or .ts; rename it, and give that file")
    return Kind.NETWORK if is_script or path.suffix == ".pt2" else Kind.WEIGHTS
