"""The readers under test: for each, valid inputs, how an input is changed, and how the reader is called with one.

An input is bytes. Where the reader takes a document, the bytes are JSON, from which the reader's own files are made;
bytes that are no JSON go to the reader as they are.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from tests.fuzz import seeds
from tests.fuzz.documents import changed, text_of

MODEL_WEIGHTS = b"weights of a bundle are looked at later"


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        name: as it is called on the command line.
        seeds: valid inputs.
        change: changes an input; `rng` chooses how.
        read: reads an input, in an empty folder of its own; raises what the reader raises.
        errors: the errors that the reader may raise.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    change: Callable[[bytes, random.Random], bytes]
    read: Callable[[bytes, Path], object]
    errors: Callable[[], tuple[type[Exception], ...]]


# Documents -----------------------------------------------------------------------------------------------------


def _document(data: bytes) -> Any:
    """The document that an input holds; None where it is no JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def change_document(data: bytes, rng: random.Random) -> bytes:
    """Changes the document; one time in ten the bytes."""
    document = _document(data)
    if document is None or rng.random() < 0.1:
        return change_bytes(data, rng)
    try:
        return text_of(changed(document, rng))
    except RecursionError:  # deep enough for the reader, too deep for us
        return change_bytes(data, rng)


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flips bits, cuts, or repeats a part."""
    damaged = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 2, 5, 40))):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    if rng.random() < 0.2:
        del damaged[rng.randrange(len(damaged) + 1) :]
    if rng.random() < 0.1:
        first, last = sorted(rng.randrange(len(damaged) + 1) for _ in range(2))
        damaged[first:first] = damaged[first:last]
    return bytes(damaged)


def toml_of(document: dict[str, Any]) -> str:
    """A document as TOML; what TOML has no word for, such as null, becomes a string."""
    return "".join(f"{json.dumps(str(key))} = {_toml(value)}\n" for key, value in document.items())


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, bool | int):
        return json.dumps(value)
    return json.dumps(str(value)).replace("\x7f", "\\u007f")


# The readers ---------------------------------------------------------------------------------------------------


def _read_nifti(data: bytes, folder: Path) -> object:
    from voxtile.io.scan import open_scan

    path = folder / ("scan.nii.gz" if data[:2] == b"\x1f\x8b" else "scan.nii")
    path.write_bytes(data)
    volume = open_scan([path], ["any"])
    return volume.data.sum()


def _change_nifti(data: bytes, rng: random.Random) -> bytes:
    """Sets fields of the header to odd values of their types; sometimes changes bytes, also compressed ones."""
    packed = data[:2] == b"\x1f\x8b"
    if rng.random() < 0.2:
        return change_bytes(data, rng)
    try:
        content = gzip.decompress(data) if packed else data
    except (OSError, EOFError, ValueError, zlib.error):
        return change_bytes(data, rng)
    header = _header_of(content)
    if header is None:
        return change_bytes(data, rng)
    with np.errstate(all="ignore"):
        for _ in range(rng.randint(1, 3)):
            _set_odd_field(header, rng)
    content = header.tobytes() + content[header.nbytes :]
    return gzip.compress(content, 1, mtime=0) if packed else content


def _header_of(content: bytes) -> Any:
    """The header as a structured array that may be written to; None where there is none."""
    for klass in (nib.Nifti1Header, nib.Nifti2Header):
        for order in "<>":
            dtype = klass.template_dtype.newbyteorder(order)
            if len(content) >= dtype.itemsize:
                header = np.frombuffer(content[: dtype.itemsize], dtype).copy()
                if int(header["sizeof_hdr"][0]) == klass.sizeof_hdr:
                    return header
    return None


ODD_NUMBERS = (
    0,
    -1,
    1,
    2,
    3,
    4,
    7,
    16,
    255,
    32_767,
    -32_768,
    65_536,
    2**31 - 1,
    2**40,
    2**62,
    1e-30,
    1e30,
    -1e30,
    float("nan"),
    float("inf"),
)


def _set_odd_field(header: Any, rng: random.Random) -> None:
    field = rng.choice(header.dtype.names)
    entry = header[field]
    if entry.dtype.kind == "S":
        header[field] = bytes(rng.randrange(256) for _ in range(rng.randint(0, entry.dtype.itemsize)))
        return
    value = rng.choice(ODD_NUMBERS)
    if entry.dtype.kind in "iu":
        limits = np.iinfo(entry.dtype)
        value = 0 if value != value else int(min(max(value, limits.min), limits.max))
    flat = entry.reshape(-1)
    flat[rng.randrange(flat.size)] = value


def _change_scan(data: bytes, rng: random.Random) -> bytes:
    """Changes a word of a header of text, a number of a binary one, or any bytes."""
    end = max(data.find(b"\n\n"), data.find(b"LOCAL\n"))
    if end < 0 or rng.random() < 0.3:
        near = min(len(data), 400) if rng.random() < 0.7 else len(data)
        return change_bytes(data[:near], rng) + data[near:]
    words = data[:end].split(b" ")
    for _ in range(rng.randint(1, 3)):
        words[rng.randrange(len(words))] = rng.choice(ODD_WORDS)
    return b" ".join(words) + data[end:]


ODD_WORDS = (
    *(b"", b"0", b"-1", b"1", b"3", b"4", b"99999999999", b"1e300", b"nan", b"inf", b"none", b"(0,0,0)", b"(1,0"),
    *(b"domain", b"RGB-color", b"\n", b":", b"=", b"raw", b"gzip", b"ascii", b"True", b"/dev/zero", b"..", b"LIST"),
    b"x" * 5000,
)


def _read_scan(data: bytes, folder: Path) -> object:
    """The content under the name of each format that its first bytes may be; beside it, voxels of a pair."""
    from voxtile.io.given import Given
    from voxtile.io.scan import open_scan

    for name in ("scan.img", "scan.raw.gz", "scan.zraw"):
        (folder / name).write_bytes(data[-500:])
    path = folder / ("scan.hdr" if data[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c") else "scan.mgz")
    path.write_bytes(data)
    said = (Given(), Given(0, 0, 0, "LPS"), Given(0, 0, 0, "LPS", (1, 1, 1)))
    for given in said[:-1]:
        with suppress(*_client_errors()):
            return open_scan([path], ["any"], given=given).data.sum()
    return open_scan([path], ["any"], given=said[-1]).data.sum()


def _read_card(data: bytes, folder: Path) -> object:
    from voxtile.card import parse_card

    return parse_card(data.decode("utf-8", "replace"), "model")


def _read_spec(data: bytes, folder: Path) -> object:
    from voxtile_build.spec.spec import load_spec

    document = _document(data)
    path = folder / "model.toml"
    try:
        path.write_bytes(toml_of(document).encode("utf-8", "replace") if isinstance(document, dict) else data)
    except RecursionError:  # deep enough for the reader, too deep for us
        path.write_bytes(b"a = " + b"[" * 5000)
    return load_spec(path)


def _read_nnunet(data: bytes, folder: Path) -> object:
    """The folder's JSON files beside a sound checkpoint; then the network that the plans describe, without weights."""
    import torch

    from voxtile_build.importers.nnunet.models import models_of

    document = _document(data)
    parts = document if isinstance(document, dict) else {"dataset": seeds.DATASET}
    place = folder / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (place / "fold_0").mkdir(parents=True)
    for name, sound in (("dataset", seeds.DATASET), ("plans", seeds.PLANS)):
        (place / f"{name}.json").write_bytes(text_of(parts.get(name, sound)) if document is not None else data)
    torch.save(
        _checkpoint_of({**seeds.CHECKPOINT, "init_args": {"configuration": "3d_fullres"}}),
        place / "fold_0" / "checkpoint_final.pth",
    )
    return models_of(place, "model")


def _checkpoint_of(document: Any) -> Any:
    """A document as Python objects: {"tensor": shape} becomes a tensor of zeros."""
    import torch

    if isinstance(document, dict):
        shape = document.get("tensor")
        if len(document) == 1 and isinstance(shape, list) and all(type(n) is int and 0 <= n < 100 for n in shape[:4]):
            return torch.zeros(shape[:4])
        return {key: _checkpoint_of(value) for key, value in document.items()}
    return [_checkpoint_of(one) for one in document] if isinstance(document, list) else document


def _checkpoint_seeds() -> list[bytes]:
    import torch

    stream = io.BytesIO()
    torch.save(_checkpoint_of(seeds.CHECKPOINT), stream)
    old = io.BytesIO()
    torch.save(_checkpoint_of(seeds.CHECKPOINT), old, _use_new_zipfile_serialization=False)
    return [text_of(seeds.CHECKPOINT), stream.getvalue(), old.getvalue()]


def _change_checkpoint(data: bytes, rng: random.Random) -> bytes:
    """Changes the document; of a file, the pickle in it, or any bytes."""
    if _document(data) is not None:
        return change_document(data, rng)
    if rng.random() < 0.7:
        try:
            return _with_changed_pickle(data, rng)
        except (zipfile.BadZipFile, ValueError, RuntimeError, NotImplementedError, OSError, EOFError, KeyError):
            pass
    return change_bytes(data, rng)


def _with_changed_pickle(data: bytes, rng: random.Random) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as new:
        for entry in old.namelist():
            content = old.read(entry)
            new.writestr(entry, change_bytes(content, rng) if entry.endswith("data.pkl") else content)
    return packed.getvalue()


def _write_checkpoint(data: bytes, path: Path) -> None:
    import torch

    document = _document(data)
    try:
        if document is not None:
            torch.save(_checkpoint_of(document), path)
            return
    except RecursionError:  # too deep for us
        pass
    path.write_bytes(data)


def _read_checkpoint(data: bytes, folder: Path) -> object:
    from voxtile_build.importers.nnunet.checkpoint import read_checkpoint

    path = folder / "checkpoint_final.pth"
    _write_checkpoint(data, path)
    return read_checkpoint(path, "0")


def _read_weights(data: bytes, folder: Path) -> object:
    from voxtile_build.networks.weights import read_state

    path = folder / "weights.pt"
    _write_checkpoint(data, path)
    return read_state(path)


def _read_bundle(data: bytes, folder: Path) -> object:
    from voxtile_build.importers.bundle.bundle import spec_of

    document = _document(data)
    (folder / "configs").mkdir()
    (folder / "models").mkdir()
    (folder / "models" / "model.pt").write_bytes(MODEL_WEIGHTS)
    parts = document if isinstance(document, dict) else {}
    for name, sound in (("metadata", seeds.METADATA), ("inference", seeds.INFERENCE)):
        ending = "yaml" if document is None else "json"
        (folder / "configs" / f"{name}.{ending}").write_bytes(
            data if document is None else text_of(parts.get(name, sound))
        )
    return spec_of(folder, "model")


def _client_errors() -> tuple[type[Exception], ...]:
    from voxtile.errors import VoxtileError

    return (VoxtileError,)


def _build_errors() -> tuple[type[Exception], ...]:
    from voxtile_build.errors import BuildError

    return (BuildError,)


def _texts(documents: Sequence[Any]) -> Callable[[], Sequence[bytes]]:
    return lambda: [text_of(document) for document in documents]


TARGETS = {
    target.name: target
    for target in (
        Target("nifti", seeds.nifti_files, _change_nifti, _read_nifti, _client_errors),
        Target("formats", seeds.scans_of_formats, _change_scan, _read_scan, _client_errors),
        Target("card", _texts(seeds.CARDS), change_document, _read_card, _client_errors),
        Target("spec", _texts(seeds.SPECS), change_document, _read_spec, _build_errors),
        Target("nnunet", _texts(seeds.NNUNET), change_document, _read_nnunet, _build_errors),
        Target("checkpoint", _checkpoint_seeds, _change_checkpoint, _read_checkpoint, _build_errors),
        Target("weights", _checkpoint_seeds, _change_checkpoint, _read_weights, _build_errors),
        Target("bundle", _texts(seeds.BUNDLES), change_document, _read_bundle, _build_errors),
    )
}
