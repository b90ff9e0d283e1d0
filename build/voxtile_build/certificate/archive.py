"""Stores the reference beside a certificate, so that an entry can be verified without weights and without PyTorch.

Holds tiles with their fp32 scores, and one scan with the masks that fp32 gives it. The size is limited: scores of large
tiles are thinned out, and of several scans only the smallest is stored, unless even that one is too large.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voxtile_build.arrays import Array
from voxtile_build.errors import VerificationError, reason_of
from voxtile_build.evaluation.evaluate import thinned
from voxtile_build.evaluation.metrics import masks
from voxtile_build.evaluation.samples import Scan
from voxtile_build.evaluation.tiles import Tile
from voxtile_build.spec.acceptance import Acceptance
from voxtile_build.spec.network import Network
from voxtile_build.spec.precision import Precision
from voxtile_build.spec.spec import Spec

SAMPLES = "samples.npz"
# Scores of all tiles together, and voxels of the scan; before compression.
TILE_BYTES = 16 * 2**20
SCAN_BYTES = 64 * 2**20
MOST_BYTES = 4 * 2**30
"""Of all arrays together; a file that unpacks to more was not written here."""


@dataclass(frozen=True)
class Stored:
    """A reference as it is stored.

    Attributes:
        spec: the parts of the spec that are needed.
        tiles: tiles with their fp32 scores [score, *roi] of every `stride`-th voxel of each axis.
        stride: see `tiles`.
        spacing: mm of a voxel of the scan that the tiles were cut from.
        scan: a scan with the masks [label, *spatial] that fp32 gives it; None where it was too large to be stored.
    """

    spec: Spec
    tiles: tuple[tuple[Tile, Array], ...]
    stride: int
    spacing: tuple[float, ...]
    scan: tuple[Scan, Array] | None


def pack(spec: Spec, tiles: Sequence[tuple[Tile, Array]], scans: Sequence[tuple[Scan, Array]]) -> bytes:
    """The bytes of an .npz file with the reference; the same reference gives the same bytes.

    Args:
        spec: the model.
        tiles: tiles with their fp32 scores [score, *roi].
        scans: scans with their stitched fp32 scores [score, *spatial].
    """
    stride = _stride(tiles)
    scan, scores = min(scans, key=lambda pair: pair[0].volume.nbytes)
    kept = scan.volume.nbytes <= SCAN_BYTES
    settings = {
        "spec": json.loads(_without_paths(spec).model_dump_json()),
        "tiles": [tile.name for tile, _ in tiles],
        "stride": stride,
        "spacing": list(scans[0][0].spacing),
        "scan": {"name": scan.name, "spacing": list(scan.spacing)} if kept else None,
    }
    arrays: dict[str, Array] = {"settings": np.frombuffer(json.dumps(settings).encode(), np.uint8)}
    for index, (tile, expected) in enumerate(tiles):
        arrays[f"roi_{index}"], arrays[f"statistics_{index}"] = tile.roi, tile.statistics
        arrays[f"scores_{index}"] = thinned(expected, stride)
    if kept:
        arrays["volume"], arrays["volume_statistics"] = scan.volume, scan.statistics
        found = masks(scores, spec.output)
        arrays["masks"], arrays["masks_shape"] = np.packbits(found), np.array(found.shape)
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def unpack(path: Path) -> Stored:
    """The reference in a file.

    Raises:
        VerificationError: there is no such file, or it is damaged.
    """
    try:
        # The bytes are read first, because NumPy leaves the file of a damaged archive open.
        content = io.BytesIO(path.read_bytes())
        with zipfile.ZipFile(content) as archive:
            size = sum(part.file_size for part in archive.infolist())
        if size > MOST_BYTES:
            raise ValueError(f"it unpacks to {size:,} bytes, more than any stored reference")
        with np.load(content, allow_pickle=False) as arrays:
            return _stored({name: arrays[name] for name in arrays.files})
    except Exception as error:  # damaged archives raise many kinds of errors
        raise VerificationError(
            f"{path}: expected the stored reference of the certificate beside it, found what cannot be read: "
            f"{reason_of(error)}; build the entry again"
        ) from None


def _stored(arrays: dict[str, Array]) -> Stored:
    settings = json.loads(arrays["settings"].tobytes().decode())
    tiles = tuple(
        (Tile(name, arrays[f"roi_{index}"], arrays[f"statistics_{index}"]), arrays[f"scores_{index}"])
        for index, name in enumerate(settings["tiles"])
    )
    kept, scan = settings["scan"], None
    if kept is not None:
        shape = tuple(int(size) for size in arrays["masks_shape"])
        found = np.unpackbits(arrays["masks"], count=math.prod(shape)).reshape(shape).astype(bool)
        scan = Scan(kept["name"], arrays["volume"], arrays["volume_statistics"], tuple(kept["spacing"])), found
    # A fold is called as no public model may be, such as `brain_fold_0`.
    name = str(settings["spec"]["name"])
    spec = Spec.model_validate_json(json.dumps({**settings["spec"], "name": "stored"})).model_copy(
        update={"name": name}
    )
    return Stored(spec, tiles, settings["stride"], tuple(settings["spacing"]), scan)


def _stride(tiles: Sequence[tuple[Tile, Array]]) -> int:
    stride = 1
    while sum(thinned(scores, stride).nbytes for _, scores in tiles) > TILE_BYTES:
        stride += 1
    return stride


def _without_paths(spec: Spec) -> Spec:
    """The spec without file names, which mean nothing on another machine."""
    changes = {
        "network": Network(name=spec.network.name or "file"),
        "weights": None,
        "acceptance": Acceptance(),
        "precision": Precision(),
        "nnunet": None,
    }
    return spec.model_copy(update=changes)
